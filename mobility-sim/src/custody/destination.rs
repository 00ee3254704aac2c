//! The site that the VM moves to: it decides, once.

use handover::{
    Attestation, DestinationEffect, DestinationRequest, DestinationRole, DestinationState,
    FenceReceipt, GrantReceipt, Refusal, RevokeReceipt,
};
use model::VmId;
use site_ledger::{CustodyError, NativePaper, mark_of, native_key, own_mark};
use units::Epoch;

use super::{AsDestination, Carried, Custody, HandoverError, follows};
use crate::ledger::{Destination, Then};

pub struct CameIn {
    pub stage: Destination,
    /// From then on somebody may resume it.
    pub was_whole: bool,
}

impl Custody {
    /// The number of the next attempt. `theirs` is the last that the source knows of.
    pub async fn next_epoch(&self, vm: VmId, theirs: Epoch) -> Result<Epoch, HandoverError> {
        let ours = self.last_epoch(vm).await?;
        follows(ours, theirs)?;
        let next = ours.max(theirs).0.checked_add(1).map(Epoch);
        next.ok_or(HandoverError::Epochs { ours, theirs })
    }

    /// Opens the attempt, the first of both ledgers to have it.
    pub async fn opens(&self, paper: &NativePaper, epoch: Epoch) -> Result<(), HandoverError> {
        self.take_up::<DestinationRole>(paper, epoch).await
    }

    /// The VM is whole, stands still, and is ours to start or to end.
    pub async fn has_it(
        &self,
        paper: &NativePaper,
        epoch: Epoch,
        carried: Carried,
    ) -> Result<(), HandoverError> {
        let _turn = self.turn(paper.vm).await;
        let AsDestination { mut ledger, .. } = self.open(paper).await?;
        let mark = own_mark(&*self.site, paper.vm).await;
        let id = paper.vm.to_string().as_str().into();
        let has_it = [
            DestinationRequest::Placeholder { id },
            DestinationRequest::Synced(carried.content()?),
        ];
        ledger.requests(epoch, has_it, &mark).await?;
        Ok(())
    }

    /// The decision, in the ledger and on the VM itself; it may be started once this returns. In between
    /// whoever held it lets go: it is this site's then, and its mark is a change.
    pub async fn grants<F: Future<Output = ()>>(
        &self,
        paper: &NativePaper,
        epoch: Epoch,
        fence: &str,
        let_go: impl FnOnce() -> F,
    ) -> Result<GrantReceipt, HandoverError> {
        let _turn = self.turn(paper.vm).await;
        let AsDestination { mut ledger, .. } = self.open(paper).await?;
        let fence: FenceReceipt = fence.parse()?;
        let mark = own_mark(&*self.site, paper.vm).await;
        let effects = ledger.request(epoch, DestinationRequest::Grant(fence), &mark).await?;
        let_go().await;
        for effect in effects {
            if let DestinationEffect::WriteMark(grant) = effect {
                self.site.write_mark(paper.vm, &mark_of(&paper.id, epoch, &grant)).await?;
            }
        }
        let mark = own_mark(&*self.site, paper.vm).await;
        let may_start = [DestinationRequest::MarkWritten, DestinationRequest::Start];
        ledger.requests(epoch, may_start, &mark).await?;
        granted(&ledger.role.state(epoch))
    }

    /// It runs, or stands still as its operator wants it to.
    pub async fn started(&self, paper: &NativePaper, epoch: Epoch) -> Result<(), HandoverError> {
        let _turn = self.turn(paper.vm).await;
        let AsDestination { mut ledger, .. } = self.open(paper).await?;
        let mark = own_mark(&*self.site, paper.vm).await;
        let runs = [DestinationRequest::Started, DestinationRequest::Healthy];
        ledger.requests(epoch, runs, &mark).await?;
        Ok(())
    }

    /// The VM never runs here by this attempt. Decided before it is removed, so that no mark is missed.
    /// `None`: the attempt was never opened here.
    ///
    /// A VM that waited and is gone with its host takes its mark along. Its ledger, here and at the site,
    /// has no decision then; that is taken for this agent's word, and called so, not for proof.
    pub async fn revokes(
        &self,
        paper: &NativePaper,
        epoch: Epoch,
    ) -> Result<Option<RevokeReceipt>, HandoverError> {
        let _turn = self.turn(paper.vm).await;
        let AsDestination { mut ledger, .. } = self.open(paper).await?;
        let mark = own_mark(&*self.site, paper.vm).await;
        let revoke = |attested| DestinationRequest::Revoke { attested };
        let refused = |error: &CustodyError, wanted: fn(&Refusal) -> bool| matches!(error, CustodyError::Refused(refusal) if wanted(refusal));
        let effects = match ledger.request(epoch, revoke(None), &mark).await {
            Err(error) if refused(&error, |it| matches!(it, Refusal::UnknownAttempt { .. })) => {
                // Its papers are kept before it is opened; alone they look like a ledger that is lost.
                self.site.forget(&native_key(ledger.vm(), epoch)?).await?;
                return Ok(None);
            }
            Err(error) if refused(&error, |it| matches!(it, Refusal::PlaceholderGone)) => {
                let word = Attestation {
                    by: "causeway-mobility".into(),
                    reason: "the VM that waited is gone, and neither ledger has a decision".into(),
                };
                ledger.request(epoch, revoke(Some(word)), &mark).await?
            }
            effects => effects?,
        };
        let receipt = effects.into_iter().find_map(|effect| match effect {
            DestinationEffect::SendRevoked(receipt) => Some(receipt),
            _ => None,
        });
        receipt.map(Some).ok_or(HandoverError::Nothing { what: "a revoke receipt" })
    }

    /// How far this site has come with an attempt, for an agent that has lost what it knew of it: whatever that is,
    /// its source may ask.
    pub async fn came_in(
        &self,
        paper: &NativePaper,
        epoch: Epoch,
    ) -> Result<CameIn, HandoverError> {
        use DestinationState as D;
        let _turn = self.turn(paper.vm).await;
        let AsDestination { ledger, .. } = self.looked_at(paper).await?;
        let stage = match ledger.role.state(epoch) {
            // Its papers come before it.
            D::Unknown | D::Known | D::Placed => Destination::Placed,
            // Its mark may be missing: its source asks for the grant again.
            D::Synced(_) | D::Granted(_) => Destination::Synced(Then::Runs),
            // What came later had it from here.
            D::Marked(_) if ledger.role.last_epoch() > epoch => Destination::Started,
            D::Marked(_) => Destination::Granted(Then::Runs),
            D::Revoked(_) => Destination::Revoked,
            D::Started(_) | D::Healthy(_) => Destination::Started,
        };
        Ok(CameIn { stage, was_whole: ledger.role.was_synced(epoch) })
    }

    /// What was granted, for whoever asks again.
    pub async fn granted(
        &self,
        paper: &NativePaper,
        epoch: Epoch,
    ) -> Result<GrantReceipt, HandoverError> {
        let _turn = self.turn(paper.vm).await;
        let AsDestination { mut ledger, .. } = self.open(paper).await?;
        ledger.look().await?;
        granted(&ledger.role.state(epoch))
    }
}

fn granted(state: &DestinationState) -> Result<GrantReceipt, HandoverError> {
    state.grant_receipt().cloned().ok_or(HandoverError::Nothing { what: "a grant" })
}
