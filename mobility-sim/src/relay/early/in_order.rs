//! At the destination: see [above](super).

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::PIECE;
use super::gate::{Gate, Side};
use super::replies::Replies;

/// A connection to a disk, of whose requests each has to find what those before it have done.
pub struct InOrder<L> {
    disk: L,
    gate: Gate,
    replies: Replies,
    /// To who asked.
    answers: VecDeque<u8>,
    /// For room, and for an answer.
    writes: Option<Waker>,
    reads: Option<Waker>,
}

impl<L> InOrder<L> {
    pub fn new(disk: L) -> Self {
        Self {
            disk,
            gate: Gate::new(Side::Destination, Arc::default()),
            replies: Replies::new(),
            answers: VecDeque::new(),
            writes: None,
            reads: None,
        }
    }
}

impl<L: AsyncWrite + Unpin> InOrder<L> {
    /// Until nothing may go before something is answered.
    fn poll_go(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let goes = self.gate.admit();
            if goes.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let len = ready!(Pin::new(&mut self.disk).poll_write(context, goes))?;
            if len == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.gate.went(len);
            if let Some(writes) = self.writes.take() {
                writes.wake();
            }
        }
    }
}

impl<L: AsyncRead + AsyncWrite + Unpin> AsyncRead for InOrder<L> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            // Here as well: what was held goes when an answer has come, and not when more is written.
            if let Poll::Ready(Err(error)) = this.poll_go(context) {
                return Poll::Ready(Err(error));
            }
            if !this.answers.is_empty() {
                let (first, _) = this.answers.as_slices();
                let len = first.len().min(buffer.remaining());
                buffer.put_slice(&first[..len]);
                drop(this.answers.drain(..len));
                return Poll::Ready(Ok(()));
            }
            let mut piece = [0; PIECE];
            let mut piece = ReadBuf::new(&mut piece);
            this.reads = Some(context.waker().clone());
            ready!(Pin::new(&mut this.disk).poll_read(context, &mut piece))?;
            if piece.filled().is_empty() {
                // Who waits for an answer waits in vain.
                this.gate.open();
                if let Some(writes) = this.writes.take() {
                    writes.wake();
                }
                return Poll::Ready(Ok(()));
            }
            let Self { replies, gate, answers, .. } = this;
            replies.take(piece.filled(), gate, answers).map_err(io::Error::other)?;
        }
    }
}

impl<L: AsyncRead + AsyncWrite + Unpin> AsyncWrite for InOrder<L> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let mut gone = this.poll_go(context)?;
        if this.gate.room() == 0 {
            this.writes = Some(context.waker().clone());
            return Poll::Pending;
        }
        let len = this.gate.take(bytes);
        if gone.is_ready() {
            gone = this.poll_go(context)?;
        }
        // Nobody may write again: who reads sends the rest.
        if gone.is_pending()
            && let Some(reads) = this.reads.take()
        {
            reads.wake();
        }
        Poll::Ready(Ok(len))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_go(context))?;
        Pin::new(&mut self.disk).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.gate.end();
        ready!(this.poll_go(context))?;
        if !this.gate.is_through() {
            this.writes = Some(context.waker().clone());
            return Poll::Pending;
        }
        Pin::new(&mut this.disk).poll_shutdown(context)
    }
}
