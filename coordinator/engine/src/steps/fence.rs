//! Fencing → Deciding: the source is off for good, and nothing was written since the seal.
//!
//! **Why no write can hide between seal and power-off.** The agent cannot be asked after the VM is
//! off, so its word is completed by the platform's. The platform counts every disk's writes. It is
//! read (1) before the agent looks for the last time and (2) again once the virtual CPUs stand
//! still. A write before (1) is in the agent's seal; a write between (1) and (2) makes the counts
//! differ and voids the drain; after (2) nothing runs until the power is off. No clock is in it.

use handover::{ContentBasis, SourceState};
use model::{Power, WriteCount};
use site::{FenceStage, SiteErrorKind, StoppedBy, UnfenceRecord};
use units::{Digest, chain};

use crate::error::StepError;
use crate::record::{Record, StoredCount};
use crate::run::Run;

pub(crate) async fn fence(run: &mut Run) -> Result<Record, StepError> {
    let (vm, epoch) = (run.vm(), run.epoch());
    if matches!(run.custody.source_state(epoch), SourceState::Fenced(_)) {
        return Ok(Record::Fenced);
    }
    let resumed = run.custody.unfence_record(epoch, FenceStage::Definition).await?.is_some();
    let definition = intend(run, FenceStage::Definition).await?;
    run.source.fence_apply(vm, &definition).await?;
    // While it is loaded someone may have resumed it by hand, also since the record was made.
    if !run.state.writes_accounted || run.source.power(vm).await?.is_loaded() {
        account_for_writes(run).await?;
        if !run.state.writes_accounted {
            run.record(Record::WritesAccounted).await?;
            // Once more: nothing but the platform's next call is to be between this and the power-off.
            account_for_writes(run).await?;
        }
    } else {
        stopped_where_it_stood(run).await?;
    }
    run.watcher.step(format!("powering off {} at {}", run.plan.vm.name, run.plan.from));
    run.source.power_off(vm).await?;

    let disks = intend(run, FenceStage::Disks).await?;
    run.source.fence_apply(vm, &disks).await?;
    check_fence(run, &[definition, disks]).await?;
    let basis = if resumed {
        ContentBasis::DrainedBefore {
            shown_by: "suspended with the platform's write counts as they were at the seal, then powered off".into(),
        }
    } else {
        ContentBasis::Drained
    };
    let means: Vec<_> = run.plan.fence.means.iter().map(|means| means.name.as_str()).collect();
    let digests = digests(run);
    run.custody.fenced(epoch, &means.join(", "), &digests, basis).await?;
    run.fenced_now = true;
    Ok(Record::Fenced)
}

/// It was suspended when its writes were accounted for, and is off. By a power-off, ours most likely,
/// it wrote nothing more. If it shut down or crashed it had been resumed by hand before, and if
/// nobody knows (its host began anew) it may have been: then what was drained is not all there is.
/// Resumed *and* powered off by hand looks like ours.
async fn stopped_where_it_stood(run: &Run) -> Result<(), StepError> {
    match run.source.stopped_by(run.vm()).await? {
        Some(StoppedBy::PoweredOff) => Ok(()),
        _ => Err(StepError::StoppedUnproven {
            vm: run.plan.vm.name.clone(),
            site: run.plan.from.clone(),
            found: run.source.power(run.vm()).await?,
        }),
    }
}

fn digests(run: &Run) -> Vec<Digest> {
    run.state.drained.as_ref().map(|drain| drain.digests.clone()).unwrap_or_default()
}

/// What undoes this stage, durable in the source's ledger before the stage is applied. Captured
/// once: a second capture would see our own fence.
async fn intend(run: &mut Run, stage: FenceStage) -> Result<UnfenceRecord, StepError> {
    let epoch = run.epoch();
    if let Some(record) = run.custody.unfence_record(epoch, stage).await? {
        return Ok(record);
    }
    let record = run.source.fence_capture(run.vm(), stage).await?;
    let digests = digests(run);
    Ok(run.custody.fence_intent(epoch, record, &digests).await?)
}

/// Suspends, and compares the platform's counts with those of the seal.
pub(super) async fn account_for_writes(run: &Run) -> Result<(), StepError> {
    let sealed = run.state.drained.as_ref().map(|drain| drain.counts.clone()).unwrap_or_default();
    suspend_unwritten(run, &sealed).await
}

/// Stops the virtual CPUs; an error if anything was written since `sealed` was counted.
pub(super) async fn suspend_unwritten(run: &Run, sealed: &[StoredCount]) -> Result<(), StepError> {
    let vm = run.vm();
    match run.source.power(vm).await? {
        Power::Running | Power::Paused => {}
        found @ (Power::Off | Power::Absent) => {
            return Err(StepError::StoppedUnproven {
                vm: run.plan.vm.name.clone(),
                site: run.plan.from.clone(),
                found,
            });
        }
    }
    run.source.suspend(vm).await?;
    let now = run.source.write_counts(vm).await?;
    same_counts(sealed, &now)
}

fn same_counts(sealed: &[StoredCount], now: &[WriteCount]) -> Result<(), StepError> {
    for disk in now {
        let before = sealed.iter().find(|count| count.target == disk.target);
        if before != Some(&StoredCount::from(disk.clone())) {
            return Err(StepError::WroteAfterDrain {
                disk: disk.target.clone(),
                before: before.map_or(0, |count| count.requests),
                after: disk.requests,
            });
        }
    }
    // A disk that vanished proves nothing, and neither does a platform that counts none.
    match sealed.iter().find(|count| now.iter().all(|disk| disk.target != count.target)) {
        None if !now.is_empty() => Ok(()),
        missing => Err(StepError::WroteAfterDrain {
            disk: missing.map_or_else(|| "every disk".to_owned(), |count| count.target.clone()),
            before: missing.map_or(0, |count| count.requests),
            after: 0,
        }),
    }
}

/// Looks, rather than trusting that what was applied is there.
async fn check_fence(run: &Run, records: &[UnfenceRecord]) -> Result<(), StepError> {
    is_off(run).await?;
    is_in_place(run, records).await
}

async fn is_off(run: &Run) -> Result<Power, StepError> {
    let power = run.source.power(run.vm()).await?;
    if power.is_loaded() {
        let (vm, site) = (run.plan.vm.name.clone(), run.plan.from.clone());
        let decided = run.custody.is_granted(run.epoch());
        return Err(StepError::RunsFenced { vm, site, power, decided });
    }
    Ok(power)
}

async fn is_in_place(run: &Run, records: &[UnfenceRecord]) -> Result<(), StepError> {
    for record in records {
        if !run.source.fence_holds(run.vm(), record).await? {
            let (vm, site) = (run.plan.vm.name.clone(), run.plan.from.clone());
            return Err(StepError::FenceOpen { vm, site, stage: record.stage });
        }
    }
    Ok(())
}

/// The source once more, before the decision: no fence stops everything that a person can do at a
/// platform, and a gate or days until `resume` give them time. A source that does not answer, or
/// does not know the VM any more, is as its ledger has it: it may be gone for good, and the VM must
/// not go with it.
pub(super) async fn still_fenced(run: &Run, records: &[UnfenceRecord]) -> Result<(), StepError> {
    match fenced_as_recorded(run, records).await {
        Err(StepError::Site(error)) if error.kind == SiteErrorKind::Unreachable => {
            not_looked_at(run, &chain(&error));
            Ok(())
        }
        looked => looked,
    }
}

async fn fenced_as_recorded(run: &Run, records: &[UnfenceRecord]) -> Result<(), StepError> {
    if is_off(run).await? == Power::Absent {
        not_looked_at(run, "the site does not know it any more");
        return Ok(());
    }
    is_in_place(run, records).await
}

/// Of both stages, as far as they were made.
pub(super) async fn unfence_records(run: &Run) -> Result<Vec<UnfenceRecord>, StepError> {
    let mut records = Vec::new();
    for stage in [FenceStage::Definition, FenceStage::Disks] {
        records.extend(run.custody.unfence_record(run.epoch(), stage).await?);
    }
    Ok(records)
}

/// As [`still_fenced`], before the destination is started: it is decided, so only a source that is
/// seen to run holds it up.
pub(super) async fn still_off(run: &Run) -> Result<(), StepError> {
    match is_off(run).await {
        Err(StepError::Site(error)) => {
            not_looked_at(run, &chain(&error));
            Ok(())
        }
        looked => looked.map(drop),
    }
}

fn not_looked_at(run: &Run, why: &str) {
    let (vm, site) = (&run.plan.vm.name, &run.plan.from);
    run.watcher.warn(format!(
        "{vm} at {site} could not be looked at once more, its fence stands in the ledger: {why}"
    ));
}

#[cfg(test)]
mod tests {
    use units::Bytes;

    use super::*;

    fn count(target: &str, requests: u64) -> WriteCount {
        WriteCount { target: target.to_owned(), requests, bytes: Bytes(requests * 4096) }
    }

    fn sealed(counts: &[WriteCount]) -> Vec<StoredCount> {
        counts.iter().cloned().map(StoredCount::from).collect()
    }

    #[test]
    fn equal_counts_of_all_disks_are_the_only_proof() {
        let before = [count("vda", 7), count("vdb", 0)];
        assert!(same_counts(&sealed(&before), &before).is_ok());
        for now in [
            vec![count("vda", 8), count("vdb", 0)],
            vec![count("vda", 7)],
            vec![count("vda", 7), count("vdb", 0), count("vdc", 0)],
            vec![],
        ] {
            assert!(same_counts(&sealed(&before), &now).is_err(), "{now:?}");
        }
        assert!(same_counts(&[], &[]).is_err(), "a platform that counts nothing proves nothing");
    }
}
