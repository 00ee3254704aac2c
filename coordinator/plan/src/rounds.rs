//! When to stop copying: the round controller. Pure: figures in, one decision out.
//!
//! ```text
//! downtime = fixed (quiesce, fence, boot) + what the last drain takes
//! drain    = remaining / goodput, or with the rescan tracker a whole pass over the disks
//! ```
//! A round that leaves as much as it found would do so for ever; three in a row are a verdict.

use std::fmt;

use units::Bytes;

/// One finished round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundFigures {
    pub elapsed_ms: u64,
    /// Content acknowledged.
    pub sent: Bytes,
    /// Written by the guest meanwhile.
    pub dirtied: Bytes,
    /// Left for the next round.
    pub remaining: Bytes,
}

/// What a switchover would cost besides the drain, and what it may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    pub max_downtime_ms: u64,
    /// Quiesce, fence, decision and boot together.
    pub fixed_ms: u64,
    /// Set where the last drain reads everything (rescan): how long the last full pass took.
    pub full_pass_ms: Option<u64>,
    pub rounds_max: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    CopyAgain { forecast_ms: u64 },
    SwitchOver { forecast_ms: u64 },
    WontConverge(Divergence),
}

/// Why it would never fit, with the figures and what would help.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divergence {
    pub forecast_ms: u64,
    pub max_downtime_ms: u64,
    pub fixed_ms: u64,
    /// Bytes per second that the guest writes.
    pub dirty_rate: Bytes,
    /// Bytes per second that arrive.
    pub goodput: Bytes,
    pub rounds: u32,
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "after {} rounds the downtime would still be {:.1} s of {:.1} s allowed: the guest writes {}/s, {}/s arrive",
            self.rounds,
            seconds(self.forecast_ms),
            seconds(self.max_downtime_ms),
            self.dirty_rate,
            self.goodput
        )
    }
}

impl Divergence {
    /// What the operator can change, most promising first.
    pub fn remedies(&self) -> Vec<String> {
        let mut remedies = Vec::new();
        if self.fixed_ms >= self.max_downtime_ms {
            remedies.push(format!(
                "allow more downtime: stopping and booting alone take {:.1} s (--max-downtime {})",
                seconds(self.fixed_ms),
                self.forecast_ms.div_ceil(1000)
            ));
            return remedies;
        }
        remedies.push(format!("allow --max-downtime {}", self.forecast_ms.div_ceil(1000)));
        remedies.push("raise --limit-rate or use a faster line".to_owned());
        remedies.push(
            "stop what writes so much before the freeze: --stop-unit NAME, or at a quieter hour: --at TIME"
                .to_owned(),
        );
        remedies
    }
}

/// Rounds in a row that may fail to shrink before it is a verdict.
const STUCK_ROUNDS: usize = 3;
/// Goodput is taken over the rounds that moved at least this much: a round of a few blocks
/// measures the round trip, not the line.
const GOODPUT_SAMPLE: u64 = 4 << 20;
/// Assumed when nothing was ever large enough to measure, bytes per second.
const GOODPUT_UNKNOWN: u64 = 10_000_000;

/// Decides after a round. `history` holds every finished round, oldest first; those before number
/// `since` tell of the line, and do not count towards a verdict: the copy was held then, or it was
/// taken up again since.
pub fn decide(history: &[RoundFigures], since: usize, budget: Budget) -> Decision {
    let Some(last) = history.last() else {
        return Decision::CopyAgain { forecast_ms: budget.fixed_ms };
    };
    let goodput = goodput(history);
    let forecast_ms = forecast_ms(last.remaining, goodput, budget);
    if forecast_ms <= budget.max_downtime_ms {
        return Decision::SwitchOver { forecast_ms };
    }
    let judged = history.get(since..).unwrap_or_default();
    let rounds = u32::try_from(judged.len()).unwrap_or(u32::MAX);
    let floor = floor_ms(budget);
    if rounds >= budget.rounds_max || floor > budget.max_downtime_ms || stuck(judged) {
        return Decision::WontConverge(Divergence {
            forecast_ms,
            max_downtime_ms: budget.max_downtime_ms,
            fixed_ms: floor,
            dirty_rate: per_second(last.dirtied, last.elapsed_ms),
            goodput: Bytes(goodput),
            rounds,
        });
    }
    Decision::CopyAgain { forecast_ms }
}

/// The downtime if the switchover began now.
pub fn forecast_ms(remaining: Bytes, goodput: u64, budget: Budget) -> u64 {
    let drain = remaining.0.saturating_mul(1000) / goodput.max(1);
    floor_ms(budget).saturating_add(drain)
}

/// What no round makes less. Figures are the agent's: none of them may be too large to count with.
fn floor_ms(budget: Budget) -> u64 {
    budget.fixed_ms.saturating_add(budget.full_pass_ms.unwrap_or(0))
}

/// Bytes per second that arrived, over the newest round large enough to tell.
pub fn goodput(history: &[RoundFigures]) -> u64 {
    history
        .iter()
        .rev()
        .find(|round| round.sent.0 >= GOODPUT_SAMPLE && round.elapsed_ms > 0)
        .map_or(GOODPUT_UNKNOWN, |round| per_second(round.sent, round.elapsed_ms).0)
}

fn stuck(history: &[RoundFigures]) -> bool {
    let recent = &history[history.len().saturating_sub(STUCK_ROUNDS + 1)..];
    // A round that leaves at least nine tenths of what the one before left gains nothing.
    recent.len() == STUCK_ROUNDS + 1
        && recent.windows(2).all(|pair| pair[1].remaining.0 >= pair[0].remaining.0 / 10 * 9)
}

fn per_second(bytes: Bytes, elapsed_ms: u64) -> Bytes {
    Bytes(bytes.0.saturating_mul(1000) / elapsed_ms.max(1))
}

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BUDGET: Budget =
        Budget { max_downtime_ms: 30_000, fixed_ms: 20_000, full_pass_ms: None, rounds_max: 30 };

    fn round(sent_mib: u64, elapsed_ms: u64, remaining_mib: u64) -> RoundFigures {
        let remaining = Bytes::mib(remaining_mib);
        RoundFigures { elapsed_ms, sent: Bytes::mib(sent_mib), dirtied: remaining, remaining }
    }

    #[test]
    fn a_copy_that_fits_the_budget_switches_over() {
        // 10 MiB/s, 50 MiB left: 5 s of drain and 20 s fixed.
        let decision = decide(&[round(1000, 100_000, 50)], 0, BUDGET);
        assert_eq!(decision, Decision::SwitchOver { forecast_ms: 25_000 });
    }

    #[test]
    fn a_copy_that_shrinks_goes_on() {
        let history = [round(1000, 100_000, 800), round(800, 80_000, 400)];
        assert!(matches!(decide(&history, 0, BUDGET), Decision::CopyAgain { .. }));
    }

    #[test]
    fn a_guest_that_dirties_faster_than_it_copies_is_a_verdict_with_figures() {
        let history = [
            round(1000, 100_000, 900),
            round(900, 90_000, 900),
            round(900, 90_000, 920),
            round(920, 92_000, 910),
        ];
        let Decision::WontConverge(divergence) = decide(&history, 0, BUDGET) else {
            panic!("copies for ever: {:?}", decide(&history, 0, BUDGET));
        };
        assert!(divergence.dirty_rate.0 > 9 << 20, "{divergence}");
        assert!(divergence.remedies()[0].contains("--max-downtime"), "{:?}", divergence.remedies());
    }

    #[test]
    fn a_budget_below_the_boot_time_is_said_at_once_and_not_after_thirty_rounds() {
        let budget = Budget { max_downtime_ms: 10_000, ..BUDGET };
        assert!(matches!(decide(&[round(1000, 100_000, 1)], 0, budget), Decision::WontConverge(_)));
    }

    #[test]
    fn with_rescan_the_last_full_pass_counts_against_the_budget() {
        let budget = Budget { full_pass_ms: Some(15_000), ..BUDGET };
        assert!(matches!(decide(&[round(1000, 100_000, 0)], 0, budget), Decision::WontConverge(_)));
    }

    #[test]
    fn rounds_of_a_hold_do_not_count_and_those_after_it_do() {
        let mut history = vec![round(900, 90_000, 900); 40];
        assert!(matches!(decide(&history, 39, BUDGET), Decision::CopyAgain { .. }));
        history.extend([round(900, 90_000, 900); 3]);
        assert!(matches!(decide(&history, 39, BUDGET), Decision::WontConverge(_)));
    }

    #[test]
    fn figures_that_no_clock_shows_are_a_verdict() {
        let round = RoundFigures {
            elapsed_ms: u64::MAX,
            sent: Bytes(GOODPUT_SAMPLE),
            dirtied: Bytes(u64::MAX),
            remaining: Bytes(u64::MAX),
        };
        let budget = Budget { full_pass_ms: Some(u64::MAX), ..BUDGET };
        let Decision::WontConverge(divergence) = decide(&[round], 0, budget) else {
            panic!("a pass that takes for ever fits no budget");
        };
        assert_eq!((divergence.forecast_ms, divergence.fixed_ms), (u64::MAX, u64::MAX));
    }

    proptest! {
        #[test]
        fn no_history_copies_for_ever(remaining in proptest::collection::vec(0_u64..100_000, 31)) {
            let history: Vec<_> = remaining.into_iter().map(|mib| round(100, 10_000, mib)).collect();
            let ended = (1..=history.len())
                .any(|n| !matches!(decide(&history[..n], 0, BUDGET), Decision::CopyAgain { .. }));
            prop_assert!(ended);
        }
    }
}
