//! Continues the ledger of one directory: every record is on stable storage before it is answered.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Write as _},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use thiserror::Error;

use super::{
    chain::{Break, Chain, chain_file},
    record::{Body, LedgerId, Record, RecordHash, RunId, Seen},
};

/// Why a ledger is not continued.
#[derive(Debug, Error)]
pub enum OpenError {
    #[error("cannot use {}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("another writer has {}", .0.display())]
    Locked(PathBuf),
    #[error("{} is damaged, so it is left as it is", path.display())]
    Broken {
        path: PathBuf,
        #[source]
        cause: Break,
    },
}

/// The one writer of a directory's ledger.
#[derive(Debug)]
pub struct Appender {
    file: File,
    ledger: LedgerId,
    run: RunId,
    started: u64,
    sequence: u64,
    previous: RecordHash,
    cut: u32,
}

/// What of a record is told to the others, once it is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub ledger: LedgerId,
    pub run: RunId,
    /// The sequence of the run's first record.
    pub started: u64,
    pub sequence: u64,
    pub hash: RecordHash,
}

impl Header {
    #[must_use]
    pub const fn seen(&self) -> Seen {
        Seen { ledger: self.ledger, sequence: self.sequence, hash: self.hash }
    }
}

impl Appender {
    /// Takes the ledger of `dir` (made if need be), cuts an unfinished record off its end, and
    /// answers what it says. The run's first record is written by [`Self::announce`].
    pub fn open(dir: &Path) -> Result<(Self, Chain), OpenError> {
        let path = chain_file(dir);
        let io = |cause| OpenError::Io { path: path.clone(), cause };
        fs::create_dir_all(dir).map_err(io)?;
        let mut options = OpenOptions::new();
        let mut file = options.read(true).append(true).create(true).open(&path).map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::Locked(path)),
            Err(TryLockError::Error(cause)) => return Err(io(cause)),
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io)?;
        let mut chain = Chain::parse(&bytes);
        if let Some(cause) = chain.broken.take() {
            return Err(OpenError::Broken { path, cause });
        }
        if chain.torn_tail > 0 {
            file.set_len(chain.good_bytes).map_err(io)?;
        }
        file.sync_all().map_err(io)?;
        sync_dir(dir).map_err(io)?;
        let ledger = match chain.ledger {
            Some(ledger) => ledger,
            None => LedgerId(random_bytes().map_err(io)?),
        };
        let appender = Self {
            file,
            ledger,
            run: RunId(random_bytes().map_err(io)?),
            started: chain.next_sequence(),
            sequence: chain.next_sequence(),
            previous: chain.last_hash(),
            cut: u32::try_from(chain.torn_tail).unwrap_or(u32::MAX),
        };
        Ok((appender, chain))
    }

    #[must_use]
    pub const fn run(&self) -> RunId {
        self.run
    }

    #[must_use]
    pub const fn ledger(&self) -> LedgerId {
        self.ledger
    }

    /// Writes the run's first record, which owns up to what was found wrong before it.
    pub fn announce(&mut self, damaged: u32) -> io::Result<Header> {
        let (ledger, cut) = (self.ledger, self.cut);
        self.append(Body::Opened { ledger, kernel_boot: kernel_boot(), cut, damaged })
    }

    /// Appends one record and answers when it is on stable storage. After an error nobody knows
    /// what the disk has: the writer must end and open the ledger again.
    pub fn append(&mut self, body: Body) -> io::Result<Header> {
        let record = Record {
            sequence: self.sequence,
            time_ns: now_ns(),
            run: self.run,
            previous: self.previous,
            body,
        };
        let (bytes, hash) = record.encode();
        self.file.write_all(&bytes)?;
        self.file.sync_data()?;
        self.sequence += 1;
        self.previous = hash;
        let Self { ledger, run, started, .. } = *self;
        Ok(Header { ledger, run, started, sequence: record.sequence, hash })
    }
}

/// Makes the names in `dir` durable.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn random_bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn kernel_boot() -> [u8; 16] {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let mut id = [0; 16];
    // Without /proc the id stays zero: it is for the reader, no check rests on it.
    let _ = hex::decode_to_slice(digits, &mut id);
    id
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn pay(to: &mut Appender) -> Header {
        to.append(Body::Payload { seen: Vec::new(), bytes: vec![7; 50] }).unwrap()
    }

    fn write(dir: &Path, records: usize) {
        let (mut appender, _) = Appender::open(dir).unwrap();
        appender.announce(0).unwrap();
        for _ in 1..records {
            pay(&mut appender);
        }
    }

    #[test]
    fn a_second_run_continues_the_chain() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), 4);
        write(dir.path(), 3);
        let chain = Chain::read(dir.path()).unwrap();
        assert_eq!((chain.records.len(), chain.runs.len(), chain.broken), (7, 2, None));
    }

    #[test]
    fn a_torn_tail_is_cut_and_noted() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), 4);
        let path = chain_file(dir.path());
        let length = fs::metadata(&path).unwrap().len();
        OpenOptions::new().write(true).open(&path).unwrap().set_len(length - 9).unwrap();
        write(dir.path(), 2);
        let chain = Chain::read(dir.path()).unwrap();
        assert_eq!((chain.records.len(), chain.broken), (5, None));
        assert!(chain.runs[1].cut > 0);
    }

    #[test]
    fn a_damaged_ledger_is_not_continued() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), 4);
        let path = chain_file(dir.path());
        OpenOptions::new().write(true).open(&path).unwrap().write_at(b"?", 30).unwrap();
        assert!(matches!(Appender::open(dir.path()), Err(OpenError::Broken { .. })));
    }

    #[test]
    fn a_ledger_has_one_writer() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Appender::open(dir.path()).unwrap();
        assert!(matches!(Appender::open(dir.path()), Err(OpenError::Locked(_))));
    }
}
