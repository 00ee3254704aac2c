//! What undoes a fence, as JSON.

use jiff::Timestamp;
use model::VmId;
use serde::{Deserialize, Serialize};
use site::{FenceStage, UnfenceRecord};
use uuid::Uuid;

use crate::fault::Fault;
use crate::xml::FencedDisk;

/// The only layout so far.
const VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub version: u32,
    /// Stands in the fenced definition and in the notices on the disks.
    pub id: String,
    pub vm: VmId,
    /// The VM's name before.
    pub name: String,
    pub taken: Timestamp,
    pub stage: Stage,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Stage {
    Definition(SavedDefinition),
    Disks(SavedDisks),
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SavedDefinition {
    /// libvirt's own text of it, secrets included: put back as it was.
    pub xml: String,
    pub persistent: bool,
    pub autostart: bool,
    /// The writable disks, kept in the fenced definition for the second stage.
    pub disks: Vec<FencedDisk>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SavedDisks {
    pub disks: Vec<SavedDisk>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SavedDisk {
    pub target: String,
    pub path: String,
    pub pieces: Vec<Piece>,
    /// What is done on the host itself.
    pub host: Option<HostMeans>,
}

/// Bytes that the notice replaces.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Piece {
    pub offset: u64,
    #[serde(with = "hex")]
    pub bytes: Vec<u8>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct HostMeans {
    pub renamed_to: String,
    /// Can the file system forbid changes of a file?
    pub immutable: bool,
}

impl Record {
    pub(super) fn new(vm: VmId, name: String, stage: Stage) -> Self {
        let id = Uuid::new_v4().to_string();
        Self { version: VERSION, id, vm, name, taken: Timestamp::now(), stage }
    }

    pub(super) fn into_stored(self, stage: FenceStage) -> Result<UnfenceRecord, Fault> {
        let body = serde_json::to_string(&self)
            .map_err(|cause| Fault::internal(format!("a record cannot be written: {cause}")))?;
        Ok(UnfenceRecord { stage, body })
    }

    pub(super) fn read(stored: &UnfenceRecord, vm: VmId) -> Result<Self, Fault> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let unreadable =
            |cause| Fault::internal(format!("the fence's record cannot be read: {cause}"));
        let Version { version } = serde_json::from_str(&stored.body).map_err(unreadable)?;
        if version != VERSION {
            let what = format!("the fence's record is of version {version}, not {VERSION}");
            return Err(Fault::found(site::SiteErrorKind::Unsupported, what)
                .hint("use the release of causeway that made the fence"));
        }
        let record: Self = serde_json::from_str(&stored.body).map_err(unreadable)?;
        if record.vm != vm {
            return Err(Fault::internal(format!("the record is of VM {}, not {vm}", record.vm)));
        }
        Ok(record)
    }

    /// `None`: a record of the definition.
    pub(super) const fn disks(&self) -> Option<&SavedDisks> {
        match &self.stage {
            Stage::Disks(saved) => Some(saved),
            Stage::Definition(_) => None,
        }
    }

    /// The day on which the fence was captured: `20261120`, in UTC.
    pub(super) fn day(&self) -> String {
        self.taken.strftime("%Y%m%d").to_string()
    }
}
