//! The role of the site that the VM moves to: it decides, once.
//!
//! ```text
//!                          ┌─ Grant(F) ─► Granted ─ mark ─► Marked ─► Started ─► Healthy
//!  Known ─► Placed ─► Synced
//!                          └─ Revoke ───► Revoked        (from any of the three)
//! ```
//!
//! The decision is written twice: in the ledger, then as a *mark* on the placeholder itself,
//! which is another failure domain. Nothing starts and no grant receipt leaves before both are
//! there. A ledger that was restored from before its decision therefore meets the mark and is
//! healed by it: every step looks at the mark first, which is why each is told what was seen.

use serde::Serialize;
use units::Epoch;

use crate::attempt::{Attempt, Attestation, Content, Field, Mismatch, VmKey, Words};
use crate::fence::FenceLevel;
use crate::ledger::{AsDestination, Decision, Ledger, LedgerError, Part, Standing};
use crate::mark::{MarkSeen, lost};
use crate::receipt::{
    FenceReceipt, Grant, GrantReceipt, Revoke, RevokeReceipt, SyncReceipt, Synced,
};
use crate::record::{DestinationEntry, Entry, Record};
use crate::role::{Action, Identity, Refusal};

/// One VM at the site that it moves to.
#[derive(Clone, Debug)]
pub struct DestinationRole {
    me: Identity,
    ledger: Ledger,
}

/// What the destination is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DestinationRequest {
    /// The held VM exists.
    Placeholder {
        id: Words,
    },
    /// The targets are on stable storage and hold this.
    Synced(Content),
    Grant(FenceReceipt),
    /// The mark was written and read back.
    MarkWritten,
    /// Decide that the VM never runs here in this epoch. Where the placeholder cannot be asked,
    /// an operator may answer for it.
    Revoke {
        attested: Option<Attestation>,
    },
    Start,
    Started,
    Healthy,
}

/// What the destination has to do at its platform, or to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DestinationEffect {
    /// Write this onto the placeholder, then read it back.
    WriteMark(GrantReceipt),
    /// Open the write gate (its own disks, its network cards) and start the VM.
    Start,
    SendSynced(SyncReceipt),
    SendGranted(GrantReceipt),
    SendRevoked(RevokeReceipt),
}

impl DestinationState {
    /// The grant receipt that leaves the destination once the mark stands.
    pub const fn grant_receipt(&self) -> Option<&GrantReceipt> {
        match self {
            Self::Marked(receipt) | Self::Started(receipt) | Self::Healthy(receipt) => {
                Some(receipt)
            }
            Self::Unknown
            | Self::Known
            | Self::Placed
            | Self::Synced(_)
            | Self::Granted(_)
            | Self::Revoked(_) => None,
        }
    }

    /// Was it decided for the destination, marked or not?
    pub const fn is_granted(&self) -> bool {
        match self {
            Self::Unknown | Self::Known | Self::Placed | Self::Synced(_) | Self::Revoked(_) => {
                false
            }
            Self::Granted(_) | Self::Marked(_) | Self::Started(_) | Self::Healthy(_) => true,
        }
    }
}

pub type DestinationAction = Action<DestinationEffect>;

/// How an attempt stands at its destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DestinationState {
    /// The attempt was never heard of here.
    Unknown,
    Known,
    /// The held VM exists.
    Placed,
    Synced(Content),
    /// Decided because of this fence, and the mark may be missing: no receipt is given yet.
    Granted(FenceReceipt),
    Marked(GrantReceipt),
    Started(GrantReceipt),
    Healthy(GrantReceipt),
    Revoked(RevokeReceipt),
}

impl DestinationRole {
    /// The role as the site's ledger has it. Records of other VMs are passed over; those of the
    /// source's role at this site count, because they say whether the VM has left.
    pub fn replay<'a>(
        me: Identity,
        vm: VmKey,
        records: impl IntoIterator<Item = &'a Record>,
    ) -> Result<Self, LedgerError> {
        Ok(Self { me, ledger: Ledger::replay(vm, records)? })
    }

    /// Takes in a record that has become durable.
    pub fn apply(&mut self, record: &Record) -> Result<(), LedgerError> {
        self.ledger.apply(record)
    }

    /// Takes up an attempt to move the VM here. The caller has seen that the platform has no VM
    /// of this id, or a placeholder of ours.
    pub fn open(
        &self,
        attempt: &Attempt,
        mark: &MarkSeen,
    ) -> Result<Vec<DestinationAction>, Refusal> {
        self.me.owns(attempt, Field::Destination, &attempt.destination)?;
        Mismatch::check(Field::Vm, self.ledger.vm(), &attempt.vm).map_err(Refusal::NotOurs)?;
        mark.nothing_lost(attempt.epoch, &self.ledger, &self.me)?;
        if let Some(held) = self.ledger.held(attempt.epoch) {
            held.attempt.check(attempt).map_err(Refusal::OtherAttempt)?;
            return Ok(vec![]);
        }
        let last = self.ledger.last_epoch();
        if attempt.epoch <= last {
            return Err(Refusal::StaleEpoch { asked: attempt.epoch, last });
        }
        match self.ledger.standing() {
            Standing::Unheard | Standing::Away => {}
            Standing::Home => return Err(Refusal::Home),
            Standing::Leaving(epoch) | Standing::Arriving(epoch) => {
                return Err(Refusal::Open { epoch });
            }
        }
        let entry = DestinationEntry::AttemptKnown(attempt.clone());
        Ok(vec![self.record(attempt.epoch, entry)])
    }

    /// What is to be recorded and done so that `request` comes true, given what the placeholder
    /// showed just now.
    pub fn step(
        &self,
        epoch: Epoch,
        request: DestinationRequest,
        mark: &MarkSeen,
    ) -> Result<Vec<DestinationAction>, Refusal> {
        mark.nothing_lost(epoch, &self.ledger, &self.me)?;
        if let Some(sent_again) = self.sent_again(epoch, &request) {
            return Ok(sent_again);
        }
        let (attempt, part) = self.current(epoch)?;
        match request {
            DestinationRequest::Placeholder { id } => {
                part.not_decided()?;
                if part.placeholder.as_ref() == Some(&id) {
                    return Ok(vec![]);
                }
                Ok(vec![self.record(epoch, DestinationEntry::Placeholder { id })])
            }
            DestinationRequest::Synced(content) => self.synced(attempt, part, content),
            DestinationRequest::Grant(fence) => self.grant(attempt, part, fence, mark),
            DestinationRequest::MarkWritten => self.mark_written(attempt, part, mark),
            DestinationRequest::Revoke { attested } => self.revoke(attempt, part, attested, mark),
            DestinationRequest::Start => {
                let granted = self.granted(attempt, part)?;
                if !part.marked {
                    return Err(Refusal::NotMarked);
                }
                mark.is(&granted)?;
                Ok(vec![
                    Action::Effect(DestinationEffect::SendGranted(granted)),
                    Action::Effect(DestinationEffect::Start),
                ])
            }
            DestinationRequest::Started => match (part.marked, part.started) {
                (false, _) => Err(Refusal::NotMarked),
                (true, false) => Ok(vec![self.record(epoch, DestinationEntry::Started)]),
                (true, true) => Ok(vec![]),
            },
            DestinationRequest::Healthy => match (part.started, part.healthy) {
                (false, _) => Err(Refusal::NotStarted),
                (true, false) => Ok(vec![self.record(epoch, DestinationEntry::Healthy)]),
                (true, true) => Ok(vec![]),
            },
        }
    }

    /// Turns away an attempt that comes too late to be opened: the receipt with which its source
    /// can be released. That this ledger knows a higher epoch and not this one is what makes it
    /// true for ever.
    pub fn decline(
        &self,
        attempt: &Attempt,
        mark: &MarkSeen,
    ) -> Result<Vec<DestinationAction>, Refusal> {
        self.me.owns(attempt, Field::Destination, &attempt.destination)?;
        Mismatch::check(Field::Vm, self.ledger.vm(), &attempt.vm).map_err(Refusal::NotOurs)?;
        mark.nothing_lost(attempt.epoch, &self.ledger, &self.me)?;
        if attempt.epoch >= self.ledger.last_epoch() || self.ledger.held(attempt.epoch).is_some() {
            return Err(Refusal::NotDeclined { epoch: attempt.epoch });
        }
        let receipt = self.revoke_receipt(attempt, None);
        Ok(vec![Action::Effect(DestinationEffect::SendRevoked(receipt))])
    }

    /// Revokes an attempt that this ledger has never heard of, on the word of an operator who answers for
    /// the site: it is lost, and its ledger with it.
    pub fn vouch(
        &self,
        attempt: &Attempt,
        attested: Attestation,
    ) -> Result<Vec<DestinationAction>, Refusal> {
        self.me.owns(attempt, Field::Destination, &attempt.destination)?;
        Mismatch::check(Field::Vm, self.ledger.vm(), &attempt.vm).map_err(Refusal::NotOurs)?;
        let last = self.ledger.last_epoch();
        if attempt.epoch <= last {
            return Err(Refusal::StaleEpoch { asked: attempt.epoch, last });
        }
        let receipt = self.revoke_receipt(attempt, Some(attested.clone()));
        let revoked = DestinationEntry::Revoked { attested: Some(attested) };
        Ok(vec![
            self.record(attempt.epoch, DestinationEntry::AttemptKnown(attempt.clone())),
            self.record(attempt.epoch, revoked),
            Action::Effect(DestinationEffect::SendRevoked(receipt)),
        ])
    }

    /// Takes a decision back from the mark, if this ledger has lost it; nothing to do otherwise.
    pub fn heal(&self, mark: &GrantReceipt) -> Result<Vec<DestinationAction>, Refusal> {
        let Some(epoch) = lost(mark, &self.ledger, &self.me)? else { return Ok(vec![]) };
        let attempt = mark.attempt();
        let fence = mark.claim().fence.clone();
        let mut records = vec![];
        match self.ledger.held(epoch) {
            Some(held) => held.attempt.check(attempt).map_err(Refusal::OtherAttempt)?,
            None => {
                let entry = DestinationEntry::AttemptKnown(attempt.clone());
                records.push(self.record(epoch, entry));
            }
        }
        records.push(self.record(epoch, DestinationEntry::Granted { fence }));
        records.push(self.record(epoch, DestinationEntry::Marked));
        Ok(records)
    }

    /// How the attempt stands here, with the receipt that proves it.
    pub fn state(&self, epoch: Epoch) -> DestinationState {
        let Some(held) = self.ledger.held(epoch) else { return DestinationState::Unknown };
        let Part::Destination(part) = &held.part else { return DestinationState::Unknown };
        match &part.decision {
            Some(Decision::Revoked(attested)) => {
                DestinationState::Revoked(self.revoke_receipt(&held.attempt, attested.clone()))
            }
            Some(Decision::Granted(fence)) if !part.marked => {
                DestinationState::Granted(fence.clone())
            }
            Some(Decision::Granted(fence)) => {
                let receipt = self.grant_receipt(&held.attempt, fence);
                match (part.started, part.healthy) {
                    (false, _) => DestinationState::Marked(receipt),
                    (true, false) => DestinationState::Started(receipt),
                    (true, true) => DestinationState::Healthy(receipt),
                }
            }
            None => match (&part.synced, &part.placeholder) {
                (Some(content), _) => DestinationState::Synced(content.clone()),
                (None, Some(_)) => DestinationState::Placed,
                (None, None) => DestinationState::Known,
            },
        }
    }

    /// What was decided and may not have been carried out.
    pub fn unfinished(&self) -> Vec<DestinationEffect> {
        let Ok((attempt, part)) = self.current(self.ledger.last_epoch()) else { return vec![] };
        match &part.decision {
            Some(Decision::Granted(fence)) if !part.marked => {
                vec![DestinationEffect::WriteMark(self.grant_receipt(attempt, fence))]
            }
            Some(Decision::Granted(_)) if !part.started => vec![DestinationEffect::Start],
            _ => vec![],
        }
    }

    /// The attempt of this epoch, if this site has heard of it.
    pub fn attempt(&self, epoch: Epoch) -> Option<&Attempt> {
        self.ledger.held(epoch).map(|held| &held.attempt)
    }

    /// It was whole here once, whatever became of it.
    pub fn was_synced(&self, epoch: Epoch) -> bool {
        match self.ledger.held(epoch).map(|held| &held.part) {
            Some(Part::Destination(part)) => part.synced.is_some(),
            Some(Part::Source(_)) | None => false,
        }
    }

    pub fn last_epoch(&self) -> Epoch {
        self.ledger.last_epoch()
    }

    /// The receipt of a decision of an earlier epoch: whoever missed it may ask for it for ever.
    fn sent_again(
        &self,
        epoch: Epoch,
        request: &DestinationRequest,
    ) -> Option<Vec<DestinationAction>> {
        let held = self.ledger.held(epoch)?;
        let Part::Destination(part) = &held.part else { return None };
        let effect = match (request, &part.decision) {
            (DestinationRequest::Revoke { .. }, Some(Decision::Revoked(attested))) => {
                let receipt = self.revoke_receipt(&held.attempt, attested.clone());
                DestinationEffect::SendRevoked(receipt)
            }
            (DestinationRequest::Grant(asked), Some(Decision::Granted(fence)))
                if part.marked && asked == fence =>
            {
                DestinationEffect::SendGranted(self.grant_receipt(&held.attempt, fence))
            }
            _ => return None,
        };
        Some(vec![Action::Effect(effect)])
    }

    fn synced(
        &self,
        attempt: &Attempt,
        part: &AsDestination,
        content: Content,
    ) -> Result<Vec<DestinationAction>, Refusal> {
        part.not_decided()?;
        let claim = Synced { content: content.clone() };
        let receipt = self.me.sign(attempt, claim);
        let send = Action::Effect(DestinationEffect::SendSynced(receipt));
        if part.synced.as_ref() == Some(&content) {
            return Ok(vec![send]);
        }
        Ok(vec![self.record(attempt.epoch, DestinationEntry::Synced { content }), send])
    }

    /// The one irreversible point.
    fn grant(
        &self,
        attempt: &Attempt,
        part: &AsDestination,
        receipt: FenceReceipt,
        mark: &MarkSeen,
    ) -> Result<Vec<DestinationAction>, Refusal> {
        match &part.decision {
            Some(Decision::Revoked(_)) => return Err(Refusal::AlreadyRevoked),
            Some(Decision::Granted(fence)) if *fence != receipt => {
                return Err(Refusal::AlreadyGranted);
            }
            Some(Decision::Granted(fence)) => {
                let granted = self.grant_receipt(attempt, fence);
                return Ok(vec![Action::Effect(DestinationEffect::WriteMark(granted))]);
            }
            None => {}
        }
        match mark {
            MarkSeen::Absent { placeholder_of } if *placeholder_of == attempt.epoch => {}
            MarkSeen::Unknown => return Err(Refusal::MarkUnknown),
            // Removed, as a revocation does that this ledger may have forgotten.
            _ => return Err(Refusal::PlaceholderGone),
        }
        let synced = part.synced.as_ref().ok_or(Refusal::NotSynced)?;
        let fence = self.me.verify(&receipt, attempt, &attempt.source)?;
        if fence.level < FenceLevel::StartProof {
            return Err(Refusal::FenceTooWeak { level: fence.level });
        }
        Mismatch::check(Field::Content, &fence.content, synced).map_err(Refusal::ContentDiffers)?;
        let granted = self.grant_receipt(attempt, &receipt);
        Ok(vec![
            self.record(attempt.epoch, DestinationEntry::Granted { fence: receipt }),
            Action::Effect(DestinationEffect::WriteMark(granted)),
        ])
    }

    fn mark_written(
        &self,
        attempt: &Attempt,
        part: &AsDestination,
        mark: &MarkSeen,
    ) -> Result<Vec<DestinationAction>, Refusal> {
        let granted = self.granted(attempt, part)?;
        mark.is(&granted)?;
        let send = Action::Effect(DestinationEffect::SendGranted(granted));
        if part.marked {
            return Ok(vec![send]);
        }
        Ok(vec![self.record(attempt.epoch, DestinationEntry::Marked), send])
    }

    fn revoke(
        &self,
        attempt: &Attempt,
        part: &AsDestination,
        attested: Option<Attestation>,
        mark: &MarkSeen,
    ) -> Result<Vec<DestinationAction>, Refusal> {
        match &part.decision {
            Some(Decision::Granted(_)) => return Err(Refusal::AlreadyGranted),
            Some(Decision::Revoked(_)) => return Err(Refusal::AlreadyRevoked),
            None => {}
        }
        // The ledger alone does not count: a restored one has forgotten its decision.
        match mark {
            MarkSeen::Absent { .. } => {}
            MarkSeen::NoPlaceholder if part.placeholder.is_none() || attested.is_some() => {}
            MarkSeen::NoPlaceholder => return Err(Refusal::PlaceholderGone),
            MarkSeen::Unknown if attested.is_some() => {}
            MarkSeen::Unknown => return Err(Refusal::MarkUnknown),
            // Of an earlier epoch, which this ledger knows: `nothing_lost` has seen to it.
            MarkSeen::Present(_) => {}
        }
        let receipt = self.revoke_receipt(attempt, attested.clone());
        Ok(vec![
            self.record(attempt.epoch, DestinationEntry::Revoked { attested }),
            Action::Effect(DestinationEffect::SendRevoked(receipt)),
        ])
    }

    /// The attempt of `epoch`, if it is to come here and none came after it.
    fn current(&self, epoch: Epoch) -> Result<(&Attempt, &AsDestination), Refusal> {
        let held = self.ledger.held(epoch).ok_or(Refusal::UnknownAttempt { epoch })?;
        let Part::Destination(part) = &held.part else {
            return Err(Refusal::UnknownAttempt { epoch });
        };
        let last = self.ledger.last_epoch();
        if epoch != last {
            return Err(Refusal::Superseded { asked: epoch, last });
        }
        Ok((&held.attempt, part))
    }

    fn granted(&self, attempt: &Attempt, part: &AsDestination) -> Result<GrantReceipt, Refusal> {
        match &part.decision {
            Some(Decision::Granted(fence)) => Ok(self.grant_receipt(attempt, fence)),
            Some(Decision::Revoked(_)) => Err(Refusal::AlreadyRevoked),
            None => Err(Refusal::NotGranted),
        }
    }

    fn grant_receipt(&self, attempt: &Attempt, fence: &FenceReceipt) -> GrantReceipt {
        self.me.sign(attempt, Grant { fence: fence.clone() })
    }

    fn revoke_receipt(&self, attempt: &Attempt, attested: Option<Attestation>) -> RevokeReceipt {
        self.me.sign(attempt, Revoke { attested })
    }

    fn record(&self, epoch: Epoch, entry: DestinationEntry) -> DestinationAction {
        let vm = self.ledger.vm().clone();
        Action::Record(Record { vm, epoch, entry: Entry::Destination(entry) })
    }
}

impl AsDestination {
    const fn not_decided(&self) -> Result<(), Refusal> {
        match self.decision {
            None => Ok(()),
            Some(Decision::Granted(_)) => Err(Refusal::AlreadyGranted),
            Some(Decision::Revoked(_)) => Err(Refusal::AlreadyRevoked),
        }
    }
}
