//! How hard to compress: as hard as the line leaves time for, and not at all where it is faster than that.

use std::time::Duration;

/// How blocks are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    AsItIs,
    Zstd(i32),
}

/// Of a Debian guest's memory without its disk, level 3 makes 0.84 of what level 1 of plain blocks does,
/// and level 6 0.80; all that is done with a page included, a core at 3 takes 130 MB/s of it, and at 6
/// some two thirds of that.
const LEVELS: [Level; 4] = [Level::AsItIs, Level::Zstd(1), Level::Zstd(BEGIN), Level::Zstd(6)];
const AS_IT_IS: usize = 0;
const LOWEST: usize = 1;
const FIRST: usize = 2;
pub(super) const BEGIN: i32 = 3;

/// Bytes after which it is looked at; at the beginning soon, and on the way down. A change costs what
/// zstd has seen so far.
const FIRST_LOOK: u64 = 8 << 20;
const EACH_LOOK: u64 = 64 << 20;

/// Blocks that went.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Went {
    /// Before they were packed, and after.
    pub(super) bytes: u64,
    pub(super) sent: u64,
    pub(super) packing: Duration,
    pub(super) sending: Duration,
}

/// Follows one stream.
#[derive(Debug)]
pub(super) struct Pace {
    at: usize,
    went: Went,
    look: u64,
    /// What it was to pack at the lowest level, the last time that it was left for none.
    lowest: Option<Went>,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self { at: FIRST, went: Went::default(), look: FIRST_LOOK, lowest: None }
    }

    /// The level to go on with, if it is another.
    pub(super) fn went(&mut self, more: Went) -> Option<Level> {
        self.went.bytes += more.bytes;
        self.went.sent += more.sent;
        self.went.packing += more.packing;
        self.went.sending += more.sending;
        if self.went.bytes < self.look {
            return None;
        }
        let went = std::mem::take(&mut self.went);
        let Went { packing, sending, .. } = went;
        // The next level takes less than twice as long; the one before it not half as long.
        let at = match self.at {
            AS_IT_IS if self.lowest.is_some_and(|lowest| lowest.is_worth(went)) => LOWEST,
            AS_IT_IS => AS_IT_IS,
            LOWEST if went.costs_more_than_it_saves() => {
                self.lowest = Some(went);
                AS_IT_IS
            }
            at if sending > 2 * packing => (at + 1).min(LEVELS.len() - 1),
            at if sending < packing / 4 => (at - 1).max(LOWEST),
            at => at,
        };
        self.look = if at < self.at && at != AS_IT_IS { FIRST_LOOK } else { EACH_LOOK };
        let changed = at != self.at;
        self.at = at;
        changed.then(|| LEVELS[at])
    }
}

impl Went {
    /// The line would have taken the rest, too, in half the time that packing took: fewer bytes are worth
    /// something by themselves.
    fn costs_more_than_it_saves(&self) -> bool {
        let saved = self.bytes.saturating_sub(self.sent) as f64;
        let each = self.sending.as_secs_f64() / self.sent.max(1) as f64;
        saved * each < self.packing.as_secs_f64() / 2.0
    }

    /// Whether to pack as this was would be quicker than what has gone as it is.
    fn is_worth(&self, went: Self) -> bool {
        let share = self.sent as f64 / self.bytes.max(1) as f64;
        let packing = self.packing.as_secs_f64() / self.bytes.max(1) as f64 * went.bytes as f64;
        went.sending.as_secs_f64() * (1.0 - share) > packing
    }
}

#[cfg(test)]
mod tests {
    use super::Level::{AsItIs, Zstd};
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Half of it is left when it is packed, which takes so many ms for each MiB at any level; so many
    /// ms takes the line for each MiB that it carries.
    fn go(pace: &mut Pace, level: &mut Level, packing: u64, line: u64) -> Vec<Level> {
        let next = |_| {
            let is_packed = *level != AsItIs;
            let went = Went {
                bytes: 2 * MIB,
                sent: if is_packed { MIB } else { 2 * MIB },
                packing: Duration::from_millis(if is_packed { 2 * packing } else { 0 }),
                sending: Duration::from_millis(if is_packed { line } else { 2 * line }),
            };
            let changed = pace.went(went)?;
            *level = changed;
            Some(changed)
        };
        (0..250).filter_map(next).collect()
    }

    fn levels(packing: u64, line: u64) -> Vec<Level> {
        go(&mut Pace::new(), &mut Zstd(BEGIN), packing, line)
    }

    #[test]
    fn a_slow_line_is_packed_for_harder_and_a_fast_one_not_at_all() {
        assert_eq!(levels(10, 100), [Zstd(6)]);
        assert_eq!(levels(10, 30), []);
        assert_eq!(levels(10, 12), []);
        assert_eq!(levels(10, 1), [Zstd(1), AsItIs]);
        assert_eq!(levels(10, 0), [Zstd(1), AsItIs]);
    }

    #[test]
    fn a_line_that_becomes_slow_is_packed_for_again() {
        let (mut pace, mut level) = (Pace::new(), Zstd(BEGIN));
        assert_eq!(go(&mut pace, &mut level, 10, 1), [Zstd(1), AsItIs]);
        // Half of 20 is what packing takes.
        assert_eq!(go(&mut pace, &mut level, 10, 19), []);
        assert_eq!(go(&mut pace, &mut level, 10, 100), [Zstd(1), Zstd(3), Zstd(6)]);
    }

    #[test]
    fn it_is_not_changed_before_there_is_something_to_judge_by() {
        let mut pace = Pace::new();
        let long = Duration::from_secs(1);
        let went = |bytes, packing, sending| Went { bytes, sent: bytes, packing, sending };
        assert_eq!(pace.went(went(7 * MIB, Duration::ZERO, long)), None);
        assert_eq!(pace.went(went(MIB, Duration::ZERO, long)), Some(Zstd(6)));
        assert_eq!(pace.went(went(60 * MIB, long, Duration::ZERO)), None);
        assert_eq!(pace.went(went(4 * MIB, long, Duration::ZERO)), Some(Zstd(3)));
    }
}
