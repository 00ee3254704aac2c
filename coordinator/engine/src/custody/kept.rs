//! What a site keeps of a VM besides its ledger: what undoes its fence, and the papers of a migration.

use handover::{Unfence, VmKey};
use serde::{Deserialize, Serialize};
use site::{FenceStage, RecordKey, Site, SiteError, UnfenceRecord};
use units::{Digest, Epoch, chain};

use super::{Custody, CustodyError};

/// What `recover` needs of a migration besides the ledgers, as each site is to keep it. Sealed for
/// this crate: whoever runs it writes and reads them.
#[derive(Clone, Debug, Default)]
pub struct Papers {
    pub source: Vec<u8>,
    pub destination: Vec<u8>,
}

/// Names an un-fence record in the ledger.
#[derive(Serialize, Deserialize)]
struct Named {
    stage: FenceStage,
    blake3: Digest,
}

impl Named {
    fn of(stage: FenceStage, body: &[u8]) -> Self {
        Self { stage, blake3: Digest(*blake3::hash(body).as_bytes()) }
    }

    /// Its name at both places. It goes by what is in it, so that no other ever takes its place.
    fn name(&self, epoch: Epoch) -> String {
        let stage = match self.stage {
            FenceStage::Definition => "definition",
            FenceStage::Disks => "disks",
        };
        let hash: String = self.blake3.to_string().chars().take(16).collect();
        format!("{UNFENCE}{epoch}-{stage}-{hash}")
    }
}

const UNFENCE: &str = "unfence-";
const PAPERS: &str = "papers-";
const REVOKING: &str = "revoking-";

impl Custody {
    /// Writes what undoes a fence where a crash cannot take half of it, here and at the site.
    pub(super) async fn keep_unfence(
        &self,
        epoch: Epoch,
        record: &UnfenceRecord,
    ) -> Result<Unfence, CustodyError> {
        let unfit = |error: &dyn std::fmt::Display| CustodyError::Unfit { what: error.to_string() };
        let body = serde_json::to_vec(record).map_err(|error| unfit(&error))?;
        let named = Named::of(record.stage, &body);
        let (site, name) = (&self.source.name, named.name(epoch));
        self.shelf
            .keep(site, &name, &body)
            .map_err(|cause| CustodyError::File { path: self.shelf.path(site, &name), cause })?;
        self.source.keep(&self.key(&name)?, &body).await?;
        let bytes = serde_json::to_vec(&named).map_err(|error| unfit(&error))?;
        Unfence::new(bytes).map_err(|error| unfit(&error))
    }

    /// The un-fence record of a stage, if it was captured in this epoch.
    pub async fn unfence_record(
        &self,
        epoch: Epoch,
        stage: FenceStage,
    ) -> Result<Option<UnfenceRecord>, CustodyError> {
        match self.undone_by(epoch)?.iter().find(|named| named.stage == stage) {
            Some(named) => self.unfence_named(epoch, named).await.map(Some),
            None => Ok(None),
        }
    }

    /// From here, or where it is lost, from the site.
    async fn unfence_named(
        &self,
        epoch: Epoch,
        named: &Named,
    ) -> Result<UnfenceRecord, CustodyError> {
        let (site, name) = (&self.source.name, named.name(epoch));
        let path = || self.shelf.path(site, &name);
        let read = |body: &[u8]| {
            let is_it = Named::of(named.stage, body).blake3 == named.blake3;
            let record = serde_json::from_slice(body).ok().filter(|_| is_it);
            record.ok_or_else(|| CustodyError::Tampered { path: path() })
        };
        let cause = match self.shelf.kept(site, &name) {
            Ok(body) => return read(&body),
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => cause,
            Err(cause) => return Err(CustodyError::File { path: path(), cause }),
        };
        let there = self.source.kept(&self.key(&name)?).await?;
        let body = there.ok_or_else(|| CustodyError::File { path: path(), cause })?;
        let record = read(&body)?;
        let kept = self.shelf.keep(site, &name, &body);
        kept.map_err(|cause| CustodyError::File { path: path(), cause })?;
        Ok(record)
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
        for named in self.undone_by(epoch)? {
            let name = named.name(epoch);
            // What is not here any more is looked for at the site when it is needed.
            if let Ok(body) = self.shelf.kept(&self.source.name, &name) {
                self.source.keep_again(&self.key(&name)?, &body).await?;
            }
        }
        Ok(())
    }

    /// What the ledger names as undoing the fence.
    fn undone_by(&self, epoch: Epoch) -> Result<Vec<Named>, CustodyError> {
        let unfit = |error: serde_json::Error| CustodyError::Unfit { what: error.to_string() };
        let records = self.source.role.unfence(epoch);
        records
            .iter()
            .map(|record| serde_json::from_slice(record.as_bytes()).map_err(unfit))
            .collect()
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
        self.forget_unfence(|of| of < epoch).await;
    }

    /// The retired source was deleted: there is nothing left to undo.
    pub async fn forget_fence(&self, epoch: Epoch) {
        self.forget_unfence(|of| of == epoch).await;
    }

    async fn forget_unfence(&self, of: impl Fn(Epoch) -> bool) {
        let site = self.source.at();
        let Ok(prefix) = self.key(UNFENCE) else { return };
        let keys = match site.kept_keys().await {
            Ok(keys) => keys,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "records that nobody needs are left");
                return;
            }
        };
        for key in keys {
            let rest = key.as_str().strip_prefix(prefix.as_str());
            let epoch = rest.and_then(|rest| rest.split('-').next()?.parse().ok()).map(Epoch);
            if epoch.is_some_and(&of) {
                forget(&*site, &key).await;
            }
        }
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

/// That it cannot be removed harms nobody.
async fn forget(site: &dyn Site, key: &RecordKey) {
    if let Err(error) = site.forget(key).await {
        tracing::warn!(%key, error = %chain(&error), "a record that nobody needs is left");
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
        let of = key.as_str().strip_prefix("vm/").and_then(|rest| rest.split_once('/'));
        let Some((vm, _)) = of.filter(|(_, what)| what.starts_with(PAPERS)) else { continue };
        let Ok(vm) = vm.parse() else { continue };
        match site.kept(&key).await {
            Ok(None) => {}
            Ok(Some(body)) => found.push((vm, Ok(body))),
            Err(error) => found.push((vm, Err(error))),
        }
    }
    Ok(found)
}
