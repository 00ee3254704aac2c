//! After the end: the retired source is deleted for good, once its operator has said so.

use handover::{MarkSeen, SourceRequest};
use model::Power;
use site::{Discarded, FenceStage, PlaceholderState};

use crate::custody::mark_seen;
use crate::error::StepError;
use crate::phase::Phase;
use crate::record::Record;
use crate::run::Run;

/// Deletes the source that a finished migration left behind.
///
/// The destination is looked at first: what is deleted must not be the only good copy. So it must
/// be reachable, bear this migration's mark, and run the VM.
///
/// # Errors
/// [`StepError::MaybeLastCopy`] if the destination does not show that it has the VM, and the
/// ledger's refusal if the source is not retired. Nothing is deleted then.
pub async fn discard(run: &mut Run) -> Result<Discarded, StepError> {
    let (vm, epoch) = (run.vm(), run.epoch());
    if run.state.phase != Phase::Retired {
        return Err(last_copy(run, format!("the migration is {}", run.state.phase.word())));
    }
    match run.destination.placeholder(vm).await? {
        PlaceholderState::Released { power: Power::Running, .. } => {}
        found => return Err(last_copy(run, format!("{} shows {found}", run.plan.to))),
    }
    match mark_seen(&*run.destination, vm).await {
        MarkSeen::Present(mark) if run.custody.granted(epoch).as_ref() == Some(&mark) => {}
        _ => return Err(last_copy(run, format!("{} bears another mark", run.plan.to))),
    }
    run.custody.source(epoch, SourceRequest::Destroy).await?;
    let mut records = Vec::new();
    for stage in [FenceStage::Definition, FenceStage::Disks] {
        let record = run.custody.unfence_record(epoch, stage).await?.ok_or_else(|| {
            let what = format!("the ledger of {} has no record of its {stage:?}", run.plan.from);
            last_copy(run, what)
        })?;
        records.push(record);
    }
    // A disk that was attached meanwhile is at no other place.
    let moved: Vec<_> = run.plan.disks.iter().map(|disk| disk.target.clone()).collect();
    let discarded = run.source.discard(vm, &records, &moved).await?;
    run.custody.source(epoch, SourceRequest::Destroyed).await?;
    run.custody.forget_fence(epoch).await;
    run.custody.forget_papers(epoch).await;
    run.custody.forget_that_it_revokes(epoch).await;
    run.record(Record::Discarded { removed: discarded.removed.clone() }).await?;
    Ok(discarded)
}

fn last_copy(run: &Run, what: String) -> StepError {
    StepError::MaybeLastCopy {
        vm: run.plan.vm.name.clone(),
        from: run.plan.from.clone(),
        to: run.plan.to.clone(),
        what,
    }
}
