//! Deciding → Starting: the one irreversible point, in the destination's ledger and on the
//! placeholder.

use handover::DestinationRequest;

use super::fence::{still_fenced, unfence_records};
use crate::custody::{mark_of, mark_seen};
use crate::error::StepError;
use crate::record::Record;
use crate::run::{Run, now_ms};

/// Granted first, then the mark: a crash between them leaves a decision that is carried on, never
/// a mark without one. Nothing starts before both.
pub(crate) async fn decide(run: &mut Run) -> Result<Record, StepError> {
    let (vm, epoch) = (run.vm(), run.epoch());
    // Both sites have agreed to this plan, and with it to its gate.
    run.custody.look().await?;
    run.custody.see_destination().await?;
    if !run.custody.is_granted(epoch) {
        run.custody.both_know(epoch)?;
    }
    // Asked while there is a way back.
    if let Some(gate) = run.plan.options.gate.clone()
        && !run.custody.is_granted(epoch)
    {
        run.watcher.step(format!("asking the gate: {gate}"));
        run.operator.passes(&gate).await.map_err(|why| StepError::GateShut { gate, why })?;
    }
    let seen = mark_seen(&*run.destination, vm).await;
    // Last, right before the ledger is written. What holds the fence was looked at when it was made, and
    // is again where time has passed since.
    if !run.custody.is_granted(epoch) {
        let looked_just_now = run.fenced_now && run.plan.options.gate.is_none();
        let records = if looked_just_now { Vec::new() } else { unfence_records(run).await? };
        still_fenced(run, &records).await?;
    }
    let receipt = run.custody.grant(epoch, &seen).await?;
    run.destination.write_mark(vm, &mark_of(&run.plan.id, epoch, &receipt)).await?;
    run.tell_destination(DestinationRequest::MarkWritten).await?;
    Ok(Record::Decided { at_ms: now_ms() })
}
