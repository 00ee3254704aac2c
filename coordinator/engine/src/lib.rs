//! Runs a plan: [`migrate`] is the whole story.
//!
//! One loop, one match on the phase. Each phase has a step in `steps/`, which does what is left of
//! it to do and returns the record that ends it; the record is on disk before the next step
//! begins. Resuming after any crash is the same loop over the same steps, so each of them looks
//! before it acts.
//!
//! ```text
//! migrate ─→ steps::*  ─→ site (clouds)       what is done
//!                      ─→ links (agents)      what is copied
//!                      ─→ custody (ledgers)   who may run: the one place that decides
//!                      ─→ journal             how far it came
//! ```

mod agents;
pub mod custody;
mod discard;
mod error;
pub mod evidence;
mod links;
mod phase;
mod progress;
pub mod rebuild;
mod record;
mod relay;
mod run;
mod same_guest;
mod steps;

pub use agents::Agent;
pub use discard::discard;
pub use error::{AgentError, Halt, JournalError, StepError};
pub use links::Links;
pub use phase::{IllegalTurn, Phase, Turn};
pub use progress::{Progress, Watcher};
pub use record::{Drain, Record, State, StoredCount, StoredFigures};
pub use run::{Journal, Operator, Run, Vouched, Wish};
pub use same_guest::guest_devices;
pub use steps::{Cleared, clear_up};

/// Runs or resumes a migration until it ends or cannot go on.
///
/// # Errors
/// [`Halt`] says what state everything is in. Calling again goes on from there.
pub async fn migrate(run: &mut Run) -> Result<Phase, Halt> {
    let looked = run.custody.look().await;
    looked.map_err(|error| steps::halt(run.state.phase, error.into()))?;
    let healed = run.custody.heal(run.vm()).await;
    healed.map_err(|error| steps::halt(run.state.phase, error.into()))?;
    as_the_ledgers_have_it(run).await.map_err(|cause| steps::halt(run.state.phase, cause))?;
    if let Some(epoch) = run.state.epoch.filter(|_| !run.state.phase.is_final()) {
        run.custody.keep_again(epoch, &run.papers).await;
    }
    loop {
        let step = match run.state.phase {
            Phase::Planned => steps::begin(run).await,
            Phase::Preparing => steps::prepare(run).await,
            Phase::Copying => steps::copy(run).await,
            Phase::Holding => steps::hold(run).await,
            Phase::Draining => steps::drain(run).await,
            Phase::Fencing => steps::fence(run).await,
            Phase::Deciding => steps::decide(run).await,
            Phase::Starting => steps::start(run).await,
            Phase::Confirmed => steps::retire(run).await,
            Phase::RollingBack => steps::roll_back(run).await,
            Phase::Retired | Phase::RolledBack => return Ok(run.state.phase),
        };
        let record = match step {
            Ok(record) => record,
            Err(cause) => steps::after_failure(run, cause).await?,
        };
        let phase = run.state.phase;
        run.record(record).await.map_err(|cause| steps::halt(phase, cause))?;
    }
}

/// What another coordinator did to this migration, or a journal from a backup has forgotten.
async fn as_the_ledgers_have_it(run: &mut Run) -> Result<(), StepError> {
    let Some(epoch) = run.epoch_in_ledgers() else { return Ok(()) };
    match run.state.phase {
        // Decided, or at its end: what follows is asked of the ledgers step by step.
        phase if !phase.is_before_decision() => {}
        // Only what is deciding can have been decided by this journal's own process.
        phase if phase != Phase::Deciding && run.custody.is_granted(epoch) => {
            return Err(StepError::Custody(handover::Refusal::AlreadyGranted.into()));
        }
        Phase::RollingBack => {}
        _ if run.custody.is_followed(epoch) => {
            return Err(StepError::Superseded { vm: run.plan.vm.name.clone() });
        }
        phase => {
            use {handover::DestinationState as D, handover::SourceState as S};
            let revoked = matches!(run.custody.destination_state(epoch), D::Revoked(_));
            let fencing = run.custody.source_state(epoch) == S::Fencing;
            let why = match phase {
                _ if revoked => "it was called off from elsewhere",
                // What it was drained to is in no journal any more.
                Phase::Fencing | Phase::Deciding => return Ok(()),
                _ if fencing => "a fence was begun that the journal does not know of",
                _ => return Ok(()),
            };
            run.record(Record::GaveUp { why: why.to_owned() }).await?;
        }
    }
    Ok(())
}

/// Calls a migration off: from here on [`migrate`] takes everything back.
///
/// # Errors
/// Once the destination's ledger has granted, there is nothing to call off.
pub async fn abort(run: &mut Run, why: &str) -> Result<(), StepError> {
    run.custody.look().await?;
    if !matches!(run.state.phase, Phase::RollingBack | Phase::RolledBack) {
        if run.epoch_in_ledgers().is_some_and(|epoch| run.custody.is_granted(epoch)) {
            return Err(StepError::Custody(handover::Refusal::AlreadyGranted.into()));
        }
        run.record(Record::GaveUp { why: why.to_owned() }).await?;
    }
    Ok(())
}

/// A target as it was acknowledged and as it reads.
pub struct Verified {
    pub target: String,
    pub acknowledged: units::Digest,
    pub reread: units::Digest,
}

/// Reads every target of an interrupted migration again. The guest is not needed.
pub async fn verify(run: &mut Run) -> Result<Vec<Verified>, StepError> {
    let helper = run.destination_agent().await?;
    let mut answers = Vec::new();
    for request in [wire::control::Request::Digests, wire::control::Request::Reread] {
        match helper.call(request).await? {
            wire::control::Reply::Digests { disks } => answers.push(disks),
            other => return Err(helper.unexpected(&other).into()),
        }
    }
    let reread = answers.pop().unwrap_or_default();
    let acknowledged = answers.pop().unwrap_or_default();
    let pairs = acknowledged.into_iter().zip(reread);
    Ok(run
        .plan
        .disks
        .iter()
        .zip(pairs)
        .map(|(disk, (acknowledged, reread))| Verified {
            target: disk.target.clone(),
            acknowledged,
            reread,
        })
        .collect())
}
