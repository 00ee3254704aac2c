//! One connection of somebody who takes us for a libvirtd. Pings are answered whatever else goes
//! on: calls that take long are answered from elsewhere.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use rpc::error::RemoteError;
use rpc::procedures::{Finished, Prepared};
use rpc::server::{Ended, Event, Session};
use site::ByteStream;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf, split};
use tokio::select;
use tokio::sync::{mpsc, oneshot};
use tokio::task::unconstrained;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::net::Peer;

/// The events of a connection and the way to answer them. Dropping it closes the connection.
pub struct Line {
    events: mpsc::Receiver<Event>,
    answers: mpsc::Sender<Answer>,
    /// The connection is over, whatever events have not been taken yet.
    pub over: CancellationToken,
    /// See [`Peer::is_own_libvirtd`].
    pub is_own_libvirtd: bool,
}

enum Answer {
    Prepare(u32, Result<Prepared, RemoteError>),
    Finish(u32, Result<Finished, RemoteError>),
    /// None: it is said whether the connection stands. Dropped where it does not.
    Stands(oneshot::Sender<()>),
}

/// Events that nobody has taken yet; the session holds some more and then reads no further.
const EVENTS_MAX: usize = 4;
/// How long the last words may take to leave.
const FAREWELL_MAX: Duration = Duration::from_secs(5);
/// Later than any tick.
pub(super) const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

impl Line {
    pub fn serve(
        stream: ByteStream,
        peer: &Peer,
        session: impl FnOnce(Duration) -> Session,
    ) -> Self {
        let (tell, events) = mpsc::channel(EVENTS_MAX);
        let (answers, answered) = mpsc::channel(1);
        let over = CancellationToken::new();
        let session = session(Duration::ZERO);
        tokio::spawn(drive(stream, session, tell, answered, over.clone()));
        Self { events, answers, over, is_own_libvirtd: peer.is_own_libvirtd }
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

    /// Whether the other end had not closed it, and it was not broken, before this was asked.
    pub async fn stands(&self) -> bool {
        // By then the runtime has asked the kernel what has become of its connections.
        sleep(Duration::from_millis(1)).await;
        let (tell, told) = oneshot::channel();
        let stands = async {
            let asked = self.answers.send(Answer::Stands(tell)).await;
            asked.is_ok() && told.await.is_ok()
        };
        select! {
            biased;
            () = self.over.cancelled() => false,
            stands = stands => stands,
        }
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
                Some(Answer::Prepare(serial, answer)) => {
                    sent(session.answer_prepare(serial, answer));
                }
                Some(Answer::Finish(serial, answer)) => sent(session.answer_finish(serial, answer)),
                Some(Answer::Stands(tell)) => match unconstrained(at_once(&mut from, &mut input)).await {
                    Poll::Pending => drop(tell.send(())),
                    // What was said before comes first: whether there is more to come is not asked again.
                    Poll::Ready(Ok(len)) if len > 0 => session.push(&input[..len], began.elapsed()),
                    Poll::Ready(_) => session.hang_up(),
                },
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

fn sent<E: std::fmt::Display>(sent: Result<(), E>) {
    if let Err(error) = sent {
        tracing::debug!(%error, "an answer was not sent");
    }
}

/// What there is to read now.
async fn at_once(from: &mut (impl AsyncRead + Unpin), into: &mut [u8]) -> Poll<io::Result<usize>> {
    let mut into = ReadBuf::new(into);
    poll_fn(|context| {
        let read = Pin::new(&mut *from).poll_read(context, &mut into);
        Poll::Ready(read.map_ok(|()| into.filled().len()))
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use rpc::server::{Host, Limits};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    fn line(stream: ByteStream) -> Line {
        let host = Host {
            hostname: "east".to_owned(),
            uri: "qemu:///system".to_owned(),
            hypervisor_version: 7_002_000,
            libvirt_version: 9_000_000,
            capabilities: String::new(),
            secure: false,
            refused_flags: rpc::flags::Flags::default(),
        };
        let peer = Peer { name: "here".to_owned(), is_own_libvirtd: true };
        Line::serve(stream, &peer, |now| Session::new(host, Limits::default(), now))
    }

    #[tokio::test]
    async fn a_connection_that_was_closed_does_not_stand() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        // Whichever of both is seen first.
        for _ in 0..50 {
            let theirs = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let line = line(Box::new(listener.accept().await.unwrap().0));
            assert!(line.stands().await);
            assert!(line.stands().await, "asked again");
            // Asked before whoever reads has run.
            drop(theirs);
            assert!(!line.stands().await);
            assert!(!line.stands().await, "it does not stand again");
        }
    }
}
