//! RollingBack → RolledBack: the source runs as before, the destination is clean.
//!
//! Order matters: first the destination gives up the right to run (revoked, write-once), then the
//! source gets it back, then things are tidied. A crash anywhere goes on with the same step.

use std::collections::BTreeSet;

use handover::{
    Attestation, DestinationState, MarkSeen, Refusal, RevokeReceipt, SourceRequest, SourceState,
};
use model::Power;
use plan::Plan;
use site::{FenceStage, Leftover, Site, SiteError, SiteErrorKind};
use units::Epoch;
use wire::control::Request;

use crate::custody::{CustodyError, forget_what_is_kept, mark_seen};
use crate::error::StepError;
use crate::record::Record;
use crate::run::{Run, Vouched};

pub(crate) async fn roll_back(run: &mut Run) -> Result<Record, StepError> {
    let mut removed = Vec::new();
    // What was never heard of is known where all is seen. A destination that does not answer can be
    // vouched for, a source is waited for.
    run.custody.see_source().await?;
    match (run.custody.see_destination().await, word(run)) {
        (Err(CustodyError::Site { .. }), Some(_)) => {}
        (seen, _) => seen?,
    }
    let epoch = run.epoch_in_ledgers();
    if let Some(epoch) = epoch {
        use handover::DestinationState as D;
        let was_begun = run.state.epoch.is_some()
            || matches!(run.custody.destination_state(epoch), D::Placed | D::Synced(_));
        if was_begun && run.custody.source_state(epoch) == SourceState::Unknown {
            let what =
                "the source's ledger has lost this attempt, and with it whether it is fenced";
            return Err(CustodyError::Unfit { what: what.to_owned() }.into());
        }
        let seen = mark_seen(&*run.destination, run.vm()).await;
        let receipt = run.custody.revoke(epoch, &seen, word(run)).await?;
        release_source(run, epoch, receipt).await?;
    }
    tidy_guest(run, &mut removed).await;
    run.links.cut();
    let left = match clear(run, &mut removed).await {
        Ok(()) => Vec::new(),
        // Nobody waits for it, and the VM's next migration need not either.
        Err(StepError::Site(error))
            if matches!(run.vouched, Vouched::DestinationGone(_))
                && error.kind == SiteErrorKind::Unreachable =>
        {
            may_be_left(run, &removed)
        }
        Err(error) => return Err(error),
    };
    if let Some(epoch) = epoch {
        run.custody.forget_papers(epoch).await;
        // What could still be started there must be known to have been called off.
        if left.is_empty() {
            run.custody.forget_that_it_revokes(epoch).await;
        }
    }
    Ok(Record::TakenBack { removed, left })
}

/// Removes what was left at a destination that was away when all was taken back. Its ledger is not
/// needed: a placeholder that bears a mark stays, and so does a volume that a VM has in use since. What was
/// removed is in `removed`, whatever comes of the rest.
///
/// # Errors
/// While it does not answer, or hides a pool, or shows that it was given the VM.
pub async fn clear_up(
    destination: &dyn Site,
    plan: &Plan,
    epoch: Option<Epoch>,
    removed: &mut Vec<String>,
) -> Result<Cleared, StepError> {
    let gone = pools_gone(destination, plan).await?;
    let mut left = Vec::new();
    let in_use = remove_all(destination, plan, removed).await?;
    let stays = in_use.into_iter().map(|(what, error)| format!("{what}: {}", error.what));
    match epoch {
        Some(epoch) => forget_what_is_kept(destination, plan.vm.id, epoch).await,
        None => left.push(records_words(plan)),
    }
    let hidden = plan.disks.iter().filter(|disk| gone.contains(&disk.pool));
    left.extend(hidden.map(|disk| volume_words(plan, &disk.volume, &disk.pool)));
    Ok(Cleared { left, stays: stays.collect() })
}

/// What is at a destination after all.
pub struct Cleared {
    /// Nobody could look.
    pub left: Vec<String>,
    /// Another migration made it its own, in the site's words.
    pub stays: Vec<String>,
}

/// The operator's, of this life of it or an earlier one.
fn word(run: &Run) -> Option<Attestation> {
    let recorded = || match run.custody.destination_state(run.epoch_in_ledgers()?) {
        DestinationState::Revoked(receipt) => receipt.claim().attested.clone(),
        _ => None,
    };
    run.vouched.never_ran().cloned().or_else(recorded)
}

/// Removes what was made at the destination.
async fn clear(run: &Run, removed: &mut Vec<String>) -> Result<(), StepError> {
    for pool in pools_gone(&*run.destination, &run.plan).await? {
        run.watcher.warn(format!(
            "pool {pool} is gone from {}: what was made in it is nobody's any more",
            run.plan.to
        ));
    }
    let in_use = remove_all(&*run.destination, &run.plan, removed).await?;
    in_use.into_iter().next().map_or(Ok(()), |(_, error)| Err(error.into()))
}

/// All that is not in use; answers what is, with the site's words for it.
async fn remove_all(
    destination: &dyn Site,
    plan: &Plan,
    removed: &mut Vec<String>,
) -> Result<Vec<(String, SiteError)>, StepError> {
    let mut in_use = Vec::new();
    for leftover in destination.leftovers(&plan.id).await? {
        match destination.remove(&leftover).await {
            Ok(()) => removed.push(words(plan, &leftover)),
            Err(error)
                if matches!(leftover, Leftover::Volume { .. })
                    && error.kind == SiteErrorKind::WrongState =>
            {
                in_use.push((words(plan, &leftover), error));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(in_use)
}

fn words(plan: &Plan, leftover: &Leftover) -> String {
    match leftover {
        Leftover::Placeholder { name, .. } => format!("{}: placeholder {name}", plan.to),
        Leftover::Volume { pool, volume, .. } => volume_words(plan, volume, pool),
    }
}

fn records_words(plan: &Plan) -> String {
    format!("{}: what it keeps for causeway of VM {}", plan.to, plan.vm.id)
}

fn volume_words(plan: &Plan, volume: &str, pool: &str) -> String {
    format!("{}: volume {volume} in pool {pool}", plan.to)
}

/// What may have been made at the destination and is not known to be removed: by the plan, since a
/// journal that was made anew has no list.
fn may_be_left(run: &Run, removed: &[String]) -> Vec<String> {
    let (to, vm) = (&run.plan.to, &run.plan.vm);
    let volumes = run.plan.disks.iter().map(|disk| (&disk.volume, &disk.pool));
    let volumes = volumes.map(|(volume, pool)| volume_words(&run.plan, volume, pool));
    let placeholder = format!("{to}: placeholder {}", vm.name);
    let records = records_words(&run.plan);
    let all = [placeholder].into_iter().chain(volumes).chain([records]);
    all.filter(|one| !removed.contains(one)).collect()
}

/// A pool that is stopped hides what lies in it, and what is not seen now stays for good. Answers those
/// that are there no more.
async fn pools_gone(destination: &dyn Site, plan: &Plan) -> Result<Vec<String>, StepError> {
    let pools = destination.probe().await?.pools;
    let planned: BTreeSet<_> = plan.disks.iter().map(|disk| &disk.pool).collect();
    let mut gone = Vec::new();
    for name in planned {
        match pools.iter().find(|pool| pool.name == *name) {
            Some(pool) if pool.active => {}
            Some(_) => {
                return Err(StepError::PoolHidden { pool: name.clone(), site: plan.to.clone() });
            }
            None => gone.push(name.clone()),
        }
    }
    Ok(gone)
}

/// Undoes whatever of the fence was made and lets the VM run again, if it ran.
async fn release_source(
    run: &mut Run,
    epoch: Epoch,
    receipt: RevokeReceipt,
) -> Result<(), StepError> {
    let vm = run.vm();
    // Never heard of it, or left it to a later attempt, which has the source now.
    let is_unknown = run.custody.source_state(epoch) == SourceState::Unknown;
    if is_unknown || run.custody.source_is_followed(epoch) {
        return Ok(());
    }
    // In an earlier life, or by another coordinator: what its operator did with it since stays, but for
    // what we did to it without knowing.
    let was_settled = run.custody.source_state(epoch) == (SourceState::Released { settled: true });
    if !was_settled {
        run.custody.source(epoch, SourceRequest::Release(receipt)).await?;
        not_granted_meanwhile(run, epoch).await?;
    }
    let mut was_fencing = false;
    for stage in [FenceStage::Disks, FenceStage::Definition] {
        let record = match run.custody.unfence_record(epoch, stage).await {
            // Nobody keeps it any longer than it is needed.
            Err(CustodyError::File { .. }) if was_settled => None,
            record => record?,
        };
        if let Some(record) = record {
            if !was_fencing {
                run.watcher.step(format!("releasing {} at {}", run.plan.vm.name, run.plan.from));
            }
            was_fencing = true;
            run.source.fence_undo(vm, &record).await?;
        }
    }
    // Off after we meant to power it off: it ran when we came.
    if was_fencing && !was_settled && run.source.power(vm).await? == Power::Off {
        run.source.power_on(vm).await?;
    }
    if run.source.power(vm).await? == Power::Paused {
        run.source.resume(vm).await?;
    }
    run.custody.source(epoch, SourceRequest::Settled).await?;
    Ok(())
}

/// A site that cannot compare and replace in one step may have let another coordinator write *granted*
/// over *revoked*. That one looks for the release once it has granted, and this one for the grant once
/// it has released: of the two, one sees the other.
async fn not_granted_meanwhile(run: &mut Run, epoch: Epoch) -> Result<(), StepError> {
    match run.custody.see_destination_again().await {
        Err(CustodyError::Site { .. }) if word(run).is_some() => return Ok(()),
        seen => seen?,
    }
    if run.custody.is_granted(epoch) {
        return Err(CustodyError::both_ways().into());
    }
    match mark_seen(&*run.destination, run.vm()).await {
        MarkSeen::Present(mark) if mark.attempt().epoch >= epoch => {
            Err(CustodyError::both_ways().into())
        }
        MarkSeen::Unknown if word(run).is_none() => {
            Err(CustodyError::Refused(Refusal::MarkUnknown).into())
        }
        _ => Ok(()),
    }
}

/// Thaws and removes the agent. A guest that cannot be reached thaws by itself and loses the agent
/// with its next boot; that is said, and does not hold up the rest.
async fn tidy_guest(run: &mut Run, removed: &mut Vec<String>) {
    let thaw = Request::Thaw {
        units: run.plan.options.stop_units.clone(),
        hooks: run.plan.options.hooks_undo.clone(),
    };
    // Only a guest that has the agent is spoken to: installing it anew to remove it helps nobody.
    if run.links.source.is_none() && run.reattach_source().await.is_err() {
        tracing::debug!("no agent in the guest to say goodbye to");
    }
    if let Some(agent) = run.links.source.take()
        && let Err(error) = agent.tell(thaw).await
    {
        run.watcher.warn(format!("the guest was not told to thaw: {}", units::chain(&error)));
    }
    match run.guest.remove(&run.plan.id).await {
        Ok(files) => {
            removed.extend(files.into_iter().map(|file| format!("{}: {file}", run.plan.vm.name)));
        }
        Err(error) => run.watcher.warn(format!(
            "the agent could not be removed from the guest; it is on a tmpfs and goes with the next boot: {}",
            units::chain(&error)
        )),
    }
}
