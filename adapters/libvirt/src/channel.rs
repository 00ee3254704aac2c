//! A byte stream into a VM over libvirt's own connection: `virDomainOpenChannel`.
//!
//! ```text
//!  caller ── poll_read  ◄── queue ◄── thread "recv" ◄─┐
//!                                                     ├─ one libvirt connection of its own
//!  caller ── poll_write ──► queue ──► thread "send" ──┘
//! ```
//!
//! libvirt's calls block, so each direction has a thread. What is under way is bounded on both
//! sides; a full queue blocks the thread, then libvirt, then the guest.
//!
//! Two threads on one connection meet a bug of libvirt's client (seen with 9.0.0, within seconds on
//! a busy machine): the one that waits for the socket can miss that the other has something to
//! send, and both wait for ever. So every call of "send" is watched by a [`Watchdog`].

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::thread;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::PollSender;
use tracing::debug;
use virt::connect::Connect;
use virt::stream::Stream;

use crate::storage::PACKET;
use crate::watchdog::Watchdog;

/// Packets that wait in each direction: 1 MiB, as much as the agents let be unacknowledged.
const QUEUE: usize = 4;

/// An open channel. Dropping it cuts it off; shutting it down lets what was written get there.
pub(crate) struct Channel {
    received: mpsc::Receiver<io::Result<Vec<u8>>>,
    /// What of a packet the caller has not taken yet.
    rest: Vec<u8>,
    taken: usize,
    to_send: PollSender<Outgoing>,
    /// Set while a shutdown waits for the last packet to leave.
    closing: Option<oneshot::Receiver<io::Result<()>>>,
    closed: bool,
}

enum Outgoing {
    Packet(Vec<u8>),
    Finish(oneshot::Sender<io::Result<()>>),
}

impl Channel {
    /// Takes over a stream that a channel was opened on.
    pub(crate) fn new(connection: Connect, stream: Stream) -> io::Result<Self> {
        let (to_caller, received) = mpsc::channel(QUEUE);
        let (to_send, outgoing) = mpsc::channel(QUEUE);
        let over = Arc::new(AtomicBool::new(false));
        let receiving = stream.clone();
        thread::Builder::new().name("channel-recv".to_owned()).spawn({
            let over = Arc::clone(&over);
            move || receive(&receiving, &to_caller, &over)
        })?;
        let watchdog = Watchdog::new(connection)?;
        thread::Builder::new().name("channel-send".to_owned()).spawn(move || {
            send(stream, outgoing, &over, &watchdog);
        })?;
        let to_send = PollSender::new(to_send);
        Ok(Self { received, rest: Vec::new(), taken: 0, to_send, closing: None, closed: false })
    }
}

fn receive(stream: &Stream, to_caller: &mpsc::Sender<io::Result<Vec<u8>>>, over: &AtomicBool) {
    let mut buffer = vec![0; PACKET];
    loop {
        let packet = match stream.recv(&mut buffer) {
            Ok(0) => return,
            Ok(read) => Ok(buffer[..usize::try_from(read).unwrap_or(0)].to_vec()),
            // Our own end of it: not the caller's business.
            Err(_) if over.load(Ordering::Acquire) => return,
            Err(said) => Err(io::Error::new(io::ErrorKind::ConnectionReset, said)),
        };
        let last = packet.is_err();
        if to_caller.blocking_send(packet).is_err() || last {
            return;
        }
    }
}

fn send(
    stream: Stream,
    mut outgoing: mpsc::Receiver<Outgoing>,
    over: &AtomicBool,
    watchdog: &Watchdog,
) {
    while let Some(next) = outgoing.blocking_recv() {
        match next {
            Outgoing::Packet(packet) => {
                if let Err(said) = send_all(&stream, &packet, watchdog) {
                    debug!(%said, "channel broke while sending");
                    // The caller sees the closed queue at its next write.
                    break;
                }
            }
            Outgoing::Finish(done) => {
                over.store(true, Ordering::Release);
                let finished = watchdog.watch(|| stream.finish());
                let _ = done.send(
                    finished.map_err(|said| io::Error::new(io::ErrorKind::ConnectionReset, said)),
                );
                return;
            }
        }
    }
    over.store(true, Ordering::Release);
    if let Err(said) = watchdog.watch(|| stream.abort()) {
        debug!(%said, "channel was gone before it was cut off");
    }
}

fn send_all(stream: &Stream, packet: &[u8], watchdog: &Watchdog) -> Result<(), virt::error::Error> {
    let mut sent = 0;
    while sent < packet.len() {
        let step = watchdog.watch(|| stream.send(&packet[sent..]))?;
        sent += usize::try_from(step).unwrap_or(0);
    }
    Ok(())
}

impl AsyncRead for Channel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.taken == self.rest.len() {
            match ready!(self.received.poll_recv(context)) {
                None => return Poll::Ready(Ok(())),
                Some(Err(cause)) => return Poll::Ready(Err(cause)),
                Some(Ok(packet)) => {
                    self.rest = packet;
                    self.taken = 0;
                }
            }
        }
        let length = buffer.remaining().min(self.rest.len() - self.taken);
        buffer.put_slice(&self.rest[self.taken..self.taken + length]);
        self.taken += length;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Channel {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if ready!(self.to_send.poll_reserve(context)).is_err() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let packet = &bytes[..bytes.len().min(PACKET)];
        match self.to_send.send_item(Outgoing::Packet(packet.to_vec())) {
            Ok(()) => Poll::Ready(Ok(packet.len())),
            Err(_) => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    /// What is in the queue is on its way; whether it arrived, only the far end can say.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.closed {
            return Poll::Ready(Ok(()));
        }
        if self.closing.is_none() {
            if ready!(self.to_send.poll_reserve(context)).is_err() {
                self.closed = true;
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            let (done, finished) = oneshot::channel();
            if self.to_send.send_item(Outgoing::Finish(done)).is_err() {
                self.closed = true;
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            self.closing = Some(finished);
        }
        let Some(finished) = self.closing.as_mut() else { return Poll::Ready(Ok(())) };
        let answer = ready!(Pin::new(finished).poll(context));
        self.closed = true;
        Poll::Ready(answer.unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into())))
    }
}
