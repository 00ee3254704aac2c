//! What both roles share: who they are, what they hand out, why they refuse.

use std::collections::BTreeMap;
use std::fmt;

use ed25519_dalek::{SigningKey, VerifyingKey};
use thiserror::Error;
use units::Epoch;

use crate::attempt::{Attempt, Field, InstallKey, Mismatch, SiteKey};
use crate::receipt::{Claim, Receipt, ReceiptError};
use crate::record::{DestinationEntry, Entry, Record, SourceEntry};

/// What a step asks for. In the order given, one after the other: a record must be durable, and
/// taken in by the role's `apply`, before anything behind it is done. Doing any of it twice is
/// harmless.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action<E> {
    Record(Record),
    Effect(E),
}

/// Who a site is in receipts, and whom it believes.
#[derive(Clone)]
pub struct Identity {
    pub install: InstallKey,
    pub site: SiteKey,
    /// Signs this site's receipts. `None` where it could not be had: then its ledger can be read, and
    /// what its role hands out convinces nobody.
    pub key: Option<SigningKey>,
    /// The pinned keys of the sites. This one's own need not be among them where `key` is there.
    pub pinned: BTreeMap<SiteKey, VerifyingKey>,
    /// Keys of sites that were lost and that a new one speaks for: what they signed is believed where
    /// it was kept, and nothing that comes now.
    pub former: BTreeMap<SiteKey, VerifyingKey>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({} of {})", self.site, self.install)
    }
}

impl Identity {
    /// Whether the attempt is of this installation, and this site is what `field` says it is.
    pub(crate) fn owns(
        &self,
        attempt: &Attempt,
        field: Field,
        site: &SiteKey,
    ) -> Result<(), Refusal> {
        Mismatch::check(Field::Install, &self.install, &attempt.install)
            .map_err(Refusal::NotOurs)?;
        Mismatch::check(field, &self.site, site).map_err(Refusal::NotOurs)?;
        if attempt.source == attempt.destination {
            return Err(Refusal::SameSite);
        }
        Ok(())
    }

    /// Whether the receipts in records that somebody else kept were made by whom they say. Those of
    /// attempts with sites whose keys are not pinned here are passed over: they say who lived where once.
    ///
    /// # Errors
    /// The first that was not.
    pub fn check(&self, records: &[Record]) -> Result<(), Refusal> {
        let mut attempts: BTreeMap<Epoch, &Attempt> = BTreeMap::new();
        for record in records {
            if let Entry::Source(SourceEntry::AttemptKnown(attempt))
            | Entry::Destination(DestinationEntry::AttemptKnown(attempt)) = &record.entry
            {
                let fits = attempt.vm == record.vm && attempt.epoch == record.epoch;
                if !fits || attempts.insert(record.epoch, attempt).is_some() {
                    let what = "a ledger with an attempt that is not its own";
                    return Err(Refusal::Contradiction { what });
                }
            }
            if records.first().is_some_and(|first| first.vm != record.vm) {
                return Err(Refusal::Contradiction { what: "several VMs in the ledger of one" });
            }
            let Some(attempt) = attempts.get(&record.epoch) else { continue };
            let known = |site: &SiteKey| *site == self.site || self.pinned.contains_key(site);
            if !known(&attempt.source) || !known(&attempt.destination) {
                continue;
            }
            match &record.entry {
                Entry::Source(SourceEntry::Released(receipt)) => {
                    self.verify_kept(receipt, attempt, &attempt.destination)?;
                }
                Entry::Source(SourceEntry::Retired(receipt)) => {
                    let grant = self.verify_kept(receipt, attempt, &attempt.destination)?;
                    self.verify_kept(&grant.fence, attempt, &attempt.source)?;
                }
                Entry::Destination(DestinationEntry::Granted { fence }) => {
                    self.verify_kept(fence, attempt, &attempt.source)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    pub(crate) fn verify<'r, C: Claim>(
        &self,
        receipt: &'r Receipt<C>,
        attempt: &Attempt,
        by: &SiteKey,
    ) -> Result<&'r C, Refusal> {
        let own = self.key.as_ref().filter(|_| *by == self.site).map(SigningKey::verifying_key);
        let pinned = own.or_else(|| self.pinned.get(by).copied());
        let key = pinned.ok_or_else(|| Refusal::UnknownPeer { site: by.clone() })?;
        receipt.verify(attempt, &key).map_err(Refusal::Receipt)
    }

    /// As [`Identity::verify`], for a receipt that may have been made before its site was lost.
    fn verify_kept<'r, C: Claim>(
        &self,
        receipt: &'r Receipt<C>,
        attempt: &Attempt,
        by: &SiteKey,
    ) -> Result<&'r C, Refusal> {
        self.verify(receipt, attempt, by).or_else(|refusal| match self.former.get(by) {
            Some(former) => receipt.verify(attempt, former).map_err(|_| refusal),
            None => Err(refusal),
        })
    }

    pub(crate) fn sign<C: Claim>(&self, attempt: &Attempt, claim: C) -> Receipt<C> {
        Receipt::sign(attempt.clone(), claim, self.key.as_ref())
    }
}

/// Why a role does not do what it was asked to. Nothing was recorded and nothing may be done.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    #[error("the attempt is not for this site: {0}")]
    NotOurs(Mismatch),
    #[error("source and destination are the same site")]
    SameSite,
    #[error("no key is pinned for site {site}")]
    UnknownPeer { site: SiteKey },
    #[error("epoch {asked} is not above {last}, the last one known here")]
    StaleEpoch { asked: Epoch, last: Epoch },
    #[error("the attempt of this epoch is another one: {0}")]
    OtherAttempt(Mismatch),
    #[error("epoch {epoch} is not known here in this role")]
    UnknownAttempt { epoch: Epoch },
    #[error("epoch {asked} was followed by epoch {last}")]
    Superseded { asked: Epoch, last: Epoch },
    #[error("epoch {epoch} has not come to its end here")]
    Open { epoch: Epoch },
    #[error("epoch {epoch} is not one that came too late: open or revoke it")]
    NotDeclined { epoch: Epoch },
    #[error("the VM does not live here")]
    NotHome,
    #[error("the VM lives here")]
    Home,
    #[error(transparent)]
    Receipt(ReceiptError),

    #[error("no fence was begun")]
    NotFencing,
    #[error("the fence is made already")]
    AlreadyFenced,
    #[error("a fence that is {level} is not enough")]
    FenceTooWeak { level: crate::FenceLevel },
    #[error("the fence was interrupted: nobody knows that nothing was written after the drain")]
    FenceInterrupted,
    #[error("the content is not the one that was drained before the fence")]
    ContentChanged,
    #[error("the source was released already")]
    AlreadyReleased,
    #[error("the source was retired already")]
    AlreadyRetired,
    #[error("nothing has come to its end here")]
    NotEnded,
    #[error("the source is not retired")]
    NotRetired,

    #[error("it is decided already: the VM runs at the destination")]
    AlreadyGranted,
    #[error("it is decided already: the attempt was revoked")]
    AlreadyRevoked,
    #[error("the targets are not known to hold anything yet")]
    NotSynced,
    #[error("the targets hold something else than the source had: {0}")]
    ContentDiffers(Mismatch),
    #[error("nothing is granted")]
    NotGranted,
    #[error("the decision is not on the placeholder yet")]
    NotMarked,
    #[error("the VM was not started here")]
    NotStarted,
    #[error("the placeholder bears the mark of epoch {epoch}, which this ledger has lost")]
    LedgerLost { epoch: Epoch },
    #[error("the placeholder was made for epoch {epoch}, of which this ledger has never heard")]
    LedgerBehind { epoch: Epoch },
    #[error("nobody can say whether the placeholder bears a mark")]
    MarkUnknown,
    #[error("the placeholder does not bear this decision's mark")]
    MarkMissing,
    #[error("the placeholder is gone, and with it the second place that remembers a decision")]
    PlaceholderGone,
    #[error("ledger and receipts contradict each other: {what}")]
    Contradiction { what: &'static str },
}

impl Refusal {
    /// What to do about it.
    pub const fn remedy(&self) -> &'static str {
        match self {
            Self::NotOurs(_) | Self::SameSite | Self::OtherAttempt(_) => {
                "ask with the attempt that was opened"
            }
            Self::UnknownPeer { .. } => "enrol the other site, so that its key is pinned here",
            Self::StaleEpoch { .. } | Self::Superseded { .. } => {
                "open a new attempt with a higher epoch"
            }
            Self::NotDeclined { .. } => "open the attempt, then revoke it",
            Self::UnknownAttempt { .. } => "open the attempt first",
            Self::Open { .. } => "bring the open attempt to its end: resume or abort it",
            Self::NotHome | Self::Home => "ask `status` where the VM lives",
            Self::Receipt(_) => "ask the site that made the receipt for it again",
            Self::NotFencing => "begin the fence first",
            Self::AlreadyFenced | Self::AlreadyReleased | Self::AlreadyRetired => {
                "nothing: read the state again and go on from it"
            }
            Self::FenceTooWeak { .. } => "make the VM start-proof at its platform",
            Self::FenceInterrupted | Self::ContentChanged => {
                "read the stopped disks, or abort: the source is released and a new attempt copies what changed"
            }
            Self::NotEnded => "nothing is to be settled yet",
            Self::NotRetired => "retire the source with the destination's grant receipt first",
            Self::AlreadyGranted => "go forward; back is a new migration",
            Self::AlreadyRevoked => "release the source with the revoke receipt",
            Self::NotSynced => "drain to the targets first",
            Self::ContentDiffers(_) => "drain again, or abort",
            Self::NotGranted | Self::NotMarked => "decide, then write the mark",
            Self::NotStarted => "start the VM at the destination first",
            Self::LedgerLost { .. } => "heal the ledger from the mark",
            Self::LedgerBehind { .. } => {
                "this ledger is an old copy: put the current one back, or let an operator attest"
            }
            Self::MarkUnknown => "reach the destination's platform, or let an operator attest",
            Self::MarkMissing => "write the mark again",
            Self::PlaceholderGone => {
                "make sure at the platform that the VM does not run there, then let an operator attest"
            }
            Self::Contradiction { .. } => {
                "stop both copies by hand and compare them: call for help"
            }
        }
    }
}
