//! The witness: outside the guest, it notes what the writer swears is durable, and when it heard so.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    ops::Range,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{
    book::{Acknowledged, Alarm, Arrival, Book, Entry},
    record::LedgerId,
};

/// How often idle threads look whether to end.
const TICK: Duration = Duration::from_millis(20);

/// No acknowledgement is as long as this, in bytes.
const LINE_LIMIT: u64 = 4096;

/// A witness at work in threads of its own; dropping it ends them.
#[derive(Debug)]
pub struct Witness {
    shared: Arc<Shared>,
    addresses: Vec<SocketAddr>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    desk: Mutex<Desk>,
    clock: Clock,
    ended: AtomicBool,
}

#[derive(Debug)]
struct Desk {
    book: Book,
    file: File,
    failed: Option<io::Error>,
}

/// A summary of what a witness knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub now_ms: u64,
    pub records: usize,
    pub last_arrival_ms: Option<u64>,
    /// The highest acknowledged sequence of each ledger.
    pub last_sequences: Vec<(LedgerId, u64)>,
    pub alarms: Vec<Alarm>,
}

impl Witness {
    /// Collects acknowledgements that come in through `listeners` in `out`, one JSON object per
    /// line, continuing what `out` has already. Several listeners serve one witness that is reached
    /// from different networks; make them in the network namespaces they shall serve.
    pub fn start(listeners: Vec<TcpListener>, out: &Path) -> io::Result<Self> {
        let (file, book) = continue_file(out)?;
        let earlier = book.arrivals().last().map_or(0, |arrival| arrival.arrival_ms + 1);
        let clock = Clock { start: Instant::now(), earlier };
        let desk = Mutex::new(Desk { book, file, failed: None });
        let shared = Arc::new(Shared { desk, clock, ended: AtomicBool::new(false) });
        let addresses =
            listeners.iter().map(TcpListener::local_addr).collect::<io::Result<Vec<_>>>()?;
        let mut threads = Vec::new();
        for listener in listeners {
            listener.set_nonblocking(true)?;
            let shared = Arc::clone(&shared);
            threads.push(thread::spawn(move || shared.accept(&listener)));
        }
        Ok(Self { shared, addresses, threads })
    }

    /// Starts on one address of this network namespace; port 0 takes any free one.
    pub fn listen(address: SocketAddr, out: &Path) -> io::Result<Self> {
        Self::start(vec![TcpListener::bind(address)?], out)
    }

    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The witness's own clock, in milliseconds; steady, and unrelated to the time of day.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.shared.clock.now_ms()
    }

    /// A copy of all that is known.
    #[must_use]
    pub fn book(&self) -> Book {
        self.shared.desk().book.clone()
    }

    /// How many different records were acknowledged.
    #[must_use]
    pub fn records(&self) -> usize {
        self.shared.desk().book.arrivals().len()
    }

    /// Proof of two writers or of lost records; empty when all is well.
    #[must_use]
    pub fn alarms(&self) -> Vec<Alarm> {
        self.shared.desk().book.alarms().to_vec()
    }

    /// See [`Book::largest_gap`].
    #[must_use]
    pub fn largest_gap(&self, window_ms: Range<u64>, vm: Option<&str>) -> Duration {
        Duration::from_millis(self.shared.desk().book.largest_gap(window_ms, vm))
    }

    #[must_use]
    pub fn status(&self) -> Status {
        self.shared.status()
    }

    /// Answers each connection to `listener` with one line: the [`Status`] as JSON.
    pub fn answer_status(&mut self, listener: TcpListener) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let shared = Arc::clone(&self.shared);
        self.threads.push(thread::spawn(move || {
            while let Some(mut stream) = shared.next_connection(&listener) {
                let line = serde_json::to_string(&shared.status()).unwrap_or_default();
                // Who asks and goes away is no concern of ours.
                let _ = stream.write_all(format!("{line}\n").as_bytes());
            }
        }));
        Ok(())
    }

    /// The first thing that went wrong with the file, if anything did.
    pub fn failure(&self) -> Option<io::Error> {
        self.shared.desk().failed.take()
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so already.
            let _ = thread.join();
        }
        let _ = self.shared.desk().file.sync_all();
    }
}

impl Shared {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn status(&self) -> Status {
        let now_ms = self.clock.now_ms();
        let desk = self.desk();
        Status {
            now_ms,
            records: desk.book.arrivals().len(),
            last_arrival_ms: desk.book.arrivals().last().map(|arrival| arrival.arrival_ms),
            last_sequences: desk.book.last_sequences().into_iter().collect(),
            alarms: desk.book.alarms().to_vec(),
        }
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        let mut threads = Vec::new();
        while let Some(stream) = self.next_connection(listener) {
            let shared = Arc::clone(self);
            // A broken connection is the writer's to repair: it sends again what was not answered.
            threads.push(thread::spawn(move || drop(shared.listen(stream))));
        }
        for thread in threads {
            let _ = thread.join();
        }
    }

    /// Nothing when the witness ends.
    fn next_connection(&self, listener: &TcpListener) -> Option<TcpStream> {
        while !self.ended.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((stream, _)) if stream.set_nonblocking(false).is_ok() => return Some(stream),
                _ => thread::sleep(TICK),
            }
        }
        None
    }

    fn listen(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TICK))?;
        stream.set_write_timeout(Some(Duration::from_secs(5)))?;
        let mut answers = stream.try_clone()?;
        let mut lines = BufReader::new(stream);
        let mut line = Vec::new();
        while !self.ended.load(Ordering::Relaxed) {
            let room = LINE_LIMIT.saturating_sub(u64::try_from(line.len()).unwrap_or(u64::MAX));
            match lines.by_ref().take(room).read_until(b'\n', &mut line) {
                Ok(_) if line.ends_with(b"\n") => {
                    self.note(serde_json::from_slice(&line)?)?;
                    answers.write_all(b"ok\n")?;
                    line.clear();
                }
                Ok(_) => break,
                Err(error) if is_timeout(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn note(&self, record: Acknowledged) -> io::Result<()> {
        let mut desk = self.desk();
        let arrival = Arrival { arrival_ms: self.clock.now_ms(), record };
        let mut line = serde_json::to_vec(&arrival)?;
        line.push(b'\n');
        if desk.book.enter(arrival) == Entry::New {
            let written = desk.file.write_all(&line);
            if let Err(error) = &written {
                desk.failed.get_or_insert_with(|| io::Error::new(error.kind(), error.to_string()));
            }
            return written;
        }
        Ok(())
    }
}

/// A steady clock that goes on where an earlier witness of the same file stopped.
#[derive(Debug)]
struct Clock {
    start: Instant,
    earlier: u64,
}

impl Clock {
    fn now_ms(&self) -> u64 {
        let elapsed = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.earlier.saturating_add(elapsed)
    }
}

/// Reads what a witness collected; an unfinished last line is left out.
pub fn read_arrivals(mut from: impl BufRead) -> io::Result<Vec<Arrival>> {
    let mut arrivals = Vec::new();
    let mut line = Vec::new();
    while from.read_until(b'\n', &mut line)? > 0 && line.ends_with(b"\n") {
        arrivals.push(serde_json::from_slice(&line)?);
        line.clear();
    }
    Ok(arrivals)
}

fn continue_file(path: &Path) -> io::Result<(File, Book)> {
    let mut options = OpenOptions::new();
    let mut file = options.read(true).append(true).create(true).open(path)?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    file.set_len(u64::try_from(whole).unwrap_or(u64::MAX))?;
    let mut book = Book::default();
    for arrival in read_arrivals(&text[..whole])? {
        book.enter(arrival);
    }
    Ok((file, book))
}

fn is_timeout(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::ledger::{
        record::{RecordHash, RunId},
        sender::Sender,
    };

    fn record(sequence: u64) -> Acknowledged {
        Acknowledged {
            vm: "vm".into(),
            dir: "/".into(),
            ledger: LedgerId([1; 16]),
            run: RunId([1; 16]),
            started: 0,
            sequence,
            hash: RecordHash([u8::try_from(sequence % 256).unwrap(); 32]),
        }
    }

    fn anywhere() -> SocketAddr {
        (Ipv4Addr::LOCALHOST, 0).into()
    }

    fn wait_for(witness: &Witness, records: usize) {
        // Two minutes: not a measure of time, but an end for a test that would hang.
        for _ in 0..24_000 {
            if witness.records() >= records {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        panic!("{} records instead of {records}", witness.records());
    }

    #[test]
    fn every_record_pushed_arrives_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("witness");
        let witness = Witness::listen(anywhere(), &out).unwrap();
        let sender = Sender::start(witness.addresses().to_vec());
        (0..1000).for_each(|n| sender.push(record(n)));
        wait_for(&witness, 1000);
        let file = BufReader::new(File::open(&out).unwrap());
        let sequences = read_arrivals(file).unwrap().into_iter().map(|it| it.record.sequence);
        assert!(sequences.eq(0..1000));
        assert_eq!(witness.alarms(), []);
    }

    #[test]
    fn records_queue_up_while_the_witness_is_away() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("witness");
        let first = Witness::listen(anywhere(), &out).unwrap();
        let address = first.addresses()[0];
        let sender = Sender::start(vec![address]);
        (0..10).for_each(|n| sender.push(record(n)));
        wait_for(&first, 10);
        drop(first);
        (10..30).for_each(|n| sender.push(record(n)));
        let second = Witness::listen(address, &out).unwrap();
        wait_for(&second, 30);
        let book = second.book();
        let times: Vec<_> = book.arrivals().iter().map(|arrival| arrival.arrival_ms).collect();
        assert!(times.is_sorted());
        assert!(book.arrivals().iter().map(|arrival| arrival.record.sequence).eq(0..30));
    }

    #[test]
    fn a_connection_that_breaks_in_the_middle_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let witness = Witness::listen(anywhere(), &dir.path().join("witness")).unwrap();
        let front = TcpListener::bind(anywhere()).unwrap();
        let sender = Sender::start(vec![front.local_addr().unwrap()]);
        let back = witness.addresses()[0];
        // A relay that passes a little of each connection on, and an answer at most, then cuts.
        let relay = thread::spawn(move || {
            for take in [0, 1, 100, 700, 1500, 1 << 20] {
                let (mut near, _) = front.accept().unwrap();
                let mut far = TcpStream::connect(back).unwrap();
                let mut answers = (far.try_clone().unwrap(), near.try_clone().unwrap());
                let backwards = thread::spawn(move || io::copy(&mut answers.0, &mut answers.1));
                let _ = io::copy(&mut Read::by_ref(&mut near).take(take), &mut far);
                let _ = far.shutdown(std::net::Shutdown::Both);
                let _ = near.shutdown(std::net::Shutdown::Both);
                let _ = backwards.join();
            }
        });
        (0..50).for_each(|n| sender.push(record(n)));
        wait_for(&witness, 50);
        assert!(witness.book().arrivals().iter().map(|it| it.record.sequence).eq(0..50));
        drop(witness);
        drop(relay); // the last connection stays open as long as the sender lives
    }

    #[test]
    fn a_witness_tells_its_status() {
        let dir = tempfile::tempdir().unwrap();
        let mut witness = Witness::listen(anywhere(), &dir.path().join("witness")).unwrap();
        let listener = TcpListener::bind(anywhere()).unwrap();
        let address = listener.local_addr().unwrap();
        witness.answer_status(listener).unwrap();
        let sender = Sender::start(witness.addresses().to_vec());
        (0..3).for_each(|n| sender.push(record(n)));
        wait_for(&witness, 3);
        let mut text = String::new();
        TcpStream::connect(address).unwrap().read_to_string(&mut text).unwrap();
        let status: Status = serde_json::from_str(&text).unwrap();
        assert_eq!((status.records, status.last_sequences), (3, vec![(LedgerId([1; 16]), 2)]));
    }
}
