//! Preparing → Copying: agent in the guest, volumes, placeholder and helper at the destination.

use handover::DestinationRequest;
use model::Power;

use crate::error::StepError;
use crate::links::Goal;
use crate::record::Record;
use crate::run::Run;

/// Everything here is additive and is taken back by a rollback: nothing of the source changes but
/// for the agent's files on its tmpfs.
pub(crate) async fn prepare(run: &mut Run) -> Result<Record, StepError> {
    run.check_wish()?;
    if run.source.power(run.vm()).await? == Power::Paused {
        if !run.state.rebuilt {
            let (vm, site) = (run.plan.vm.name.clone(), run.plan.from.clone());
            return Err(StepError::Suspended { vm, site });
        }
        // By a coordinator that was lost before it began to fence: nobody else remembers why.
        run.source.resume(run.vm()).await?;
    }
    run.watcher.step(format!("installing the agent in {}", run.guest.describe()));
    // Which looks whether it is still the guest that was planned for.
    run.source_agent().await?;
    run.planned_counts().await?;
    let tracking = run.track().await?;

    run.put_appliance().await?;
    if run.state.disks.is_empty() {
        let mut disks = Vec::new();
        for disk in run.new_disks() {
            run.check_wish()?;
            run.watcher.step(format!("creating {} in pool {}", disk.volume, disk.pool));
            disks.push(run.destination.create_disk(&run.plan.id, &disk).await?);
        }
        run.targets_empty = disks.iter().all(|disk| disk.fresh);
        run.record(Record::DisksCreated { disks }).await?;
    }
    if !run.state.placeholder_defined {
        let placeholder = run.placeholder()?;
        run.destination.define_placeholder(&placeholder).await?;
        let id = placeholder.vm.to_string().into();
        run.tell_destination(DestinationRequest::Placeholder { id }).await?;
        run.record(Record::PlaceholderDefined).await?;
    }
    run.watcher.step(format!("starting the helper at {}", run.plan.to));
    run.connect_to(Goal::Agents).await?;
    Ok(Record::Prepared { tracker: tracking.choice.to_string(), tracker_reason: tracking.reason })
}
