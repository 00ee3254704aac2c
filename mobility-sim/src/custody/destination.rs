//! The site that the VM moves to: it decides, once.

use handover::{
    Content, DestinationEffect, DestinationRequest, DestinationState, FenceReceipt, GrantReceipt,
    MarkSeen, RevokeReceipt,
};
use site::PlaceholderState;
use site_ledger::{NativePaper, mark_of, mark_seen};
use units::Epoch;

use super::{AsDestination, Carried, Custody, HandoverError};

impl Custody {
    /// Opens the next attempt, the first of both ledgers to have it. `theirs` is the last that the
    /// source knows of.
    pub async fn opens(&self, paper: &NativePaper, theirs: Epoch) -> Result<Epoch, HandoverError> {
        let ours = self.last_epoch(paper.vm).await?;
        let _turn = self.turn.lock().await;
        let AsDestination { mut ledger, .. } = self.open(paper).await?;
        let next = ours.max(theirs).0.checked_add(1).map(Epoch);
        let epoch = next.ok_or(HandoverError::Nothing { what: "an epoch" })?;
        let attempt = paper.attempt(epoch)?;
        let mark = self.seen(paper).await;
        let actions = ledger.ask(|role| role.open(&attempt, &mark)).await?;
        self.keep_paper(&ledger, paper, epoch).await?;
        ledger.carry(actions).await?;
        Ok(epoch)
    }

    /// The VM is whole, stands still, and is ours to start or to end.
    pub async fn has_it(
        &self,
        paper: &NativePaper,
        epoch: Epoch,
        carried: Carried,
    ) -> Result<(), HandoverError> {
        let _turn = self.turn.lock().await;
        let AsDestination { mut ledger, .. } = self.open(paper).await?;
        let mark = self.seen(paper).await;
        let id = paper.vm.to_string().as_str().into();
        ledger.request(epoch, DestinationRequest::Placeholder { id }, &mark).await?;
        let content = Content::new(carried.content());
        let content = content.map_err(|_| HandoverError::Nothing { what: "a content" })?;
        ledger.request(epoch, DestinationRequest::Synced(content), &mark).await?;
        Ok(())
    }

    /// The decision, in the ledger and on the VM itself; it may be started once this returns.
    pub async fn grants(
        &self,
        paper: &NativePaper,
        epoch: Epoch,
        fence: &str,
    ) -> Result<GrantReceipt, HandoverError> {
        let _turn = self.turn.lock().await;
        let AsDestination { mut ledger, .. } = self.open(paper).await?;
        let fence: FenceReceipt = fence.parse()?;
        let mark = self.seen(paper).await;
        let effects = ledger.request(epoch, DestinationRequest::Grant(fence), &mark).await?;
        for effect in effects {
            if let DestinationEffect::WriteMark(grant) = effect {
                self.site.write_mark(paper.vm, &mark_of(&paper.id, epoch, &grant)).await?;
            }
        }
        let mark = self.seen(paper).await;
        ledger.request(epoch, DestinationRequest::MarkWritten, &mark).await?;
        ledger.request(epoch, DestinationRequest::Start, &mark).await?;
        granted(&ledger.role.state(epoch))
    }

    /// It runs, or stands still as its operator wants it to.
    pub async fn started(&self, paper: &NativePaper, epoch: Epoch) -> Result<(), HandoverError> {
        let _turn = self.turn.lock().await;
        let AsDestination { mut ledger, .. } = self.open(paper).await?;
        let mark = self.seen(paper).await;
        ledger.request(epoch, DestinationRequest::Started, &mark).await?;
        ledger.request(epoch, DestinationRequest::Healthy, &mark).await?;
        Ok(())
    }

    /// The VM never runs here by this attempt. Decided before it is removed, so that no mark is missed.
    pub async fn revokes(
        &self,
        paper: &NativePaper,
        epoch: Epoch,
    ) -> Result<RevokeReceipt, HandoverError> {
        let _turn = self.turn.lock().await;
        let AsDestination { mut ledger, .. } = self.open(paper).await?;
        let mark = self.seen(paper).await;
        let request = DestinationRequest::Revoke { attested: None };
        let effects = ledger.request(epoch, request, &mark).await?;
        let receipt = effects.into_iter().find_map(|effect| match effect {
            DestinationEffect::SendRevoked(receipt) => Some(receipt),
            _ => None,
        });
        receipt.ok_or(HandoverError::Nothing { what: "a revoke receipt" })
    }

    /// What was granted, for whoever asks again.
    pub async fn granted(
        &self,
        paper: &NativePaper,
        epoch: Epoch,
    ) -> Result<GrantReceipt, HandoverError> {
        let _turn = self.turn.lock().await;
        let AsDestination { mut ledger, .. } = self.open(paper).await?;
        ledger.look().await?;
        granted(&ledger.role.state(epoch))
    }

    async fn seen(&self, paper: &NativePaper) -> MarkSeen {
        match self.site.placeholder(paper.vm).await {
            // Kept here since it left, or somebody's: none of this attempt.
            Ok(PlaceholderState::Foreign { .. }) => MarkSeen::NoPlaceholder,
            _ => mark_seen(&*self.site, paper.vm).await,
        }
    }
}

fn granted(state: &DestinationState) -> Result<GrantReceipt, HandoverError> {
    match state {
        DestinationState::Marked(grant)
        | DestinationState::Started(grant)
        | DestinationState::Healthy(grant) => Ok(grant.clone()),
        _ => Err(HandoverError::Nothing { what: "a grant" }),
    }
}
