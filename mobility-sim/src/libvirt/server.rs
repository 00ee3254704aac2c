//! One connection of somebody who takes us for a libvirtd. Pings are answered whatever else goes
//! on: calls that take long are answered from elsewhere.

use std::time::Duration;

use rpc::error::RemoteError;
use rpc::procedures::{Finished, Prepared};
use rpc::server::{Ended, Event, Session};
use site::ByteStream;
use tokio::io::{AsyncReadExt, AsyncWriteExt, split};
use tokio::select;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

/// The events of a connection and the way to answer them. Dropping it closes the connection.
pub struct Line {
    events: mpsc::Receiver<Event>,
    answers: mpsc::Sender<Answer>,
    /// The connection is over, whatever events have not been taken yet.
    pub over: CancellationToken,
}

enum Answer {
    Prepare(u32, Result<Prepared, RemoteError>),
    Finish(u32, Result<Finished, RemoteError>),
}

/// Events that nobody has taken yet; the session holds some more and then reads no further.
const EVENTS_MAX: usize = 4;
/// How long the last words may take to leave.
const FAREWELL_MAX: Duration = Duration::from_secs(5);
/// Later than any tick.
pub(super) const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

impl Line {
    pub fn serve(stream: ByteStream, session: impl FnOnce(Duration) -> Session) -> Self {
        let (tell, events) = mpsc::channel(EVENTS_MAX);
        let (answers, answered) = mpsc::channel(1);
        let over = CancellationToken::new();
        let session = session(Duration::ZERO);
        tokio::spawn(drive(stream, session, tell, answered, over.clone()));
        Self { events, answers, over }
    }

    /// `None` after the last one.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    pub async fn answer_prepare(&self, serial: u32, answer: Result<Prepared, RemoteError>) {
        // One that is over has nobody who waits.
        let _ = self.answers.send(Answer::Prepare(serial, answer)).await;
    }

    pub async fn answer_finish(&self, serial: u32, answer: Result<Finished, RemoteError>) {
        let _ = self.answers.send(Answer::Finish(serial, answer)).await;
    }
}

async fn drive(
    stream: ByteStream,
    mut session: Session,
    tell: mpsc::Sender<Event>,
    mut answers: mpsc::Receiver<Answer>,
    over: CancellationToken,
) {
    let _over = over.drop_guard_ref();
    let began = Instant::now();
    let (mut from, mut to) = split(stream);
    let (mut input, mut output) = (vec![0; 64 << 10], Vec::new());
    let mut event = None;
    loop {
        output.extend(session.output());
        event = event.or_else(|| session.event());
        if session.is_over() {
            over.cancel();
            break;
        }
        let tick = session.next_tick().map_or(began + FOREVER, |at| began + at);
        select! {
            read = from.read(&mut input), if session.wants_input() => match read {
                Ok(len) if len > 0 => session.push(&input[..len], began.elapsed()),
                _ => session.hang_up(),
            },
            written = to.write(&output), if !output.is_empty() => match written {
                Ok(len) => drop(output.drain(..len)),
                Err(_) => session.hang_up(),
            },
            answer = answers.recv() => match answer {
                Some(answer) => answered(&mut session, answer),
                None => return,
            },
            room = tell.reserve(), if event.is_some() => match (room, event.take()) {
                (Ok(room), Some(event)) => room.send(event),
                _ => return,
            },
            () = sleep_until(tick) => session.tick(began.elapsed()),
        }
    }
    let _ = timeout(FAREWELL_MAX, to.write_all(&output)).await;
    let _ = timeout(FAREWELL_MAX, to.shutdown()).await;
    // What was said before the end, and then that.
    while let Some(next) = event.take().or_else(|| session.event()) {
        if let Event::Closed(Ended::Violation(violation)) = &next {
            tracing::warn!(%violation, "a client broke libvirt's protocol");
        }
        if tell.send(next).await.is_err() {
            return;
        }
    }
}

fn answered(session: &mut Session, answer: Answer) {
    let sent = match answer {
        Answer::Prepare(serial, answer) => session.answer_prepare(serial, answer),
        Answer::Finish(serial, answer) => session.answer_finish(serial, answer),
    };
    if let Err(error) = sent {
        tracing::debug!(%error, "an answer was not sent");
    }
}
