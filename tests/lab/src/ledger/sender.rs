//! Tells the witness what is durable, without ever holding up the writer.

use std::{
    collections::VecDeque,
    io::{self, BufRead, BufReader, Write},
    net::{SocketAddr, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use super::book::Acknowledged;

/// Acknowledgements kept for an unreachable witness: over an hour at ten records a second. The
/// oldest go first when there are more.
pub const QUEUE_LIMIT: usize = 50_000;

/// Records sent before their answers are awaited.
const BATCH: usize = 256;

/// A dead connection is noticed after this long.
const PATIENCE: Duration = Duration::from_secs(2);

/// Between two attempts to reach the witness.
const PAUSE: Duration = Duration::from_millis(200);

/// The writer's end of the way to the witness. Connects, and connects again, for ever.
#[derive(Debug, Clone)]
pub struct Sender(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    queue: Mutex<VecDeque<Acknowledged>>,
    filled: Condvar,
}

impl Sender {
    /// Starts a thread that tries `witnesses` in turn: the same witness, as it is reached from
    /// different networks.
    #[must_use]
    pub fn start(witnesses: Vec<SocketAddr>) -> Self {
        let queue = Mutex::default();
        let sender = Self(Arc::new(Shared { queue, filled: Condvar::new() }));
        if !witnesses.is_empty() {
            let shared = Arc::clone(&sender.0);
            thread::spawn(move || {
                for address in witnesses.iter().cycle() {
                    // Whatever went wrong, unanswered records are still in the queue.
                    let _ = shared.deliver(*address);
                    thread::sleep(PAUSE);
                }
            });
        }
        sender
    }

    /// Queues a record that is durable. Never blocks for the network.
    pub fn push(&self, record: Acknowledged) {
        let mut queue = self.0.queue();
        if queue.len() == QUEUE_LIMIT {
            queue.pop_front();
        }
        queue.push_back(record);
        drop(queue);
        self.0.filled.notify_one();
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, VecDeque<Acknowledged>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn deliver(&self, address: SocketAddr) -> io::Result<()> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut answers = BufReader::new(stream.try_clone()?);
        let mut stream = stream;
        loop {
            let batch = self.next_batch();
            let mut lines = Vec::new();
            for record in &batch {
                serde_json::to_writer(&mut lines, record)?;
                lines.push(b'\n');
            }
            stream.write_all(&lines)?;
            for record in &batch {
                let mut answer = String::new();
                answers.read_line(&mut answer)?;
                if answer != "ok\n" {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                self.answered(record);
            }
        }
    }

    fn next_batch(&self) -> Vec<Acknowledged> {
        let empty = |queue: &mut VecDeque<_>| queue.is_empty();
        let queue = self.filled.wait_while(self.queue(), empty);
        queue.unwrap_or_else(PoisonError::into_inner).iter().take(BATCH).cloned().collect()
    }

    /// Forgets a record, unless the limit made the queue forget it already.
    fn answered(&self, record: &Acknowledged) {
        let mut queue = self.queue();
        if queue.front() == Some(record) {
            queue.pop_front();
        }
    }
}
