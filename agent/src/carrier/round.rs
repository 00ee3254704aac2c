//! Rounds: started by a request, reported by events.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use track::Moment;
use transfer::{Changes as _, Round, RoundOptions};
use units::{Bytes, DiskNo};
use wire::control::{Event, Failure, RoundEnd, RoundProgress};

use super::order::Said;
use super::tracked::Tracked;
use super::work::Work;
use crate::inspect::stat::DiskStat;
use crate::session::lock;
use crate::source::{SourceError, to_failure};

/// How often progress is reported.
const REPORT_EVERY: Duration = Duration::from_millis(500);

/// Which round is under way, and what the last one under freeze found.
#[derive(Debug, Default)]
pub struct Rounds {
    running: Mutex<Option<u32>>,
    drained: Mutex<Option<Drained>>,
}

/// A round that was complete and all of it under freeze.
#[derive(Clone, Debug)]
pub struct Drained {
    pub number: u32,
    /// In which rest.
    pub rest: u64,
    /// What the kernel counted before it began.
    pub stats: Vec<Option<DiskStat>>,
}

impl Rounds {
    pub fn running(&self) -> Option<u32> {
        *lock(&self.running)
    }

    pub fn drained(&self) -> Option<Drained> {
        lock(&self.drained).clone()
    }

    pub fn forget_drained(&self) {
        *lock(&self.drained) = None;
    }
}

impl Work {
    /// Starts a round and returns; one of the same number that is under way goes on.
    pub(super) async fn start_round(
        self: &Arc<Self>,
        number: u32,
        options: RoundOptions,
    ) -> Result<(), SourceError> {
        let tracked = Arc::clone(&self.tracked);
        if tracked.sender.generation().is_none() {
            let what = "there is no connection to the destination";
            return Err(SourceError::State { what, hint: "connect first" });
        }
        {
            let mut running = lock(&self.rounds.running);
            match *running {
                Some(known) if known == number => return Ok(()),
                Some(_) => {
                    let what = "another round is under way";
                    return Err(SourceError::State { what, hint: "stop it first" });
                }
                None => *running = Some(number),
            }
        }
        let work = Arc::clone(self);
        tokio::spawn(async move {
            let running = Running(Arc::clone(&work));
            let task = {
                let (work, tracked) = (Arc::clone(&work), Arc::clone(&tracked));
                tokio::spawn(async move { work.round(&tracked, number, options).await })
            };
            // A bug in a round is its failure, not silence.
            let end = task.await.unwrap_or_else(|error| RoundEnd {
                progress: RoundProgress { number, ..RoundProgress::default() },
                failure: Some(to_failure(SourceError::Worker(error))),
                remaining: tracked.sender.remaining(),
                doubts: Vec::new(),
            });
            tracing::info!(
                number,
                remaining = %end.remaining,
                failure = ?end.failure.as_ref().map(|failure| &failure.text),
                doubts = ?end.doubts,
                "round ended"
            );
            // Before the event: whoever hears it may ask for the next one.
            drop(running);
            work.say(Said::Event(Event::RoundEnded(end))).await;
        });
        Ok(())
    }

    async fn round(&self, tracked: &Arc<Tracked>, number: u32, options: RoundOptions) -> RoundEnd {
        let rest = self.at_rest();
        let moment = if rest.is_some() { Moment::Quiesced } else { Moment::Running };
        self.rounds.forget_drained();
        let stats = tracked.stats(&self.tree);
        // Before the pass that it covers: what an audit finds missing becomes dirty.
        let mut doubts = audit(tracked, moment).await;
        let (progress, seen) = watch::channel(RoundProgress::default());
        let report = self.report(seen);
        let round = tracked.sender.round(number, options, &progress);
        let round = tokio::select! {
            round = round => round,
            never = report => match never {},
        };
        for doubt in audit(tracked, moment).await {
            if !doubts.contains(&doubt) {
                doubts.push(doubt);
            }
        }
        let failure = round.failure.as_ref().map(Failure::from);
        let mut remaining = tracked.sender.remaining();
        if let Some(rest) = drains(&round, rest, self.at_rest()) {
            if self.drained_by_rescan(tracked, &stats) {
                remaining = Bytes::ZERO;
            }
            *lock(&self.rounds.drained) = Some(Drained { number, rest, stats });
        }
        RoundEnd { progress: round.progress, failure, remaining, doubts }
    }

    /// Where nothing is tracked, a whole round of which nothing was written shows that nothing is
    /// left.
    fn drained_by_rescan(&self, tracked: &Tracked, before: &[Option<DiskStat>]) -> bool {
        !tracked.marks.precise() && unwritten(before, &tracked.stats(&self.tree)).is_ok()
    }

    async fn report(&self, mut seen: watch::Receiver<RoundProgress>) -> std::convert::Infallible {
        let mut tick = interval(REPORT_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            if seen.has_changed().unwrap_or(false) {
                let progress = seen.borrow_and_update().clone();
                self.say_if_heard(Event::Round(progress));
            }
        }
    }
}

/// The rest within which all was looked at and acknowledged. `rest`, `now`: before it and after.
fn drains(round: &Round, rest: Option<u64>, now: Option<u64>) -> Option<u64> {
    let complete = round.failure.is_none() && !round.stopped;
    rest.filter(|_| complete && now == rest)
}

/// Cleared however the round ends.
struct Running(Arc<Work>);

impl Drop for Running {
    fn drop(&mut self) {
        *lock(&self.0.rounds.running) = None;
    }
}

/// Audits on a thread that may block: an audit of a busy disk waits for a quiet moment.
async fn audit(tracked: &Arc<Tracked>, moment: Moment) -> Vec<(DiskNo, String)> {
    let audited = Arc::clone(tracked);
    let doubts = tokio::task::spawn_blocking(move || audited.doubts(moment)).await;
    doubts.unwrap_or_else(|_| {
        tracked.disks.iter().map(|disk| (disk.no, "the audit failed".to_owned())).collect()
    })
}

/// Was nothing written to any disk between two looks at the kernel's statistics? The error says
/// what speaks against it.
pub fn unwritten(before: &[Option<DiskStat>], now: &[Option<DiskStat>]) -> Result<(), String> {
    for (disk, (before, now)) in before.iter().zip(now).enumerate() {
        let (Some(before), Some(now)) = (before, now) else {
            return Err(format!("the kernel does not count what disk {disk} writes"));
        };
        if (before.written, before.discarded) != (now.written, now.discarded) {
            let written = now.written.saturating_sub(before.written);
            let discarded = now.discarded.saturating_sub(before.discarded);
            return Err(format!(
                "{written} sectors were written to disk {disk} and {discarded} discarded since the drain began"
            ));
        }
        if now.in_flight != 0 {
            return Err(format!("disk {disk} still has {} writes under way", now.in_flight));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_round_within_one_rest_drains() {
        let whole = || Round {
            progress: RoundProgress::default(),
            failure: None,
            stopped: false,
            remaining: Bytes::ZERO,
        };
        assert_eq!(drains(&whole(), Some(1), Some(1)), Some(1));
        assert_eq!(drains(&Round { stopped: true, ..whole() }, Some(1), Some(1)), None);
        let failure = Some(transfer::SenderError::NotConnected);
        assert_eq!(drains(&Round { failure, ..whole() }, Some(1), Some(1)), None);
        for (before, after) in [(None, None), (None, Some(1)), (Some(1), None), (Some(1), Some(2))]
        {
            assert_eq!(drains(&whole(), before, after), None, "{before:?} {after:?}");
        }
    }

    const CLEAN: DiskStat = DiskStat { written: 5, discarded: 1, in_flight: 0 };

    #[test]
    fn any_write_discard_or_unknown_count_speaks_against_a_rest() {
        assert_eq!(unwritten(&[Some(CLEAN)], &[Some(CLEAN)]), Ok(()));
        for now in [
            Some(DiskStat { written: 6, ..CLEAN }),
            Some(DiskStat { discarded: 2, ..CLEAN }),
            Some(DiskStat { in_flight: 1, ..CLEAN }),
            None,
        ] {
            assert!(unwritten(&[Some(CLEAN)], &[now]).is_err(), "{now:?}");
        }
    }
}
