//! The second mark: a decision remembered by the placeholder itself, in another failure domain
//! than the ledger.

use units::Epoch;

use crate::attempt::{Field, Mismatch};
use crate::ledger::{AsDestination, Decision, Ledger, Part};
use crate::receipt::GrantReceipt;
use crate::role::{Identity, Refusal};

/// What a look at the platform's VM of this id showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MarkSeen {
    /// A placeholder of ours is there, made for this epoch, and bears no mark.
    Absent { placeholder_of: Epoch },
    /// No placeholder of ours: there is no such VM, or one that we never made.
    NoPlaceholder,
    /// It bears this: the grant receipt is the mark.
    Present(GrantReceipt),
    /// The platform did not answer, or what it showed could not be read.
    Unknown,
}

impl MarkSeen {
    /// Nothing is done for `epoch` by a ledger that knows less than the placeholder.
    pub(crate) fn nothing_lost(
        &self,
        epoch: Epoch,
        ledger: &Ledger,
        me: &Identity,
    ) -> Result<(), Refusal> {
        match self {
            Self::Present(mark) => match lost(mark, ledger, me)? {
                Some(epoch) => Err(Refusal::LedgerLost { epoch }),
                None => Ok(()),
            },
            Self::Absent { placeholder_of } if *placeholder_of > epoch.max(ledger.last_epoch()) => {
                Err(Refusal::LedgerBehind { epoch: *placeholder_of })
            }
            Self::Absent { .. } | Self::NoPlaceholder | Self::Unknown => Ok(()),
        }
    }

    /// Whether it is this decision's.
    pub(crate) fn is(&self, granted: &GrantReceipt) -> Result<(), Refusal> {
        match self {
            Self::Present(seen) if seen == granted => Ok(()),
            Self::Unknown => Err(Refusal::MarkUnknown),
            Self::Present(_) | Self::Absent { .. } | Self::NoPlaceholder => {
                Err(Refusal::MarkMissing)
            }
        }
    }
}

/// The epoch whose grant the mark remembers and the ledger does not.
pub(crate) fn lost(
    mark: &GrantReceipt,
    ledger: &Ledger,
    me: &Identity,
) -> Result<Option<Epoch>, Refusal> {
    let attempt = mark.attempt();
    let contradiction = Refusal::Contradiction { what: "the mark and this ledger's decision" };
    match ledger.held(attempt.epoch).map(|held| &held.part) {
        Some(Part::Destination(AsDestination {
            decision: Some(Decision::Granted(fence)), ..
        })) if *fence == mark.claim().fence => return Ok(None),
        Some(Part::Destination(AsDestination { decision: None, .. })) => {}
        None if attempt.epoch > ledger.last_epoch() => {}
        Some(_) | None => return Err(contradiction),
    }
    // Only what this site signed itself, for this VM, is a mark.
    me.owns(attempt, Field::Destination, &attempt.destination)?;
    Mismatch::check(Field::Vm, ledger.vm(), &attempt.vm).map_err(Refusal::NotOurs)?;
    me.verify(mark, attempt, &me.site)?;
    Ok(Some(attempt.epoch))
}
