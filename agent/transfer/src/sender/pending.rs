//! Blocks on their way.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use units::{BlockIndex, Digest};
use wire::data::{Block, Content, Encoding};

use super::progress::DiskStats;
use crate::buffer::Buffer;
use crate::changes::Taken;

/// A block to be sent.
pub struct Outgoing {
    pub flight: Flight,
    pub content: Content,
    pub encoding: Encoding,
    pub raw_len: u32,
    pub payload: Option<Buffer>,
}

/// What has to be remembered of a block until it is acknowledged. Dropping it makes the block
/// dirty again.
pub struct Flight {
    /// The disk's place in the sender's list.
    pub disk: usize,
    pub block: BlockIndex,
    pub hash: Digest,
    pub taken: Taken,
    pub stats: Arc<DiskStats>,
}

impl Outgoing {
    pub fn header(&self, seq: u64, disk: units::DiskNo) -> Block {
        Block {
            seq,
            disk,
            block: self.flight.block,
            hash: self.flight.hash,
            content: self.content.clone(),
            encoding: self.encoding,
            raw_len: self.raw_len,
        }
    }
}

/// The blocks that are on their way over one connection, from the queue to the acknowledgement.
#[derive(Default)]
pub struct Pending {
    state: Mutex<State>,
    /// Something was settled, refused or given up.
    pub changed: Notify,
}

#[derive(Default)]
struct State {
    /// Queued, or being written to a stream.
    unsent: usize,
    /// Of each stream, by sequence number.
    flights: BTreeMap<(u16, u64), Flight>,
    /// Answered, and the answer not yet taken in everywhere: until it is, the table, the tracker and the
    /// figures still say what was before.
    answered: usize,
    /// By disk and block.
    refused: Vec<(usize, BlockIndex)>,
}

impl Pending {
    /// A block goes into the queue.
    pub fn queued(&self) {
        self.lock().unsent += 1;
    }

    /// A block is about to be written to a stream: its acknowledgement may come at any time.
    pub fn departs(&self, stream: u16, seq: u64, flight: Flight) {
        self.lock().flights.insert((stream, seq), flight);
    }

    /// A block was written to a stream.
    pub fn sent(&self) {
        let mut state = self.lock();
        state.unsent -= 1;
        if state.unsent == 0 {
            self.changed.notify_waiters();
        }
    }

    /// Takes in that the flights of a stream up to this number were acknowledged.
    pub fn landed(&self, stream: u16, upto: u64, take_in: impl FnMut(Flight)) {
        let mut landed = Vec::new();
        {
            let mut state = self.lock();
            while let Some(entry) = state.flights.range((stream, 0)..=(stream, upto)).next() {
                let key = *entry.0;
                landed.extend(state.flights.remove(&key));
            }
            state.answered += 1;
        }
        // Outside the lock: it takes the table's.
        landed.into_iter().for_each(take_in);
        self.taken_in(None);
    }

    /// Takes in that one flight was refused; `false`: there is none.
    pub fn refused(&self, stream: u16, seq: u64, take_in: impl FnOnce(Flight)) -> bool {
        let flight = {
            let mut state = self.lock();
            let Some(flight) = state.flights.remove(&(stream, seq)) else { return false };
            state.answered += 1;
            flight
        };
        let refused = (flight.disk, flight.block);
        take_in(flight);
        self.taken_in(Some(refused));
        true
    }

    fn taken_in(&self, refused: Option<(usize, BlockIndex)>) {
        let mut state = self.lock();
        state.refused.extend(refused);
        state.answered -= 1;
        drop(state);
        self.changed.notify_waiters();
    }

    pub fn take_refused(&self) -> Vec<(usize, BlockIndex)> {
        std::mem::take(&mut self.lock().refused)
    }

    pub fn all_sent(&self) -> bool {
        self.lock().unsent == 0
    }

    /// ... and answered, with all that follows from the answers.
    pub fn all_landed(&self) -> bool {
        let state = self.lock();
        state.unsent == 0 && state.flights.is_empty() && state.answered == 0
    }

    /// Gives up every flight: the blocks are dirty again.
    pub fn give_up(&self) {
        // Outside the lock: putting pages back takes the tracker's.
        let flights = std::mem::take(&mut self.lock().flights);
        drop(flights);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use units::{Bytes, DiskNo};

    use super::super::progress::DiskStats;
    use super::*;
    use crate::changes::{Changes, NoChanges};

    fn depart(pending: &Pending, stream: u16, seq: u64) {
        let changes: Arc<dyn Changes> = Arc::new(NoChanges);
        let (disk, block) = (DiskNo(0), BlockIndex(seq));
        let taken = Taken::take(&changes, disk, block);
        let stats = Arc::new(DiskStats::new(disk, Bytes::ZERO));
        pending.queued();
        let flight = Flight { disk: 0, block, hash: Digest([0; 32]), taken, stats };
        pending.departs(stream, seq, flight);
        pending.sent();
    }

    #[test]
    fn nothing_has_landed_before_what_it_means_is_known_everywhere() {
        let pending = Pending::default();
        for (stream, seq) in [(0, 1), (0, 2), (1, 1), (1, 2)] {
            depart(&pending, stream, seq);
        }
        let mut landed = Vec::new();
        pending.landed(0, 1, |flight| landed.push(flight.block.0));
        assert_eq!(landed, [1]);
        assert!(!pending.all_landed());
        pending.landed(1, 2, |flight| landed.push(flight.block.0));
        assert_eq!(landed, [1, 1, 2]);
        assert!(!pending.all_landed());
        // The last one: to whoever waits it is still on its way.
        pending.landed(0, 2, |_| assert!(!pending.all_landed()));
        assert!(pending.all_landed());
        assert!(pending.take_refused().is_empty());
    }

    #[test]
    fn what_is_refused_is_known_when_everything_has_been_answered() {
        let pending = Pending::default();
        depart(&pending, 3, 7);
        assert!(!pending.refused(3, 8, |_| panic!("it is not in flight")));
        assert!(pending.refused(3, 7, |_| assert!(!pending.all_landed())));
        assert!(pending.all_landed());
        assert_eq!(pending.take_refused(), [(0, BlockIndex(7))]);
    }
}
