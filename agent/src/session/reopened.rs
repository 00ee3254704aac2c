//! Notices that the other end of a pipe has begun anew in the middle of a session.
//!
//! A virtio-serial port does not tell when its host's end was closed and opened again at once. The
//! old session would wait for the rest of a TLS record and swallow what the new coordinator says.
//! So a message of the preamble, which never occurs inside a session, ends the session that reads
//! it. Whoever opens repeats its messages, so the next look at the pipe finds it.

use std::io;
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll};

use memchr::memmem::Finder;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use wire::preamble::Opener;

/// How every message of the preamble begins.
const MAGIC_LEN: usize = 16;

static MAGIC: LazyLock<Finder<'static>> = LazyLock::new(|| {
    let message = Opener::new([0; 16]).open();
    Finder::new(&message[..MAGIC_LEN]).into_owned()
});

/// A stream in a session, right behind its preamble.
#[derive(Debug)]
pub struct UntilReopened<S> {
    stream: S,
    /// The last bytes read, in case the magic lies across two reads.
    tail: Vec<u8>,
    reopened: bool,
}

impl<S> UntilReopened<S> {
    pub const fn new(stream: S) -> Self {
        Self { stream, tail: Vec::new(), reopened: false }
    }

    fn look_at(&mut self, read: &[u8]) {
        let keep = MAGIC_LEN - 1;
        let mut across = std::mem::take(&mut self.tail);
        across.extend(&read[..read.len().min(keep)]);
        self.reopened = MAGIC.find(&across).is_some() || MAGIC.find(read).is_some();
        if read.len() >= keep {
            across.clear();
            across.extend(&read[read.len() - keep..]);
        } else {
            across.drain(..across.len().saturating_sub(keep));
        }
        self.tail = across;
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for UntilReopened<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.reopened {
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buf) {
            Poll::Ready(Ok(())) => {}
            other => return other,
        }
        self.look_at(&buf.filled()[before..]);
        if self.reopened {
            tracing::info!("the other end has begun a new session");
            buf.set_filled(before);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for UntilReopened<S> {
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
    use proptest::prelude::*;
    use tokio::io::AsyncReadExt as _;

    use super::*;

    fn read_all(content: &[u8], piece: usize) -> Vec<u8> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut stream = UntilReopened::new(content);
            let (mut read, mut buffer) = (Vec::new(), vec![0; piece]);
            loop {
                match stream.read(&mut buffer).await.unwrap() {
                    0 => return read,
                    len => read.extend(&buffer[..len]),
                }
            }
        })
    }

    proptest! {
        #[test]
        fn a_preamble_ends_the_session_however_the_stream_is_cut(
            before in proptest::collection::vec(any::<u8>(), 0..100),
            piece in 1_usize..70,
        ) {
            let opening = Opener::new([7; 16]).open();
            let content = [before.as_slice(), &opening, b"never read"].concat();
            let read = read_all(&content, piece);
            prop_assert!(read.len() < before.len() + MAGIC_LEN, "{} bytes", read.len());
            prop_assert!(content.starts_with(&read));
        }

        #[test]
        fn anything_else_passes(content in proptest::collection::vec(any::<u8>(), 0..300), piece in 1_usize..70) {
            prop_assert_eq!(read_all(&content, piece), content);
        }
    }
}
