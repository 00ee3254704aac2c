//! Making written blocks durable, many at a time.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use units::{BlockIndex, Bytes};

use super::stream::StreamState;
use super::target::Target;

/// A block that was written and waits for a sync.
pub struct Written {
    pub stream: Arc<StreamState>,
    pub seq: u64,
    pub target: Arc<Target>,
    pub block: BlockIndex,
    pub len: Bytes,
}

/// What waits for the next sync. Writers put in, one thread takes out.
pub struct SyncQueue {
    state: Mutex<State>,
    changed: Condvar,
    bytes: Bytes,
    after: Duration,
}

#[derive(Default)]
struct State {
    written: Vec<Written>,
    bytes: Bytes,
    /// When the first of them was written.
    since: Option<Instant>,
    hurry: bool,
    closed: bool,
}

impl SyncQueue {
    /// A sync is due after `bytes`, and at the latest `after` a block was written.
    pub fn new(bytes: Bytes, after: Duration) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), bytes, after }
    }

    pub fn push(&self, written: Written) {
        let mut state = self.lock();
        state.bytes += written.len;
        if state.since.is_none() {
            state.since = Some(Instant::now());
        }
        state.written.push(written);
        self.changed.notify_one();
    }

    /// Somebody waits: sync now.
    pub fn hurry(&self) {
        self.lock().hurry = true;
        self.changed.notify_one();
    }

    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_one();
    }

    /// What to sync next, when it is due; `None`: closed. What still waits then is not
    /// acknowledged.
    pub fn next(&self) -> Option<Vec<Written>> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            let due_in = match state.since {
                None => None,
                Some(_) if state.hurry || state.bytes >= self.bytes => Some(Duration::ZERO),
                Some(since) => Some(self.after.saturating_sub(since.elapsed())),
            };
            state = match due_in {
                Some(Duration::ZERO) => {
                    let due = std::mem::take(&mut *state);
                    return Some(due.written);
                }
                Some(wait) => {
                    let woken = self.changed.wait_timeout(state, wait);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
