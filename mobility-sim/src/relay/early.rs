//! The source's hypervisor writes to a disk that is far away, and does not wait for it.
//!
//! ```text
//!  QEMU ── write ──► here ══ write ══════► far disk
//!       ◄── done ──          ◄═══ done ═══           is kept back, and counted off
//!  QEMU ── flush ──► here                             waits until nothing is owed
//!                            ══ flush ══════► far disk
//!       ◄── done ──          ◄═══ done ═══
//! ```
//! An NBD client of QEMU's has 16 requests under way at most: with a write that is acknowledged when the far disk
//! has it the copy is bound by the round trip, and what a guest changes meanwhile may come faster than that.
//! So a write, or what makes zeros or holes, is acknowledged as it goes on the line. What asks for more than that,
//! as a flush does, goes on the line when all of them are done there; and so does a write to where one is still
//! under way, since a server need not keep to their order. QEMU flushes before it says that a copy is whole.
//!
//! A write that fails after it was acknowledged ends the connection, and with it QEMU's copy.
//!
//! Cookies are ours on the line, as QEMU's are used again once a request is done; nothing else is changed. What is
//! no NBD as [known here](requests), and all that follows it, passes through as it is.

mod replies;
mod requests;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use replies::Replies;
use requests::{Kind, Request, Requests};

/// Writes that are owed at once.
const OWED_MAX: usize = 1024;
/// Requests under way at once; QEMU has 16, and as many as are acknowledged.
const REQUESTS_MAX: usize = 2 * OWED_MAX;
/// What is read ahead of what may go, in bytes: a request that waits holds back what follows it.
const AHEAD_MAX: usize = 256 << 10;
/// Answers that the hypervisor does not take, in bytes.
const ANSWERS_MAX: usize = 256 << 10;

#[derive(Debug, Error)]
pub enum EarlyError {
    #[error(
        "the destination's disk did not take a write that was acknowledged: {error:#x} at {at}"
    )]
    Failed { error: u32, at: u64 },
    #[error("the destination's disk answers what was not asked")]
    NotAsked,
    #[error("the destination's disk answers in a way that is not known")]
    Unknown,
}

/// A hypervisor's connection to a disk.
pub struct Early<L> {
    local: L,
    requests: Requests,
    replies: Replies,
    owed: Owed,
    /// From the hypervisor: the first of them may go.
    ahead: VecDeque<u8>,
    may_go: usize,
    ended: bool,
    /// To the hypervisor.
    answers: VecDeque<u8>,
    waits: Option<Waker>,
}

/// Requests under way, by the cookie that they have on the line.
#[derive(Default)]
struct Owed {
    requests: HashMap<u64, Owing>,
    next: u64,
    early: usize,
    /// Those whose last byte was handed out.
    gone: Vec<u64>,
}

struct Owing {
    /// The hypervisor's own.
    cookie: u64,
    kind: Kind,
    range: Range<u64>,
    /// It is, or will be, acknowledged before it is answered.
    early: bool,
    acknowledged: bool,
}

impl Owed {
    /// Whether it may go on the line now.
    fn lets_go(&self, request: &Request) -> bool {
        if self.requests.len() >= REQUESTS_MAX {
            return false;
        }
        if self.early == 0 {
            return true;
        }
        let range = request.range();
        request.kind.is_write()
            && !self.requests.values().any(|owing| {
                owing.early && owing.range.start < range.end && range.start < owing.range.end
            })
    }

    /// The cookie that it has on the line.
    fn add(&mut self, request: &Request) -> u64 {
        let cookie = self.next;
        self.next += 1;
        if request.kind == Kind::Disconnect {
            return cookie;
        }
        let early = request.kind.is_write() && !request.is_forced && self.early < OWED_MAX;
        self.early += usize::from(early);
        let owing = Owing {
            cookie: request.cookie,
            kind: request.kind,
            range: request.range(),
            early,
            acknowledged: false,
        };
        self.requests.insert(cookie, owing);
        cookie
    }

    fn done(&mut self, cookie: u64) {
        if let Some(owing) = self.requests.remove(&cookie) {
            self.early -= usize::from(owing.early);
        }
    }
}

impl<L> Early<L> {
    pub fn new(local: L) -> Self {
        Self {
            local,
            requests: Requests::new(),
            replies: Replies::new(),
            owed: Owed::default(),
            ahead: VecDeque::new(),
            may_go: 0,
            ended: false,
            answers: VecDeque::new(),
            waits: None,
        }
    }

    /// What was handed out before is on the line by now.
    fn acknowledge(&mut self) {
        for cookie in self.owed.gone.drain(..) {
            if let Some(owing) = self.owed.requests.get_mut(&cookie)
                && owing.early
            {
                owing.acknowledged = true;
                self.answers.extend(replies::done(owing.cookie));
            }
        }
    }

    /// Lets go of what may go.
    fn admit(&mut self) {
        if !self.replies.is_known() {
            self.requests.lose();
        }
        let bytes = self.ahead.make_contiguous();
        while self.may_go < bytes.len() {
            let rest = &mut bytes[self.may_go..];
            let admitted = self
                .requests
                .next(rest, |request| self.owed.lets_go(request).then(|| self.owed.add(request)));
            match admitted {
                Some(len) => self.may_go += len,
                // All of it has to be there first; no more than that comes once it has ended.
                None if self.ended && !self.requests.has_whole(rest) => self.may_go = bytes.len(),
                None => break,
            }
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
        this.acknowledge();
        if let Poll::Ready(Err(error)) = this.poll_answers(context) {
            return Poll::Ready(Err(error));
        }
        loop {
            this.admit();
            if this.may_go > 0 {
                let (first, _) = this.ahead.as_slices();
                let len = this.may_go.min(buffer.remaining()).min(first.len());
                buffer.put_slice(&first[..len]);
                drop(this.ahead.drain(..len));
                this.may_go -= len;
                this.requests.handed_out(len, &mut this.owed.gone);
                return Poll::Ready(Ok(()));
            }
            if this.ended && this.ahead.is_empty() {
                return Poll::Ready(Ok(()));
            }
            if this.ended || this.ahead.len() >= AHEAD_MAX {
                // Until something that is owed is done.
                this.waits = Some(context.waker().clone());
                return Poll::Pending;
            }
            let mut piece = [0; 16 << 10];
            let mut piece = ReadBuf::new(&mut piece);
            // A request that waits does so whether or not more of them come.
            this.waits = Some(context.waker().clone());
            ready!(Pin::new(&mut this.local).poll_read(context, &mut piece))?;
            this.ended = piece.filled().is_empty();
            this.ahead.extend(piece.filled());
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
        let Self { replies, owed, answers, .. } = this;
        replies.take(bytes, owed, answers).map_err(io::Error::other)?;
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
