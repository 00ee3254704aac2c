//! What the coordinator keeps: ledgers on disks that forget what was not synced, what undoes fences,
//! and the journal.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use engine::custody::Shelf;
use engine::{Journal, JournalError, Record};
use journal::faulty::Disk;
use journal::{OpenError, Storage};
use model::SiteName;

use crate::points::{Enter, Fate, Lost, Points};

/// All of it, for all lives of the coordinator.
#[derive(Clone, Default)]
pub struct Kept {
    ledgers: Arc<Mutex<BTreeMap<String, Disk>>>,
    files: Arc<Mutex<BTreeMap<PathBuf, Vec<u8>>>>,
    records: Arc<Mutex<Vec<Record>>>,
}

impl Kept {
    pub fn records(&self) -> Vec<Record> {
        self.records.lock().unwrap().clone()
    }

    /// The journal is of an earlier day: its first records alone are there.
    pub fn restore_journal(&self, records: usize) {
        self.records.lock().unwrap().truncate(records);
    }

    /// The journal is made again.
    pub fn replace_journal(&self, records: Vec<Record>) {
        *self.records.lock().unwrap() = records;
    }

    /// The machine is gone.
    pub fn lose_everything(&self) {
        self.ledgers.lock().unwrap().clear();
        self.files.lock().unwrap().clear();
        self.replace_journal(Vec::new());
    }

    /// One site's ledger is gone, or as it was when it had these bytes.
    pub fn restore_ledger(&self, site: &SiteName, bytes: Vec<u8>) {
        self.disk(site.as_str()).replace(bytes);
    }

    pub fn disk(&self, site: &str) -> Disk {
        self.ledgers.lock().unwrap().entry(site.to_owned()).or_default().clone()
    }

    /// The process ended, and its machine with it: what was not synced is gone.
    pub fn lose_power(&self) {
        self.ledgers.lock().unwrap().values().for_each(|disk| disk.crash(|_| false));
    }

    /// The process alone ended.
    pub fn restart(&self) {
        self.ledgers.lock().unwrap().values().for_each(Disk::restart);
    }
}

/// The shelf of one life.
pub struct Pages(pub Kept, pub Points);

impl Shelf for Pages {
    fn path(&self, site: &str, file: &str) -> PathBuf {
        [site, file].iter().collect()
    }

    fn ledger(&self, site: &str) -> Result<Box<dyn Storage>, OpenError> {
        let Self(kept, points) = self;
        let (site, points) = (site.to_owned(), points.clone());
        Ok(Box::new(Page { inner: kept.disk(&site).storage(), points, site }))
    }

    fn keep(&self, site: &str, file: &str, body: &[u8]) -> io::Result<()> {
        let Self(kept, points) = self;
        let put = || {
            kept.files.lock().unwrap().insert(self.path(site, file), body.to_vec());
            Ok(())
        };
        act(points, &format!("{site}: keep what undoes the fence"), put, || Ok(()))
    }

    fn kept(&self, site: &str, file: &str) -> io::Result<Vec<u8>> {
        let files = self.0.files.lock().unwrap();
        files.get(&self.path(site, file)).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

struct Page {
    inner: Box<dyn Storage>,
    points: Points,
    site: String,
}

impl Page {
    fn at(&self, what: &str) -> String {
        format!("{} ledger: {what}", self.site)
    }
}

impl Storage for Page {
    fn size(&mut self) -> io::Result<u64> {
        self.inner.size()
    }

    fn read(&mut self) -> io::Result<Vec<u8>> {
        self.inner.read()
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        let name = self.at("write");
        let half = &bytes[..bytes.len() / 2];
        let inner = std::cell::RefCell::new(&mut self.inner);
        act(
            &self.points,
            &name,
            || inner.borrow_mut().write_at(offset, bytes),
            || inner.borrow_mut().write_at(offset, half),
        )
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        let name = self.at("cut");
        act(&self.points, &name, || self.inner.truncate(len), || Ok(()))
    }

    fn sync_data(&mut self) -> io::Result<()> {
        let name = self.at("sync");
        act(&self.points, &name, || self.inner.sync_data(), || Ok(()))
    }

    fn sync_all(&mut self) -> io::Result<()> {
        let name = self.at("sync");
        act(&self.points, &name, || self.inner.sync_all(), || Ok(()))
    }

    fn sync_folder(&mut self) -> io::Result<()> {
        let name = self.at("sync folder");
        act(&self.points, &name, || self.inner.sync_folder(), || Ok(()))
    }
}

/// Does `all` or `half` of it, or nothing, as long as the process lives.
fn act<T>(
    points: &Points,
    name: &str,
    all: impl FnOnce() -> io::Result<T>,
    half: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    match points.enter(name) {
        Enter::Alive | Enter::Struck(Fate::Twice) => return all(),
        Enter::Dead | Enter::Struck(Fate::DiesBefore) => points.die(),
        Enter::Struck(Fate::DiesWithin) => {
            half()?;
            points.die();
        }
        Enter::Struck(Fate::DiesAfter) => {
            all()?;
            points.die();
        }
        // EIO and ENOSPC.
        Enter::Struck(Fate::LosesRequest) => return Err(io::Error::from_raw_os_error(5)),
        Enter::Struck(Fate::LosesReply) => {
            half()?;
            return Err(io::ErrorKind::StorageFull.into());
        }
    }
    Err(io::Error::other("a dead process"))
}

/// The journal of one life. A record of it is there or not: its database sees to that.
pub struct Book(pub Kept, pub Points);

#[async_trait]
impl Journal for Book {
    async fn record(&mut self, record: &Record) -> Result<(), JournalError> {
        let Self(kept, points) = self;
        let name = format!("{record:?}");
        let word = name.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
        let put = || async {
            let mut records = kept.records.lock().unwrap();
            if records.last() != Some(record) {
                records.push(record.clone());
            }
        };
        let lost = |Lost| JournalError { what: "a fault of the test".to_owned(), source: None };
        points.pass(format!("journal: {word}"), put).await.map_err(lost)
    }
}
