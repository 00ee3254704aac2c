//! Streams that break, and streams that change bytes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex};

/// A stream that breaks, both ways, after so many bytes were written to it.
pub struct Cut {
    stream: Option<DuplexStream>,
    left: u64,
    /// Which byte to change on its way.
    flip_at: Option<u64>,
    written: Arc<AtomicU64>,
}

/// One end breaks after it has written this much; the bytes before arrive.
pub fn cut_after(bytes: u64) -> (Cut, DuplexStream) {
    let (here, there) = duplex(64 << 10);
    (Cut { stream: Some(here), left: bytes, flip_at: None, written: Arc::default() }, there)
}

/// One bit of what one end writes changes on its way.
pub fn flip_at(byte: u64) -> (Cut, DuplexStream) {
    let (here, there) = duplex(64 << 10);
    let flip_at = Some(byte);
    (Cut { stream: Some(here), left: u64::MAX, flip_at, written: Arc::default() }, there)
}

impl Cut {
    fn broken<T>() -> Poll<io::Result<T>> {
        Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
    }
}

impl AsyncRead for Cut {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Some(stream) => Pin::new(stream).poll_read(cx, buf),
            None => Self::broken(),
        }
    }
}

impl AsyncWrite for Cut {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.left == 0 {
            self.stream = None;
        }
        let len = usize::try_from(self.left).unwrap_or(usize::MAX).min(buf.len());
        let at = self.written.load(Ordering::Relaxed);
        let mut bytes = buf[..len].to_vec();
        if let Some(byte) = self.flip_at.and_then(|flip| flip.checked_sub(at))
            && let Some(byte) = bytes.get_mut(usize::try_from(byte).unwrap())
        {
            *byte ^= 0x10;
        }
        let Some(stream) = &mut self.stream else { return Self::broken() };
        let polled = Pin::new(stream).poll_write(cx, &bytes);
        if let Poll::Ready(Ok(written)) = &polled {
            self.left -= *written as u64;
            self.written.fetch_add(*written as u64, Ordering::Relaxed);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Some(stream) => Pin::new(stream).poll_flush(cx),
            None => Self::broken(),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Some(stream) => Pin::new(stream).poll_shutdown(cx),
            None => Self::broken(),
        }
    }
}
