//! What is to be said on one stream.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use units::Bytes;
use wire::data::{ErrorCode, Frame, NackReason};

/// What is to be said on one stream. Bounded without a limit of its own: credit and
/// acknowledgements add up, refusals are no more than the blocks under way, replies are counted.
#[derive(Debug, Default)]
pub struct Outbox {
    waiting: Mutex<Waiting>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    nacks: Vec<(u64, NackReason)>,
    acked: Option<u64>,
    credit: u64,
    flushed: Option<u64>,
    replies: Vec<Reply>,
    end: Option<End>,
}

#[derive(Debug)]
pub struct Reply {
    pub frame: Frame,
    pub payload: Vec<u8>,
}

#[derive(Debug)]
pub enum End {
    Orderly,
    Error { code: ErrorCode, text: String },
}

/// What was waiting, in the order in which to say it.
#[derive(Debug)]
pub struct Batch {
    pub frames: Vec<Reply>,
    /// Nothing may follow.
    pub is_last: bool,
}

/// How many answers may wait for a peer that asks and does not read.
const REPLIES_MAX: usize = 32;

impl Outbox {
    pub fn nack(&self, seq: u64, reason: NackReason) {
        self.with(|waiting| waiting.nacks.push((seq, reason)));
    }

    pub fn ack(&self, upto: u64) {
        self.with(|waiting| waiting.acked = Some(upto));
    }

    /// Credit that is worth saying soon.
    pub fn credit(&self, bytes: u64) {
        self.with(|waiting| waiting.credit += bytes);
    }

    /// Credit that may wait for something else to be said, or for more of it.
    pub fn credit_later(&self, bytes: u64) {
        self.lock().credit += bytes;
    }

    pub fn flushed(&self, token: u64) {
        self.with(|waiting| waiting.flushed = Some(token));
    }

    /// `false`: too many answers wait already.
    #[must_use]
    pub fn reply(&self, reply: Reply) -> bool {
        let mut took = false;
        self.with(|waiting| {
            took = waiting.replies.len() < REPLIES_MAX;
            if took {
                waiting.replies.push(reply);
            }
        });
        took
    }

    /// The last word. The first one counts: it names the cause.
    pub fn end(&self, end: End) {
        self.with(|waiting| {
            waiting.end.get_or_insert(end);
        });
    }

    /// Returns when something was put in since the last [`Self::take`].
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Takes everything. A refusal precedes the acknowledgement that counts it, and what ends the
    /// stream comes last.
    pub fn take(&self, memory_waiting: Bytes) -> Batch {
        let waiting = std::mem::take(&mut *self.lock());
        let plain = |frame| Reply { frame, payload: Vec::new() };
        let mut frames = Vec::new();
        let nacks = waiting.nacks.into_iter();
        frames.extend(nacks.map(|(seq, reason)| plain(Frame::Nack { seq, reason })));
        frames.extend(waiting.acked.map(|upto| plain(Frame::Ack { upto })));
        if waiting.credit > 0 {
            let bytes = Bytes(waiting.credit);
            frames.push(plain(Frame::Credit { bytes, waiting: memory_waiting }));
        }
        frames.extend(waiting.flushed.map(|token| plain(Frame::Flushed { token })));
        frames.extend(waiting.replies);
        let is_last = waiting.end.is_some();
        frames.extend(waiting.end.map(|end| match end {
            End::Orderly => plain(Frame::Bye),
            End::Error { code, text } => plain(Frame::Error { code, text }),
        }));
        Batch { frames, is_last }
    }

    fn with(&self, change: impl FnOnce(&mut Waiting)) {
        change(&mut self.lock());
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
