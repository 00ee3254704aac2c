//! What all migrations of an agent keep together, in bytes: one that comes when it is used up goes with less, or
//! with nothing, and sends more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Room;

/// Less than that is of no use.
const LEAST: u64 = 16 << 20;

#[derive(Clone, Debug)]
pub struct Budget(Arc<AtomicU64>);

/// A migration's part of it, until this is dropped.
#[derive(Debug)]
pub struct Share {
    room: Room,
    of: Budget,
}

impl Budget {
    pub fn new(bytes: u64) -> Self {
        Self(Arc::new(AtomicU64::new(bytes)))
    }

    /// As much of `most` as there is.
    pub fn take(&self, most: Room) -> Share {
        let mut room = Room::NONE;
        let taken = |free: u64| {
            room = most.within(free);
            Some(free - room.all())
        };
        // It has a new value for any.
        let _before = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken);
        Share { room, of: self.clone() }
    }
}

impl Share {
    pub const fn room(&self) -> Room {
        self.room
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.0.fetch_add(self.room.all(), Ordering::Relaxed);
    }
}

impl Room {
    const fn all(self) -> u64 {
        self.memory.saturating_add(self.disks)
    }

    /// Of each what there is in both.
    pub fn at_most(self, other: Self) -> Self {
        Self { memory: self.memory.min(other.memory), disks: self.disks.min(other.disks) }
    }

    /// In the same proportion.
    fn within(self, free: u64) -> Self {
        let all = self.all();
        if all <= free {
            return self;
        }
        if free < LEAST {
            return Self::NONE;
        }
        let part = u128::from(self.memory) * u128::from(free) / u128::from(all);
        let memory = u64::try_from(part).unwrap_or(free);
        Self { memory, disks: free - memory }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn room(memory: u64, disks: u64) -> Room {
        Room { memory: memory * MIB, disks: disks * MIB }
    }

    #[test]
    fn no_more_is_given_than_there_is_and_what_ends_gives_back() {
        let budget = Budget::new(160 * MIB);
        let one = budget.take(room(60, 40));
        let other = budget.take(room(60, 40));
        assert_eq!([one.room(), other.room()], [room(60, 40), room(36, 24)]);
        assert_eq!(budget.take(room(60, 40)).room(), Room::NONE);
        drop(one);
        assert_eq!(budget.take(room(5, 5)).room(), room(5, 5));
        assert_eq!(budget.take(room(100, 100)).room(), room(50, 50));
        drop(other);
        assert_eq!(budget.take(room(200, 0)).room(), room(160, 0));
        let endless = Room { memory: u64::MAX, disks: u64::MAX };
        assert_eq!(budget.take(endless).room().all(), 160 * MIB);
    }
}
