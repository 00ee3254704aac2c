//! Finding the other end on a pipe that outlives sessions: [`wire::preamble`] over real streams.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use ring::rand::{SecureRandom as _, SystemRandom};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::time::{Instant, sleep_until, timeout};
use wire::preamble::{
    Accepting, Acceptor, Nonce, OPEN_EVERY_MS, Opener, Opening, PreambleVersionError,
};
use wire::purpose::{PURPOSE_MAX, Purpose, PurposeError};

#[derive(Debug, Error)]
pub enum MeetError {
    #[error("the pipe failed")]
    Io {
        #[source]
        cause: io::Error,
    },

    #[error("the other end did not answer within {} s", .waited.as_secs())]
    Unanswered { waited: Duration },

    #[error(transparent)]
    Version(#[from] PreambleVersionError),

    #[error("the other end did not say what the session is for")]
    Purpose {
        #[source]
        cause: PurposeError,
    },
}

impl From<io::Error> for MeetError {
    fn from(cause: io::Error) -> Self {
        Self::Io { cause }
    }
}

/// Finds the acceptor at the other end of `stream` and tells it what the session is for. The
/// session is then this end's to begin.
pub async fn open<S>(stream: S, purpose: Purpose, within: Duration) -> Result<Met<S>, MeetError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let asking = ask(stream, purpose);
    timeout(within, asking).await.unwrap_or(Err(MeetError::Unanswered { waited: within }))
}

async fn ask<S>(mut stream: S, purpose: Purpose) -> Result<Met<S>, MeetError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut opener = Opener::new(nonce());
    let mut next_open = Instant::now();
    let mut buffer = [0; 4096];
    loop {
        let read = tokio::select! {
            read = stream.read(&mut buffer) => read?,
            () = sleep_until(next_open) => {
                stream.write_all(&opener.open()).await?;
                stream.flush().await?;
                next_open += Duration::from_millis(OPEN_EVERY_MS);
                continue;
            }
        };
        let mut input = &buffer[..read];
        if input.is_empty() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        loop {
            match opener.push(&mut input)? {
                Opening::Wait => break,
                Opening::Send(bytes) => {
                    stream.write_all(&bytes).await?;
                    stream.flush().await?;
                }
                Opening::Go => {
                    stream.write_all(&purpose.encode()).await?;
                    stream.flush().await?;
                    return Ok(Met { stream, held: input.to_vec() });
                }
            }
        }
    }
}

/// Waits, however long, for an opener at the other end of `stream`. The session is then the other
/// end's to begin.
pub async fn accept<S>(mut stream: S) -> Result<(Purpose, Met<S>), MeetError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut acceptor = Acceptor::new(nonce());
    let mut buffer = [0; 4096];
    let mut held = 'met: loop {
        let read = stream.read(&mut buffer).await?;
        let mut input = &buffer[..read];
        if input.is_empty() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        loop {
            let (answer, met) = match acceptor.push(&mut input) {
                Accepting::Wait => break,
                Accepting::Send(bytes) => (bytes, false),
                Accepting::Go(bytes) => (bytes, true),
            };
            stream.write_all(&answer).await?;
            stream.flush().await?;
            if met {
                break 'met input.to_vec();
            }
        }
    };
    let purpose = timeout(PURPOSE_WITHIN, read_purpose(&mut stream, &mut held)).await;
    let purpose = purpose.unwrap_or(Err(MeetError::Unanswered { waited: PURPOSE_WITHIN }))?;
    Ok((purpose, Met { stream, held }))
}

/// The opener sends it at once.
const PURPOSE_WITHIN: Duration = Duration::from_secs(30);

async fn read_purpose<S>(stream: &mut S, held: &mut Vec<u8>) -> Result<Purpose, MeetError>
where
    S: AsyncRead + Unpin,
{
    loop {
        let decoded = Purpose::decode(held).map_err(|cause| MeetError::Purpose { cause })?;
        if let Some((purpose, used)) = decoded {
            held.drain(..used);
            return Ok(purpose);
        }
        let mut piece = [0; PURPOSE_MAX as usize];
        let read = stream.read(&mut piece).await?;
        if read == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        held.extend(&piece[..read]);
    }
}

fn nonce() -> Nonce {
    let mut nonce = [0; 16];
    SystemRandom::new().fill(&mut nonce).expect("the kernel gives random numbers");
    nonce
}

/// A stream at the beginning of a session, with what was read ahead.
#[derive(Debug)]
pub struct Met<S> {
    stream: S,
    held: Vec<u8>,
}

impl<S> Met<S> {
    /// `held`: read from `stream` already, and not looked at.
    pub const fn new(stream: S, held: Vec<u8>) -> Self {
        Self { stream, held }
    }

    /// What [`Self::new`] makes the same of, in another process perhaps.
    pub fn into_parts(self) -> (S, Vec<u8>) {
        (self.stream, self.held)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Met<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.held.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let len = self.held.len().min(buf.remaining());
        buf.put_slice(&self.held[..len]);
        self.held.drain(..len);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Met<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    #[tokio::test]
    async fn both_ends_find_each_other_behind_what_a_dead_session_left() {
        let (mut here, mut there) = duplex(64 << 10);
        here.write_all(&[22, 3, 3, 0, 200, 1, 2, 3]).await.unwrap();
        there.write_all(b"half an answer").await.unwrap();
        let purpose = Purpose::Data { generation: 9, stream: 1 };
        let within = Duration::from_secs(60);
        let (opened, accepted) = tokio::join!(open(here, purpose, within), accept(there));
        let (mut opened, (told, mut accepted)) = (opened.unwrap(), accepted.unwrap());
        assert_eq!(told, purpose);
        opened.write_all(b"session").await.unwrap();
        let mut got = [0; 7];
        accepted.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"session");
    }

    #[tokio::test(start_paused = true)]
    async fn an_opener_that_nobody_answers_gives_up() {
        let (here, _there) = duplex(64 << 10);
        let within = Duration::from_secs(10);
        let opened = open(here, Purpose::Control, within).await;
        assert!(matches!(opened, Err(MeetError::Unanswered { .. })));
    }

    /// Nobody listens at first: OPENs pile up in the pipe and each of them is answered.
    #[tokio::test(start_paused = true)]
    async fn an_acceptor_that_comes_late_is_found() {
        let (here, there) = duplex(64 << 10);
        let late = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            accept(there).await
        };
        let (opened, accepted) =
            tokio::join!(open(here, Purpose::Control, Duration::from_secs(60)), late);
        let (mut opened, (_, mut accepted)) = (opened.unwrap(), accepted.unwrap());
        accepted.write_all(b"hello").await.unwrap();
        let mut got = [0; 5];
        opened.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"hello");
    }
}
