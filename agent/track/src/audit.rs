//! The audit: what the programs in the kernel saw, against what the kernel counted.
//!
//! Three sums of sectors are kept per disk: by the kernel's statistics, by the completion program,
//! by the issue program. They are compared as differences between two *samples*.
//!
//! | completions | issues | means |
//! |---|---|---|
//! | agree | any | every write was marked after it had landed: nothing to do |
//! | fewer | agree | completions were missed; every page issued is read again |
//! | otherwise | | a doubt |
//!
//! The completion program runs just before the kernel counts, so a difference that stays the same
//! over two looks, each undisturbed, is exact on a busy disk too. The issue sum is exact only on a
//! *quiet* disk, on which no write is in flight. The audit checks volume, not position.

use std::io;

use crate::doubt::{Figures, Sectors};

/// The sums at one instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) kernel: Sectors,
    pub(crate) completed: Sectors,
    /// Less what was put back into its queue.
    pub(crate) issued: Sectors,
    /// No write was in flight.
    pub(crate) quiet: bool,
}

/// What two samples say of the time between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Balanced,
    Missed(Sectors),
    /// Cannot be told while the disk is busy.
    Open,
    Unbalanced(Figures),
}

/// What is compared with: the end of the last audit that was settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Baseline {
    pub(crate) last: Sample,
    /// The last sample at which no write was in flight. Issue marks go back to here.
    pub(crate) last_quiet: Option<Sample>,
}

impl Baseline {
    pub(crate) fn at(sample: Sample) -> Self {
        Self { last: sample, last_quiet: sample.quiet.then_some(sample) }
    }

    pub(crate) fn judge(&self, now: &Sample) -> Verdict {
        let kernel = now.kernel.since(self.last.kernel);
        let completed = now.completed.since(self.last.completed);
        if kernel == completed {
            return Verdict::Balanced;
        }
        if !now.quiet {
            return Verdict::Open;
        }
        let issues_agree = self
            .last_quiet
            .is_some_and(|quiet| now.kernel.since(quiet.kernel) == now.issued.since(quiet.issued));
        let missed = kernel
            .written
            .checked_sub(completed.written)
            .zip(kernel.discarded.checked_sub(completed.discarded));
        match missed {
            Some((written, discarded)) if issues_agree => {
                Verdict::Missed(Sectors { written, discarded })
            }
            _ => {
                let issued = now.issued.since(self.last_quiet.unwrap_or(self.last).issued);
                Verdict::Unbalanced(Figures { kernel, completed, issued })
            }
        }
    }

    /// Everything up to `now` is settled.
    pub(crate) fn settle(&mut self, now: Sample) {
        self.last = now;
        if now.quiet {
            self.last_quiet = Some(now);
        }
    }
}

/// Looks until two looks agree. `look` answers `None` when the sums moved under it.
///
/// Prefers a quiet sample and tries on for one; what it gets on a busy disk is better than nothing.
pub(crate) fn sample(
    tries: u32,
    mut look: impl FnMut() -> io::Result<Option<Sample>>,
    mut pause: impl FnMut(),
) -> io::Result<Option<Sample>> {
    let mut last: Option<Sample> = None;
    let mut busy = None;
    for _ in 0..tries {
        if let Some(now) = look()? {
            if let Some(before) = last {
                if now == before && now.quiet {
                    return Ok(Some(now));
                }
                if now.kernel.since(now.completed) == before.kernel.since(before.completed) {
                    busy = Some(Sample { quiet: false, ..now });
                }
            }
            last = Some(now);
        }
        pause();
    }
    Ok(busy)
}

impl Sectors {
    /// Sums only grow, but each starts where it likes: a difference may wrap.
    pub(crate) const fn since(self, earlier: Self) -> Self {
        Self {
            written: self.written.wrapping_sub(earlier.written),
            discarded: self.discarded.wrapping_sub(earlier.discarded),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(kernel: u64, completed: u64, quiet: bool) -> Option<Sample> {
        let sectors = |written| Sectors { written, discarded: 0 };
        let issued = sectors(completed);
        Some(Sample { kernel: sectors(kernel), completed: sectors(completed), issued, quiet })
    }

    fn sampled(looks: &[Option<Sample>]) -> (Option<Sample>, usize) {
        let (mut at, mut pauses) = (0, 0);
        let next = || {
            at += 1;
            Ok(looks[at - 1])
        };
        let tries = u32::try_from(looks.len()).unwrap();
        (sample(tries, next, || pauses += 1).unwrap(), pauses)
    }

    #[test]
    fn a_quiet_disk_takes_two_looks() {
        let quiet = look(8, 8, true);
        assert_eq!(sampled(&[quiet, quiet, quiet]), (quiet, 1));
    }

    #[test]
    fn a_busy_disk_is_sampled_when_its_difference_holds_still() {
        let (sample, _) = sampled(&[look(8, 16, false), None, look(24, 32, false), None]);
        assert_eq!(sample, look(24, 32, false));
    }

    #[test]
    fn a_request_between_its_program_and_its_count_is_not_taken_for_a_difference() {
        let (sample, _) = sampled(&[look(8, 16, true), look(16, 16, true), look(24, 32, true)]);
        assert_eq!(sample, None);
    }

    #[test]
    fn sums_that_wrap_still_balance() {
        let at = |written| Sectors { written, discarded: 0 };
        let start = Sample { kernel: at(100), completed: at(u64::MAX), issued: at(0), quiet: true };
        let end = Sample { kernel: at(101), completed: at(0), issued: at(1), quiet: true };
        assert_eq!(Baseline::at(start).judge(&end), Verdict::Balanced);
    }

    #[test]
    fn more_completions_than_the_kernel_counted_are_unbalanced_too() {
        let start = look(0, 0, true).unwrap();
        let end = look(8, 16, true).unwrap();
        assert!(matches!(Baseline::at(start).judge(&end), Verdict::Unbalanced(_)));
    }

    #[test]
    fn a_loss_without_a_quiet_start_cannot_be_made_up_for() {
        let start = look(0, 0, false).unwrap();
        let end =
            Sample { issued: Sectors { written: 16, discarded: 0 }, ..look(16, 8, true).unwrap() };
        assert!(matches!(Baseline::at(start).judge(&end), Verdict::Unbalanced(_)));
    }
}
