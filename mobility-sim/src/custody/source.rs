//! The site that the VM leaves.

use handover::{
    Attestation, ContentBasis, Established, Fence, FenceLevel, SourceEffect, SourceRequest,
    SourceRole, SourceState, Unfence,
};
use model::Power;
use site::{FenceStage, VmProcess};
use site_ledger::{Folder, NativePaper, SiteLedger};
use units::Epoch;

use super::{AsSource, Carried, Custody, Fenced, HandoverError, follows};
use crate::ledger::Source;

/// How it is known that the source's VM is dead.
pub enum Death {
    /// Its platform shows it.
    Shown,
    /// Its process was seen to end, by this agent, which has been there since success was said. What outlives it
    /// was made start-proof before.
    OfProcess { was_persistent: bool },
    /// Its operator says so, for nobody saw it.
    Attested(Attestation),
}

impl Custody {
    /// The attempt is on record, after the destination has it.
    pub async fn begins(&self, paper: &NativePaper, epoch: Epoch) -> Result<(), HandoverError> {
        follows(self.last_epoch(paper.vm).await?, epoch)?;
        self.take_up::<SourceRole>(paper, epoch).await
    }

    /// What would undo its fence is kept. Nothing is said by that.
    pub async fn captures(
        &self,
        paper: &NativePaper,
        epoch: Epoch,
    ) -> Result<Unfence, HandoverError> {
        let _turn = self.turn(paper.vm).await;
        let AsSource { shelf, mut ledger } = self.open(paper).await?;
        let undone_by = self.site.fence_capture(paper.vm, FenceStage::Definition).await?;
        ledger.look().await?;
        Ok(ledger.keep_unfence(&shelf, epoch, &undone_by).await?)
    }

    /// Success may be said to the source's libvirt once this returns, and there is no way back by
    /// ourselves.
    ///
    /// Nothing is powered off by us: libvirt ends the VM. `sees_it_end`: if the end of its process is to be seen, that
    /// is what this answers with, and what outlives it was made start-proof, for libvirt does not let anybody do it in
    /// between.
    pub async fn offers(
        &self,
        paper: &NativePaper,
        epoch: Epoch,
        carried: Carried,
        unfence: Unfence,
        sees_it_end: bool,
    ) -> Result<Option<Box<dyn VmProcess>>, HandoverError> {
        let _turn = self.turn(paper.vm).await;
        let AsSource { shelf, mut ledger } = self.open(paper).await?;
        // Where its libvirt has it stand still. Another one's VM is nothing that we could see die.
        match self.site.power(paper.vm).await? {
            Power::Paused => {}
            found => return Err(HandoverError::NotAsItShould { found }),
        }
        let content = Some(carried.content()?);
        ledger.request(epoch, SourceRequest::Fence { unfence, content }).await?;
        let process = if sees_it_end { self.site.process(paper.vm).await? } else { None };
        if process.as_ref().is_some_and(|process| process.is_persistent()) {
            let record = ledger.unfence_record(&shelf, epoch, FenceStage::Definition).await?;
            let record = record.ok_or(HandoverError::Nothing { what: "an un-fence record" })?;
            self.site.fence_apply(paper.vm, &record).await?;
            if !self.site.fence_holds(paper.vm, &record).await? {
                return Err(HandoverError::FenceOpen);
            }
        }
        Ok(process)
    }

    /// Success was said in vain, or never: what was made start-proof is not so any more. Its destination need not be
    /// asked, as long as no receipt was signed by which it could be granted.
    pub async fn unfences(&self, paper: &NativePaper, epoch: Epoch) -> Result<(), HandoverError> {
        let _turn = self.turn(paper.vm).await;
        let AsSource { shelf, mut ledger } = self.looked_at(paper).await?;
        if ledger.role.state(epoch) != SourceState::Fencing {
            return Ok(());
        }
        self.undo(paper, epoch, (&shelf, &mut ledger)).await
    }

    /// Of the definition that bears this attempt's fence, if it is there: one that was removed, or made anew, is its
    /// operator's.
    async fn undo(
        &self,
        paper: &NativePaper,
        epoch: Epoch,
        (shelf, ledger): (&Folder, &mut SiteLedger<SourceRole>),
    ) -> Result<(), HandoverError> {
        let record = ledger.unfence_record(shelf, epoch, FenceStage::Definition).await?;
        let Some(record) = record else { return Ok(()) };
        if self.site.fence_holds(paper.vm, &record).await? {
            self.site.fence_undo(paper.vm, &record).await?;
        }
        Ok(())
    }

    /// Looked at once more, after its libvirt has taken leave: what is left of the VM is start-proof.
    pub async fn stays_fenced(
        &self,
        paper: &NativePaper,
        epoch: Epoch,
    ) -> Result<(), HandoverError> {
        let _turn = self.turn(paper.vm).await;
        let AsSource { shelf, mut ledger } = self.looked_at(paper).await?;
        // What came after it is not this attempt's to fence.
        let state = ledger.role.state(epoch);
        let is_its_own = matches!(state, SourceState::Fenced(_) | SourceState::Retired { .. });
        if !is_its_own || ledger.role.last_epoch() > epoch {
            return Ok(());
        }
        self.look_at_fence(paper, epoch, (&shelf, &mut ledger)).await.map(drop)
    }

    /// How far this site has come with an attempt, for an agent that has lost what it knew of it. `None`: it has ended
    /// here, or was never heard of.
    pub async fn came_to_leave(
        &self,
        paper: &NativePaper,
        epoch: Epoch,
    ) -> Result<Option<Source>, HandoverError> {
        let _turn = self.turn(paper.vm).await;
        let AsSource { ledger, .. } = self.looked_at(paper).await?;
        Ok(match ledger.role.state(epoch) {
            SourceState::Known => Some(Source::AttemptKnown),
            SourceState::Fencing => Some(Source::FenceIntent),
            // Of the latter two the last record is missing.
            SourceState::Fenced(_) | SourceState::Retired { settled: false } => {
                Some(Source::Fenced)
            }
            SourceState::Released { settled: false } => Some(Source::Released),
            SourceState::Unknown
            | SourceState::Superseded
            | SourceState::Released { settled: true }
            | SourceState::Retired { settled: true }
            | SourceState::Destroyed => None,
        })
    }

    /// Whether a receipt was signed already that its VM is dead.
    pub async fn has_receipt(
        &self,
        paper: &NativePaper,
        epoch: Epoch,
    ) -> Result<bool, HandoverError> {
        let _turn = self.turn(paper.vm).await;
        let AsSource { ledger, .. } = self.looked_at(paper).await?;
        let state = ledger.role.state(epoch);
        Ok(matches!(
            state,
            SourceState::Fenced(_) | SourceState::Retired { .. } | SourceState::Destroyed
        ))
    }

    /// The VM is known to be dead, and what is left of it is start-proof; where the end of its process was seen, it has
    /// been so before. Asked again, it is looked at again.
    pub async fn is_fenced(
        &self,
        paper: &NativePaper,
        epoch: Epoch,
        death: Death,
    ) -> Result<Fenced, HandoverError> {
        let _turn = self.turn(paper.vm).await;
        let AsSource { shelf, mut ledger } = self.looked_at(paper).await?;
        let made = match ledger.role.state(epoch) {
            SourceState::Retired { settled: true } | SourceState::Destroyed => {
                return Ok(Fenced::Retired);
            }
            // A crash came between the two records.
            SourceState::Retired { settled: false } => {
                ledger.request(epoch, SourceRequest::Settled).await?;
                return Ok(Fenced::Retired);
            }
            SourceState::Fenced(receipt) => Some(receipt),
            _ => None,
        };
        let level = match death {
            Death::OfProcess { was_persistent: true } => FenceLevel::StartProof,
            Death::OfProcess { was_persistent: false } => FenceLevel::Destroyed,
            Death::Shown | Death::Attested(_) => {
                self.look_at_fence(paper, epoch, (&shelf, &mut ledger)).await?
            }
        };
        if let Some(receipt) = made {
            return Ok(Fenced::By(receipt));
        }
        // As it was offered.
        let content = ledger.role.intended_content(epoch).cloned();
        let content = content.ok_or(HandoverError::Nothing { what: "a content" })?;
        let means = match death {
            Death::OfProcess { .. } => {
                "its process was seen to end after success was said; no definition of it starts"
            }
            Death::Shown | Death::Attested(_) => {
                "its libvirt ended it after success was said; off, or gone, when it was looked at"
            }
        };
        let fence = Fence {
            level,
            established: match death {
                Death::Attested(word) => Established::Attested(word),
                Death::Shown | Death::OfProcess { .. } => {
                    Established::ByPlatform { means: means.into() }
                }
            },
            content,
            // Suspended by its libvirt before the last byte left, and resumed by nobody.
            basis: ContentBasis::DrainedBefore { shown_by: means.into() },
        };
        let effects = ledger.request(epoch, SourceRequest::FenceHolds(fence)).await?;
        let receipt = effects.into_iter().find_map(|effect| match effect {
            SourceEffect::Send(receipt) => Some(receipt),
            _ => None,
        });
        receipt.map(Fenced::By).ok_or(HandoverError::Nothing { what: "a fence receipt" })
    }

    /// How firmly it is stopped. It is made start-proof, unless it is so already: of one that was, while libvirt had it
    /// paused, whether it starts by itself could not be changed then.
    async fn look_at_fence(
        &self,
        paper: &NativePaper,
        epoch: Epoch,
        (shelf, ledger): (&Folder, &mut SiteLedger<SourceRole>),
    ) -> Result<FenceLevel, HandoverError> {
        match self.site.power(paper.vm).await? {
            Power::Absent => Ok(FenceLevel::Destroyed),
            found @ (Power::Running | Power::Paused) => Err(HandoverError::NotAsItShould { found }),
            Power::Off => {
                let record = ledger.unfence_record(shelf, epoch, FenceStage::Definition).await?;
                let record = record.ok_or(HandoverError::Nothing { what: "an un-fence record" })?;
                if !self.site.fence_holds(paper.vm, &record).await? {
                    self.site.fence_apply(paper.vm, &record).await?;
                }
                let power = self.site.power(paper.vm).await?;
                if power.is_loaded() {
                    return Err(HandoverError::NotAsItShould { found: power });
                }
                match self.site.fence_holds(paper.vm, &record).await? {
                    true => Ok(FenceLevel::StartProof),
                    false => Err(HandoverError::FenceOpen),
                }
            }
        }
    }

    /// The destination's grant is known. What is left at the source stays as it is, start-proof.
    pub async fn retires(
        &self,
        paper: &NativePaper,
        epoch: Epoch,
        grant: &str,
    ) -> Result<(), HandoverError> {
        let _turn = self.turn(paper.vm).await;
        let AsSource { mut ledger, .. } = self.open(paper).await?;
        ledger.request(epoch, SourceRequest::Retire(grant.parse()?)).await?;
        ledger.request(epoch, SourceRequest::Settled).await?;
        Ok(())
    }

    /// The destination has given up. The VM runs, or was never ended by us; a fence that was made all the
    /// same is undone.
    pub async fn is_released(
        &self,
        paper: &NativePaper,
        epoch: Epoch,
        revoked: &str,
    ) -> Result<(), HandoverError> {
        let _turn = self.turn(paper.vm).await;
        let AsSource { shelf, mut ledger } = self.looked_at(paper).await?;
        let state = ledger.role.state(epoch);
        let is_settled = state == (SourceState::Released { settled: true });
        if state == SourceState::Unknown || is_settled || ledger.role.last_epoch() > epoch {
            return Ok(());
        }
        ledger.request(epoch, SourceRequest::Release(revoked.parse()?)).await?;
        self.undo(paper, epoch, (&shelf, &mut ledger)).await?;
        ledger.request(epoch, SourceRequest::Settled).await?;
        Ok(())
    }
}
