//! Both sites' ledgers, kept for them by a coordinator that runs the site roles itself.
//!
//! Every question of who may run goes to the roles of crate `handover`; this file makes their
//! records durable in the order in which they are given, and hands the caller what is left to do.
//! The files lie on the operator's machine, outside every disk that is copied, and each site keeps a
//! copy of its own (crate `site-ledger`): before anything is done on a record it is in both.
//!
//! What undoes a fence can be large (it holds the first and last blocks of disks), so it lies in a
//! file of its own, on the disk before the ledger's record that names it by its hash.

mod kept;

use std::sync::Arc;

use handover::{
    Attempt, Attestation, Content, ContentBasis, DestinationEffect, DestinationRequest,
    DestinationRole, DestinationState, Established, Fence, FenceLevel, GrantReceipt, Identity,
    MarkSeen, PlanDigest, Refusal, RevokeReceipt, SourceEffect, SourceRequest, SourceRole,
    SourceState, VmKey,
};
use journal::StoreId;
use site::{FenceStage, Site, UnfenceRecord};
use site_ledger::{SiteLedger, own_mark};
use units::{Digest, Epoch, chain};

pub use kept::{Papers, papers};
pub(crate) use kept::{forget_what_is_kept, is_being_revoked};
pub use site_ledger::{
    CopyError, CustodyError, Folder, LEDGER_KIND, Shelf, copy_of_ledger, decode_copy, longer,
    mark_of, mark_seen, read_ledger,
};

/// Both ledgers, open and locked.
pub struct Custody {
    shelf: Box<dyn Shelf>,
    vm: VmKey,
    source: SiteLedger<SourceRole>,
    destination: SiteLedger<DestinationRole>,
    template: Attempt,
}

/// Whose ledgers, and about what.
pub struct CustodyOf {
    pub source: Identity,
    pub destination: Identity,
    pub at_source: Arc<dyn Site>,
    pub at_destination: Arc<dyn Site>,
    pub vm: VmKey,
    /// Random; used where a ledger is created.
    pub ids: [StoreId; 2],
    pub plan: Digest,
}

impl Custody {
    /// Opens the ledgers of both sites, creating them where they are missing.
    pub fn open(shelf: Box<dyn Shelf>, of: CustodyOf) -> Result<Self, CustodyError> {
        let [source_id, destination_id] = of.ids;
        let template = Attempt {
            install: of.source.install.clone(),
            vm: of.vm.clone(),
            epoch: Epoch(0),
            source: of.source.site.clone(),
            destination: of.destination.site.clone(),
            plan: PlanDigest(of.plan),
        };
        let source = SiteLedger::open(&*shelf, of.at_source, of.source, of.vm.clone(), source_id)?;
        let destination = SiteLedger::open(
            &*shelf,
            of.at_destination,
            of.destination,
            of.vm.clone(),
            destination_id,
        )?;
        Ok(Self { shelf, vm: of.vm, source, destination, template })
    }

    /// Makes each ledger and its site's copy one, where the site answers; where it does not, that is
    /// done before the next record.
    ///
    /// # Errors
    /// Where the two contradict each other.
    pub async fn look(&mut self) -> Result<(), CustodyError> {
        let looked = [self.source.look().await, self.destination.look().await];
        looked.into_iter().try_for_each(if_it_answers)
    }

    /// As [`Custody::look`], though it was looked at before.
    pub async fn look_again(&mut self) -> Result<(), CustodyError> {
        self.source.doubt();
        self.destination.doubt();
        self.look().await
    }

    /// Takes a decision that the destination's ledger has lost, here and at its site, back from the mark on
    /// the placeholder, where it can be seen.
    ///
    /// # Errors
    /// Where the ledger says otherwise than the mark.
    pub async fn heal(&mut self, vm: model::VmId) -> Result<(), CustodyError> {
        let seen = self.destination.look().await.is_ok() && self.destination.has_key().is_ok();
        let MarkSeen::Present(mark) = mark_seen(&*self.destination.at(), vm).await else {
            return Ok(());
        };
        if seen {
            let lost = self.destination.role.heal(&mark)?;
            if !lost.is_empty() {
                tracing::warn!(site = self.destination.name, "its decision is on its mark alone");
            }
            self.destination.carry(lost).await?;
        }
        Ok(())
    }

    /// Opens the next attempt in both ledgers, the destination's first: whoever finds leftovers at
    /// the destination finds the record as well, and the papers before it.
    pub async fn open_attempt(
        &mut self,
        vm: model::VmId,
        papers: &Papers,
    ) -> Result<Epoch, CustodyError> {
        self.source.look().await?;
        self.destination.look().await?;
        self.source.has_key()?;
        self.destination.has_key()?;
        let (source, destination) = (self.source.at(), self.destination.at());
        let mark = mark_seen(&*destination, vm).await;
        let source_mark = own_mark(&*source, vm).await;
        let epoch = match self.attempt_under_way() {
            Some(epoch) => epoch,
            None => self.next_epoch()?,
        };
        let attempt = self.attempt(epoch);
        // Both are asked before either records: a refusal leaves nothing half open.
        let at_destination = self.destination.role.open(&attempt, &mark)?;
        let at_source = self.source.role.open(&attempt, &source_mark)?;
        self.keep_papers(epoch, papers).await?;
        self.destination.carry(at_destination).await?;
        self.source.carry(at_source).await?;
        self.forget_ended(epoch).await;
        Ok(epoch)
    }

    /// This migration's attempt, where the ledgers have it and the journal may not: its process died
    /// between them.
    pub fn attempt_under_way(&self) -> Option<Epoch> {
        let last = self.last_epoch();
        let begun = self.destination_state(last) == DestinationState::Known
            && matches!(self.source_state(last), SourceState::Unknown | SourceState::Known);
        self.attempt_of_ours().filter(|_| begun)
    }

    /// This migration's attempt that has not ended, however far it went: more than the journal knows,
    /// where that was restored from a backup. One that was revoked ends with the source's release.
    pub fn attempt_of_ours(&self) -> Option<Epoch> {
        use SourceState as S;
        let last = self.last_epoch();
        let asked = Some(&self.attempt(last));
        // The destination's ledger is the first that hears of it, and may be lost or out of reach.
        let ours =
            self.destination.role.attempt(last) == asked || self.source.role.attempt(last) == asked;
        let is_revoked = matches!(self.destination_state(last), DestinationState::Revoked(_));
        let ended = match self.source_state(last) {
            S::Released { settled: true } => true,
            S::Superseded => is_revoked,
            // It never heard of it, if all that it knows was seen.
            S::Unknown => is_revoked && self.source.is_seen(),
            _ => false,
        };
        (ours && !ended).then_some(last)
    }

    /// The last attempt, if it is of this plan, ended or not.
    pub fn attempt_of_this_plan(&self) -> Option<Epoch> {
        let last = self.last_epoch();
        let asked = Some(&self.attempt(last));
        let ours =
            self.destination.role.attempt(last) == asked || self.source.role.attempt(last) == asked;
        ours.then_some(last)
    }

    /// Have the ledgers more of this migration than that it began?
    pub fn went_further(&self) -> bool {
        self.attempt_of_ours().is_some_and(|epoch| {
            use {DestinationState as D, SourceState as S};
            let copying =
                matches!(self.destination_state(epoch), D::Known | D::Placed | D::Synced(_));
            let untouched = matches!(self.source_state(epoch), S::Unknown | S::Known);
            !(copying && untouched)
        })
    }

    /// # Errors
    /// After the largest number there is: a site has written it into its own ledger.
    fn next_epoch(&self) -> Result<Epoch, CustodyError> {
        let what = || "epochs are used up in a ledger".to_owned();
        let next = self.last_epoch().0.checked_add(1).map(Epoch);
        next.ok_or_else(|| CustodyError::Unfit { what: what() })
    }

    fn last_epoch(&self) -> Epoch {
        self.source.role.last_epoch().max(self.destination.role.last_epoch())
    }

    pub fn source_state(&self, epoch: Epoch) -> SourceState {
        self.source.role.state(epoch)
    }

    pub fn destination_state(&self, epoch: Epoch) -> DestinationState {
        self.destination.role.state(epoch)
    }

    /// A request to the destination's role, given what its placeholder shows now.
    pub async fn destination(
        &mut self,
        epoch: Epoch,
        request: DestinationRequest,
        mark: &MarkSeen,
    ) -> Result<Vec<DestinationEffect>, CustodyError> {
        let DestinationRequest::Revoke { attested: Some(word) } = &request else {
            return self.destination.request(epoch, request, mark).await;
        };
        let ask = |role: &DestinationRole| role.step(epoch, request.clone(), mark);
        let asked = self.destination.ask(ask).await;
        // An operator has vouched for a site that is gone for good, perhaps with all that it knew.
        let (asked, is_gone) = match asked {
            Err(CustodyError::Site { site, cause }) => {
                tracing::warn!(site, error = %chain(&cause), "revoked without its copy of the ledger");
                (ask(&self.destination.role).map_err(CustodyError::from), true)
            }
            asked => (asked, false),
        };
        let actions = match asked {
            Err(CustodyError::Refused(Refusal::UnknownAttempt { .. }))
                if self.source.role.attempt(epoch) == Some(&self.attempt(epoch)) =>
            {
                self.destination.role.vouch(&self.attempt(epoch), word.clone())?
            }
            asked => asked?,
        };
        if is_gone {
            return self.destination.carry_here(actions);
        }
        self.destination.carry(actions).await
    }

    /// A request to the source's role.
    pub async fn source(
        &mut self,
        epoch: Epoch,
        request: SourceRequest,
    ) -> Result<Vec<SourceEffect>, CustodyError> {
        self.source.request(epoch, request).await
    }

    /// What undoes this stage is on the disk and at the site, then the intent is in the ledger. Answers
    /// with the record to go by: that of an earlier life, if there is one.
    pub async fn fence_intent(
        &mut self,
        epoch: Epoch,
        record: UnfenceRecord,
        content: &[Digest],
    ) -> Result<UnfenceRecord, CustodyError> {
        self.source.look().await?;
        if let Some(earlier) = self.unfence_record(epoch, record.stage).await? {
            return Ok(earlier);
        }
        let unfence = self.source.keep_unfence(&*self.shelf, epoch, &record).await?;
        let request = match record.stage {
            FenceStage::Definition => {
                SourceRequest::Fence { unfence, content: Some(content_of(content)?) }
            }
            FenceStage::Disks => SourceRequest::FenceFurther { unfence },
        };
        self.source(epoch, request).await?;
        Ok(record)
    }

    /// The fence was looked at and holds.
    pub async fn fenced(
        &mut self,
        epoch: Epoch,
        means: &str,
        content: &[Digest],
        basis: ContentBasis,
    ) -> Result<(), CustodyError> {
        let fence = Fence {
            level: FenceLevel::StartProof,
            established: Established::ByPlatform { means: means.into() },
            content: content_of(content)?,
            basis,
        };
        self.source(epoch, SourceRequest::FenceHolds(fence)).await?;
        Ok(())
    }

    /// The decision. Write-once: whoever asks again gets the same receipt.
    pub async fn grant(
        &mut self,
        epoch: Epoch,
        mark: &MarkSeen,
    ) -> Result<GrantReceipt, CustodyError> {
        use {DestinationState as D, SourceState as S};
        let receipt = match (self.destination.role.state(epoch), self.source.role.state(epoch)) {
            // Decided already: by this fence, whatever can be said of the source now.
            (D::Granted(fence), _) => fence,
            (D::Marked(grant) | D::Started(grant) | D::Healthy(grant), _) => {
                grant.claim().fence.clone()
            }
            (_, S::Fenced(fence)) => fence,
            _ => {
                return Err(CustodyError::Unfit { what: "the source is not fenced".to_owned() });
            }
        };
        let effects = self.destination(epoch, DestinationRequest::Grant(receipt), mark).await?;
        let granted = effects.into_iter().find_map(|effect| match effect {
            DestinationEffect::WriteMark(grant) | DestinationEffect::SendGranted(grant) => {
                Some(grant)
            }
            _ => None,
        });
        granted.ok_or_else(|| CustodyError::Unfit { what: "granted without a receipt".to_owned() })
    }

    /// The destination gives up, for good. The receipt is the source's right to run again.
    pub async fn revoke(
        &mut self,
        epoch: Epoch,
        mark: &MarkSeen,
        attested: Option<Attestation>,
    ) -> Result<RevokeReceipt, CustodyError> {
        if let Err(error) = self.say_that_it_revokes(epoch).await {
            match &error {
                CustodyError::Site { .. } if attested.is_some() => {}
                _ => return Err(error),
            }
        }
        let request = DestinationRequest::Revoke { attested };
        let effects = self.destination(epoch, request, mark).await?;
        let revoked = effects.into_iter().find_map(|effect| match effect {
            DestinationEffect::SendRevoked(receipt) => Some(receipt),
            _ => None,
        });
        revoked.ok_or_else(|| CustodyError::Unfit { what: "revoked without a receipt".to_owned() })
    }

    /// The grant receipt that leaves the destination once the mark stands.
    pub fn granted(&self, epoch: Epoch) -> Option<GrantReceipt> {
        self.destination.role.state(epoch).grant_receipt().cloned()
    }

    /// Was it decided for the destination, marked or not?
    pub fn is_granted(&self, epoch: Epoch) -> bool {
        self.destination.role.state(epoch).is_granted()
    }

    fn attempt(&self, epoch: Epoch) -> Attempt {
        Attempt { epoch, ..self.template.clone() }
    }

    /// Is the source's ledger all that there is of it?
    pub async fn see_source(&mut self) -> Result<(), CustodyError> {
        self.source.look().await
    }

    pub async fn see_destination(&mut self) -> Result<(), CustodyError> {
        self.destination.look().await
    }

    pub async fn see_destination_again(&mut self) -> Result<(), CustodyError> {
        self.destination.doubt();
        self.destination.look().await
    }

    /// The source has not been released from this attempt. Where it cannot be asked, nobody has begun to
    /// call it off: who does says so at the destination first, and looks for the mark once it is said.
    pub async fn not_released_meanwhile(&mut self, epoch: Epoch) -> Result<(), CustodyError> {
        use SourceState as S;
        self.source.doubt();
        let seen = match self.source.look().await {
            Err(CustodyError::Site { site, cause }) => {
                tracing::warn!(site, error = %chain(&cause), "its ledger's copy is not seen");
                false
            }
            looked => looked.map(|()| !self.source.was_lost())?,
        };
        match self.source_state(epoch) {
            S::Released { .. } => Err(CustodyError::both_ways()),
            state if seen && state.was_fenced() => Ok(()),
            // Not what there must be after a grant: the last of it may be lost.
            _ if self.somebody_revokes(epoch).await? => {
                if self.source.was_lost() {
                    self.source.leave_lost().await?;
                }
                Err(CustodyError::MayBeReleased { site: self.source.name.clone() })
            }
            _ => Ok(()),
        }
    }

    pub const fn source_is_seen(&self) -> bool {
        self.source.is_seen()
    }

    /// Both ledgers have this very attempt, and no other under its number.
    pub fn both_know(&self, epoch: Epoch) -> Result<(), CustodyError> {
        let ours = Some(&self.attempt(epoch));
        let known = [self.source.role.attempt(epoch), self.destination.role.attempt(epoch)];
        if known.iter().all(|attempt| *attempt == ours) {
            return Ok(());
        }
        Err(CustodyError::Refused(Refusal::UnknownAttempt { epoch }))
    }

    /// Has the source been taken over by a later attempt?
    pub fn source_is_followed(&self, epoch: Epoch) -> bool {
        self.source.role.last_epoch() > epoch
    }

    /// Has a later attempt of this VM been opened anywhere?
    pub fn is_followed(&self, epoch: Epoch) -> bool {
        self.last_epoch() > epoch
    }
}

/// A site that does not answer may be gone for good: then what is known of its ledger here has to do.
fn if_it_answers(looked: Result<(), CustodyError>) -> Result<(), CustodyError> {
    match looked {
        Err(CustodyError::Site { site, cause }) => {
            tracing::warn!(site, error = %chain(&cause), "its copy of the ledger is not seen");
            Ok(())
        }
        looked => looked,
    }
}

fn content_of(digests: &[Digest]) -> Result<Content, CustodyError> {
    Content::new(digests.to_vec()).map_err(|error| CustodyError::Unfit { what: error.to_string() })
}
