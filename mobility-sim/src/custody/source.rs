//! The site that the VM leaves.

use handover::{
    Attestation, ContentBasis, Established, Fence, FenceLevel, SourceEffect, SourceRequest,
    SourceRole, SourceState,
};
use model::Power;
use site::FenceStage;
use site_ledger::NativePaper;
use units::Epoch;

use super::{AsSource, Carried, Custody, Fenced, HandoverError, follows};

impl Custody {
    /// The attempt is on record, after the destination has it.
    pub async fn begins(&self, paper: &NativePaper, epoch: Epoch) -> Result<(), HandoverError> {
        follows(self.last_epoch(paper.vm).await?, epoch)?;
        self.take_up::<SourceRole>(paper, epoch).await
    }

    /// Success may be said to the source's libvirt once this returns, and there is no way back by
    /// ourselves.
    pub async fn offers(
        &self,
        paper: &NativePaper,
        epoch: Epoch,
        carried: Carried,
    ) -> Result<(), HandoverError> {
        let _turn = self.turn(paper.vm).await;
        let AsSource { shelf, mut ledger } = self.open(paper).await?;
        // Where its libvirt has it stand still. Another one's VM is nothing that we could see die.
        match self.site.power(paper.vm).await? {
            Power::Paused => {}
            found => return Err(HandoverError::NotAsItShould { found }),
        }
        let undone_by = self.site.fence_capture(paper.vm, FenceStage::Definition).await?;
        ledger.look().await?;
        let unfence = ledger.keep_unfence(&shelf, epoch, &undone_by).await?;
        let content = Some(carried.content()?);
        // Nothing is made start-proof or powered off by us: libvirt ends the VM.
        ledger.request(epoch, SourceRequest::Fence { unfence, content }).await?;
        Ok(())
    }

    /// The VM was seen dead: what is left of it is kept from starting, and that is proven. Asked again, it
    /// is looked at again; nothing is made anew.
    pub async fn is_fenced(
        &self,
        paper: &NativePaper,
        epoch: Epoch,
        carried: Carried,
        word: Option<Attestation>,
    ) -> Result<Fenced, HandoverError> {
        let _turn = self.turn(paper.vm).await;
        let AsSource { shelf, mut ledger } = self.open(paper).await?;
        ledger.look().await?;
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
        let level = match self.site.power(paper.vm).await? {
            Power::Absent => FenceLevel::Destroyed,
            found @ (Power::Running | Power::Paused) => {
                return Err(HandoverError::NotAsItShould { found });
            }
            Power::Off => {
                let record = ledger.unfence_record(&shelf, epoch, FenceStage::Definition).await?;
                let record = record.ok_or(HandoverError::Nothing { what: "an un-fence record" })?;
                if made.is_none() {
                    self.site.fence_apply(paper.vm, &record).await?;
                }
                let power = self.site.power(paper.vm).await?;
                if power.is_loaded() {
                    return Err(HandoverError::NotAsItShould { found: power });
                }
                if !self.site.fence_holds(paper.vm, &record).await? {
                    return Err(HandoverError::FenceOpen);
                }
                FenceLevel::StartProof
            }
        };
        if let Some(receipt) = made {
            return Ok(Fenced::By(receipt));
        }
        let means =
            "its libvirt ended it after success was said; off, or gone, when it was looked at";
        let fence = Fence {
            level,
            established: match word {
                Some(word) => Established::Attested(word),
                None => Established::ByPlatform { means: means.into() },
            },
            content: carried.content()?,
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
        let AsSource { shelf, mut ledger } = self.open(paper).await?;
        ledger.look().await?;
        let state = ledger.role.state(epoch);
        let is_settled = state == (SourceState::Released { settled: true });
        if state == SourceState::Unknown || is_settled || ledger.role.last_epoch() > epoch {
            return Ok(());
        }
        ledger.request(epoch, SourceRequest::Release(revoked.parse()?)).await?;
        // In whole, or what there is of it.
        if let Some(record) = ledger.unfence_record(&shelf, epoch, FenceStage::Definition).await? {
            self.site.fence_undo(paper.vm, &record).await?;
        }
        ledger.request(epoch, SourceRequest::Settled).await?;
        Ok(())
    }
}
