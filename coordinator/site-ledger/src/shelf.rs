//! Where ledgers and what undoes fences are kept.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use handover::{Record, VmKey};
use journal::{FileStorage, OpenError, Storage};
use model::SiteName;

use crate::error::CustodyError;
use crate::site_ledger::decode;

/// A place for one VM's files of each site, outside every disk that is copied; a trait so that tests can
/// let every write of it fail.
pub trait Shelf: Send + Sync {
    /// What a site's file is called, for messages.
    fn path(&self, site: &str, file: &str) -> PathBuf;

    /// The site's ledger, made if there is none, and this process's alone until it is dropped. The
    /// place where it is is durable.
    fn ledger(&self, site: &str) -> Result<Box<dyn Storage>, OpenError>;

    /// Keeps a file. Durable when this returns; a crash leaves all of it or nothing, or what was
    /// there before.
    fn keep(&self, site: &str, file: &str, body: &[u8]) -> io::Result<()>;

    fn kept(&self, site: &str, file: &str) -> io::Result<Vec<u8>>;
}

/// `FOLDER/SITE/VM/FILE`, on the operator's machine.
pub struct Folder {
    pub path: PathBuf,
    pub vm: VmKey,
}

/// A ledger's file.
pub(crate) const LEDGER: &str = "ledger";

impl Folder {
    fn of(&self, site: &str) -> PathBuf {
        self.path.join(site).join(self.vm.as_str())
    }
}

impl Shelf for Folder {
    fn path(&self, site: &str, file: &str) -> PathBuf {
        self.of(site).join(file)
    }

    fn ledger(&self, site: &str) -> Result<Box<dyn Storage>, OpenError> {
        let folder = self.of(site);
        if self.path.join(site).join(LEDGER).is_file() {
            let source = io::Error::other("it is of an older causeway, with all VMs in one");
            return Err(OpenError::Io { doing: "use the ledger beside it", source });
        }
        let made = fs::create_dir_all(&folder).and_then(|()| {
            // Up to the state directory: what is in a folder that a power cut takes is gone.
            folder.ancestors().skip(1).take(3).try_for_each(|parent| File::open(parent)?.sync_all())
        });
        made.map_err(|source| OpenError::Io { doing: "make its folder", source })?;
        Ok(Box::new(FileStorage::open(&self.path(site, LEDGER))?))
    }

    fn keep(&self, site: &str, file: &str, body: &[u8]) -> io::Result<()> {
        keep_file(&self.path(site, file), body)
    }

    fn kept(&self, site: &str, file: &str) -> io::Result<Vec<u8>> {
        fs::read(self.path(site, file))
    }
}

/// A site's ledger, read without taking its lock; `None` where there is none, or its creation was cut
/// short. A ledger that is not there proves nothing, while an empty one would.
pub fn read_ledger(folder: &Folder, site: &SiteName) -> Result<Option<Vec<Record>>, CustodyError> {
    let path = folder.path(site.as_str(), LEDGER);
    let contents = match journal::read(&path) {
        // What cannot be looked at may well be there.
        Err(OpenError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => None,
        read => read.map_err(|cause| CustodyError::Open { path: path.clone(), cause })?,
    };
    contents.map(|contents| decode(&path, &contents.records)).transpose()
}

/// Keeps a file that nobody else reads. Durable when this returns; a crash leaves all of it or nothing, or
/// what was there before.
pub fn keep_file(path: &Path, body: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut options = OpenOptions::new();
    let mut open = options.create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
    open.write_all(body)?;
    open.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(path.parent().unwrap_or_else(|| Path::new("/")))?.sync_all()
}
