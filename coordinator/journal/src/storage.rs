//! Where the bytes of a journal are kept.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::OpenError;

/// What a journal needs of its file; a trait so that tests can let every call fail.
pub trait Storage: Send + Sync {
    /// In bytes.
    fn size(&mut self) -> io::Result<u64>;

    /// Everything, from the start.
    fn read(&mut self) -> io::Result<Vec<u8>>;

    /// Writes some of `bytes` and says how many; fewer than asked is not an error.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<usize>;

    fn truncate(&mut self, len: u64) -> io::Result<()>;

    /// `fdatasync`: the bytes, and the length if they made the file longer.
    fn sync_data(&mut self) -> io::Result<()>;

    /// `fsync`.
    fn sync_all(&mut self) -> io::Result<()>;

    /// `fsync` of the folder, which makes the file's name durable.
    fn sync_folder(&mut self) -> io::Result<()>;
}

/// A file, locked for as long as this value lives.
#[derive(Debug)]
pub struct FileStorage {
    file: File,
    folder: PathBuf,
}

impl FileStorage {
    /// Opens or creates the file, readable by its owner alone: a ledger holds the definitions of
    /// fenced VMs, which may contain passwords.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let io = |source| OpenError::Io { doing: "open it", source };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(io)?;
        // flock(2): released by the kernel when the process ends, however it ends.
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::Locked),
            Err(TryLockError::Error(cause)) => return Err(io(cause)),
        }
        let folder = match path.parent() {
            Some(parent) if parent != Path::new("") => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        Ok(Self { file, folder })
    }
}

impl Storage for FileStorage {
    fn size(&mut self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.file.seek(SeekFrom::Start(0))?;
        self.file.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_at(bytes, offset)
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn sync_all(&mut self) -> io::Result<()> {
        self.file.sync_all()
    }

    fn sync_folder(&mut self) -> io::Result<()> {
        File::open(&self.folder)?.sync_all()
    }
}
