//! The source's hypervisor writes to a disk that is far away, and does not wait for it.
//!
//! ```text
//!  QEMU ── write ──► Early ══ write ══════► InOrder ── write ──► its disk
//!       ◄── done ──        ◄══ done ═══════         ◄── done ──       is kept back by Early, and counted off
//!  QEMU ── flush ──► Early ══ flush ══════► InOrder                   waits until nothing is under way
//!                                                   ── flush ──►
//!       ◄── done ──        ◄══ done ═══════         ◄── done ──
//! ```
//! An NBD client of QEMU's has 16 requests under way at most: with a write that is acknowledged when the far disk
//! has it the copy is bound by the round trip, and what a guest changes meanwhile may come faster than that.
//! So a write, or what makes zeros or holes, is acknowledged as it goes on the line ([`Early`], at the source).
//!
//! A server need not keep to the order of what is under way, and QEMU may believe by now that it is not. So what asks
//! for more than a write, as a flush or a read does, reaches the disk when all writes before it are done there; and
//! so does a write to where one is still under way ([`InOrder`], at the destination: who waits beside the disk waits
//! for the disk, and not for the line). QEMU flushes before it says that a copy is whole.
//!
//! A write that fails after it was acknowledged ends the connection, and with it QEMU's copy: its answer comes before
//! that of any flush after it.
//!
//! Cookies are ours on the line, as QEMU's are used again once a request is done; and a client is not told that its
//! connections may share a flush, since each is looked at alone. Nothing else is changed. What is
//! no NBD as [known here](requests), and all that follows it, passes through as it is.

mod gate;
mod in_order;
mod replies;
mod requests;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll, Waker, ready};

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use gate::{Gate, Side};
pub use in_order::InOrder;
use replies::Replies;

/// What is read ahead of what may go, in bytes: a request that waits holds back what follows it.
const AHEAD_MAX: usize = 256 << 10;
/// Answers that the hypervisor does not take, in bytes.
const ANSWERS_MAX: usize = 256 << 10;
/// What is read of answers at once.
const PIECE: usize = 16 << 10;

#[derive(Debug, Error)]
pub enum EarlyError {
    #[error("the destination's disk did not take a write that was acknowledged, at byte {at}: {}", named(*.error))]
    Failed { error: u32, at: u64 },
    #[error("the destination's disk answers what was not asked")]
    NotAsked,
    #[error("the destination's disk answers in a way that is not known")]
    Unknown,
}

/// As NBD has it, for all platforms (doc/proto.md).
fn named(error: u32) -> String {
    let name = match error {
        1 => "not permitted",
        5 => "input/output error",
        12 => "out of memory",
        22 => "invalid",
        28 => "no space left",
        75 => "too large",
        95 => "not supported",
        108 => "it is shut down",
        _ => return format!("error {error}"),
    };
    name.to_owned()
}

/// A hypervisor's connection to a disk, at the source.
pub struct Early<L> {
    local: L,
    gate: Gate,
    replies: Replies,
    /// To the hypervisor.
    answers: VecDeque<u8>,
    waits: Option<Waker>,
}

impl<L> Early<L> {
    /// `owed` counts what was acknowledged and is not done yet; also afterwards, if the connection ends before.
    pub fn new(local: L, owed: Arc<AtomicU64>) -> Self {
        Self {
            local,
            gate: Gate::new(Side::Source, owed),
            replies: Replies::new(),
            answers: VecDeque::new(),
            waits: None,
        }
    }

    /// Not in the middle of another answer.
    fn acknowledge(&mut self) {
        if !self.replies.is_amid() {
            self.gate.acknowledge(&mut self.answers);
        }
    }
}

impl<L: AsyncWrite + Unpin> Early<L> {
    fn poll_answers(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.answers.is_empty() {
            let (first, _) = self.answers.as_slices();
            let len = ready!(Pin::new(&mut self.local).poll_write(context, first))?;
            if len == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            drop(self.answers.drain(..len));
        }
        Poll::Ready(Ok(()))
    }
}

impl<L: AsyncRead + AsyncWrite + Unpin> AsyncRead for Early<L> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        // What was handed out before is by now.
        this.gate.is_on_the_line();
        this.acknowledge();
        if let Poll::Ready(Err(error)) = this.poll_answers(context) {
            return Poll::Ready(Err(error));
        }
        loop {
            let goes = this.gate.admit();
            if !goes.is_empty() {
                let len = goes.len().min(buffer.remaining());
                buffer.put_slice(&goes[..len]);
                this.gate.went(len);
                return Poll::Ready(Ok(()));
            }
            if this.gate.is_through() {
                return Poll::Ready(Ok(()));
            }
            // A request that waits for one that is done does so whether or not more of them come.
            this.waits = Some(context.waker().clone());
            ready!(this.gate.poll_take(context, Pin::new(&mut this.local)))?;
        }
    }
}

impl<L: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Early<L> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.answers.len() >= ANSWERS_MAX {
            ready!(this.poll_answers(context))?;
        }
        let Self { replies, gate, answers, .. } = this;
        replies.take(bytes, gate, answers).map_err(io::Error::other)?;
        this.acknowledge();
        if let Some(waits) = this.waits.take() {
            waits.wake();
        }
        if let Poll::Ready(Err(error)) = this.poll_answers(context) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_answers(context))?;
        Pin::new(&mut self.local).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_answers(context))?;
        Pin::new(&mut self.local).poll_shutdown(context)
    }
}
