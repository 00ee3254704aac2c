//! Durable records in a file, written before the act that they speak of.
//!
//! A [`Journal`] keeps bytes and knows nothing of what they mean. [`Journal::append`] returns when
//! the record is on stable storage; what is read back at the next [`Journal::open`] is everything
//! that was ever appended, in order, or an error that names the record that is not what it was.
//!
//! ```text
//!  open ── lock ── read ── check ──┬─ every record good ──────────► append, append, …
//!                                  ├─ the LAST one unfinished ────► cut off, reported, append, …
//!                                  └─ damage before the last one ─► error, nothing is touched
//! ```
//!
//! Two facts that a reader would get wrong:
//!
//! **An append that failed may have happened.** The record can be on the disk, half on it, or not
//! at all. The journal is then *poisoned*: every later call errors, and the process must stop and
//! start anew from what [`Journal::open`] finds. Going on is never right: after a failed `fsync`
//! Linux marks the lost pages clean, and the next `fsync` reports success.
//!
//! **What `open` hands out is durable.** The page cache can show a record whose `fsync` failed in
//! an earlier life of the program. Before it is believed, the last record is written again, the
//! same bytes to the same place, and synced. Only the last one can be in doubt, because each
//! append waits for the sync of the one before.
//!
//! `FORMAT.md` has the bytes.

pub mod faulty;
mod format;
mod storage;

use std::io;
use std::path::Path;

use thiserror::Error;

pub use format::{Damage, HEADER_LEN, Hash, MAX_FILE, MAX_PAYLOAD, Record, StoreId, TornTail};
use format::{Header, RECORD_OVERHEAD, Scan};
pub use storage::{FileStorage, Storage};

/// An open journal: the only writer of its file.
pub struct Journal {
    storage: Box<dyn Storage>,
    header: Header,
    /// Where the next record goes, in bytes from the start of the file.
    end: u64,
    next: u64,
    head: Hash,
    poisoned: bool,
}

/// A journal just opened and what it held.
pub struct Opened {
    pub journal: Journal,
    /// Every record, in the order in which they were appended.
    pub records: Vec<Record>,
    /// What an interrupted append left behind; cut off already.
    pub torn: Option<TornTail>,
    /// The file was not there, or its creation never finished.
    pub created: bool,
}

/// What [`read`] found in a file that it did not lock.
#[derive(Debug)]
pub struct Contents {
    pub kind: u16,
    pub id: StoreId,
    pub records: Vec<Record>,
    /// An append that was interrupted, or is going on right now.
    pub torn: Option<TornTail>,
}

impl Journal {
    /// Opens the journal at `path`, or creates it with `id`.
    ///
    /// `kind` says what the records are about; a file of another kind is refused. `id` should be
    /// random: it tells a journal from one that was created anew in its place. The folder must
    /// exist.
    pub fn open(path: &Path, kind: u16, id: StoreId) -> Result<Opened, OpenError> {
        Self::open_on(Box::new(FileStorage::open(path)?), kind, id)
    }

    /// [`Journal::open`] on other storage than a file; tests use [`faulty`].
    pub fn open_on(
        mut storage: Box<dyn Storage>,
        kind: u16,
        id: StoreId,
    ) -> Result<Opened, OpenError> {
        let len = storage.size().map_err(failed("ask for its size"))?;
        if len > MAX_FILE {
            return Err(OpenError::TooLarge { len });
        }
        let bytes = storage.read().map_err(failed("read it"))?;
        let created = format::creation_unfinished(&bytes);
        let scan = if created {
            let header = Header { kind, id };
            write_all(&mut *storage, 0, &header.encode()).map_err(failed("write its header"))?;
            Scan::empty(header)
        } else {
            format::scan(&bytes)?
        };
        if scan.header.kind != kind {
            return Err(OpenError::WrongKind { expected: kind, found: scan.header.kind });
        }
        if scan.torn.is_some() {
            storage.truncate(scan.end).map_err(failed("cut off its torn tail"))?;
        }
        if !created {
            // See "What `open` hands out is durable" above.
            let last = scan.last_record(&bytes);
            write_all(&mut *storage, scan.last_at, last)
                .map_err(failed("write its last record again"))?;
        }
        storage.sync_all().map_err(failed("sync it"))?;
        storage.sync_folder().map_err(failed("sync its folder"))?;
        let journal = Self {
            storage,
            header: scan.header,
            end: scan.end,
            next: scan.next,
            head: scan.head,
            poisoned: false,
        };
        Ok(Opened { journal, records: scan.records, torn: scan.torn, created })
    }

    /// Appends one record and returns its number, counted from 1, once it is on stable storage.
    ///
    /// `kind` is the caller's and never 0. An error other than [`AppendError::Refused`] leaves
    /// the journal poisoned and the process must stop.
    pub fn append(&mut self, kind: u16, payload: &[u8]) -> Result<u64, AppendError> {
        if self.poisoned {
            return Err(AppendError::Poisoned);
        }
        let record = self.next;
        self.check(kind, payload).map_err(AppendError::Refused)?;
        let (bytes, head) = format::encode(&self.header, record, self.head, kind, payload);
        let written =
            write_all(&mut *self.storage, self.end, &bytes).and_then(|()| self.storage.sync_data());
        if let Err(cause) = written {
            self.poisoned = true;
            return Err(AppendError::Failed { record, offset: self.end, cause });
        }
        self.end += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.next += 1;
        self.head = head;
        Ok(record)
    }

    /// The id with which the file was created.
    pub const fn id(&self) -> StoreId {
        self.header.id
    }

    /// The hash of the last record (of the header while there is none): with the chain it stands
    /// for everything in the journal.
    pub const fn head(&self) -> Hash {
        self.head
    }

    fn check(&self, kind: u16, payload: &[u8]) -> Result<(), Unfit> {
        if kind == 0 {
            return Err(Unfit::KindZero);
        }
        if payload.len() > MAX_PAYLOAD {
            return Err(Unfit::TooLong { len: payload.len() });
        }
        let len = u64::try_from(payload.len() + RECORD_OVERHEAD).unwrap_or(u64::MAX);
        if self.end + len > MAX_FILE { Err(Unfit::Full) } else { Ok(()) }
    }
}

/// Reads a journal without locking or changing it, also while another process writes to it. `None`:
/// it is being created, or was and the power failed, and there is no record in it.
pub fn read(path: &Path) -> Result<Option<Contents>, OpenError> {
    let file = std::fs::File::open(path).map_err(failed("open it"))?;
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, MAX_FILE + 1), &mut bytes)
        .map_err(failed("read it"))?;
    parse(&bytes)
}

/// As [`read`], of a whole file.
pub fn parse(bytes: &[u8]) -> Result<Option<Contents>, OpenError> {
    let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    if len > MAX_FILE {
        return Err(OpenError::TooLarge { len });
    }
    if format::creation_unfinished(bytes) {
        return Ok(None);
    }
    let scan = format::scan(bytes)?;
    let Header { kind, id } = scan.header;
    Ok(Some(Contents { kind, id, records: scan.records, torn: scan.torn }))
}

/// Why a journal was not opened. Nothing in it was changed, unless the cause is [`Self::Io`].
#[derive(Debug, Error)]
pub enum OpenError {
    #[error("the journal is in use by another process")]
    Locked,

    #[error("the file is not a journal")]
    NotAJournal,

    #[error("the journal's header is damaged")]
    HeaderDamaged,

    #[error("the journal has format version {found}, this program reads version 1")]
    Version { found: u16 },

    #[error("the journal is of kind {found}, not {expected}")]
    WrongKind { expected: u16, found: u16 },

    #[error("the journal's {len} bytes are more than the limit of {MAX_FILE}")]
    TooLarge { len: u64 },

    #[error("record {record} of the journal, at byte {offset}, is damaged: {what}")]
    Damaged { record: u64, offset: u64, what: Damage },

    #[error("cannot {doing}")]
    Io { doing: &'static str, source: io::Error },
}

/// Why a record was not appended.
#[derive(Debug, Error)]
pub enum AppendError {
    /// Nothing was written; the journal goes on.
    #[error(transparent)]
    Refused(Unfit),

    /// The record may or may not be in the file: stop the process and open the journal again.
    #[error("record {record} at byte {offset} may not have reached the disk")]
    Failed {
        record: u64,
        offset: u64,
        #[source]
        cause: io::Error,
    },

    #[error("an earlier append failed: this process must stop and read the journal anew")]
    Poisoned,
}

/// What is wrong with a record that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Unfit {
    #[error("the kind of a record is never 0")]
    KindZero,
    #[error("a record of {len} bytes is more than the limit of {MAX_PAYLOAD}")]
    TooLong { len: usize },
    #[error("the journal has reached its limit of {MAX_FILE} bytes")]
    Full,
}

fn write_all(storage: &mut dyn Storage, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match storage.write_at(offset, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                bytes = bytes.get(n..).ok_or(io::ErrorKind::InvalidData)?;
                offset += u64::try_from(n).unwrap_or(u64::MAX);
            }
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            Err(cause) => return Err(cause),
        }
    }
    Ok(())
}

fn failed(doing: &'static str) -> impl FnOnce(io::Error) -> OpenError {
    move |source| OpenError::Io { doing, source }
}
