//! What undoes a fence: beside the ledger, which names it, and at the site.

use handover::{SourceRole, Unfence};
use serde::{Deserialize, Serialize};
use site::{FenceStage, UnfenceRecord};
use units::{Digest, Epoch, chain};

use crate::copy::{forget, key, of_key};
use crate::error::CustodyError;
use crate::shelf::Shelf;
use crate::site_ledger::SiteLedger;

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

/// In the name of such a record.
const UNFENCE: &str = "unfence-";

impl SiteLedger<SourceRole> {
    /// Writes what undoes a fence where a crash cannot take half of it, here and at the site.
    pub async fn keep_unfence(
        &self,
        shelf: &dyn Shelf,
        epoch: Epoch,
        record: &UnfenceRecord,
    ) -> Result<Unfence, CustodyError> {
        let unfit = |error: &dyn std::fmt::Display| CustodyError::Unfit { what: error.to_string() };
        let body = serde_json::to_vec(record).map_err(|error| unfit(&error))?;
        let named = Named::of(record.stage, &body);
        let (site, name) = (&self.name, named.name(epoch));
        shelf
            .keep(site, &name, &body)
            .map_err(|cause| CustodyError::File { path: shelf.path(site, &name), cause })?;
        self.keep(&key(self.vm(), &name)?, &body).await?;
        let bytes = serde_json::to_vec(&named).map_err(|error| unfit(&error))?;
        Unfence::new(bytes).map_err(|error| unfit(&error))
    }

    /// The un-fence record of a stage, if it was captured in this epoch.
    pub async fn unfence_record(
        &self,
        shelf: &dyn Shelf,
        epoch: Epoch,
        stage: FenceStage,
    ) -> Result<Option<UnfenceRecord>, CustodyError> {
        match self.undone_by(epoch)?.iter().find(|named| named.stage == stage) {
            Some(named) => self.unfence_named(shelf, epoch, named).await.map(Some),
            None => Ok(None),
        }
    }

    /// From here, or where it is lost, from the site.
    async fn unfence_named(
        &self,
        shelf: &dyn Shelf,
        epoch: Epoch,
        named: &Named,
    ) -> Result<UnfenceRecord, CustodyError> {
        let (site, name) = (&self.name, named.name(epoch));
        let path = || shelf.path(site, &name);
        let read = |body: &[u8]| {
            let is_it = Named::of(named.stage, body).blake3 == named.blake3;
            let record = serde_json::from_slice(body).ok().filter(|_| is_it);
            record.ok_or_else(|| CustodyError::Tampered { path: path() })
        };
        let cause = match shelf.kept(site, &name) {
            Ok(body) => return read(&body),
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => cause,
            Err(cause) => return Err(CustodyError::File { path: path(), cause }),
        };
        let there = self.kept(&key(self.vm(), &name)?).await?;
        let body = there.ok_or_else(|| CustodyError::File { path: path(), cause })?;
        let record = read(&body)?;
        let kept = shelf.keep(site, &name, &body);
        kept.map_err(|cause| CustodyError::File { path: path(), cause })?;
        Ok(record)
    }

    /// What the ledger names as undoing the fence.
    fn undone_by(&self, epoch: Epoch) -> Result<Vec<Named>, CustodyError> {
        let unfit = |error: serde_json::Error| CustodyError::Unfit { what: error.to_string() };
        let records = self.role.unfence(epoch);
        records
            .iter()
            .map(|record| serde_json::from_slice(record.as_bytes()).map_err(unfit))
            .collect()
    }

    /// What lies on this machine of what undoes the fence is written at the site again, where somebody
    /// has deleted it.
    pub async fn keep_unfence_again(
        &self,
        shelf: &dyn Shelf,
        epoch: Epoch,
    ) -> Result<(), CustodyError> {
        for named in self.undone_by(epoch)? {
            let name = named.name(epoch);
            // What is not here any more is looked for at the site when it is needed.
            if let Ok(body) = shelf.kept(&self.name, &name) {
                self.keep_again(&key(self.vm(), &name)?, &body).await?;
            }
        }
        Ok(())
    }

    /// What nobody needs any more of what undid the fences of these attempts, at the site.
    pub async fn forget_unfence(&self, of: impl Fn(Epoch) -> bool) {
        let site = self.at();
        let keys = match site.kept_keys().await {
            Ok(keys) => keys,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "records that nobody needs are left");
                return;
            }
        };
        for key in keys {
            let named = of_key(&key).filter(|(vm, _)| *vm == self.vm().as_str());
            let rest = named.and_then(|(_, what)| what.strip_prefix(UNFENCE));
            let epoch = rest.and_then(|rest| rest.split('-').next()?.parse().ok()).map(Epoch);
            if epoch.is_some_and(&of) {
                forget(&*site, &key).await;
            }
        }
    }
}
