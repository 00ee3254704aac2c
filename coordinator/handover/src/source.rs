//! The role of the site that the VM leaves.
//!
//! ```text
//!            Fence            FenceHolds            Retire(G)
//!  Known ──────────► Fencing ───────────► Fenced ─────────────► Retired ── Destroyed ──► ▪
//!    │                  │                    │ Release(R)
//!    └──────────────────┴────────────────────┴────────────────► Released ──► lives here again
//! ```
//!
//! Nothing but a revoke receipt lets the source run again once a fence was begun: no timeout, no
//! command, and no restored copy of this ledger.

use serde::Serialize;
use units::Epoch;

use crate::attempt::{Attempt, Content, Field, Mismatch, VmKey};
use crate::fence::{ContentBasis, Fence, FenceLevel, Unfence};
use crate::ledger::{AsSource, Ledger, LedgerError, Part, SourceEnd, Standing};
use crate::mark::MarkSeen;
use crate::receipt::{FenceReceipt, GrantReceipt, RevokeReceipt};
use crate::record::{Entry, Record, SourceEntry};
use crate::role::{Action, Identity, Refusal};

/// One VM at the site that it leaves.
#[derive(Clone, Debug)]
pub struct SourceRole {
    me: Identity,
    ledger: Ledger,
    /// The epoch whose fence this very process began.
    began_fence: Option<Epoch>,
}

/// What the source is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceRequest {
    /// Make the VM unable to run. `unfence` undoes the first part of it; `content` is what the
    /// disks hold if they were drained under freeze, `None` if they are read after power-off.
    Fence {
        unfence: Unfence,
        content: Option<Content>,
    },
    /// Make a further part of the fence, which could not be captured before.
    FenceFurther {
        unfence: Unfence,
    },
    /// The fence is made and was looked at: this is how it stands.
    FenceHolds(Fence),
    Release(RevokeReceipt),
    Retire(GrantReceipt),
    /// What [`SourceEffect::Unfence`] or [`SourceEffect::Retire`] asked for is done.
    Settled,
    /// Delete the retired copy. Whoever asks has verified the destination and waited as long as
    /// the plan says.
    Destroy,
    /// What [`SourceEffect::Destroy`] asked for is done.
    Destroyed,
}

/// What the source has to do at its platform, or to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceEffect {
    /// Make the part of the fence that this record undoes.
    MakeStartProof(Unfence),
    PowerOff,
    Send(FenceReceipt),
    /// Undo the fence, in this order, and let the VM run again.
    Unfence(Vec<Unfence>),
    /// Let people see that the VM moved; its disks and its fence stay.
    Retire(Vec<Unfence>),
    Destroy,
}

pub type SourceAction = Action<SourceEffect>;

/// How an attempt stands at its source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceState {
    /// The attempt was never heard of here.
    Unknown,
    /// The VM runs here as if nothing were.
    Known,
    /// As [`Self::Known`], for good: a later attempt was opened, and no fence can be begun in this.
    Superseded,
    /// A fence was begun: the VM may run, stand still or be off, and no receipt was given.
    Fencing,
    Fenced(FenceReceipt),
    Released {
        settled: bool,
    },
    Retired {
        settled: bool,
    },
    Destroyed,
}

impl SourceState {
    /// A fence was made and proven: without one nothing can have been granted.
    pub const fn was_fenced(&self) -> bool {
        match self {
            Self::Unknown | Self::Known | Self::Superseded | Self::Fencing => false,
            Self::Fenced(_) | Self::Released { .. } | Self::Retired { .. } | Self::Destroyed => {
                true
            }
        }
    }
}

impl SourceRole {
    /// The role as the site's ledger has it. Records of other VMs are passed over; those of the
    /// destination's role at this site count, because they say whether the VM came here.
    pub fn replay<'a>(
        me: Identity,
        vm: VmKey,
        records: impl IntoIterator<Item = &'a Record>,
    ) -> Result<Self, LedgerError> {
        Ok(Self { me, ledger: Ledger::replay(vm, records)?, began_fence: None })
    }

    /// Takes in a record that has become durable.
    pub fn apply(&mut self, record: &Record) -> Result<(), LedgerError> {
        self.ledger.apply(record)?;
        if matches!(record.entry, Entry::Source(SourceEntry::FenceIntent { .. })) {
            self.began_fence = Some(record.epoch);
        }
        Ok(())
    }

    /// Takes up an attempt to move the VM away. A VM that came here by a grant bears its mark: a
    /// ledger that has forgotten how it came must be healed before it can let it go.
    pub fn open(&self, attempt: &Attempt, mark: &MarkSeen) -> Result<Vec<SourceAction>, Refusal> {
        self.me.owns(attempt, Field::Source, &attempt.source)?;
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
            Standing::Unheard | Standing::Home => {}
            Standing::Leaving(epoch) => return Err(Refusal::Open { epoch }),
            Standing::Arriving(_) | Standing::Away => return Err(Refusal::NotHome),
        }
        let entry = SourceEntry::AttemptKnown(attempt.clone());
        Ok(vec![self.record(attempt.epoch, entry)])
    }

    /// What is to be recorded and done so that `request` comes true.
    pub fn step(&self, epoch: Epoch, request: SourceRequest) -> Result<Vec<SourceAction>, Refusal> {
        let (attempt, part) = self.current(epoch)?;
        match request {
            SourceRequest::Fence { unfence, content } => self.fence(epoch, part, unfence, content),
            SourceRequest::FenceFurther { unfence } => self.fence_further(epoch, part, unfence),
            SourceRequest::FenceHolds(fence) => self.fence_holds(attempt, part, fence),
            SourceRequest::Release(receipt) => self.release(attempt, part, receipt),
            SourceRequest::Retire(receipt) => self.retire(attempt, part, receipt),
            SourceRequest::Settled => match part.end {
                None => Err(Refusal::NotEnded),
                Some(_) if part.settled => Ok(vec![]),
                Some(_) => Ok(vec![self.record(epoch, SourceEntry::Settled)]),
            },
            SourceRequest::Destroy => match part.end {
                Some(SourceEnd::Retired(_)) if part.settled => {
                    Ok(vec![Action::Effect(SourceEffect::Destroy)])
                }
                _ => Err(Refusal::NotRetired),
            },
            SourceRequest::Destroyed => match part.end {
                Some(SourceEnd::Retired(_)) if part.destroyed => Ok(vec![]),
                Some(SourceEnd::Retired(_)) if part.settled => {
                    Ok(vec![self.record(epoch, SourceEntry::Destroyed)])
                }
                _ => Err(Refusal::NotRetired),
            },
        }
    }

    /// How the attempt stands here, with the receipt that proves it.
    pub fn state(&self, epoch: Epoch) -> SourceState {
        let Some(held) = self.ledger.held(epoch) else { return SourceState::Unknown };
        let Part::Source(part) = &held.part else { return SourceState::Unknown };
        match (&part.end, &part.fenced) {
            (Some(SourceEnd::Released(_)), _) => SourceState::Released { settled: part.settled },
            (Some(SourceEnd::Retired(_)), _) if part.destroyed => SourceState::Destroyed,
            (Some(SourceEnd::Retired(_)), _) => SourceState::Retired { settled: part.settled },
            (None, Some(fence)) => SourceState::Fenced(self.fence_receipt(&held.attempt, fence)),
            (None, None) if !part.unfence.is_empty() => SourceState::Fencing,
            (None, None) if epoch < self.ledger.last_epoch() => SourceState::Superseded,
            (None, None) => SourceState::Known,
        }
    }

    /// What was begun and may not have been carried out: the last attempt's effects, to be done
    /// (again) or, while it is only [`SourceState::Fencing`], to be given up by a revoke receipt.
    pub fn unfinished(&self) -> Vec<SourceEffect> {
        let Ok((_, part)) = self.current(self.ledger.last_epoch()) else { return vec![] };
        match &part.end {
            Some(_) if part.settled => vec![],
            Some(SourceEnd::Released(_)) if part.unfence.is_empty() => vec![],
            Some(SourceEnd::Released(_)) => vec![part.undo()],
            Some(SourceEnd::Retired(_)) => vec![SourceEffect::Retire(part.unfence.clone())],
            None if part.fenced.is_none() => part.fence_effects(),
            None => vec![],
        }
    }

    /// The attempt of this epoch, if this site has heard of it.
    pub fn attempt(&self, epoch: Epoch) -> Option<&Attempt> {
        self.ledger.held(epoch).map(|held| &held.attempt)
    }

    pub fn last_epoch(&self) -> Epoch {
        self.ledger.last_epoch()
    }

    /// What undoes the parts of the fence that were begun in `epoch`, in the order of their making.
    pub fn unfence(&self, epoch: Epoch) -> &[Unfence] {
        match self.ledger.held(epoch).map(|held| &held.part) {
            Some(Part::Source(part)) => &part.unfence,
            Some(Part::Destination(_)) | None => &[],
        }
    }

    /// What the disks were said to hold as the fence of `epoch` was begun. `None`: they are to be read once it is off.
    pub fn intended_content(&self, epoch: Epoch) -> Option<&Content> {
        match self.ledger.held(epoch).map(|held| &held.part) {
            Some(Part::Source(part)) => part.intended_content.as_ref(),
            Some(Part::Destination(_)) | None => None,
        }
    }

    fn fence(
        &self,
        epoch: Epoch,
        part: &AsSource,
        unfence: Unfence,
        content: Option<Content>,
    ) -> Result<Vec<SourceAction>, Refusal> {
        part.not_ended()?;
        if part.fenced.is_some() {
            return Err(Refusal::AlreadyFenced);
        }
        if !part.unfence.is_empty() {
            // What was captured first counts: a fence half made cannot be captured again.
            if content.is_some() && content != part.intended_content {
                return Err(Refusal::ContentChanged);
            }
            return Ok(part.fence_effects().into_iter().map(Action::Effect).collect());
        }
        Ok(vec![
            self.record(epoch, SourceEntry::FenceIntent { unfence: unfence.clone(), content }),
            Action::Effect(SourceEffect::MakeStartProof(unfence)),
            Action::Effect(SourceEffect::PowerOff),
        ])
    }

    fn fence_further(
        &self,
        epoch: Epoch,
        part: &AsSource,
        unfence: Unfence,
    ) -> Result<Vec<SourceAction>, Refusal> {
        part.not_ended()?;
        if part.unfence.is_empty() {
            return Err(Refusal::NotFencing);
        }
        if part.fenced.is_some() {
            return Err(Refusal::AlreadyFenced);
        }
        let mut actions = vec![];
        if !part.unfence.contains(&unfence) {
            actions
                .push(self.record(epoch, SourceEntry::FenceFurther { unfence: unfence.clone() }));
        }
        actions.push(Action::Effect(SourceEffect::MakeStartProof(unfence)));
        Ok(actions)
    }

    fn fence_holds(
        &self,
        attempt: &Attempt,
        part: &AsSource,
        fence: Fence,
    ) -> Result<Vec<SourceAction>, Refusal> {
        part.not_ended()?;
        if let Some(made) = &part.fenced {
            if made.content != fence.content {
                return Err(Refusal::ContentChanged);
            }
            return Ok(vec![self.send(attempt, made)]);
        }
        if part.unfence.is_empty() {
            return Err(Refusal::NotFencing);
        }
        if fence.level < FenceLevel::StartProof {
            return Err(Refusal::FenceTooWeak { level: fence.level });
        }
        match fence.basis {
            ContentBasis::ReadWhileOff => {}
            ContentBasis::Drained if self.began_fence != Some(attempt.epoch) => {
                return Err(Refusal::FenceInterrupted);
            }
            ContentBasis::Drained | ContentBasis::DrainedBefore { .. } => {
                if part.intended_content.as_ref() != Some(&fence.content) {
                    return Err(Refusal::ContentChanged);
                }
            }
        }
        let send = self.send(attempt, &fence);
        Ok(vec![self.record(attempt.epoch, SourceEntry::Fenced(fence)), send])
    }

    fn release(
        &self,
        attempt: &Attempt,
        part: &AsSource,
        receipt: RevokeReceipt,
    ) -> Result<Vec<SourceAction>, Refusal> {
        self.me.verify(&receipt, attempt, &attempt.destination)?;
        // Where nothing was fenced there is nothing to undo, and nothing may be powered on.
        let undo = if part.unfence.is_empty() && part.fenced.is_none() {
            self.record(attempt.epoch, SourceEntry::Settled)
        } else {
            Action::Effect(part.undo())
        };
        match &part.end {
            Some(SourceEnd::Retired(_)) => {
                Err(Refusal::Contradiction { what: "granted and revoked" })
            }
            Some(SourceEnd::Released(_)) if part.settled => Ok(vec![]),
            Some(SourceEnd::Released(_)) => Ok(vec![undo]),
            None => Ok(vec![self.record(attempt.epoch, SourceEntry::Released(receipt)), undo]),
        }
    }

    fn retire(
        &self,
        attempt: &Attempt,
        part: &AsSource,
        receipt: GrantReceipt,
    ) -> Result<Vec<SourceAction>, Refusal> {
        let granted_for = &self.me.verify(&receipt, attempt, &attempt.destination)?.fence;
        let fence = self.me.verify(granted_for, attempt, &attempt.source)?;
        let retire = Action::Effect(SourceEffect::Retire(part.unfence.clone()));
        match (&part.end, &part.fenced) {
            (Some(SourceEnd::Released(_)), _) => {
                Err(Refusal::Contradiction { what: "revoked and granted" })
            }
            (Some(SourceEnd::Retired(_)), _) if part.settled => Ok(vec![]),
            (Some(SourceEnd::Retired(_)), _) => Ok(vec![retire]),
            (None, Some(made)) if made != fence => {
                Err(Refusal::Contradiction { what: "granted for a fence that was not made" })
            }
            (None, Some(_)) => {
                Ok(vec![self.record(attempt.epoch, SourceEntry::Retired(receipt)), retire])
            }
            // This ledger was restored from before its own fence, which the receipt brings back.
            (None, None) => Ok(vec![
                self.record(attempt.epoch, SourceEntry::Fenced(fence.clone())),
                self.record(attempt.epoch, SourceEntry::Retired(receipt)),
                retire,
            ]),
        }
    }

    /// The attempt of `epoch`, if it is this site's to leave and none came after it.
    fn current(&self, epoch: Epoch) -> Result<(&Attempt, &AsSource), Refusal> {
        let held = self.ledger.held(epoch).ok_or(Refusal::UnknownAttempt { epoch })?;
        let Part::Source(part) = &held.part else {
            return Err(Refusal::UnknownAttempt { epoch });
        };
        let last = self.ledger.last_epoch();
        if epoch != last {
            return Err(Refusal::Superseded { asked: epoch, last });
        }
        Ok((&held.attempt, part))
    }

    fn fence_receipt(&self, attempt: &Attempt, fence: &Fence) -> FenceReceipt {
        self.me.sign(attempt, fence.clone())
    }

    fn send(&self, attempt: &Attempt, fence: &Fence) -> SourceAction {
        Action::Effect(SourceEffect::Send(self.fence_receipt(attempt, fence)))
    }

    fn record(&self, epoch: Epoch, entry: SourceEntry) -> SourceAction {
        let vm = self.ledger.vm().clone();
        Action::Record(Record { vm, epoch, entry: Entry::Source(entry) })
    }
}

impl AsSource {
    const fn not_ended(&self) -> Result<(), Refusal> {
        match self.end {
            None => Ok(()),
            Some(SourceEnd::Released(_)) => Err(Refusal::AlreadyReleased),
            Some(SourceEnd::Retired(_)) => Err(Refusal::AlreadyRetired),
        }
    }

    /// The first part keeps the VM from starting however it stops, so it comes before power-off;
    /// further parts need the VM to be off.
    fn fence_effects(&self) -> Vec<SourceEffect> {
        let Some((first, further)) = self.unfence.split_first() else { return vec![] };
        let mut effects = vec![SourceEffect::MakeStartProof(first.clone()), SourceEffect::PowerOff];
        effects.extend(further.iter().cloned().map(SourceEffect::MakeStartProof));
        effects
    }

    fn undo(&self) -> SourceEffect {
        SourceEffect::Unfence(self.unfence.iter().rev().cloned().collect())
    }
}
