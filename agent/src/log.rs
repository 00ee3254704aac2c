//! The agent's log: bounded, and silent towards disks while they are frozen.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::session::lock;

/// The log lies in memory (tmpfs): two files of this size at most.
const FILE_MAX: u64 = 512 << 10;

/// What is kept in memory while nothing may be written; what comes after that is lost.
const HELD_MAX: usize = 64 << 10;

/// A log file that starts anew when it is full, keeping the one before as `….1`.
#[derive(Clone, Debug)]
pub struct Log {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    file: File,
    len: u64,
    /// `Some`: nothing may be written to any file system now.
    held: Option<Vec<u8>>,
}

impl Log {
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = open(path)?;
        let len = file.metadata()?.len();
        let inner = Inner { path: path.to_owned(), file, len, held: None };
        Ok(Self { inner: Arc::new(Mutex::new(inner)) })
    }

    /// Keeps lines in memory until [`Log::release`]. The memory is taken now.
    pub fn hold(&self) {
        lock(&self.inner).held.get_or_insert_with(|| Vec::with_capacity(HELD_MAX));
    }

    pub fn release(&self) {
        let mut inner = lock(&self.inner);
        if let Some(held) = inner.held.take() {
            // A log that cannot be written has no one to tell.
            let _written = inner.append(&held);
        }
    }

    /// Where the full file before this one is kept.
    pub fn path_of_previous(path: &Path) -> PathBuf {
        let mut name = path.as_os_str().to_owned();
        name.push(".1");
        PathBuf::from(name)
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

impl Inner {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let added = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if self.len.saturating_add(added) > FILE_MAX {
            fs::rename(&self.path, Log::path_of_previous(&self.path))?;
            self.file = open(&self.path)?;
            self.len = 0;
        }
        self.file.write_all(bytes)?;
        self.len += added;
        Ok(())
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut inner = lock(&self.inner);
        match &mut inner.held {
            Some(held) if held.len() + bytes.len() <= HELD_MAX => held.extend(bytes),
            Some(_) => {}
            None => inner.append(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_never_takes_more_than_two_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.log");
        let mut log = Log::open(&path).unwrap();
        let line = [b'x'; 1000];
        for _ in 0..3000 {
            log.write_all(&line).unwrap();
        }
        let sizes: Vec<u64> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .collect();
        assert_eq!(sizes.len(), 2);
        assert!(sizes.iter().all(|size| *size <= FILE_MAX), "{sizes:?}");
    }

    #[test]
    fn nothing_reaches_the_file_while_held_and_all_of_it_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.log");
        let mut log = Log::open(&path).unwrap();
        log.hold();
        log.write_all(b"frozen\n").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
        log.release();
        log.write_all(b"thawed\n").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"frozen\nthawed\n");
    }
}
