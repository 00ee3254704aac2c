//! Streams that come in, and what becomes of them.
//!
//! ```text
//!  stream → preamble, purpose → Control: TLS → Hello → requests      one at a time, the newest wins
//!                             → Data(generation, stream) → the role
//! ```
//!
//! TLS on the control stream takes any key, in both directions: the first coordinator that proves
//! to hold its key owns this agent for the agent's life, and every other is refused. What keeps a
//! stranger from being the first is whoever opens the stream: root's SSH login into the guest, or
//! the hypervisor's own channel into the helper. Those who own these own the VM anyway; someone
//! who merely listens learns nothing.

mod reopened;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tracing::{debug, info, warn};
use transfer::control::{self, ControlError, ControlReader};
use transfer::meet::{self, Met};
use transfer::secure::{self, Identity, PublicKey, Trust};
use units::{MigrationId, chain};
use wire::control::{
    AgentRole, CONTROL_VERSION, ErrorCode, Event, Failure, Message, Reply, Request,
};
use wire::purpose::Purpose;

pub use reopened::UntilReopened;

/// Bytes both ways. Dropping it closes it.
pub trait ByteIo: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteIo for T {}

pub type ByteStream = Box<dyn ByteIo>;

/// Requests that run at the same time. Only a few kinds may take long; beyond this the coordinator
/// waits.
const CALLS_AT_ONCE: usize = 8;

/// Events that wait for the coordinator to read them. Progress beyond this is dropped.
const EVENTS_WAITING: usize = 256;

/// How long a new control stream may take to say Hello.
const HELLO_WITHIN: Duration = Duration::from_secs(30);

/// What an agent does, at the source or at the destination.
pub trait Role: Send + Sync + 'static {
    const ROLE: AgentRole;

    /// What comes in.
    type Stream: ByteIo + 'static;

    /// Answers one request other than Hello and Shutdown. `owner`: which migration asks.
    fn answer(
        self: Arc<Self>,
        owner: MigrationId,
        request: Request,
    ) -> impl Future<Output = Result<Reply, Failure>> + Send;

    /// Takes a data stream, right after its purpose.
    fn data(
        self: Arc<Self>,
        generation: u64,
        number: u16,
        stream: Met<Self::Stream>,
    ) -> impl Future<Output = ()> + Send;

    /// Leaves everything as it was found. Repeatable.
    fn wind_up(self: Arc<Self>) -> impl Future<Output = ()> + Send;
}

/// Where a role's events go: to the session under way, if there is one.
#[derive(Clone, Debug, Default)]
pub struct Events {
    to: Arc<Mutex<Option<mpsc::Sender<Event>>>>,
}

impl Events {
    pub fn tell(&self, event: Event) {
        let to = lock(&self.to).clone();
        let Some(to) = to else { return };
        if let Err(error) = to.try_send(event) {
            debug!(%error, "event not delivered");
        }
    }

    pub fn note(&self, text: impl Into<String>) {
        let text = text.into();
        warn!(%text, "note for the operator");
        self.tell(Event::Note { text });
    }

    fn direct_to(&self, to: Option<mpsc::Sender<Event>>) {
        *lock(&self.to) = to;
    }
}

/// One agent and all who talk to it.
#[derive(Debug)]
pub struct Host<R> {
    role: Arc<R>,
    identity: Identity,
    boot_id: String,
    events: Events,
    owner: Mutex<Option<Owner>>,
    session: Mutex<Session>,
    ending: Notify,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Owner {
    key: PublicKey,
    migration: MigrationId,
}

#[derive(Debug)]
struct Session {
    number: u64,
    /// Wakes the session under way when a newer one takes its place.
    replaced: Arc<Notify>,
    open: bool,
    /// When there last was one.
    seen: Instant,
}

/// A request as it came, known or not.
#[derive(Deserialize)]
struct RawCall {
    id: u64,
    request: serde_json::Value,
}

/// Why a session ended.
enum End {
    /// The other end closed it, or it broke.
    Gone,
    Replaced,
    Shutdown,
}

impl<R: Role> Host<R> {
    pub fn new(role: Arc<R>, identity: Identity, events: Events, boot_id: String) -> Arc<Self> {
        let seen = Instant::now();
        let session = Session { number: 0, replaced: Arc::default(), open: false, seen };
        Arc::new(Self {
            role,
            identity,
            boot_id,
            events,
            owner: Mutex::new(None),
            session: Mutex::new(session),
            ending: Notify::new(),
        })
    }

    /// Until a coordinator asks this agent to end.
    pub async fn ended(&self) {
        self.ending.notified().await;
    }

    pub fn role(&self) -> Arc<R> {
        Arc::clone(&self.role)
    }

    /// How long there has been no control session.
    pub fn idle(&self) -> Duration {
        let session = lock(&self.session);
        if session.open { Duration::ZERO } else { session.seen.elapsed() }
    }

    /// Waits for a session on this stream and serves it to its end.
    pub async fn serve(self: &Arc<Self>, stream: R::Stream, allowed: Allowed) {
        let (purpose, stream) = match meet::accept(stream).await {
            Ok(met) => met,
            Err(error) => {
                debug!(error = %chain(&error), "no session on this stream");
                return;
            }
        };
        match purpose {
            Purpose::Control if allowed == Allowed::Everything => {
                self.control(Box::new(UntilReopened::new(stream))).await;
            }
            Purpose::Control => warn!("control refused on a stream that is for data only"),
            Purpose::Data { generation, stream: number } => {
                self.role().data(generation, number, stream).await;
            }
        }
    }

    async fn control(self: &Arc<Self>, stream: ByteStream) {
        let secured = match secure::accept(stream, &self.identity, Trust::FirstSeen).await {
            Ok(secured) => secured,
            Err(error) => {
                warn!(error = %chain(&error), "control stream not secured");
                return;
            }
        };
        let (reader, mut writer) = tokio::io::split(secured.stream);
        let mut reader = ControlReader::new(reader);
        let hello = tokio::time::timeout(HELLO_WITHIN, reader.next::<RawCall>()).await;
        let Ok(Ok(Some(call))) = hello else {
            warn!("control stream without Hello");
            return;
        };
        let judged = self.judge(&call, secured.peer);
        let (result, owner) = match judged {
            Ok((reply, owner)) => (Ok(reply), Some(owner)),
            Err(failure) => (Err(failure), None),
        };
        let answered = control::write(&mut writer, &Message::Reply { id: call.id, result }).await;
        let (Ok(()), Some(owner)) = (answered, owner) else { return };
        let (number, replaced, events) = self.take_over();
        info!(session = number, migration = %owner.migration, "coordinator connected");
        let end = self.requests(&owner, &mut reader, &mut writer, &replaced, events).await;
        self.leave(number);
        match end {
            Ok(End::Gone) => info!(session = number, "coordinator gone"),
            Ok(End::Replaced) => info!(session = number, "session replaced by a newer one"),
            Ok(End::Shutdown) => self.ending.notify_one(),
            Err(error) => info!(session = number, error = %chain(&error), "control stream broke"),
        }
    }

    /// Is this the coordinator that owns the agent, or the first one?
    fn judge(&self, call: &RawCall, shown: PublicKey) -> Result<(Reply, Owner), Failure> {
        let Ok(Request::Hello { version, migration, coordinator_key }) =
            serde_json::from_value(call.request.clone())
        else {
            return Err(failure(ErrorCode::WrongState, "the first request is Hello"));
        };
        if version != CONTROL_VERSION {
            let text = format!(
                "this agent speaks version {CONTROL_VERSION} of the control protocol, not {version}"
            );
            return Err(failure(ErrorCode::Version, &text));
        }
        if coordinator_key != shown.to_string() {
            return Err(failure(ErrorCode::Foreign, "the key in Hello is not the stream's"));
        }
        let asked = Owner { key: shown, migration };
        let mut owner = lock(&self.owner);
        match owner.as_ref() {
            Some(known) if *known != asked => {
                let text = format!(
                    "this agent serves migration {}, of another coordinator or attempt",
                    known.migration
                );
                let hint =
                    "abort that migration, or remove the agent and let it be installed again";
                return Err(Failure {
                    hint: Some(hint.to_owned()),
                    ..failure(ErrorCode::Foreign, &text)
                });
            }
            Some(_) => {}
            None => *owner = Some(asked.clone()),
        }
        let hello = Reply::Hello {
            version: CONTROL_VERSION,
            role: R::ROLE,
            build: env!("CARGO_PKG_VERSION").to_owned(),
            key: self.identity.spki_hex(),
            boot_id: self.boot_id.clone(),
        };
        Ok((hello, asked))
    }

    /// Makes this the session to which events go, and ends the one before.
    fn take_over(&self) -> (u64, Arc<Notify>, mpsc::Receiver<Event>) {
        let (to, events) = mpsc::channel(EVENTS_WAITING);
        let mut session = lock(&self.session);
        session.replaced.notify_one();
        session.replaced = Arc::default();
        session.number += 1;
        session.open = true;
        self.events.direct_to(Some(to));
        (session.number, Arc::clone(&session.replaced), events)
    }

    fn leave(&self, number: u64) {
        let mut session = lock(&self.session);
        if session.number == number {
            self.events.direct_to(None);
            session.open = false;
            session.seen = Instant::now();
        }
    }

    async fn requests<S: ByteIo>(
        self: &Arc<Self>,
        owner: &Owner,
        reader: &mut ControlReader<tokio::io::ReadHalf<S>>,
        writer: &mut tokio::io::WriteHalf<S>,
        replaced: &Notify,
        mut events: mpsc::Receiver<Event>,
    ) -> Result<End, ControlError> {
        let (replies_in, mut replies) = mpsc::channel(CALLS_AT_ONCE);
        let mut running = 0;
        loop {
            tokio::select! {
                // Events first: the one that explains a reply comes before it.
                biased;
                () = replaced.notified() => return Ok(End::Replaced),
                Some(event) = events.recv() => {
                    control::write(writer, &Message::Event(event)).await?;
                }
                Some((id, result, end)) = replies.recv() => {
                    running -= 1;
                    control::write(writer, &Message::Reply { id, result }).await?;
                    if end {
                        return Ok(End::Shutdown);
                    }
                }
                call = reader.next::<RawCall>(), if running < CALLS_AT_ONCE => {
                    let Some(call) = call? else { return Ok(End::Gone) };
                    running += 1;
                    let (host, migration) = (Arc::clone(self), owner.migration.clone());
                    let replies = replies_in.clone();
                    // Not bound to the session: what was begun is finished, and asked for again
                    // over the next one.
                    tokio::spawn(async move {
                        let (result, end) = host.answer(migration, call.request).await;
                        // Nobody waits for it any more if the session is gone.
                        let _sent = replies.send((call.id, result, end)).await;
                    });
                }
            }
        }
    }

    /// The reply, and whether it is the last.
    async fn answer(
        &self,
        migration: MigrationId,
        request: serde_json::Value,
    ) -> (Result<Reply, Failure>, bool) {
        let request: Request = match serde_json::from_value(request) {
            Ok(request) => request,
            Err(error) => {
                let text = format!("this agent does not know the request: {error}");
                return (Err(failure(ErrorCode::Unknown, &text)), false);
            }
        };
        match request {
            Request::Hello { .. } => {
                (Err(failure(ErrorCode::WrongState, "Hello comes once, at the start")), false)
            }
            Request::Shutdown => {
                self.role().wind_up().await;
                (Ok(Reply::Done), true)
            }
            request => (self.role().answer(migration, request).await, false),
        }
    }
}

/// What may be asked for on a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowed {
    Everything,
    DataOnly,
}

/// The tasks of an agent: none outlives it.
pub type Tasks = JoinSet<()>;

pub fn failure(code: ErrorCode, text: &str) -> Failure {
    Failure { code, text: text.to_owned(), hint: None }
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
