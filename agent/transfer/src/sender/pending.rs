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

    /// Takes the flights of a stream up to this number.
    pub fn landed(&self, stream: u16, upto: u64) -> Vec<Flight> {
        let mut state = self.lock();
        let mut landed = Vec::new();
        while let Some(entry) = state.flights.range((stream, 0)..=(stream, upto)).next() {
            let key = *entry.0;
            landed.extend(state.flights.remove(&key));
        }
        landed
    }

    /// Takes one flight.
    pub fn land(&self, stream: u16, seq: u64) -> Option<Flight> {
        self.lock().flights.remove(&(stream, seq))
    }

    pub fn refused(&self, disk: usize, block: BlockIndex) {
        self.lock().refused.push((disk, block));
    }

    pub fn take_refused(&self) -> Vec<(usize, BlockIndex)> {
        std::mem::take(&mut self.lock().refused)
    }

    pub fn all_sent(&self) -> bool {
        self.lock().unsent == 0
    }

    pub fn all_landed(&self) -> bool {
        let state = self.lock();
        state.unsent == 0 && state.flights.is_empty()
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
