//! The journal that a migration's ledgers imply, for a coordinator that has lost its own.
//!
//! The ledgers say who may run; what else a journal knows is asked again or not needed any more. Only
//! between the first part of a fence and its receipt something is lost with it for good: what the
//! source had written when it was drained. From there the way leads back.

use handover::{DestinationState as D, FenceReceipt, SourceState as S};
use thiserror::Error;
use units::{Bytes, Digest, Epoch};

use crate::custody::Custody;
use crate::phase::Phase;
use crate::record::{Record, State};

/// What the ledgers of an attempt say.
#[derive(Clone, Debug)]
pub struct Remembered {
    pub epoch: Epoch,
    /// [`S::Unknown`] for one that does not know it.
    pub source: S,
    pub destination: D,
    /// Was the source's looked at, as it is at its site?
    pub source_seen: bool,
}

/// Why no journal can be made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Unmade {
    #[error("the two ledgers contradict each other")]
    Contradiction,
    #[error("the source has to be asked first, and it does not answer")]
    SourceUnseen,
    #[error("the source's ledger has lost it: nobody knows whether the source is fenced")]
    SourceLost,
}

impl Remembered {
    /// What they say of the plan's attempt, as far as they could be looked at; `None` if it was not begun.
    pub fn of(custody: &Custody) -> Option<Self> {
        let epoch = custody.attempt_of_this_plan()?;
        let (source, destination) = (custody.source_state(epoch), custody.destination_state(epoch));
        Some(Self { epoch, source, destination, source_seen: custody.source_is_seen() })
    }

    /// Has it come further than that something is copied?
    fn is_past_copying(&self) -> bool {
        let copying = matches!(self.destination, D::Unknown | D::Known | D::Placed | D::Synced(_));
        !(copying && matches!(self.source, S::Unknown | S::Known))
    }
}

/// What is to take the place of a journal that is behind what the ledgers know, as far as they could be
/// looked at; `None` where the one that is there is as good, since it knows more than ledgers do.
///
/// # Errors
/// Where the ledgers do not tell enough, or too much.
pub fn behind(
    custody: &Custody,
    there: Option<&State>,
    now_ms: i64,
) -> Result<Option<Vec<Record>>, Unmade> {
    let Some(of) = Remembered::of(custody) else { return Ok(None) };
    let is_behind = match there.map(|state| state.phase) {
        None => true,
        Some(
            Phase::Planned | Phase::Preparing | Phase::Copying | Phase::Holding | Phase::Draining,
        ) => of.is_past_copying(),
        // Another coordinator brought it to its destination meanwhile.
        Some(Phase::Fencing | Phase::RollingBack) => of.destination.is_granted(),
        Some(_) => false,
    };
    // One that is here was agreed to here, or came from the sites before.
    let from_sites = there.is_none_or(|state| state.from_sites);
    let anew = Record::Rebuilt { at_ms: now_ms, from_sites };
    if is_behind { rebuild(&of, anew, now_ms).map(Some) } else { Ok(None) }
}

/// The records of a journal at the place where the migration can be taken up.
fn rebuild(of: &Remembered, anew: Record, now_ms: i64) -> Result<Vec<Record>, Unmade> {
    let lost = "its coordinator was lost";
    let back = |what: &str| vec![Record::GaveUp { why: format!("{lost} {what}") }];
    let further = match (&of.destination, &of.source) {
        (D::Granted(_) | D::Marked(_) | D::Started(_) | D::Healthy(_), S::Released { .. })
        | (D::Revoked(_), S::Retired { .. } | S::Destroyed) => return Err(Unmade::Contradiction),
        (D::Healthy(grant), S::Destroyed) => {
            let gone = [
                Record::Retired { name: Some(lost.to_owned()) },
                Record::Discarded { removed: Vec::new() },
            ];
            [answered(Some(&grant.claim().fence), now_ms), gone.to_vec()].concat()
        }
        (D::Healthy(grant), _) => answered(Some(&grant.claim().fence), now_ms),
        (D::Marked(grant) | D::Started(grant), _) => decided(Some(&grant.claim().fence), now_ms),
        // The mark may be missing: deciding again writes it.
        (D::Granted(fence), _) => fenced(Some(fence)),
        (D::Revoked(_), _) | (_, S::Released { .. }) => back("while it was called off"),
        // It answered before its source was retired; the destination cannot be read now.
        (_, S::Retired { .. } | S::Destroyed) => answered(None, now_ms),
        (_, S::Fencing) => back("while the source was being fenced"),
        (_, S::Fenced(fence)) => fenced(Some(fence)),
        // It had opened the attempt before anything was made for it.
        (D::Placed | D::Synced(_), S::Unknown) if of.source_seen => return Err(Unmade::SourceLost),
        // A journal's attempt is in both ledgers. The word of one of them is not enough to begin by.
        (_, S::Unknown) if of.source_seen => {
            let back = back("before its source knew of it");
            return Ok([vec![anew], back].concat());
        }
        (_, S::Unknown) => return Err(Unmade::SourceUnseen),
        // Copied on from what the targets hold.
        (_, S::Known | S::Superseded) => Vec::new(),
    };
    let begun = [anew, Record::Began { epoch: of.epoch }];
    Ok([begun.to_vec(), further].concat())
}

fn answered(fence: Option<&FenceReceipt>, now_ms: i64) -> Vec<Record> {
    let how = "it had answered before its coordinator was lost".to_owned();
    let answered = [Record::Booting, Record::Answered { how, downtime_ms: None }];
    [decided(fence, now_ms), answered.to_vec()].concat()
}

fn decided(fence: Option<&FenceReceipt>, now_ms: i64) -> Vec<Record> {
    [fenced(fence), vec![Record::Decided { at_ms: now_ms }]].concat()
}

fn fenced(fence: Option<&FenceReceipt>) -> Vec<Record> {
    let unknown = || "not known: its coordinator was lost".to_owned();
    let digests: Vec<Digest> =
        fence.map(|fence| fence.claim().content.disks().to_vec()).unwrap_or_default();
    vec![
        Record::Prepared { tracker: unknown(), tracker_reason: unknown() },
        Record::Converged { forecast_ms: None },
        Record::Released { by: unknown() },
        Record::Drained {
            digests,
            audit: unknown(),
            counts: Vec::new(),
            at_ms: None,
            sent: Bytes::ZERO,
            wire: Bytes::ZERO,
        },
        Record::WritesAccounted,
        Record::Fenced,
    ]
}
