//! The order in which a coordinator asks the two roles, as one pure function.
//!
//! [`next_step`] looks at how both sides stand and names the next step, and nothing else: it does
//! not ask what was done before. So running, resuming after a crash and taking over from a
//! coordinator that is gone are the same code. A coordinator that asks in another order, or asks
//! twice, or forgets everything, does no harm: the roles refuse.
//!
//! This is the order of the guest method, where only the running guest can read its disks: drain
//! under freeze first, fence after. What does not match then cannot be drained again, so the
//! attempt is revoked.

use crate::Field;
use crate::attempt::Mismatch;
use crate::destination::DestinationState;
use crate::receipt::{FenceReceipt, GrantReceipt, RevokeReceipt};
use crate::source::SourceState;

/// Where the operator wants it to go. Before the decision either can be had; after it the
/// decision counts and not the intent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Intent {
    Commit,
    Abort,
}

/// What a coordinator does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    OpenSource,
    OpenDestination,
    /// Create the held VM and its targets.
    Place,
    /// Copy in rounds; then quiesce, drain under freeze, and record the synced content.
    CopyAndSync,
    /// Begin the fence, or go on with one that was begun, until it holds. Where the fence was
    /// interrupted and the content cannot be shown, go on with [`Intent::Abort`].
    Fence,
    Grant(FenceReceipt),
    WriteMark,
    Start,
    AwaitHealth,
    Retire(GrantReceipt),
    Revoke,
    Release(RevokeReceipt),
    /// Carry out at the source's platform what its ledger has recorded, then say so.
    Settle,
    /// A side that is needed does not answer. Waiting does no harm.
    WaitFor(Side),
    /// The two ledgers cannot both be true.
    Stop(Contradiction),
    Done(Outcome),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    Source,
    Destination,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The VM lives at the destination, and the source is retired.
    Completed,
    /// The VM lives at the source.
    RolledBack,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Contradiction {
    /// The source was released, and the destination granted.
    ReleasedYetGranted,
    /// The source was retired, and the destination revoked.
    RetiredYetRevoked,
    /// The destination granted what the source can never have fenced.
    NeverFenced,
    /// The source holds a receipt of a decision that the destination's ledger does not have.
    DecisionLost,
}

/// The next step, given how both sides stand; `None` for a side that does not answer.
pub fn next_step(
    source: Option<&SourceState>,
    destination: Option<&DestinationState>,
    intent: Intent,
) -> Step {
    use {DestinationState as D, SourceState as S};
    let Some(destination) = destination else { return Step::WaitFor(Side::Destination) };
    match (destination, source) {
        // Decided: forward, also while the source does not answer.
        (
            D::Granted(_) | D::Marked(_) | D::Started(_) | D::Healthy(_),
            Some(S::Released { .. }),
        ) => Step::Stop(Contradiction::ReleasedYetGranted),
        (D::Granted(_), _) => Step::WriteMark,
        (D::Marked(_), _) => Step::Start,
        (D::Started(_), _) => Step::AwaitHealth,
        (D::Healthy(_), None) => Step::WaitFor(Side::Source),
        (D::Healthy(_), Some(S::Retired { settled: true } | S::Destroyed)) => {
            Step::Done(Outcome::Completed)
        }
        (D::Healthy(_), Some(S::Retired { settled: false })) => Step::Settle,
        (D::Healthy(_), Some(S::Superseded)) => Step::Stop(Contradiction::NeverFenced),
        (D::Healthy(receipt), Some(_)) => Step::Retire(receipt.clone()),

        // Decided: back.
        (D::Revoked(_), None) => Step::WaitFor(Side::Source),
        (D::Revoked(_), Some(S::Retired { .. } | S::Destroyed)) => {
            Step::Stop(Contradiction::RetiredYetRevoked)
        }
        (D::Revoked(_), Some(S::Unknown | S::Superseded | S::Released { settled: true })) => {
            Step::Done(Outcome::RolledBack)
        }
        (D::Revoked(_), Some(S::Released { settled: false })) => Step::Settle,
        // Declined: the destination had heard of a later epoch, and never of this one.
        (D::Unknown, Some(S::Released { settled: false })) => Step::Settle,
        (D::Unknown, Some(S::Released { settled: true })) => Step::Done(Outcome::RolledBack),
        (D::Revoked(receipt), Some(_)) => Step::Release(receipt.clone()),

        // Undecided.
        (_, Some(S::Released { .. } | S::Retired { .. } | S::Destroyed)) => {
            Step::Stop(Contradiction::DecisionLost)
        }
        (D::Unknown, None) => Step::WaitFor(Side::Source),
        (D::Unknown, Some(S::Superseded)) => Step::Done(Outcome::RolledBack),
        (D::Unknown, Some(S::Unknown | S::Known)) if intent == Intent::Abort => {
            Step::Done(Outcome::RolledBack)
        }
        (_, Some(S::Unknown)) if intent == Intent::Commit => Step::OpenSource,
        (D::Unknown, Some(_)) => Step::OpenDestination,
        (D::Known | D::Placed | D::Synced(_), source) => undecided(source, destination, intent),
    }
}

/// Both sides know the attempt and nothing is decided: the only part where the intent counts.
fn undecided(source: Option<&SourceState>, destination: &DestinationState, intent: Intent) -> Step {
    use {DestinationState as D, SourceState as S};
    match (intent, source, destination) {
        (Intent::Abort, _, _) => Step::Revoke,
        (Intent::Commit, None, _) => Step::WaitFor(Side::Source),
        (Intent::Commit, Some(S::Known), D::Known) => Step::Place,
        (Intent::Commit, Some(S::Known), D::Synced(_)) => Step::Fence,
        (Intent::Commit, Some(S::Known), _) => Step::CopyAndSync,
        (Intent::Commit, Some(S::Fencing), D::Synced(_)) => Step::Fence,
        (Intent::Commit, Some(S::Fenced(fence)), D::Synced(content))
            if Mismatch::check(Field::Content, &fence.claim().content, content).is_ok() =>
        {
            Step::Grant(fence.clone())
        }
        // The guest that could have been drained again is off.
        (Intent::Commit, Some(_), _) => Step::Revoke,
    }
}
