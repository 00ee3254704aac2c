//! How hard to compress: as hard as the line leaves time for, and not at all where it is faster than that.
//!
//! Whoever sends has to wait for a slow line, but for a busy other end as well, and there fewer bytes are of no
//! help. So the other end says how long it was busy, and only what is left of the waiting is the line's. Where
//! nothing is left it is not known how fast the line is, only that it is fast enough for what it carries; as much
//! as it may be able to carry is tried then, and again after a while. What one connection finds out all
//! others of the migration begin with.

use std::time::Duration;

/// How blocks are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    AsItIs,
    Zstd(i32),
}

/// A level, and what it takes and leaves of what [`LOWEST`] does: measured on a Debian guest's memory without its disk.
/// All that is done with a page included, a core at 3 takes 130 MB/s of it.
const LEVELS: [(Level, f64, f64); 4] = [
    (Level::AsItIs, 0.0, 0.0),
    (Level::Zstd(BEGIN), 1.0, 1.0),
    (Level::Zstd(3), 2.4, 0.84),
    (Level::Zstd(6), 3.6, 0.80),
];
const AS_IT_IS: usize = 0;
const LOWEST: usize = 1;
pub(super) const BEGIN: i32 = 1;

/// Bytes after which it is looked at; at the beginning and after a change soon. A change costs what zstd has seen
/// so far.
const FIRST_LOOK: u64 = 8 << 20;
const EACH_LOOK: u64 = 64 << 20;
/// Less than that may lie in buffers, however slow the line is.
const ENOUGH: u64 = 4 << 20;
/// So often a line that kept nobody waiting is believed to be as slow as it was.
const LOOKS_BELIEVED: u32 = 8;
/// Whoever waits for the line for so much of the time sends as fast as it carries.
const BUSY_LINE: f64 = 0.125;
/// Fewer bytes are worth so much more time.
const WORTH: f64 = 1.2;

/// Blocks that went.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Went {
    /// Before they were packed, and after; of those that were not passed over.
    pub(super) bytes: u64,
    pub(super) sent: u64,
    /// Of all.
    pub(super) carried: u64,
    pub(super) packing: Duration,
    /// How long they had to wait for the line or the other end.
    pub(super) blocked: Duration,
    /// All that was done with them, and the wait for them.
    pub(super) took: Duration,
}

impl Went {
    /// It says nothing of how packing does.
    pub(super) fn passed_over(self) -> Self {
        Self { bytes: 0, sent: 0, packing: Duration::ZERO, ..self }
    }
}

/// What is known of a line.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) enum Line {
    #[default]
    Unknown,
    /// It kept nobody waiting.
    Fast,
    /// Seconds that a byte takes, when that was last known.
    Takes(f64),
}

/// Of a byte, at the lowest level.
#[derive(Debug, Clone, Copy)]
struct Packing {
    seconds: f64,
    is_left: f64,
}

/// Follows one stream.
#[derive(Debug)]
pub(super) struct Pace {
    at: usize,
    went: Went,
    look: u64,
    /// The last time that anything was packed.
    packing: Packing,
    line: Line,
    /// Looks at which it was said to be as slow as before.
    believed: u32,
    /// Bytes in all.
    carried: u64,
    /// How long the other end had been busy when it was last looked at.
    busy: Duration,
}

impl Pace {
    pub(super) fn new(line: Line) -> Self {
        Self {
            at: if line == Line::Fast { AS_IT_IS } else { LOWEST },
            went: Went::default(),
            look: FIRST_LOOK,
            packing: Packing { seconds: 0.0, is_left: 1.0 },
            line,
            believed: 0,
            carried: 0,
            busy: Duration::ZERO,
        }
    }

    pub(super) const fn level(&self) -> Level {
        LEVELS[self.at].0
    }

    pub(super) const fn line(&self) -> Line {
        self.line
    }

    /// The level to go on with, if it is another. `busy`: the other end, in all, as far as it has said so.
    pub(super) fn went(&mut self, more: Went, busy: Duration) -> Option<Level> {
        self.went.bytes += more.bytes;
        self.went.sent += more.sent;
        self.went.carried += more.carried;
        self.went.packing += more.packing;
        self.went.blocked += more.blocked;
        self.went.took += more.took;
        if self.went.bytes < self.look {
            return None;
        }
        let went = std::mem::take(&mut self.went);
        let (_, takes, leaves) = LEVELS[self.at];
        if self.at != AS_IT_IS {
            let each = 1.0 / went.bytes as f64;
            let seconds = went.packing.as_secs_f64() * each / takes;
            self.packing = Packing { seconds, is_left: went.sent as f64 * each / leaves };
        }
        let was_busy = busy.saturating_sub(self.busy);
        self.busy = busy;
        self.learn(went, was_busy);
        let best = self.best();
        let before = std::mem::replace(&mut self.at, best);
        let changed = self.at != before;
        self.look = if changed { FIRST_LOOK } else { EACH_LOOK };
        changed.then(|| self.level())
    }

    /// What the line is like.
    fn learn(&mut self, went: Went, busy: Duration) {
        let (took, waited) = (went.took.as_secs_f64(), went.blocked.saturating_sub(busy));
        let each = took / went.carried.max(1) as f64;
        self.carried += went.carried;
        if waited.as_secs_f64() > took * BUSY_LINE {
            (self.line, self.believed) = (Line::Takes(each), 0);
            return;
        }
        self.line = match self.line {
            Line::Unknown if self.carried < ENOUGH => Line::Unknown,
            Line::Takes(line) if self.at != AS_IT_IS && self.believed < LOOKS_BELIEVED => {
                self.believed += 1;
                Line::Takes(line.min(each))
            }
            Line::Unknown | Line::Fast | Line::Takes(_) => Line::Fast,
        };
    }

    /// One that packs harder is taken where it takes little longer than the quickest.
    fn best(&self) -> usize {
        let line = match self.line {
            Line::Unknown => return LOWEST,
            Line::Fast => return AS_IT_IS,
            Line::Takes(line) => line,
        };
        let takes = LEVELS.map(|(level, takes, leaves)| match level {
            Level::AsItIs => line,
            Level::Zstd(_) => {
                (takes * self.packing.seconds).max(leaves * self.packing.is_left * line)
            }
        });
        let most = WORTH * takes.into_iter().fold(f64::INFINITY, f64::min);
        takes.iter().rposition(|takes| *takes <= most).unwrap_or(AS_IT_IS)
    }
}

#[cfg(test)]
mod tests {
    use super::Level::{AsItIs, Zstd};
    use super::*;

    const MIB: u64 = 1 << 20;
    const MS: f64 = 1e-3;

    /// One stream, of which half is left at the lowest level. What is sent goes into a buffer of 4 MiB, and out of it
    /// as fast as the line carries it, or the other end takes it.
    struct Stream {
        pace: Pace,
        at: usize,
        buffered: f64,
        busy: f64,
        /// The other end is what is slow.
        is_busy: bool,
    }

    impl Stream {
        fn new(is_busy: bool) -> Self {
            Self { pace: Pace::new(Line::Unknown), at: LOWEST, buffered: 0.0, busy: 0.0, is_busy }
        }

        /// At the lowest level packing takes so many ms for each MiB; so many takes the line, or the other end, for each
        /// that is carried.
        fn go(&mut self, packing: f64, each: f64) -> Vec<Level> {
            let next = |_| {
                let (_, takes, _) = LEVELS[self.at];
                // KiB of each MiB.
                let kib = [1024_u32, 512, 430, 410][self.at];
                let sent = f64::from(kib) / 1024.0;
                let packing = takes * packing * MS;
                // Reading and writing take something in any case.
                let work = packing + 0.5 * MS;
                let drained = if each > 0.0 { work / (each * MS) } else { f64::INFINITY };
                self.buffered = (self.buffered - drained).max(0.0) + sent;
                let blocked = (self.buffered - 4.0).max(0.0) * each * MS;
                self.buffered = self.buffered.min(4.0);
                self.busy += if self.is_busy { sent * each * MS } else { 0.0 };
                let went = Went {
                    bytes: MIB,
                    sent: u64::from(kib) << 10,
                    carried: u64::from(kib) << 10,
                    packing: Duration::from_secs_f64(packing),
                    blocked: Duration::from_secs_f64(blocked),
                    took: Duration::from_secs_f64(work + blocked),
                };
                let level = self.pace.went(went, Duration::from_secs_f64(self.busy))?;
                self.at = LEVELS.iter().position(|(of, ..)| *of == level).unwrap();
                Some(level)
            };
            (0..1000).filter_map(next).collect()
        }
    }

    /// Where it ends.
    fn level(packing: f64, line: f64) -> Option<Level> {
        Stream::new(false).go(packing, line).last().copied()
    }

    #[test]
    fn a_slow_line_is_packed_for_harder_and_a_fast_one_not_at_all() {
        // 25 MB/s, as 200 Mbit/s are.
        assert_eq!(level(3.0, 40.0), Some(Zstd(6)));
        // A gigabit.
        assert_eq!(level(3.0, 8.0), Some(Zstd(1)));
        assert_eq!(level(3.0, 20.0), Some(Zstd(3)));
        assert_eq!(level(3.0, 1.0), Some(AsItIs));
        assert_eq!(level(3.0, 0.0), Some(AsItIs));
    }

    #[test]
    fn for_another_end_that_is_slow_nothing_is_packed() {
        for each in [100.0, 30.0, 12.0] {
            assert_eq!(Stream::new(true).go(3.0, each), [AsItIs], "{each} ms");
        }
    }

    #[test]
    fn a_line_that_becomes_another_is_packed_for_as_it_is() {
        let mut stream = Stream::new(false);
        assert_eq!(stream.go(3.0, 0.0), [AsItIs]);
        assert_eq!(stream.go(3.0, 40.0).last(), Some(&Zstd(6)));
        // Not at once: what kept nobody waiting may have been little.
        assert_eq!(stream.go(3.0, 0.0), [AsItIs]);
    }

    #[test]
    fn what_one_connection_found_out_another_begins_with() {
        assert_eq!(Pace::new(Line::Fast).level(), AsItIs);
        let mut one = Stream::new(false);
        assert_eq!(one.go(3.0, 40.0).last(), Some(&Zstd(6)));
        let mut other = Stream { pace: Pace::new(one.pace.line()), ..Stream::new(false) };
        assert!(!other.go(3.0, 40.0).contains(&AsItIs), "it was tried again");
    }

    #[test]
    fn it_is_not_changed_before_there_is_something_to_judge_by() {
        let mut pace = Pace::new(Line::Unknown);
        let ms = Duration::from_millis;
        let went = |bytes, packing, blocked| {
            let (packing, blocked) = (ms(packing), ms(blocked));
            let (sent, carried, took) = (bytes / 2, bytes / 2, packing + blocked);
            Went { bytes, sent, carried, packing, blocked, took }
        };
        assert_eq!(pace.went(went(7 * MIB, 20, 1000), Duration::ZERO), None);
        assert_eq!(pace.went(went(MIB, 3, 140), Duration::ZERO), Some(Zstd(6)));
        // All of it the other end's.
        assert_eq!(pace.went(went(7 * MIB, 60, 1000), ms(1000)), None);
        assert_eq!(pace.went(went(MIB, 10, 0), ms(1000)), None, "it is believed for a while");
    }
}
