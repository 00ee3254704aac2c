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
//! *quiet* disk, on which nothing is in flight. The audit checks volume, not position.

use std::io;

use crate::doubt::{Figures, Sectors};

/// The sums at one instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) kernel: Sectors,
    pub(crate) completed: Sectors,
    /// Less what was put back into its queue.
    pub(crate) issued: Sectors,
    /// Nothing was in flight.
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
    /// The last sample at which nothing was in flight. Issue marks go back to here.
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
