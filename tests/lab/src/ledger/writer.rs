//! The writer: one ledger and one set of random files per directory, each in threads of its own.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use thiserror::Error;

use super::{
    append::{Appender, Header, OpenError},
    block::BLOCK,
    book::Acknowledged,
    random::{Dice, RandomShape, RandomWriter, scan},
    record::{Body, Seen, Write},
    sender::Sender,
};

/// Random writes between two syncs, which bounds what a power cut may take and a record's length.
const WRITES_PER_SYNC: usize = 64;

/// A sync comes after this long even when there were few writes.
const SYNC_AFTER: Duration = Duration::from_secs(1);

/// What a writer does.
#[derive(Debug, Clone)]
pub struct Orders {
    /// The name the witness knows it by.
    pub vm: String,
    /// One ledger in each; best on different disks.
    pub dirs: Vec<PathBuf>,
    /// Addresses of the one witness, tried in turn.
    pub witnesses: Vec<SocketAddr>,
    /// Records per second and directory; 0 is as fast as the disk.
    pub rate: u32,
    pub random: RandomShape,
    /// Bytes of random writes per second and directory; 0 is none.
    pub random_rate: u64,
    pub seed: u64,
}

/// Why a writer ended: it never does of itself.
#[derive(Debug, Error)]
pub enum WriterError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("cannot write in {}", dir.display())]
    Io {
        dir: PathBuf,
        #[source]
        cause: io::Error,
    },
}

/// Writes until something fails.
pub fn write(orders: &Orders) -> WriterError {
    let desk = Arc::new(Desk {
        vm: orders.vm.clone(),
        sender: Sender::start(orders.witnesses.clone()),
        newest: Mutex::default(),
    });
    let (failed, failure) = mpsc::channel();
    for (number, dir) in (0_u64..).zip(&orders.dirs) {
        let dice = Dice::new(orders.seed.wrapping_add(number));
        let shelf = match Shelf::open(dir, orders, dice, &desk) {
            Ok(shelf) => Arc::new(shelf),
            Err(error) => return error,
        };
        let works: [fn(&Shelf, &Orders) -> io::Result<()>; 2] = [Shelf::keep, Shelf::scribble];
        for work in works {
            let (shelf, orders, failed) = (Arc::clone(&shelf), orders.clone(), failed.clone());
            thread::spawn(move || {
                if let Err(cause) = work(&shelf, &orders) {
                    // The receiver is gone only when another thread failed first.
                    let _ = failed.send(WriterError::Io { dir: shelf.dir.clone(), cause });
                }
            });
        }
    }
    drop(failed);
    failure.recv().unwrap_or_else(|_| WriterError::Io {
        dir: PathBuf::new(),
        cause: io::Error::other("every thread of the writer panicked, or there was no directory"),
    })
}

/// What the directories of one writer share.
struct Desk {
    vm: String,
    sender: Sender,
    /// The newest durable record of each ledger.
    newest: Mutex<Vec<Seen>>,
}

/// One directory.
struct Shelf {
    dir: PathBuf,
    appender: Mutex<Appender>,
    random: Mutex<RandomWriter>,
    dice: Mutex<Dice>,
    desk: Arc<Desk>,
}

impl Shelf {
    fn open(
        dir: &Path,
        orders: &Orders,
        mut dice: Dice,
        desk: &Arc<Desk>,
    ) -> Result<Self, WriterError> {
        let io = |cause| WriterError::Io { dir: dir.to_owned(), cause };
        let (mut appender, chain) = Appender::open(dir)?;
        // Before anything is overwritten: what was lost must not be healed by new writes.
        let scan = scan(dir, &chain).map_err(io)?;
        let generation = chain.generation.max(scan.generation);
        let run = appender.run();
        let header =
            appender.announce(u32::try_from(scan.damage.len()).unwrap_or(u32::MAX)).map_err(io)?;
        let random_dice = Dice::new(dice.roll());
        let random = RandomWriter::open(dir, orders.random, run, generation, random_dice);
        let shelf = Self {
            dir: dir.to_owned(),
            appender: Mutex::new(appender),
            random: Mutex::new(random.map_err(io)?),
            dice: Mutex::new(dice),
            desk: Arc::clone(desk),
        };
        shelf.tell(header);
        Ok(shelf)
    }

    /// Appends payloads for ever.
    fn keep(&self, orders: &Orders) -> io::Result<()> {
        let mut pace = Pace::new();
        loop {
            if orders.rate > 0 {
                pace.wait(Duration::from_secs(1) / orders.rate);
            }
            let bytes = {
                let mut dice = self.dice.lock().unwrap_or_else(PoisonError::into_inner);
                let length = 4 + dice.below(16);
                (0..length).flat_map(|_| dice.roll().to_le_bytes()).collect()
            };
            self.append(|others| Body::Payload { seen: others, bytes })?;
        }
    }

    /// Writes at random places for ever, and tells the ledger what is durable.
    fn scribble(&self, orders: &Orders) -> io::Result<()> {
        if orders.random.files == 0 || orders.random_rate == 0 {
            loop {
                thread::park();
            }
        }
        let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pace = Pace::new();
        let mut writes = Vec::new();
        let mut synced = Instant::now();
        loop {
            let write = random.write()?;
            writes.push(write);
            if writes.len() == WRITES_PER_SYNC || synced.elapsed() > SYNC_AFTER {
                random.sync()?;
                let writes = std::mem::take(&mut writes);
                self.append(|_| Body::Durable { writes })?;
                synced = Instant::now();
            }
            pace.wait(duration_of(&write, orders.random_rate));
        }
    }

    fn append(&self, body: impl FnOnce(Vec<Seen>) -> Body) -> io::Result<()> {
        let mut appender = self.appender.lock().unwrap_or_else(PoisonError::into_inner);
        let others = {
            let newest = self.desk.newest.lock().unwrap_or_else(PoisonError::into_inner);
            newest.iter().filter(|seen| seen.ledger != appender.ledger()).copied().collect()
        };
        let header = appender.append(body(others))?;
        // Under the appender's lock, so that the witness hears of records in their order.
        self.tell(header);
        Ok(())
    }

    fn tell(&self, header: Header) {
        let Header { ledger, run, started, sequence, hash } = header;
        let mut newest = self.desk.newest.lock().unwrap_or_else(PoisonError::into_inner);
        match newest.iter_mut().find(|seen| seen.ledger == ledger) {
            Some(seen) => *seen = header.seen(),
            None => newest.push(header.seen()),
        }
        drop(newest);
        let vm = self.desk.vm.clone();
        let dir = self.dir.display().to_string();
        self.desk.sender.push(Acknowledged { vm, dir, ledger, run, started, sequence, hash });
    }
}

/// Keeps to a rate; time lost in a pause is not caught up with a burst.
struct Pace(Instant);

impl Pace {
    fn new() -> Self {
        Self(Instant::now())
    }

    fn wait(&mut self, each: Duration) {
        let now = Instant::now();
        self.0 += each;
        if self.0 > now {
            thread::sleep(self.0 - now);
        } else if now - self.0 > Duration::from_secs(1) {
            self.0 = now;
        }
    }
}

fn duration_of(write: &Write, bytes_per_second: u64) -> Duration {
    let bytes = u64::from(write.count) * u64::try_from(BLOCK).unwrap_or(u64::MAX);
    Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / bytes_per_second)
}
