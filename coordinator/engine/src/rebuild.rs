//! The journal that a migration's ledgers imply, for a coordinator that has lost its own.
//!
//! The ledgers say who may run; what else a journal knows is asked again or not needed any more. Only
//! between the first part of a fence and its receipt something is lost with it for good: what the
//! source had written when it was drained. From there the way leads back.

use handover::{DestinationState as D, FenceReceipt, SourceState as S};
use units::{Bytes, Digest, Epoch};

use crate::custody::Custody;
use crate::evidence::is_decided;
use crate::phase::Phase;
use crate::record::{Record, State};

/// What the ledgers of an attempt say; `None` for one that does not know it or cannot be read now.
#[derive(Clone, Debug)]
pub struct Remembered {
    pub epoch: Epoch,
    pub source: Option<S>,
    pub destination: Option<D>,
}

impl Remembered {
    /// What they say of the plan's attempt, as far as they could be looked at; `None` if it was not begun.
    pub fn of(custody: &Custody) -> Option<Self> {
        let epoch = custody.attempt_of_this_plan()?;
        let (source, destination) = (custody.source_state(epoch), custody.destination_state(epoch));
        Some(Self {
            epoch,
            source: Some(source).filter(|state| *state != S::Unknown),
            destination: Some(destination).filter(|state| *state != D::Unknown),
        })
    }

    /// Is it decided for the destination?
    const fn is_granted(&self) -> bool {
        matches!(
            self.destination,
            Some(D::Granted(_) | D::Marked(_) | D::Started(_) | D::Healthy(_))
        )
    }

    /// Has it come further than that something is copied?
    fn is_past_copying(&self) -> bool {
        rebuild(self, 0).len() > COPYING
    }
}

/// Records of a journal of an attempt that has begun.
const COPYING: usize = 2;

/// What is to take the place of a journal; `None` where the one that is there is as good, since it knows
/// more than ledgers do.
pub fn mended(there: Option<&State>, of: &Remembered, now_ms: i64) -> Option<Vec<Record>> {
    let is_behind = match there.map(|state| state.phase) {
        None => true,
        Some(
            Phase::Planned | Phase::Preparing | Phase::Copying | Phase::Holding | Phase::Draining,
        ) => of.is_past_copying(),
        // Another coordinator brought it to its destination meanwhile.
        Some(Phase::RollingBack) => of.is_granted(),
        // From here on each step looks at the ledgers first.
        Some(_) => false,
    };
    is_behind.then(|| rebuild(of, now_ms))
}

/// The records of a journal at the place where the migration can be taken up.
fn rebuild(of: &Remembered, now_ms: i64) -> Vec<Record> {
    let mut records = vec![Record::Rebuilt { at_ms: now_ms }, Record::Began { epoch: of.epoch }];
    // A journal's attempt is in both ledgers: one that is not yet is begun again.
    if of.source.is_none() && !of.destination.as_ref().is_some_and(is_decided) {
        records.truncate(1);
        return records;
    }
    let why = "its coordinator was lost";
    let back = |what: &str| vec![Record::GaveUp { why: format!("{why} {what}") }];
    records.extend(match (&of.destination, &of.source) {
        (Some(D::Healthy(grant)), _) => {
            let how = "it had answered before its coordinator was lost".to_owned();
            let answered = [Record::Booting, Record::Answered { how, downtime_ms: None }];
            [decided(Some(&grant.claim().fence), now_ms), answered.to_vec()].concat()
        }
        (Some(D::Marked(grant) | D::Started(grant)), _) => {
            decided(Some(&grant.claim().fence), now_ms)
        }
        // The mark may be missing: deciding again writes it.
        (Some(D::Granted(fence)), _) => fenced(Some(fence)),
        // What it was granted with is at the destination, which cannot be read now.
        (None, Some(S::Retired { .. } | S::Destroyed)) => decided(None, now_ms),
        (Some(D::Revoked(_)), _) | (_, Some(S::Released { .. })) => back("while it was called off"),
        (_, Some(S::Fencing)) => back("while the source was being fenced"),
        (_, Some(S::Fenced(fence))) => fenced(Some(fence)),
        // Copied on from what the targets hold.
        _ => Vec::new(),
    });
    records
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
