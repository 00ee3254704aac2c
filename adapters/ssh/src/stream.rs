//! A command's stdin and stdout as one stream of bytes.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use russh::client::Msg;
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use site::Remedy;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::PollSender;

use crate::connection::Connection;
use crate::error::{Lost, SshError};
use crate::exec::{Exit, signal};
use crate::shell::printable_tail;

/// The stdin (written) and stdout (read) of a command in the guest, over a connection of its own.
///
/// The end of the stream is seen when the command has ended with status 0; any other end is an
/// error that carries a [`StreamError`] with the command's stderr. A reader that stops reading
/// stops the command by back-pressure; some 4 MiB wait here at most. Dropping it closes the
/// connection at once and loses what was written last: [`ByteStream::finish`] does not.
///
/// What was written may not have arrived when the stream breaks. Whoever needs to know keeps
/// count with the other end.
pub struct ByteStream {
    from_guest: mpsc::Receiver<Bytes>,
    /// The part of the last packet that the reader had no room for.
    unread: Bytes,
    to_guest: PollSender<Bytes>,
    shared: Arc<Shared>,
    /// Moves the bytes; ends with this stream.
    _pump: JoinSet<()>,
}

/// Why a stream ended before its end.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StreamError {
    #[error("`{command}` ended in the guest ({exit}): {stderr}")]
    Ended { command: String, exit: Exit, stderr: String },
    #[error("the connection of `{command}` was lost: {reason}")]
    Lost { command: String, reason: Lost },
    #[error("the SSH server did not run `{command}`")]
    NotRun { command: String },
}

impl StreamError {
    /// The reason inside an error of reading or writing, if it is one of ours.
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    /// What to do for the stream itself: open another. What it carried is another matter.
    pub const fn remedy(&self) -> Remedy {
        match self {
            Self::Lost { .. } => Remedy::RetryAfter(Duration::ZERO),
            Self::Ended { .. } => Remedy::Reconcile,
            Self::NotRun { .. } => Remedy::GiveUp,
        }
    }

    fn to_io(&self) -> io::Error {
        let kind = match self {
            Self::Lost { reason: Lost::Silent, .. } => io::ErrorKind::TimedOut,
            Self::Lost { .. } => io::ErrorKind::ConnectionReset,
            Self::Ended { .. } | Self::NotRun { .. } => io::ErrorKind::BrokenPipe,
        };
        io::Error::new(kind, self.clone())
    }
}

struct Shared {
    command: String,
    /// Its last [`STDERR_KEPT`] bytes.
    stderr: Mutex<Vec<u8>>,
    /// Set before the reader sees the end.
    end: OnceLock<Result<(), StreamError>>,
}

/// Of stderr this much is kept, and of an error message this many characters are shown.
const STDERR_KEPT: usize = 16 * 1024;
const STDERR_SHOWN: usize = 1000;
/// Packets (32 KiB) between the pump and a reader.
const READ_AHEAD: usize = 4;
/// Pieces of at most [`PIECE`] bytes between a writer and the pump.
const WRITE_BEHIND: usize = 4;
const PIECE: usize = 64 * 1024;

impl ByteStream {
    /// `connection` is for this stream alone.
    pub(crate) async fn open(connection: Connection, command: &str) -> Result<Self, SshError> {
        let channel = connection.open_session().await?;
        channel.exec(true, command).await.map_err(|_| connection.lost())?;
        let shared = Arc::new(Shared {
            command: command.to_owned(),
            stderr: Mutex::default(),
            end: OnceLock::new(),
        });
        let (to_reader, from_guest) = mpsc::channel(READ_AHEAD);
        let (to_guest, from_writer) = mpsc::channel(WRITE_BEHIND);
        let (read, write) = channel.split();
        let mut pump = JoinSet::new();
        let its_shared = Arc::clone(&shared);
        pump.spawn(async move {
            let to_the_end = async {
                let end = incoming(read, &to_reader, &its_shared, &connection).await;
                // Before `to_reader` and `from_writer` are dropped, which wakes both halves.
                drop(its_shared.end.set(end));
            };
            tokio::select! {
                () = to_the_end => {}
                never = outgoing(write, from_writer) => match never {},
            }
        });
        let to_guest = PollSender::new(to_guest);
        Ok(Self { from_guest, unread: Bytes::new(), to_guest, shared, _pump: pump })
    }

    pub fn command(&self) -> &str {
        &self.shared.command
    }

    /// The last 16 KiB that the command printed to stderr, fit for a terminal.
    pub fn stderr(&self) -> String {
        self.shared.stderr_tail(STDERR_KEPT)
    }

    /// Ends the command's input, reads on to the end (giving what is left to nobody) and tells
    /// whether the command ended well.
    pub async fn finish(mut self) -> Result<(), io::Error> {
        self.shutdown().await?;
        let mut rest = vec![0; PIECE];
        while self.read(&mut rest).await? > 0 {}
        Ok(())
    }
}

enum Never {}

/// Carries what is written, and keeps quiet when there is no more: only the guest's side ends a
/// stream.
async fn outgoing(write: ChannelWriteHalf<Msg>, mut from_writer: mpsc::Receiver<Bytes>) -> Never {
    let failed = loop {
        match from_writer.recv().await {
            Some(bytes) => {
                if write.data_bytes(bytes).await.is_err() {
                    break true;
                }
            }
            None => break false,
        }
    };
    if !failed {
        // If this fails too, the reading side knows why.
        drop(write.eof().await);
    }
    std::future::pending().await
}

async fn incoming(
    mut read: ChannelReadHalf,
    to_reader: &mpsc::Sender<Bytes>,
    shared: &Shared,
    connection: &Connection,
) -> Result<(), StreamError> {
    let command = || shared.command.clone();
    let mut exit = None;
    loop {
        match read.wait().await {
            Some(ChannelMsg::Data { data }) => {
                // Fails only if the stream was dropped, and this task with it.
                drop(to_reader.send(data).await);
            }
            Some(ChannelMsg::ExtendedData { data, .. }) => shared.keep_stderr(&data),
            Some(ChannelMsg::ExitStatus { exit_status }) => exit = Some(Exit::Status(exit_status)),
            Some(ChannelMsg::ExitSignal { signal_name, .. }) => {
                exit = Some(Exit::Signal(signal(&signal_name)));
            }
            Some(ChannelMsg::Failure) => return Err(StreamError::NotRun { command: command() }),
            Some(ChannelMsg::Close) | None => break,
            Some(_) => {}
        }
    }
    match exit {
        Some(Exit::Status(0)) => Ok(()),
        Some(exit) => {
            let stderr = shared.stderr_tail(STDERR_SHOWN);
            Err(StreamError::Ended { command: command(), exit, stderr })
        }
        None => Err(StreamError::Lost { command: command(), reason: connection.how_lost() }),
    }
}

impl Shared {
    fn keep_stderr(&self, data: &[u8]) {
        let mut kept = self.stderr.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(data);
        let excess = kept.len().saturating_sub(STDERR_KEPT);
        kept.drain(..excess);
    }

    fn stderr_tail(&self, limit: usize) -> String {
        printable_tail(&self.stderr.lock().unwrap_or_else(PoisonError::into_inner), limit)
    }

    /// The error of a stream that has ended, for whoever still writes.
    fn broken(&self) -> io::Error {
        match self.end.get() {
            Some(Err(error)) => error.to_io(),
            Some(Ok(())) => {
                io::Error::new(io::ErrorKind::BrokenPipe, "the command in the guest has ended")
            }
            None => io::Error::new(io::ErrorKind::BrokenPipe, "written after shutdown"),
        }
    }
}

impl AsyncRead for ByteStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(self.from_guest.poll_recv(cx)) {
                Some(bytes) => self.unread = bytes,
                None => {
                    return Poll::Ready(match self.shared.end.get() {
                        Some(Err(error)) => Err(error.to_io()),
                        Some(Ok(())) | None => Ok(()),
                    });
                }
            }
        }
        let taken = self.unread.len().min(buf.remaining());
        buf.put_slice(&self.unread[..taken]);
        self.unread.advance(taken);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ByteStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if ready!(self.to_guest.poll_reserve(cx)).is_err() {
            return Poll::Ready(Err(self.shared.broken()));
        }
        let piece = &buf[..buf.len().min(PIECE)];
        match self.to_guest.send_item(Bytes::copy_from_slice(piece)) {
            Ok(()) => Poll::Ready(Ok(piece.len())),
            Err(_) => Poll::Ready(Err(self.shared.broken())),
        }
    }

    /// The pump sends without being asked.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.to_guest.close();
        Poll::Ready(Ok(()))
    }
}

impl fmt::Debug for ByteStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByteStream")
            .field("command", &self.shared.command)
            .field("end", &self.shared.end.get())
            .finish_non_exhaustive()
    }
}
