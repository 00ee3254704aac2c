//! A disk in memory that fails on command, for tests of whatever keeps a journal.
//!
//! It behaves as badly as a real one may: what was not synced is lost at a crash, or part of it,
//! sector by sector in any order; a sync that failed drops the bytes it could not write and
//! reports success the next time.
//!
//! ```
//! use journal::{Journal, StoreId, faulty::{Disk, Fault}};
//! let disk = Disk::default();
//! let mut opened = Journal::open_on(disk.storage(), 7, StoreId([1; 16])).unwrap();
//! disk.fail(1, Fault::NoSpace);                  // the next operation that changes the disk
//! assert!(opened.journal.append(1, b"lost").is_err());
//! disk.crash(|_sector| false);                   // nothing that was not synced survives
//! let opened = Journal::open_on(disk.storage(), 7, StoreId([1; 16])).unwrap();
//! assert!(opened.records.is_empty());
//! ```

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::Storage;

/// The smallest piece that a disk writes wholly or not at all, in bytes.
pub const SECTOR: usize = 512;

/// In which way an operation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// EIO; nothing was written. A sync that fails so loses what was not synced.
    Io,
    /// ENOSPC after half of the bytes.
    NoSpace,
    /// Half of the bytes are written, and that is reported truly. Not an error.
    Short,
    /// The process dies at this operation; half of a write had been handed to the kernel.
    Killed,
}

/// The disk itself; it outlives the journals opened on it. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    /// What a crash leaves.
    durable: Vec<u8>,
    /// What reads see.
    cache: Vec<u8>,
    /// Sectors of the cache that the disk does not have yet and will be asked to write.
    dirty: BTreeSet<usize>,
    /// The length changed and the disk does not know.
    length_dirty: bool,
    /// The file's name is on the disk.
    linked: bool,
    /// Operations so far that change the disk: writes, truncations, syncs.
    operations: u64,
    planned: Option<(u64, Fault)>,
    /// Grows at each crash: a handle from before is dead.
    life: u64,
}

impl Disk {
    /// A handle for one life of the program.
    pub fn storage(&self) -> Box<dyn Storage> {
        let life = self.lock().life;
        Box::new(Handle { disk: self.clone(), life })
    }

    /// Lets the `n`-th changing operation from now fail, counted from 1.
    pub fn fail(&self, n: u64, fault: Fault) {
        let mut inner = self.lock();
        inner.planned = Some((inner.operations + n, fault));
    }

    /// Whether the planned fault is still to come.
    pub fn fault_pending(&self) -> bool {
        self.lock().planned.is_some()
    }

    /// How many operations have changed the disk.
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// The power fails: of what was not synced, the sectors that `survives` says are kept.
    pub fn crash(&self, mut survives: impl FnMut(usize) -> bool) {
        let mut inner = self.lock();
        let dirty = std::mem::take(&mut inner.dirty);
        let kept: Vec<usize> = dirty.into_iter().filter(|sector| survives(*sector)).collect();
        if !inner.linked {
            inner.durable.clear();
        } else {
            inner.write_back(&kept);
        }
        inner.cache = inner.durable.clone();
        inner.length_dirty = false;
        inner.planned = None;
        inner.life += 1;
    }

    /// The program ends and starts again on a machine that stayed up.
    pub fn restart(&self) {
        let mut inner = self.lock();
        inner.planned = None;
        inner.life += 1;
    }

    /// What a reader sees.
    pub fn bytes(&self) -> Vec<u8> {
        self.lock().cache.clone()
    }

    /// Puts bytes in place as if they had always been there: a damaged or an older copy.
    pub fn replace(&self, bytes: Vec<u8>) {
        let mut inner = self.lock();
        inner.durable.clone_from(&bytes);
        inner.cache = bytes;
        inner.dirty.clear();
        inner.length_dirty = false;
        inner.linked = true;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// The fault planned for this operation, if any.
    fn count(&mut self) -> Option<Fault> {
        self.operations += 1;
        match self.planned {
            Some((at, fault)) if at == self.operations => {
                self.planned = None;
                Some(fault)
            }
            _ => None,
        }
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if self.cache.len() < end {
            self.cache.resize(end, 0);
            self.length_dirty = true;
        }
        self.cache[offset..end].copy_from_slice(bytes);
        if !bytes.is_empty() {
            self.dirty.extend(offset / SECTOR..=(end - 1) / SECTOR);
        }
    }

    fn write_back(&mut self, sectors: &[usize]) {
        for sector in sectors {
            let start = sector * SECTOR;
            let end = (start + SECTOR).min(self.cache.len());
            if start >= end {
                continue;
            }
            if self.durable.len() < end {
                self.durable.resize(end, 0);
            }
            self.durable[start..end].copy_from_slice(&self.cache[start..end]);
        }
    }

    fn sync(&mut self) {
        let sectors: Vec<usize> = std::mem::take(&mut self.dirty).into_iter().collect();
        self.write_back(&sectors);
        if self.length_dirty {
            self.durable.resize(self.cache.len(), 0);
            self.length_dirty = false;
        }
    }

    /// As Linux does: the pages that could not be written count as clean from now on.
    fn lose_what_is_dirty(&mut self) {
        self.dirty.clear();
        self.length_dirty = false;
    }
}

struct Handle {
    disk: Disk,
    life: u64,
}

impl Handle {
    fn alive(&self) -> io::Result<MutexGuard<'_, Inner>> {
        let inner = self.disk.lock();
        if inner.life == self.life { Ok(inner) } else { Err(io::Error::other("a dead process")) }
    }

    fn sync(&mut self, what: impl FnOnce(&mut Inner)) -> io::Result<()> {
        let mut inner = self.alive()?;
        match inner.count() {
            None | Some(Fault::Short) => what(&mut inner),
            Some(Fault::Killed) => {
                inner.life += 1;
                return Err(io::Error::other("killed"));
            }
            Some(fault @ (Fault::Io | Fault::NoSpace)) => {
                inner.lose_what_is_dirty();
                return Err(error(fault));
            }
        }
        Ok(())
    }
}

impl Storage for Handle {
    fn size(&mut self) -> io::Result<u64> {
        Ok(u64::try_from(self.alive()?.cache.len()).unwrap_or(u64::MAX))
    }

    fn read(&mut self) -> io::Result<Vec<u8>> {
        Ok(self.alive()?.cache.clone())
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        let mut inner = self.alive()?;
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let half = bytes.get(..bytes.len().div_ceil(2)).unwrap_or_default();
        match inner.count() {
            None => {
                inner.write(offset, bytes);
                Ok(bytes.len())
            }
            Some(Fault::Io) => Err(error(Fault::Io)),
            Some(Fault::Short) => {
                inner.write(offset, half);
                Ok(half.len())
            }
            Some(Fault::NoSpace) => {
                inner.write(offset, half);
                Err(error(Fault::NoSpace))
            }
            Some(Fault::Killed) => {
                inner.write(offset, half);
                inner.life += 1;
                Err(io::Error::other("killed"))
            }
        }
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        let mut inner = self.alive()?;
        let len = usize::try_from(len).map_err(io::Error::other)?;
        match inner.count() {
            None | Some(Fault::Short) => {
                inner.cache.resize(len, 0);
                inner.length_dirty = true;
                inner.dirty.retain(|sector| sector * SECTOR < len);
                Ok(())
            }
            Some(Fault::Killed) => {
                inner.life += 1;
                Err(io::Error::other("killed"))
            }
            Some(fault) => Err(error(fault)),
        }
    }

    fn sync_data(&mut self) -> io::Result<()> {
        self.sync(Inner::sync)
    }

    fn sync_all(&mut self) -> io::Result<()> {
        self.sync(Inner::sync)
    }

    fn sync_folder(&mut self) -> io::Result<()> {
        self.sync(|inner| inner.linked = true)
    }
}

fn error(fault: Fault) -> io::Error {
    match fault {
        Fault::NoSpace => io::ErrorKind::StorageFull.into(),
        // 5 is EIO on Linux; std has no kind for it.
        _ => io::Error::from_raw_os_error(5),
    }
}
