//! How hard to compress: as hard as the line leaves time for.

use std::time::Duration;

/// Levels of zstd. Of a Debian guest's memory without its disk, level 3 makes 0.84 of what level 1 of
/// plain blocks does, and level 6 0.80; all that is done with a page included, a core at 3 takes 130 MB/s
/// of it, and at 6 some two thirds of that.
const LEVELS: [i32; 3] = [1, 3, 6];
pub(super) const BEGIN: i32 = LEVELS[1];

/// Bytes after which it is looked at; at the beginning soon. A change costs what zstd has seen so far.
const FIRST_LOOK: u64 = 8 << 20;
const EACH_LOOK: u64 = 64 << 20;

/// Follows one stream.
#[derive(Debug)]
pub(super) struct Pace {
    at: usize,
    packing: Duration,
    sending: Duration,
    left: u64,
}

impl Pace {
    pub(super) const fn new() -> Self {
        Self { at: 1, packing: Duration::ZERO, sending: Duration::ZERO, left: FIRST_LOOK }
    }

    /// So many bytes have been packed and sent, which took so long. The level to go on with, if it is
    /// another.
    pub(super) fn went(&mut self, bytes: u64, packing: Duration, sending: Duration) -> Option<i32> {
        self.packing += packing;
        self.sending += sending;
        self.left = self.left.saturating_sub(bytes);
        if self.left > 0 {
            return None;
        }
        let (packing, sending) = (self.packing, self.sending);
        *self = Self { at: self.at, left: EACH_LOOK, ..Self::new() };
        // The next level takes less than twice as long; the one before it not half as long.
        let at = if sending > 2 * packing {
            (self.at + 1).min(LEVELS.len() - 1)
        } else if sending < packing / 4 {
            self.at.saturating_sub(1)
        } else {
            self.at
        };
        let changed = at != self.at;
        self.at = at;
        changed.then(|| LEVELS[at])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn levels(packing: u64, sending: u64) -> Vec<i32> {
        let mut pace = Pace::new();
        let (packing, sending) = (Duration::from_millis(packing), Duration::from_millis(sending));
        (0..500).filter_map(|_| pace.went(MIB, packing, sending)).collect()
    }

    #[test]
    fn a_slow_line_is_packed_for_harder_and_a_fast_one_less() {
        assert_eq!(levels(10, 50), [6]);
        assert_eq!(levels(10, 0), [1]);
        assert_eq!(levels(10, 10), [0; 0]);
    }

    #[test]
    fn it_is_not_changed_before_there_is_something_to_judge_by() {
        let mut pace = Pace::new();
        let long = Duration::from_secs(1);
        assert_eq!(pace.went(7 * MIB, Duration::ZERO, long), None);
        assert_eq!(pace.went(MIB, Duration::ZERO, long), Some(6));
        assert_eq!(pace.went(60 * MIB, long, Duration::ZERO), None);
        assert_eq!(pace.went(4 * MIB, long, Duration::ZERO), Some(3));
    }
}
