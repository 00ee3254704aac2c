//! The guest at rest: quiesce, seal, thaw.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::mm::{MlockAllFlags, mlockall, munlockall};
use tokio::runtime::Handle;
use track::{Audited, Moment, TrackerKind};
use transfer::Changes as _;
use wire::control::{Event, Sealed};

use super::Source;
use super::error::SourceError;
use super::round::unwritten;
use super::tracked::{Tracked, choice};
use crate::quiesce::{self, Order, Quiesced};

/// A guest at rest, and whether it still is.
pub struct Rest {
    quiesced: Quiesced,
}

impl Source {
    /// Which rest the guest is in, if it is.
    pub(super) fn at_rest(&self) -> Option<u64> {
        Some(self.at_rest.load(Ordering::SeqCst)).filter(|rest| *rest != 0)
    }

    pub(super) async fn quiesce(
        self: &Arc<Self>,
        units: Vec<String>,
        hooks: Vec<String>,
        thaw_hooks: Vec<String>,
        thaw_after_ms: u64,
    ) -> Result<(), SourceError> {
        let tracked = self.tracked()?;
        let thaw_after = Duration::from_millis(thaw_after_ms);
        let mut rest = self.rest.lock().await;
        if let Some(known) = rest.as_mut().filter(|known| !known.quiesced.thawed()) {
            return known.quiesced.extend(thaw_after).map_err(SourceError::Thawed);
        }
        if let Some(Rest { quiesced }) = rest.take() {
            self.put_back(quiesced, Vec::new()).await;
        }
        self.called_off.store(false, Ordering::Relaxed);
        self.rounds.forget_drained();
        let order = Order { units, hooks, thaw_hooks, thaw_after, tracked: tracked.names() };
        let (tree, called_off) = (self.tree.clone(), Arc::clone(&self.called_off));
        let log = self.log.clone();
        let (source, runtime) = (Arc::clone(self), Handle::current());
        let on_thawed = move || {
            source.at_rest.store(0, Ordering::SeqCst);
            let source = Arc::clone(&source);
            runtime.spawn(async move { source.thawed_by_itself().await });
        };
        tracing::info!(tracked = ?order.tracked, thaw_after_ms, "quiescing");
        let work = move || {
            settle();
            log.hold();
            let quiesced = quiesce::quiesce(&order, &tree, &called_off, on_thawed);
            if quiesced.is_err() {
                log.release();
                unsettle();
            }
            quiesced
        };
        let quiesced = tokio::task::spawn_blocking(work).await??;
        self.at_rest.store(self.rests.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        if quiesced.thawed() {
            self.at_rest.store(0, Ordering::SeqCst);
        }
        *rest = Some(Rest { quiesced });
        Ok(())
    }

    /// Everything that was ever written is at the destination, and can be known to be: or an
    /// error.
    pub(super) async fn seal(&self, thaw_after_ms: u64) -> Result<Sealed, SourceError> {
        let tracked = self.tracked()?;
        let mut rest = self.rest.lock().await;
        let Some(rest) = rest.as_mut() else {
            let what = "the guest is not at rest";
            return Err(SourceError::State { what, hint: "quiesce and drain first" });
        };
        let not_clean = |why: String| SourceError::NotClean { why };
        let drained = self.rounds.drained();
        let drained =
            drained.ok_or_else(|| not_clean("no round was completed at rest".to_owned()))?;
        let audit = {
            let (tracked, tree) = (Arc::clone(&tracked), self.tree.clone());
            let before = drained.stats.clone();
            let look = move || audit(&tracked, &before, &tracked.stats(&tree));
            tokio::task::spawn_blocking(look).await?.map_err(not_clean)?
        };
        let digests = tracked.sender.seal(drained.number)?;
        // Last: it also says that there was no moment until now in which the guest could write.
        rest.quiesced.extend(Duration::from_millis(thaw_after_ms)).map_err(SourceError::Thawed)?;
        Ok(Sealed { digests, tracker: choice(tracked.marks.kind()), audit })
    }

    /// Puts the guest back; nothing to do is fine.
    pub(super) async fn thaw(&self, hooks: &[String]) {
        self.called_off.store(true, Ordering::Relaxed);
        let mut rest = self.rest.lock().await;
        if let Some(Rest { quiesced }) = rest.take() {
            self.put_back(quiesced, hooks.to_vec()).await;
        }
    }

    async fn thawed_by_itself(&self) {
        let mut rest = self.rest.lock().await;
        let Some(Rest { quiesced }) = rest.take() else { return };
        self.put_back(quiesced, Vec::new()).await;
        tracing::warn!("the guest thawed by itself: the deadline passed");
        self.events.tell(Event::Thawed);
    }

    async fn put_back(&self, quiesced: Quiesced, hooks: Vec<String>) {
        self.at_rest.store(0, Ordering::SeqCst);
        self.rounds.forget_drained();
        let undone = tokio::task::spawn_blocking(move || quiesced.put_back(&hooks)).await;
        self.log.release();
        unsettle();
        match undone {
            Ok(complaints) => complaints.into_iter().for_each(|text| self.events.note(text)),
            Err(error) => self.events.note(format!("putting the guest back failed: {error}")),
        }
    }
}

/// Two independent words that nothing was written since the drain began: the tracker's and the
/// kernel's statistics. The answer is for the receipt.
fn audit(
    tracked: &Tracked,
    before: &[Option<crate::inspect::stat::DiskStat>],
    now: &[Option<crate::inspect::stat::DiskStat>],
) -> Result<String, String> {
    for disk in &tracked.disks {
        match tracked.marks.audit(disk.no, Moment::Quiesced) {
            Ok(Audited::Balanced) => {}
            Ok(Audited::Remarked { missed }) => {
                return Err(format!("{missed} written to disk {} had been missed", disk.no));
            }
            Ok(Audited::Open) => return Err(format!("disk {} is still busy", disk.no)),
            Err(doubt) => return Err(format!("disk {}: {doubt}", disk.no)),
        }
        let dirty = tracked.marks.dirty(disk.no);
        if tracked.marks.precise() && dirty != units::Bytes::ZERO {
            return Err(format!("{dirty} of disk {} were written since the drain", disk.no));
        }
    }
    unwritten(before, now)?;
    let sectors: Vec<String> = now.iter().flatten().map(|stat| stat.written.to_string()).collect();
    let tracker = match tracked.marks.kind() {
        TrackerKind::Bpf => {
            "bpf: every sector that the kernel counted was marked, and none is dirty"
        }
        TrackerKind::Rescan => "rescan: every block was read under freeze",
    };
    Ok(format!(
        "{tracker}; sectors written, before the drain and at the seal alike: {}",
        sectors.join(", ")
    ))
}

/// What is frozen cannot be read in again: memory stays.
fn settle() {
    // First what is there, all of it; then what comes, as it comes: thread stacks are mostly
    // never touched.
    let now = mlockall(MlockAllFlags::CURRENT);
    let later = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    if let Err(error) = now.and_then(|()| mlockall(later)) {
        tracing::warn!(%error, "memory not locked");
    }
}

fn unsettle() {
    // Nothing depends on it.
    let _unlocked = munlockall();
}
