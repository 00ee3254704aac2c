//! Which requests are under way, and which may be by now.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::AsyncRead;
use tokio_util::io::poll_read_buf;

use super::requests::{Kind, Request, Requests};
use super::{AHEAD_MAX, replies};

/// Writes that are acknowledged before they are done, at once.
const EARLY_MAX: usize = 1024;
/// Requests under way at once; QEMU has 16, and as many as are acknowledged.
const UNDER_WAY_MAX: usize = 2 * EARLY_MAX;
/// There is room to read as much of them at once, in bytes.
const READ_AT_ONCE: usize = 128 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// Acknowledges writes, and holds nothing back.
    Source,
    /// Holds back what has to come after a write that is not done, and acknowledges nothing.
    Destination,
}

/// Requests on their way from the hypervisor to the disk.
pub(super) struct Gate {
    requests: Requests,
    under_way: UnderWay,
    /// The first of them may go.
    ahead: BytesMut,
    may_go: usize,
    ended: bool,
    /// Those whose last byte went.
    gone: Vec<u64>,
    /// Of them, those that are on the line.
    due: Vec<u64>,
    /// How many were acknowledged and are not done.
    owed: Arc<AtomicU64>,
}

/// By the cookie that they have from here on.
struct UnderWay {
    side: Side,
    /// Whoever acknowledged a write early is asked for it by that.
    can_flush: bool,
    requests: HashMap<u64, One>,
    next: u64,
    writes: usize,
}

pub(super) struct One {
    /// That of who asked.
    pub(super) cookie: u64,
    pub(super) kind: Kind,
    pub(super) range: Range<u64>,
    /// It is acknowledged as it goes.
    early: bool,
    pub(super) acknowledged: bool,
}

impl UnderWay {
    fn lets_go(&self, request: &Request) -> bool {
        if self.requests.len() >= UNDER_WAY_MAX {
            return false;
        }
        if self.side == Side::Source || self.writes == 0 {
            return true;
        }
        let range = request.range();
        request.kind.is_write()
            && !self.requests.values().any(|one| {
                one.kind.is_write() && one.range.start < range.end && range.start < one.range.end
            })
    }

    /// The cookie that it has from here on.
    fn add(&mut self, request: &Request) -> u64 {
        let cookie = self.next;
        self.next += 1;
        if request.kind == Kind::Disconnect {
            return cookie;
        }
        let early = self.can_flush
            && self.side == Side::Source
            && request.kind.is_write()
            && !request.is_forced
            && self.writes < EARLY_MAX;
        self.writes += usize::from(request.kind.is_write());
        let one = One {
            cookie: request.cookie,
            kind: request.kind,
            range: request.range(),
            early,
            acknowledged: false,
        };
        self.requests.insert(cookie, one);
        cookie
    }
}

impl Gate {
    pub(super) fn new(side: Side, owed: Arc<AtomicU64>) -> Self {
        let under_way =
            UnderWay { side, can_flush: false, requests: HashMap::new(), next: 0, writes: 0 };
        Self {
            requests: Requests::new(),
            under_way,
            ahead: BytesMut::new(),
            may_go: 0,
            ended: false,
            gone: Vec::new(),
            due: Vec::new(),
            owed,
        }
    }

    /// For so many bytes.
    pub(super) fn room(&self) -> usize {
        if self.ended { 0 } else { AHEAD_MAX.saturating_sub(self.ahead.len()) }
    }

    /// Takes what comes from the hypervisor, as much as there is room for.
    pub(super) fn take(&mut self, bytes: &[u8]) -> usize {
        let len = bytes.len().min(self.room());
        self.ahead.extend_from_slice(&bytes[..len]);
        len
    }

    /// Takes what there is room for from the hypervisor itself, or that nothing more comes.
    pub(super) fn poll_take<L: AsyncRead>(
        &mut self,
        context: &mut Context<'_>,
        local: Pin<&mut L>,
    ) -> Poll<io::Result<()>> {
        let room = self.room();
        if room == 0 {
            return Poll::Pending;
        }
        // At its beginning there is room again, at most times.
        if self.ahead.capacity() - self.ahead.len() < room.min(READ_AT_ONCE) {
            self.ahead.reserve(AHEAD_MAX);
        }
        let mut to = (&mut self.ahead).limit(room);
        if ready!(poll_read_buf(local, context, &mut to))? == 0 {
            self.end();
        }
        Poll::Ready(Ok(()))
    }

    /// Nothing more comes.
    pub(super) const fn end(&mut self) {
        self.ended = true;
    }

    /// Everything went.
    pub(super) fn is_through(&self) -> bool {
        self.ended && self.ahead.is_empty()
    }

    /// Nothing is answered any more, or in a way that is not known: everything goes.
    pub(super) const fn open(&mut self) {
        self.requests.lose();
    }

    /// What goes now.
    pub(super) fn admit(&mut self) -> &[u8] {
        let bytes = &mut self.ahead[..];
        while self.may_go < bytes.len() {
            let rest = &mut bytes[self.may_go..];
            let under_way = &mut self.under_way;
            let admitted = self
                .requests
                .next(rest, |request| under_way.lets_go(request).then(|| under_way.add(request)));
            match admitted {
                Some(len) => self.may_go += len,
                // All of it has to be there first; no more than that comes once it has ended.
                None if self.ended && !self.requests.has_whole(rest) => self.may_go = bytes.len(),
                None => break,
            }
        }
        &bytes[..self.may_go]
    }

    /// So much of it did.
    pub(super) fn went(&mut self, len: usize) {
        self.ahead.advance(len);
        self.may_go -= len;
        self.requests.handed_out(len, &mut self.gone);
        if self.under_way.side == Side::Destination {
            self.gone.clear();
        }
    }

    /// What the server says of itself. With one that does not flush nobody would ever wait for what was acknowledged.
    pub(super) const fn can_flush(&mut self, can: bool) {
        self.under_way.can_flush = can;
    }

    /// What went is on the line.
    pub(super) fn is_on_the_line(&mut self) {
        self.due.append(&mut self.gone);
    }

    /// Says of what is there that it is done.
    pub(super) fn acknowledge(&mut self, answers: &mut VecDeque<u8>) {
        for cookie in self.due.drain(..) {
            if let Some(one) = self.under_way.requests.get_mut(&cookie)
                && one.early
            {
                one.acknowledged = true;
                self.owed.fetch_add(1, Ordering::Relaxed);
                answers.extend(replies::done(one.cookie));
            }
        }
    }

    pub(super) fn of(&self, cookie: u64) -> Option<&One> {
        self.under_way.requests.get(&cookie)
    }

    /// The disk has answered it.
    pub(super) fn done(&mut self, cookie: u64) {
        if let Some(one) = self.under_way.requests.remove(&cookie) {
            self.under_way.writes -= usize::from(one.kind.is_write());
            if one.acknowledged {
                self.owed.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}
