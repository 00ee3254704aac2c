//! The agent's end.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex as AsyncMutex, oneshot};
use tokio::time::{sleep, timeout};
use transfer::control::{self, ControlReader};
use units::MigrationId;
use wire::control::{AgentDisk, Failure, Sealed, TrackerReport, TrackerWish};

use super::descriptors;
use super::order::{Answer, Call, Order, Said, Start, Status, Way};
use crate::log::Log;
use crate::session::{Events, lock};
use crate::source::SourceError;
use crate::{PROGRAM, daemon};

/// How long a carrier may take to end after its stream was ended, before it is killed: it has
/// nothing to put in order.
const END_WITHIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The last words of a carrier that ended by itself.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(2);

/// A carrier that has its disks open.
pub struct Carrier {
    child: Mutex<Child>,
    pid: u32,
    orders: AsyncMutex<OwnedWriteHalf>,
    sockets: OwnedFd,
    asked: Arc<Asked>,
    number: AtomicU64,
}

type Result<T> = std::result::Result<T, SourceError>;
type Waiting = BTreeMap<u64, oneshot::Sender<std::result::Result<Answer, Failure>>>;

/// Who waits for which answer.
#[derive(Default)]
struct Asked {
    waiting: Mutex<Waiting>,
    /// It was asked to end.
    ending: AtomicBool,
}

impl Carrier {
    /// Starts it and waits until it tracks the disks. `key`: the agent's, PKCS #8.
    pub async fn start(
        migration: MigrationId,
        key: Vec<u8>,
        disks: Vec<AgentDisk>,
        wish: TrackerWish,
        events: Events,
        log: Log,
    ) -> Result<(Self, TrackerReport)> {
        let (mut child, stream, sockets) = spawn().map_err(SourceError::CarrierLost)?;
        let pid = child.id();
        let asked = Arc::<Asked>::default();
        let (answers, orders) = stream.into_split();
        let last_words = child.stderr.take().map(|stderr| tokio::spawn(keep(stderr.into(), log)));
        tokio::spawn(listen(answers, Arc::clone(&asked), events, last_words));
        let carrier = Self {
            child: Mutex::new(child),
            pid,
            orders: AsyncMutex::new(orders),
            sockets,
            asked,
            number: AtomicU64::new(1),
        };
        let start = Start { migration, key, disks, wish };
        match carrier.exchange(0, &start).await {
            Ok(Answer::Started(report)) => Ok((carrier, report)),
            Ok(_) => Err(SourceError::carrier_confused()),
            Err(error) => {
                carrier.end().await;
                Err(error)
            }
        }
    }

    pub const fn pid(&self) -> u32 {
        self.pid
    }

    pub async fn ask(&self, order: Order) -> Result<Answer> {
        let id = self.number.fetch_add(1, Ordering::Relaxed);
        self.exchange(id, &Call { id, order }).await
    }

    pub async fn status(&self) -> Result<Status> {
        match self.ask(Order::Status).await? {
            Answer::Status(status) => Ok(status),
            _ => Err(SourceError::carrier_confused()),
        }
    }

    pub async fn seal(&self, rest: u64) -> Result<Sealed> {
        match self.ask(Order::Seal { rest }).await? {
            Answer::Sealed(sealed) => Ok(sealed),
            _ => Err(SourceError::carrier_confused()),
        }
    }

    /// Hands it the sockets of a connection; one call at a time.
    pub async fn connect(
        &self,
        generation: u64,
        peer_key: String,
        way: Way,
        sockets: Vec<OwnedFd>,
    ) -> Result<()> {
        let borrowed: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
        descriptors::send(&self.sockets, generation, &borrowed).map_err(SourceError::Socket)?;
        // It has its own now: only it decides how long they are open.
        drop(sockets);
        self.ask(Order::Connect { generation, peer_key, way }).await.map(drop)
    }

    /// Ends it, and waits for its end: the tracker's programs go with it.
    pub async fn end(&self) {
        self.asked.ending.store(true, Ordering::SeqCst);
        // Closes this direction, which is all that it waits for.
        let _closed = tokio::io::AsyncWriteExt::shutdown(&mut *self.orders.lock().await).await;
        let ended = timeout(END_WITHIN, async {
            while !matches!(lock(&self.child).try_wait(), Ok(Some(_)) | Err(_)) {
                sleep(LOOK_EVERY).await;
            }
        });
        if ended.await.is_err() {
            tracing::warn!("the carrier does not end and is killed");
            let mut child = lock(&self.child);
            if let Err(error) = child.kill().and_then(|()| child.wait()) {
                tracing::warn!(%error, "the carrier is not gone");
            }
        }
    }

    async fn exchange(&self, id: u64, message: &impl serde::Serialize) -> Result<Answer> {
        let (answer, waiting) = oneshot::channel();
        lock(&self.asked.waiting).insert(id, answer);
        let lost = |cause| SourceError::CarrierLost(io::Error::other(cause));
        control::write(&mut *self.orders.lock().await, message).await.map_err(lost)?;
        match waiting.await {
            Ok(answer) => answer.map_err(SourceError::Carrier),
            Err(_) => Err(SourceError::CarrierLost(io::ErrorKind::UnexpectedEof.into())),
        }
    }
}

fn spawn() -> io::Result<(Child, tokio::net::UnixStream, OwnedFd)> {
    let (stream, theirs) = UnixStream::pair()?;
    let (sockets, their_sockets) = descriptors::channel()?;
    // Works also when the file was removed in the meantime.
    let child = Command::new("/proc/self/exe")
        .arg0(PROGRAM)
        .arg(super::SUBCOMMAND)
        .stdin(OwnedFd::from(theirs))
        .stdout(their_sockets)
        .stderr(Stdio::piped())
        .current_dir("/")
        .spawn()?;
    stream.set_nonblocking(true)?;
    Ok((child, tokio::net::UnixStream::from_std(stream)?, sockets))
}

/// Until the stream ends. If nobody asked for that, so does the agent.
async fn listen(
    answers: OwnedReadHalf,
    asked: Arc<Asked>,
    events: Events,
    last_words: Option<tokio::task::JoinHandle<()>>,
) {
    let mut reader = ControlReader::new(answers);
    let broke = loop {
        match reader.next::<Said>().await {
            Ok(Some(Said::Event(event))) => events.tell(event),
            Ok(Some(Said::Answer { id, result })) => {
                // One that refuses its disks has said all that it has to say.
                if id == 0 && result.is_err() {
                    asked.ending.store(true, Ordering::SeqCst);
                }
                if let Some(waiting) = lock(&asked.waiting).remove(&id) {
                    // Nobody waits for it any more.
                    let _heard = waiting.send(result);
                }
            }
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
    };
    lock(&asked.waiting).clear();
    if asked.ending.load(Ordering::SeqCst) {
        return;
    }
    if let Some(last_words) = last_words {
        // What it said is in the log by then, or will never be.
        let _said = timeout(LAST_WORDS_WITHIN, last_words).await;
    }
    let why = broke.map_or_else(|| "it ended".to_owned(), |error| units::chain(&error));
    tracing::error!(why, "the process that carries the disks is gone, and so is the agent");
    daemon::end_after_bug();
}

/// The carrier has no file of its own to write to: its log goes into the agent's.
async fn keep(stderr: OwnedFd, mut log: Log) {
    let kept = async {
        let mut pipe = pipe::Receiver::from_owned_fd(stderr)?;
        let mut buffer = vec![0; 4096];
        loop {
            match pipe.read(&mut buffer).await? {
                0 => return Ok::<_, io::Error>(()),
                len => log.write_all(&buffer[..len])?,
            }
        }
    };
    if let Err(error) = kept.await {
        tracing::warn!(%error, "the carrier's log is lost");
    }
}
