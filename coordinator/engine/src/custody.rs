//! Both sites' ledgers, kept for them by a coordinator that runs the site roles itself.
//!
//! Every question of who may run goes to the roles of crate `handover`; this file makes their
//! records durable in the order in which they are given, and hands the caller what is left to do.
//! The files lie on the operator's machine, outside every disk that is copied.
//!
//! What undoes a fence can be large (it holds the first and last blocks of disks), so it lies in a
//! file of its own, on the disk before the ledger's record that names it by its hash.

mod shelf;

use std::path::{Path, PathBuf};

use handover::{
    Action, Attempt, Attestation, Content, ContentBasis, DestinationEffect, DestinationRequest,
    DestinationRole, DestinationState, Established, Fence, FenceLevel, GrantReceipt, Identity,
    LedgerError, MarkSeen, PlanDigest, Record, Refusal, RevokeReceipt, SourceEffect, SourceRequest,
    SourceRole, SourceState, Unfence, VmKey,
};
use journal::{AppendError, Journal, OpenError, StoreId};
use model::SiteName;
use serde::{Deserialize, Serialize};
use site::{FenceStage, Mark, PlaceholderState, Site, UnfenceRecord};
use thiserror::Error;
use units::{Digest, Epoch, MigrationId};

use shelf::LEDGER;
pub use shelf::{Folder, Shelf};

/// The journal's kind for site ledgers.
pub const LEDGER_KIND: u16 = 1;

#[derive(Debug, Error)]
pub enum CustodyError {
    #[error("cannot open the ledger {}", path.display())]
    Open {
        path: PathBuf,
        #[source]
        cause: OpenError,
    },
    #[error("the ledger {} holds what this version cannot read", path.display())]
    Decode {
        path: PathBuf,
        #[source]
        cause: handover::DecodeError,
    },
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("cannot write the ledger of {site}; this process must stop")]
    Append {
        site: String,
        #[source]
        cause: AppendError,
    },
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("cannot keep {}", path.display())]
    File {
        path: PathBuf,
        #[source]
        cause: std::io::Error,
    },
    #[error("what undoes the fence is not what the ledger recorded: {}", path.display())]
    Tampered { path: PathBuf },
    #[error("not as the ledger needs it: {what}")]
    Unfit { what: String },
}

/// Both ledgers, open and locked.
pub struct Custody {
    shelf: Box<dyn Shelf>,
    vm: VmKey,
    source: Half<SourceRole>,
    destination: Half<DestinationRole>,
    template: Attempt,
}

struct Half<Role> {
    site: String,
    journal: Journal,
    role: Role,
}

/// Names an un-fence record's file in the ledger.
#[derive(Serialize, Deserialize)]
struct UnfenceFile {
    stage: FenceStage,
    file: String,
    blake3: Digest,
}

/// Whose ledgers, and about what.
pub struct CustodyOf {
    pub source: Identity,
    pub destination: Identity,
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
        let (source_site, destination_site) =
            (of.source.site.to_string(), of.destination.site.to_string());
        let (journal, records) = open_ledger(&*shelf, &source_site, source_id)?;
        let role = SourceRole::replay(of.source, of.vm.clone(), &records)?;
        let source = Half { site: source_site, journal, role };
        let (journal, records) = open_ledger(&*shelf, &destination_site, destination_id)?;
        let role = DestinationRole::replay(of.destination, of.vm.clone(), &records)?;
        let destination = Half { site: destination_site, journal, role };
        Ok(Self { shelf, vm: of.vm, source, destination, template })
    }

    /// Opens the next attempt in both ledgers, the destination's first: whoever finds leftovers at
    /// the destination finds the record as well.
    pub async fn open_attempt(
        &mut self,
        source: &dyn Site,
        destination: &dyn Site,
        vm: model::VmId,
    ) -> Result<Epoch, CustodyError> {
        let mark = mark_seen(destination, vm).await;
        let source_mark = match source.placeholder(vm).await {
            // Never moved by us: there is no mark that it could bear.
            Ok(PlaceholderState::Foreign { .. }) => MarkSeen::NoPlaceholder,
            _ => mark_seen(source, vm).await,
        };
        let next = || Epoch(self.last_epoch().0 + 1);
        let epoch = self.attempt_under_way().unwrap_or_else(next);
        let attempt = self.attempt(epoch);
        // Both are asked before either records: a refusal leaves nothing half open.
        let at_destination = self.destination.role.open(&attempt, &mark)?;
        let at_source = self.source.role.open(&attempt, &source_mark)?;
        self.carry_destination(at_destination)?;
        self.carry_source(at_source)?;
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
        let ours = self.destination.role.attempt(last) == Some(&self.attempt(last));
        let ended = matches!(self.destination_state(last), DestinationState::Revoked(_))
            && !matches!(
                self.source_state(last),
                S::Fencing | S::Fenced(_) | S::Released { settled: false }
            );
        (ours && !ended).then_some(last)
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
    pub fn destination(
        &mut self,
        epoch: Epoch,
        request: DestinationRequest,
        mark: &MarkSeen,
    ) -> Result<Vec<DestinationEffect>, CustodyError> {
        let actions = self.destination.role.step(epoch, request, mark)?;
        self.carry_destination(actions)
    }

    /// A request to the source's role.
    pub fn source(
        &mut self,
        epoch: Epoch,
        request: SourceRequest,
    ) -> Result<Vec<SourceEffect>, CustodyError> {
        let actions = self.source.role.step(epoch, request)?;
        self.carry_source(actions)
    }

    /// What undoes this stage is on the disk, then the intent is in the ledger.
    pub fn fence_intent(
        &mut self,
        epoch: Epoch,
        record: &UnfenceRecord,
        content: &[Digest],
    ) -> Result<(), CustodyError> {
        let unfence = self.keep(epoch, record)?;
        let request = match record.stage {
            FenceStage::Definition => {
                SourceRequest::Fence { unfence, content: Some(content_of(content)?) }
            }
            FenceStage::Disks => SourceRequest::FenceFurther { unfence },
        };
        self.source(epoch, request)?;
        Ok(())
    }

    /// The un-fence record of a stage, if it was captured in this epoch.
    pub fn unfence_record(
        &self,
        epoch: Epoch,
        stage: FenceStage,
    ) -> Result<Option<UnfenceRecord>, CustodyError> {
        for unfence in self.source.role.unfence(epoch) {
            let named: UnfenceFile = serde_json::from_slice(unfence.as_bytes())
                .map_err(|error| CustodyError::Unfit { what: error.to_string() })?;
            if named.stage != stage {
                continue;
            }
            let site = &self.source.site;
            let path = || self.shelf.path(site, &named.file);
            let body = self.shelf.kept(site, &named.file);
            let body = body.map_err(|cause| CustodyError::File { path: path(), cause })?;
            let tampered = || CustodyError::Tampered { path: path() };
            if Digest(*blake3::hash(&body).as_bytes()) != named.blake3 {
                return Err(tampered());
            }
            return serde_json::from_slice(&body).map(Some).map_err(|_| tampered());
        }
        Ok(None)
    }

    /// The fence was looked at and holds.
    pub fn fenced(
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
        self.source(epoch, SourceRequest::FenceHolds(fence))?;
        Ok(())
    }

    /// The decision. Write-once: whoever asks again gets the same receipt.
    pub fn grant(&mut self, epoch: Epoch, mark: &MarkSeen) -> Result<GrantReceipt, CustodyError> {
        let SourceState::Fenced(receipt) = self.source.role.state(epoch) else {
            return Err(CustodyError::Unfit { what: "the source is not fenced".to_owned() });
        };
        let effects = self.destination(epoch, DestinationRequest::Grant(receipt), mark)?;
        let granted = effects.into_iter().find_map(|effect| match effect {
            DestinationEffect::WriteMark(grant) | DestinationEffect::SendGranted(grant) => {
                Some(grant)
            }
            _ => None,
        });
        granted.ok_or_else(|| CustodyError::Unfit { what: "granted without a receipt".to_owned() })
    }

    /// The destination gives up, for good. The receipt is the source's right to run again.
    pub fn revoke(
        &mut self,
        epoch: Epoch,
        mark: &MarkSeen,
        attested: Option<Attestation>,
    ) -> Result<RevokeReceipt, CustodyError> {
        let request = DestinationRequest::Revoke { attested };
        let effects = self.destination(epoch, request, mark)?;
        let revoked = effects.into_iter().find_map(|effect| match effect {
            DestinationEffect::SendRevoked(receipt) => Some(receipt),
            _ => None,
        });
        revoked.ok_or_else(|| CustodyError::Unfit { what: "revoked without a receipt".to_owned() })
    }

    /// The grant receipt that leaves the destination once the mark stands.
    pub fn granted(&self, epoch: Epoch) -> Option<GrantReceipt> {
        match self.destination.role.state(epoch) {
            DestinationState::Marked(receipt)
            | DestinationState::Started(receipt)
            | DestinationState::Healthy(receipt) => Some(receipt),
            _ => None,
        }
    }

    /// Was it decided for the destination, marked or not?
    pub fn is_granted(&self, epoch: Epoch) -> bool {
        self.granted(epoch).is_some()
            || matches!(self.destination.role.state(epoch), DestinationState::Granted(_))
    }

    fn attempt(&self, epoch: Epoch) -> Attempt {
        Attempt { epoch, ..self.template.clone() }
    }

    /// Writes what undoes a fence where a crash cannot take half of it.
    fn keep(&self, epoch: Epoch, record: &UnfenceRecord) -> Result<Unfence, CustodyError> {
        let stage = match record.stage {
            FenceStage::Definition => "definition",
            FenceStage::Disks => "disks",
        };
        let file = format!("unfence-{}-{epoch}-{stage}.json", self.vm);
        let site = &self.source.site;
        let unfit = |error: &dyn std::fmt::Display| CustodyError::Unfit { what: error.to_string() };
        let body = serde_json::to_vec(record).map_err(|error| unfit(&error))?;
        self.shelf
            .keep(site, &file, &body)
            .map_err(|cause| CustodyError::File { path: self.shelf.path(site, &file), cause })?;
        let named = UnfenceFile {
            stage: record.stage,
            file,
            blake3: Digest(*blake3::hash(&body).as_bytes()),
        };
        let bytes = serde_json::to_vec(&named).map_err(|error| unfit(&error))?;
        Unfence::new(bytes).map_err(|error| unfit(&error))
    }

    fn carry_source(
        &mut self,
        actions: Vec<Action<SourceEffect>>,
    ) -> Result<Vec<SourceEffect>, CustodyError> {
        let (records, effects) = split(actions)?;
        for record in records {
            append(&mut self.source.journal, &self.source.site, &record)?;
            self.source.role.apply(&record)?;
        }
        Ok(effects)
    }

    fn carry_destination(
        &mut self,
        actions: Vec<Action<DestinationEffect>>,
    ) -> Result<Vec<DestinationEffect>, CustodyError> {
        let (records, effects) = split(actions)?;
        for record in records {
            append(&mut self.destination.journal, &self.destination.site, &record)?;
            self.destination.role.apply(&record)?;
        }
        Ok(effects)
    }
}

/// What the placeholder shows now. That it could not be asked is an answer too.
pub async fn mark_seen(site: &dyn Site, vm: model::VmId) -> MarkSeen {
    let placeholder_of = match site.placeholder(vm).await {
        Ok(PlaceholderState::Absent) => return MarkSeen::NoPlaceholder,
        Ok(PlaceholderState::Foreign { .. }) | Err(_) => return MarkSeen::Unknown,
        Ok(PlaceholderState::Held { epoch, .. } | PlaceholderState::Released { epoch, .. }) => {
            epoch
        }
    };
    match site.read_mark(vm).await {
        Ok(None) => MarkSeen::Absent { placeholder_of },
        Ok(Some(mark)) => mark.receipt.parse().map_or(MarkSeen::Unknown, MarkSeen::Present),
        Err(_) => MarkSeen::Unknown,
    }
}

/// The receipt as it is written on the placeholder.
pub fn mark_of(migration: &MigrationId, epoch: Epoch, receipt: &GrantReceipt) -> Mark {
    Mark { migration: migration.clone(), epoch, receipt: receipt.to_string() }
}

/// A site's ledger, read without taking its lock; `None` where there is none, or its creation was cut
/// short. A ledger that is not there proves nothing, while an empty one would.
pub fn read_ledger(folder: &Path, site: &SiteName) -> Result<Option<Vec<Record>>, CustodyError> {
    let path = Folder(folder.to_owned()).path(site.as_str(), LEDGER);
    let contents = match journal::read(&path) {
        // What cannot be looked at may well be there.
        Err(OpenError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => None,
        read => read.map_err(|cause| CustodyError::Open { path: path.clone(), cause })?,
    };
    contents.map(|contents| decode(&path, &contents.records)).transpose()
}

fn open_ledger(
    shelf: &dyn Shelf,
    site: &str,
    id: StoreId,
) -> Result<(Journal, Vec<Record>), CustodyError> {
    let path = || shelf.path(site, LEDGER);
    let opened = shelf.ledger(site).and_then(|on| Journal::open_on(on, LEDGER_KIND, id));
    let opened = opened.map_err(|cause| CustodyError::Open { path: path(), cause })?;
    if let Some(torn) = opened.torn {
        tracing::info!(?torn, site, "an interrupted ledger record was cut off");
    }
    Ok((opened.journal, decode(&path(), &opened.records)?))
}

fn decode(path: &Path, records: &[journal::Record]) -> Result<Vec<Record>, CustodyError> {
    let decode = |record: &journal::Record| Record::decode(record.kind, &record.payload);
    let records = records.iter().map(decode).collect::<Result<_, _>>();
    records.map_err(|cause| CustodyError::Decode { path: path.to_owned(), cause })
}

fn append(journal: &mut Journal, site: &str, record: &Record) -> Result<(), CustodyError> {
    let (kind, payload) = record.encode();
    journal
        .append(kind, &payload)
        .map_err(|cause| CustodyError::Append { site: site.to_owned(), cause })?;
    Ok(())
}

/// Records before effects: a role never asks for a record after an effect, and if it did, the
/// effect would have to be done first by someone who is not here.
fn split<E>(actions: Vec<Action<E>>) -> Result<(Vec<Record>, Vec<E>), CustodyError> {
    let (mut records, mut effects) = (Vec::new(), Vec::new());
    for action in actions {
        match action {
            Action::Record(record) if effects.is_empty() => records.push(record),
            Action::Record(_) => {
                return Err(CustodyError::Unfit { what: "a record behind an effect".to_owned() });
            }
            Action::Effect(effect) => effects.push(effect),
        }
    }
    Ok((records, effects))
}

fn content_of(digests: &[Digest]) -> Result<Content, CustodyError> {
    Content::new(digests.to_vec()).map_err(|error| CustodyError::Unfit { what: error.to_string() })
}
