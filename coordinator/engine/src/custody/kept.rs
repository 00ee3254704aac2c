//! What a site keeps of a VM besides its ledger: what undoes its fence, and the papers of a migration.

use handover::VmKey;
use site::{FenceStage, RecordKey, Site, SiteError, UnfenceRecord};
use site_ledger::forget;
use units::{Epoch, chain};

use super::{Custody, CustodyError};

/// What `recover` needs of a migration besides the ledgers, as each site is to keep it. Sealed for
/// this crate: whoever runs it writes and reads them.
#[derive(Clone, Debug, Default)]
pub struct Papers {
    pub source: Vec<u8>,
    pub destination: Vec<u8>,
}

const PAPERS: &str = "papers-";
const REVOKING: &str = "revoking-";

impl Custody {
    /// The un-fence record of a stage, if it was captured in this epoch.
    pub async fn unfence_record(
        &self,
        epoch: Epoch,
        stage: FenceStage,
    ) -> Result<Option<UnfenceRecord>, CustodyError> {
        self.source.unfence_record(&*self.shelf, epoch, stage).await
    }

    pub(super) async fn keep_papers(
        &self,
        epoch: Epoch,
        papers: &Papers,
    ) -> Result<(), CustodyError> {
        let key = self.key(&format!("{PAPERS}{epoch}"))?;
        self.destination.keep(&key, &papers.destination).await?;
        self.source.keep(&key, &papers.source).await
    }

    /// What somebody has deleted at a site since it was written there is written again, where the site
    /// answers: the next machine may need it.
    pub async fn keep_again(&self, epoch: Epoch, papers: &Papers) {
        let at_destination = self.destination_gets_again(epoch, papers).await;
        for kept in [at_destination, self.source_gets_again(epoch, papers).await] {
            if let Err(error) = kept {
                tracing::warn!(error = %chain(&error), "not all that `recover` needs is at the site");
            }
        }
    }

    async fn destination_gets_again(
        &self,
        epoch: Epoch,
        papers: &Papers,
    ) -> Result<(), CustodyError> {
        let key = self.key(&format!("{PAPERS}{epoch}"))?;
        self.destination.keep_again(&key, &papers.destination).await
    }

    async fn source_gets_again(&self, epoch: Epoch, papers: &Papers) -> Result<(), CustodyError> {
        let key = self.key(&format!("{PAPERS}{epoch}"))?;
        self.source.keep_again(&key, &papers.source).await?;
        self.source.keep_unfence_again(&*self.shelf, epoch).await
    }

    /// Under a key of its own, that no other coordinator overwrites: a site need not compare and replace
    /// in one step.
    pub(super) async fn say_that_it_revokes(&self, epoch: Epoch) -> Result<(), CustodyError> {
        if self.is_granted(epoch) {
            return Ok(());
        }
        self.destination.keep(&revoking(&self.vm, epoch)?, b"revoking").await
    }

    pub(super) async fn somebody_revokes(&self, epoch: Epoch) -> Result<bool, CustodyError> {
        Ok(self.destination.kept(&revoking(&self.vm, epoch)?).await?.is_some())
    }

    /// The attempt has come to its end, and nobody needs its papers to bring it there.
    pub async fn forget_papers(&self, epoch: Epoch) {
        let key = self.key(&format!("{PAPERS}{epoch}"));
        for half in [self.source.at(), self.destination.at()] {
            if let Ok(key) = &key {
                forget(&*half, key).await;
            }
        }
    }

    /// It has come to its end at the destination as well: what could be started is gone, or runs.
    pub async fn forget_that_it_revokes(&self, epoch: Epoch) {
        if let Ok(key) = revoking(&self.vm, epoch) {
            forget(&*self.destination.at(), &key).await;
        }
    }

    /// What undid the fences of earlier attempts from here: the VM is released from them since, or it
    /// would not leave again. Not sooner, since a coordinator that was taken for lost may have made one
    /// of them once more.
    pub(super) async fn forget_ended(&self, epoch: Epoch) {
        self.source.forget_unfence(|of| of < epoch).await;
    }

    /// The retired source was deleted: there is nothing left to undo.
    pub async fn forget_fence(&self, epoch: Epoch) {
        self.source.forget_unfence(|of| of == epoch).await;
    }

    fn key(&self, what: &str) -> Result<RecordKey, CustodyError> {
        site_ledger::key(&self.vm, what)
    }
}

fn revoking(vm: &VmKey, epoch: Epoch) -> Result<RecordKey, CustodyError> {
    site_ledger::key(vm, &format!("{REVOKING}{epoch}"))
}

/// Has somebody said at this destination that it calls the attempt off?
pub(crate) async fn is_being_revoked(
    site: &dyn Site,
    vm: &VmKey,
    epoch: Epoch,
) -> Result<bool, CustodyError> {
    let kept = site.kept(&revoking(vm, epoch)?).await;
    let name = || site.name().to_string();
    Ok(kept.map_err(|cause| CustodyError::Site { site: name(), cause })?.is_some())
}

/// What a destination keeps of an attempt that was taken back while it was away, but for its ledger.
pub(crate) async fn forget_what_is_kept(site: &dyn Site, vm: model::VmId, epoch: Epoch) {
    let Ok(vm) = vm.to_string().parse() else { return };
    for what in [PAPERS, REVOKING] {
        if let Ok(key) = site_ledger::key(&vm, &format!("{what}{epoch}")) {
            forget(site, &key).await;
        }
    }
}

/// All papers that a site keeps, by VM; those that cannot be read with the reason.
///
/// # Errors
/// Where the site cannot be asked at all.
pub async fn papers(
    site: &dyn Site,
) -> Result<Vec<(VmKey, Result<Vec<u8>, SiteError>)>, SiteError> {
    let mut found = Vec::new();
    for key in site.kept_keys().await? {
        let of = site_ledger::of_key(&key).filter(|(_, what)| what.starts_with(PAPERS));
        let Some((vm, _)) = of else { continue };
        let Ok(vm) = vm.parse() else { continue };
        match site.kept(&key).await {
            Ok(None) => {}
            Ok(Some(body)) => found.push((vm, Ok(body))),
            Err(error) => found.push((vm, Err(error))),
        }
    }
    Ok(found)
}
