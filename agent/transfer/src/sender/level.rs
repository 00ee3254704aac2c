//! How hard to compress.

use std::time::Duration;

/// Chooses a compression level by what gets through: content per second.
///
/// A full queue means that the line is slower than the workers, so more compression may pay; an
/// empty one that the workers are slower, so less may. Whether it does is then *measured*: a level
/// that gets less through than the one before is left again, and not tried for a while that doubles
/// each time. The queue alone would not do: with both ends on one machine, or with slow disks at
/// the destination, it is full for other reasons. `zstd --adapt` climbs without measuring and was
/// seen to take ten times the time of level 1.
#[derive(Debug)]
pub struct LevelControl {
    /// Levels to choose from; the first is "off".
    ladder: Vec<i32>,
    limit: i32,
    at: usize,
    phase: Phase,
    /// Intervals until a step up or down may be tried, and the next such pause.
    hold_up: Hold,
    hold_down: Hold,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// The first interval of a round fills the sockets' buffers: faster than the line, and no
    /// level afterwards would seem to be worth its time.
    Warming,
    Steady,
    /// A step was taken: the first interval still shows what was queued before.
    Settling {
        from: usize,
        rate_before: f64,
    },
    Trying {
        from: usize,
        rate_before: f64,
    },
}

#[derive(Clone, Copy, Debug)]
struct Hold {
    left: u32,
    next: u32,
}

/// What was measured over one interval.
#[derive(Clone, Copy, Debug)]
pub struct Interval {
    /// Content sent, before compression.
    pub bytes: u64,
    pub took: Duration,
    /// Which share of their time the workers found the queue full, in percent.
    pub blocked_percent: u64,
}

/// No compression.
pub const OFF: i32 = 0;

/// Above 3, six per cent less bytes cost four times the time (performance.md, section 5), so these
/// are for whoever asks for them by the limit.
const LEVELS: [i32; 6] = [-5, -1, 1, 3, 6, 9];

/// An interval is as long as it takes to send this much, within limits: shorter ones measure the
/// sockets' buffers.
const INTERVAL_BYTES: u64 = 8 << 20;
const INTERVAL_MIN: Duration = Duration::from_millis(100);
const INTERVAL_MAX: Duration = Duration::from_secs(2);

const HOLD_FIRST: u32 = 8;
const HOLD_MAX: u32 = 128;

impl LevelControl {
    /// Of levels up to `limit`; 0 is none.
    pub fn new(limit: i32) -> Self {
        let mut ladder = vec![OFF];
        ladder.extend(LEVELS.into_iter().filter(|level| limit != OFF && *level <= limit));
        if limit > 0 && !ladder.contains(&limit) {
            ladder.push(limit);
        }
        let hold = Hold { left: 0, next: HOLD_FIRST };
        Self { ladder, limit, at: 0, phase: Phase::Warming, hold_up: hold, hold_down: hold }
    }

    /// For a round after the one that `earlier` was used in: it begins with what was found to be
    /// best. The last round, in the downtime, is too short to find it anew.
    pub fn again(earlier: Option<Self>, limit: i32) -> Self {
        match earlier.filter(|earlier| earlier.limit == limit) {
            Some(earlier) => {
                // A step that the end of the round left unmeasured is taken back.
                let at = match earlier.phase {
                    Phase::Warming | Phase::Steady => earlier.at,
                    Phase::Settling { from, .. } | Phase::Trying { from, .. } => from,
                };
                Self { at, phase: Phase::Warming, ..earlier }
            }
            None => Self::new(limit),
        }
    }

    pub fn level(&self) -> i32 {
        self.ladder[self.at]
    }

    /// Is this enough to judge by?
    pub fn is_due(bytes: u64, took: Duration) -> bool {
        took >= INTERVAL_MAX || took >= INTERVAL_MIN && bytes >= INTERVAL_BYTES
    }

    /// Judges an interval; afterwards [`Self::level`] may be another.
    pub fn observe(&mut self, interval: Interval) {
        if interval.bytes == 0 {
            return;
        }
        let rate = rate_of(interval);
        self.hold_up.left = self.hold_up.left.saturating_sub(1);
        self.hold_down.left = self.hold_down.left.saturating_sub(1);
        self.phase = match self.phase {
            Phase::Warming => Phase::Steady,
            Phase::Steady => self.step(interval, rate),
            Phase::Settling { from, rate_before } => Phase::Trying { from, rate_before },
            Phase::Trying { from, rate_before } => {
                let up = self.at > from;
                let hold = if up { &mut self.hold_up } else { &mut self.hold_down };
                // A step that gains nothing is not worth its time on the CPU, up; nor, down, the
                // bytes on a line that others use too.
                if rate < rate_before * 1.02 {
                    hold.left = hold.next;
                    hold.next = (hold.next * 2).min(HOLD_MAX);
                    self.at = from;
                } else {
                    hold.next = HOLD_FIRST;
                }
                Phase::Steady
            }
        };
    }

    fn step(&mut self, interval: Interval, rate: f64) -> Phase {
        let from = self.at;
        let top = self.ladder.len() - 1;
        if interval.blocked_percent >= 25 && self.hold_up.left == 0 && from < top {
            // From off straight to level 1 at first: what most lines want.
            let first_try = from == 0 && self.hold_up.next == HOLD_FIRST;
            let one = self.ladder.iter().position(|level| *level == 1);
            self.at = one.filter(|_| first_try).unwrap_or(from + 1);
        } else if interval.blocked_percent < 10 && self.hold_down.left == 0 && from > 0 {
            self.at = from - 1;
        } else {
            return Phase::Steady;
        }
        Phase::Settling { from, rate_before: rate }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate that is compared with others of its kind")]
fn rate_of(interval: Interval) -> f64 {
    interval.bytes as f64 / interval.took.as_secs_f64().max(1e-6)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Content per second in MB and ratio in thousandths at each level, as measured on a system
    /// disk with one core (performance.md, section 5), and off.
    fn codec(level: i32) -> (u64, u64) {
        match level {
            OFF => (2500, 1000),
            -5 => (735, 504),
            -1 => (654, 418),
            1 => (542, 364),
            3 => (345, 326),
            6 => (119, 310),
            _ => (86, 306),
        }
    }

    /// Content per second that gets through a line of so many MB/s, and how much of their time
    /// the workers find the queue full.
    fn goodput(level: i32, line: u64) -> (u64, u64) {
        let (cpu, ratio) = codec(level);
        let wire = line * 1000 / ratio;
        if wire < cpu { (wire, 100 - wire * 100 / cpu) } else { (cpu, 0) }
    }

    /// Runs over a line for some intervals; answers what got through in percent of what the best
    /// level would have got.
    fn run(control: &mut LevelControl, line: u64, intervals: u64) -> u64 {
        let best = control.ladder.iter().map(|level| goodput(*level, line).0).max().unwrap();
        let mut total = 0;
        for _ in 0..intervals {
            let (through, blocked_percent) = goodput(control.level(), line);
            total += through;
            let took = Duration::from_millis(100);
            control.observe(Interval { bytes: through * 100_000, took, blocked_percent });
        }
        total * 100 / (best * intervals)
    }

    #[test]
    fn each_line_gets_nearly_what_its_best_level_would_give() {
        for line in [12, 30, 60, 120, 300, 1200, 3000] {
            let mut control = LevelControl::new(3);
            let share = run(&mut control, line, 600);
            assert!(share > 90, "{line} MB/s: {share} %");
        }
    }

    #[test]
    fn what_the_sockets_swallow_at_first_is_no_measure() {
        let mut control = LevelControl::new(3);
        let took = Duration::from_millis(100);
        control.observe(Interval { bytes: 100 << 20, took, blocked_percent: 60 });
        run(&mut control, 120, 4);
        assert_ne!(control.level(), OFF, "it waits for what it can never get");
    }

    #[test]
    fn a_round_begins_with_the_level_of_the_last_one() {
        let mut control = LevelControl::new(3);
        run(&mut control, 12, 100);
        assert_eq!(control.level(), 3);
        let mut control = LevelControl::again(Some(control), 3);
        assert_eq!(control.level(), 3);
        run(&mut control, 12, 5);
        assert_eq!(LevelControl::again(Some(control), 1).level(), OFF, "another limit");
    }

    #[test]
    fn a_step_that_the_end_of_a_round_left_unmeasured_is_taken_back() {
        let mut control = LevelControl::new(3);
        let took = Duration::from_millis(100);
        // The first warms up, the second takes the step.
        for _ in 0..2 {
            control.observe(Interval { bytes: 100 << 20, took, blocked_percent: 60 });
        }
        assert_ne!(control.level(), OFF);
        assert_eq!(LevelControl::again(Some(control), 3).level(), OFF);
    }

    #[test]
    fn a_line_that_changes_is_followed() {
        let mut control = LevelControl::new(3);
        run(&mut control, 12, 100);
        assert_eq!(control.level(), 3);
        run(&mut control, 3000, 300);
        let share = run(&mut control, 3000, 100);
        assert!(share > 85, "{share} %");
        run(&mut control, 12, 300);
        assert!(run(&mut control, 12, 100) > 85);
    }

    /// Both ends on one machine: the queue is full, but compressing takes the time away from
    /// sending.
    #[test]
    fn a_full_queue_alone_does_not_make_it_climb() {
        let mut control = LevelControl::new(3);
        let mut off = 0;
        for _ in 0..300 {
            let rate = if control.level() == OFF { 100 << 20 } else { 40 << 20 };
            off += u32::from(control.level() == OFF);
            let took = Duration::from_millis(100);
            control.observe(Interval { bytes: rate, took, blocked_percent: 60 });
        }
        assert!(off > 270, "{off} of 300");
    }

    #[test]
    fn the_limit_is_one_of_the_levels() {
        assert_eq!(LevelControl::new(0).ladder, [OFF]);
        assert_eq!(LevelControl::new(2).ladder, [OFF, -5, -1, 1, 2]);
        assert_eq!(LevelControl::new(-1).ladder, [OFF, -5, -1]);
        assert_eq!(LevelControl::new(9).ladder, [OFF, -5, -1, 1, 3, 6, 9]);
    }

    proptest! {
        #[test]
        fn no_measurement_makes_it_pass_the_limit(
            limit in -6_i32..10,
            intervals in proptest::collection::vec((any::<u32>(), 0_u64..5000, 0_u64..=100), 0..200),
        ) {
            let mut control = LevelControl::new(limit);
            for (bytes, ms, blocked_percent) in intervals {
                let took = Duration::from_millis(ms);
                control.observe(Interval { bytes: bytes.into(), took, blocked_percent });
                prop_assert!(control.level() == OFF || control.level() <= limit);
                prop_assert!(limit != OFF || control.level() == OFF);
            }
        }
    }
}
