//! The coordinator's end of a control stream: calls out, replies and events in.

use std::collections::HashMap;
use std::time::Duration;

use tokio::io::{ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;
use units::MigrationId;
use wire::control::{CONTROL_VERSION, Call, Event, Failure, Message, Reply, Request};
use wire::purpose::Purpose;

use site::ByteStream;
use transfer::control::{self, ControlReader};
use transfer::meet;
use transfer::secure::{self, Identity, Trust};

use crate::error::AgentError;

/// A connected agent. Dropping it closes the stream; the agent goes on without us.
pub struct Agent {
    at: String,
    pub build: String,
    pub key: String,
    pub boot_id: String,
    calls: mpsc::Sender<Pending>,
    events: mpsc::Receiver<Event>,
    started: Option<(&'static str, oneshot::Receiver<Result<Reply, Failure>>)>,
    _tasks: JoinSet<()>,
}

struct Pending {
    request: Request,
    answer: oneshot::Sender<Result<Reply, Failure>>,
}

/// Calls that may wait for the writer; more than one person ever asks at once.
const CALLS_WAITING: usize = 16;
/// Events are small and the engine reads them at once; beyond this the agent is made to wait.
const EVENTS_WAITING: usize = 256;
/// An agent answers in milliseconds; some requests look at every disk or stop services.
const ANSWER_WITHIN: Duration = Duration::from_secs(120);
/// Nothing stands before the greeting; a stream on which it gets lost is opened anew.
const GREETED_WITHIN: Duration = Duration::from_secs(30);
/// Opening a stream includes waiting for a helper that is still booting.
const HELLO_WITHIN: Duration = Duration::from_secs(180);

impl Agent {
    /// Greets the agent at the other end of `stream`.
    pub async fn greet(
        at: &str,
        stream: ByteStream,
        identity: &Identity,
        migration: &MigrationId,
    ) -> Result<Self, AgentError> {
        let lost = |cause| AgentError::lost(at, cause);
        let met = meet::open(stream, Purpose::Control, HELLO_WITHIN)
            .await
            .map_err(|e| lost(Box::new(e)))?;
        // Whoever answers on the platform's own channel is the agent; its key is then the one that
        // its peer is told to expect.
        let secured = secure::connect(met, identity, Trust::FirstSeen)
            .await
            .map_err(|e| lost(Box::new(e)))?;
        let shown = secured.peer.to_string();
        let (reader, writer) = tokio::io::split(secured.stream);
        let (calls, calls_in) = mpsc::channel(CALLS_WAITING);
        let (events_out, events) = mpsc::channel(EVENTS_WAITING);
        let mut tasks = JoinSet::new();
        let (replies_out, replies) = mpsc::channel(CALLS_WAITING);
        tasks.spawn(read_messages(reader, replies_out, events_out));
        tasks.spawn(write_calls(writer, calls_in, replies));
        let mut agent = Self {
            at: at.to_owned(),
            build: String::new(),
            key: String::new(),
            boot_id: String::new(),
            calls,
            events,
            started: None,
            _tasks: tasks,
        };
        let hello = Request::Hello {
            version: CONTROL_VERSION,
            migration: migration.clone(),
            coordinator_key: identity.spki_hex(),
        };
        match agent.call_within(hello, GREETED_WITHIN).await? {
            Reply::Hello { key, .. } if key != shown => Err(AgentError::Protocol {
                at: at.to_owned(),
                what: "it names another key than it showed".to_owned(),
            }),
            Reply::Hello { build, key, boot_id, .. } => {
                agent.build = build;
                agent.key = key;
                agent.boot_id = boot_id;
                Ok(agent)
            }
            other => Err(agent.unexpected(&other)),
        }
    }

    /// Asks and waits for the answer.
    pub async fn call(&self, request: Request) -> Result<Reply, AgentError> {
        self.call_within(request, ANSWER_WITHIN).await
    }

    async fn call_within(&self, request: Request, limit: Duration) -> Result<Reply, AgentError> {
        let name = name_of(&request);
        let (answer, answered) = oneshot::channel();
        let lost = || AgentError::Lost { at: self.at.clone(), cause: None };
        self.calls.send(Pending { request, answer }).await.map_err(|_| lost())?;
        match timeout(limit, answered).await {
            Err(_) => Err(AgentError::Silent { at: self.at.clone(), request: name, waited: limit }),
            Ok(Err(_)) => Err(lost()),
            Ok(Ok(Err(failure))) => {
                Err(AgentError::Refused { at: self.at.clone(), request: name, failure })
            }
            Ok(Ok(Ok(reply))) => Ok(reply),
        }
    }

    /// A call whose answer is [`Reply::Done`].
    pub async fn tell(&self, request: Request) -> Result<(), AgentError> {
        match self.call(request).await? {
            Reply::Done => Ok(()),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Asks without waiting; [`Agent::answer_or_event`] brings the answer.
    pub async fn start(&mut self, request: Request) -> Result<(), AgentError> {
        let name = name_of(&request);
        let (answer, answered) = oneshot::channel();
        let lost = |_| AgentError::Lost { at: self.at.clone(), cause: None };
        self.calls.send(Pending { request, answer }).await.map_err(lost)?;
        self.started = Some((name, answered));
        Ok(())
    }

    /// The answer to what was started (`Ok`), or an event that came before it (`Err`).
    pub async fn answer_or_event(&mut self) -> Result<Result<Reply, Event>, AgentError> {
        let Some((name, answered)) = &mut self.started else {
            return self.event().await.map(Err);
        };
        tokio::select! {
            answer = answered => {
                let (name, at) = (*name, self.at.clone());
                self.started = None;
                match answer {
                    Err(_) => Err(AgentError::Lost { at, cause: None }),
                    Ok(Err(failure)) => Err(AgentError::Refused { at, request: name, failure }),
                    Ok(Ok(reply)) => Ok(Ok(reply)),
                }
            }
            event = self.events.recv() => {
                event.map(Err).ok_or_else(|| AgentError::Lost { at: self.at.clone(), cause: None })
            }
        }
    }

    /// The next event.
    pub async fn event(&mut self) -> Result<Event, AgentError> {
        self.events
            .recv()
            .await
            .ok_or_else(|| AgentError::Lost { at: self.at.clone(), cause: None })
    }

    pub fn unexpected(&self, reply: &Reply) -> AgentError {
        let what = format!("unexpected reply: {reply:?}");
        AgentError::Protocol { at: self.at.clone(), what: what.chars().take(200).collect() }
    }
}

async fn read_messages<S: tokio::io::AsyncRead>(
    reader: ReadHalf<S>,
    replies: mpsc::Sender<(u64, Result<Reply, Failure>)>,
    events: mpsc::Sender<Event>,
) {
    let mut reader = ControlReader::new(reader);
    loop {
        let sent = match reader.next().await {
            Ok(Some(Message::Reply { id, result })) => replies.send((id, result)).await.is_ok(),
            Ok(Some(Message::Event(event))) => events.send(event).await.is_ok(),
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(error = %units::chain(&error), "control stream ended");
                return;
            }
        };
        if !sent {
            return;
        }
    }
}

async fn write_calls<S: tokio::io::AsyncWrite>(
    mut writer: WriteHalf<S>,
    mut calls: mpsc::Receiver<Pending>,
    mut replies: mpsc::Receiver<(u64, Result<Reply, Failure>)>,
) {
    let mut waiting = HashMap::new();
    let mut next_id = 1_u64;
    loop {
        tokio::select! {
            call = calls.recv() => {
                let Some(Pending { request, answer }) = call else { return };
                let id = next_id;
                next_id += 1;
                waiting.insert(id, answer);
                if control::write(&mut writer, &Call { id, request }).await.is_err() {
                    return;
                }
            }
            reply = replies.recv() => {
                let Some((id, result)) = reply else { return };
                if let Some(answer) = waiting.remove(&id) {
                    // Whoever asked may have given up waiting.
                    drop(answer.send(result));
                }
            }
        }
    }
}

/// For error messages: the request's own word.
const fn name_of(request: &Request) -> &'static str {
    match request {
        Request::Hello { .. } => "hello",
        Request::Status => "status",
        Request::Disconnect => "disconnect",
        Request::Shutdown => "shutdown",
        Request::Inspect => "inspect",
        Request::Track { .. } => "track",
        Request::Connect { .. } => "connect",
        Request::Round { .. } => "round",
        Request::LimitRate { .. } => "limit rate",
        Request::StopRound => "stop round",
        Request::Quiesce { .. } => "quiesce",
        Request::Seal { .. } => "seal",
        Request::Thaw { .. } => "thaw",
        Request::Attach { .. } => "attach",
        Request::Expect { .. } => "expect",
        Request::Digests => "digests",
        Request::Reread => "reread",
        Request::InspectBoot => "inspect boot",
    }
}
