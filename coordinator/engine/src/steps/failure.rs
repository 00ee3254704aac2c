//! What to make of a step that failed: try again from an earlier phase, take everything back, or
//! stop and say where things stand. Nothing here decides who may run.

use handover::{Refusal, SourceState};
use model::Power;
use units::chain;
use wire::control::Request;

use crate::custody::CustodyError;
use crate::error::{Halt, StepError};
use crate::phase::Phase;
use crate::record::Record;
use crate::run::Run;

/// Drains that may come to nothing before a person should look.
const VOID_DRAINS_MAX: usize = 3;

/// The record that carries on, or the halt.
pub(crate) async fn after_failure(run: &mut Run, cause: StepError) -> Result<Record, Halt> {
    let phase = run.state.phase;
    tracing::warn!(?phase, cause = %chain(&cause), "step failed");
    // Nothing is given up on what may be old knowledge.
    if phase.is_before_decision()
        && let Err(error) = run.custody.look_again().await
    {
        return Err(halt(phase, error.into()));
    }
    match phase {
        // The ledgers know more than the journal, which came from a backup. They are right.
        Phase::Planned | Phase::Preparing | Phase::Copying | Phase::Holding | Phase::Draining
            if run.custody.went_further() && !matches!(cause, StepError::Journal(_)) =>
        {
            Err(Halt::Undecided { phase, cause })
        }
        // Nothing of the VM was touched, and it will not work: leave nothing behind.
        Phase::Planned | Phase::Preparing if is_final(&cause) => {
            Ok(Record::GaveUp { why: chain(&cause) })
        }
        Phase::Draining => void(run, cause).await,
        // It stopped or wrote, and nobody can say what: what was drained is not all there is.
        Phase::Fencing
            if matches!(
                cause,
                StepError::StoppedUnproven { .. }
                    | StepError::WroteAfterDrain { .. }
                    | StepError::Custody(CustodyError::Refused(
                        Refusal::ContentChanged | Refusal::FenceInterrupted
                    ))
            ) =>
        {
            Ok(Record::GaveUp { why: chain(&cause) })
        }
        // Nothing is granted yet, so there is a way back; the operator's own command asked for it.
        Phase::Deciding if matches!(cause, StepError::GateShut { .. }) => {
            Ok(Record::GaveUp { why: chain(&cause) })
        }
        // The source has been let go on, or was never held; what is left is to tidy up.
        Phase::RollingBack if !matches!(cause, StepError::Journal(_)) => match let_go(run).await {
            Some(power) => Err(Halt::LetGo { power, cause }),
            None => Err(halt(phase, cause)),
        },
        _ => Err(halt(phase, cause)),
    }
}

/// `None`: it was not, or nobody knows. Else how it is, if it says so.
async fn let_go(run: &Run) -> Option<Option<Power>> {
    use SourceState as S;
    // One that did not answer is not waited for again.
    let power = match run.custody.source_is_seen() {
        true => run.source.power(run.vm()).await.ok(),
        false => None,
    };
    match run.epoch_in_ledgers().map(|epoch| run.custody.source_state(epoch)) {
        Some(S::Released { settled: true }) => Some(power),
        // Not by a fence; a drain may have left it suspended.
        Some(S::Known | S::Unknown) | None => (power == Some(Power::Running)).then_some(power),
        Some(_) => None,
    }
}

/// Asking again would get the same answer.
fn is_final(cause: &StepError) -> bool {
    !cause.is_line()
        && !matches!(
            cause,
            StepError::Interrupted
                | StepError::Journal(_)
                | StepError::Suspended { .. }
                // What became of a record that could not be written is known after the next start; and
                // nothing is taken from under the feet of another coordinator that works on it.
                | StepError::Custody(
                    CustodyError::Append { .. }
                        | CustodyError::NoKey { .. }
                        | CustodyError::Elsewhere { .. }
                        | CustodyError::TwoStories { .. }
                )
                | StepError::OutOfPatience { .. }
        )
}

/// Puts the source back to work and copies on. No fence was begun, so no receipt is needed.
async fn void(run: &mut Run, cause: StepError) -> Result<Record, Halt> {
    let phase = run.state.phase;
    let ledger = |cause: &StepError| match cause {
        StepError::Custody(custody) => custody.at_site().is_none(),
        _ => false,
    };
    if ledger(&cause) || matches!(cause, StepError::Journal(_)) {
        return Err(halt(phase, cause));
    }
    if let Err(error) = back_to_work(run).await {
        run.watcher
            .warn(format!("could not put the source back to work at once: {}", chain(&error)));
        return Err(halt(phase, cause));
    }
    // Asked to suspend it, the platform did not answer, and may still do it: the next look at its
    // power is that of draining.
    if matches!(&cause, StepError::Site(error) if error.remedy() == site::Remedy::Reconcile) {
        return Err(halt(phase, cause));
    }
    run.voided += 1;
    if run.voided >= VOID_DRAINS_MAX || matches!(cause, StepError::GuestChanged { .. }) {
        let why = chain(&cause);
        run.record(Record::Voided { why }).await.map_err(|error| halt(phase, error))?;
        return Err(halt(run.state.phase, cause));
    }
    run.watcher.warn(format!("switchover called off, copying on: {}", chain(&cause)));
    Ok(Record::Voided { why: chain(&cause) })
}

/// The virtual CPUs run and the guest is thawed. One that cannot be told thaws by itself.
async fn back_to_work(run: &mut Run) -> Result<(), StepError> {
    if run.source.power(run.vm()).await? == Power::Paused {
        run.source.resume(run.vm()).await?;
    }
    let thaw = Request::Thaw {
        units: run.plan.options.stop_units.clone(),
        hooks: run.plan.options.hooks_undo.clone(),
    };
    run.links.cut();
    run.source_agent().await?.tell(thaw).await?;
    Ok(())
}

/// Where things stand when it stops in this phase.
pub(crate) fn halt(phase: Phase, cause: StepError) -> Halt {
    if let StepError::Journal(cause) = cause {
        return Halt::Journal { phase, cause };
    }
    // Decided, by whomever, and perhaps released as well: that the source runs, or the destination, would
    // be too much to say.
    if let StepError::Custody(
        CustodyError::MayBeReleased { .. }
        | CustodyError::Refused(Refusal::Contradiction { .. } | Refusal::AlreadyGranted),
    ) = cause
    {
        return Halt::Undecided { phase, cause };
    }
    match phase {
        Phase::Fencing | Phase::Deciding | Phase::RollingBack => Halt::Undecided { phase, cause },
        Phase::Starting | Phase::Confirmed | Phase::Retired => Halt::Unfinished { phase, cause },
        Phase::Planned
        | Phase::Preparing
        | Phase::Copying
        | Phase::Holding
        | Phase::Draining
        | Phase::RolledBack => Halt::Resumable { phase, cause },
    }
}
