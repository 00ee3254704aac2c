//! What a cloud must be able to do to take part: the narrow waist between the engine and the
//! clouds.
//!
//! To add a cloud, implement [`Site`] in a crate of its own and run the conformance suite over it;
//! `adapters/memory` is the one to copy. An adapter knows its cloud and nothing of plans, phases
//! or journals. Where clouds differ, the engine asks for a [`model::Capability`], never for the
//! kind of cloud.
//!
//! Rules for every method:
//! * *Repeatable*: doing it again after an answer got lost must be harmless. What already is as
//!   asked is success.
//! * *No guess*: where the platform's answer leaves open whether something happened, the error's
//!   [`SiteError::remedy`] is [`Remedy::Reconcile`] and the caller looks before it acts.
//! * *No data lost*: nothing here overwrites or removes a disk that this migration did not create,
//!   except [`Site::fence_apply`], which is given the record that undoes it, already stored.

pub mod conformance;

mod belongings;
mod error;
mod guest;
mod live;
mod placeholder;
mod record;
mod stream;

pub use belongings::{Belongings, UefiVariables};
pub use error::{Remedy, SiteError, SiteErrorKind};
pub use guest::{GuestAccess, GuestProbe, Privilege};
pub use live::{LiveJob, LivePart, LiveWish};
pub use placeholder::{
    ApplianceFiles, ApplianceRef, CreatedDisk, Leftover, Mark, NewDisk, NewNic, PlaceholderSpec,
    PlaceholderState,
};
pub use record::{RECORD_MAX, RecordKey, RecordKeyError};
pub use stream::{ByteIo, ByteStream};

use async_trait::async_trait;
use model::{FenceOffer, PoolOffer, Power, SiteName, SiteReport, Vm, VmId, WriteCount};
use serde::{Deserialize, Serialize};
use units::{Epoch, MigrationId};

/// A cloud, as the operator's credentials reach it.
#[async_trait]
pub trait Site: Send + Sync {
    fn name(&self) -> &SiteName;

    /// What is there and what it can do. Changes nothing.
    async fn probe(&self) -> Result<SiteReport, SiteError>;

    /// One storage pool, as [`Site::probe`] has it. `None`, or an error in the platform's words: there is none of that
    /// name.
    async fn pool(&self, name: &str) -> Result<Option<PoolOffer>, SiteError> {
        Ok(self.probe().await?.pools.into_iter().find(|pool| pool.name == name))
    }

    /// Names and ids of every VM, running or not.
    async fn vms(&self) -> Result<Vec<(VmId, String)>, SiteError>;

    /// One VM by name or id.
    ///
    /// # Errors
    /// [`SiteErrorKind::NotFound`] names what is there instead.
    async fn vm(&self, name_or_id: &str) -> Result<Vm, SiteError>;

    // --- power, at both roles -----------------------------------------------------------------

    /// [`Power::Absent`] is an answer, not an error; an unreachable site is an error.
    async fn power(&self, vm: VmId) -> Result<Power, SiteError>;

    /// How a VM that is off came to a stop. None: not off, or nobody knows (the host or its daemon
    /// began anew).
    async fn stopped_by(&self, vm: VmId) -> Result<Option<StoppedBy>, SiteError>;

    /// What runs a VM, where this program is on its machine and can see it: its end is seen sooner than the
    /// platform tells of it. `None`: it cannot, or the VM is not loaded.
    async fn process(&self, _vm: VmId) -> Result<Option<Box<dyn VmProcess>>, SiteError> {
        Ok(None)
    }

    /// Stops the virtual CPUs; nothing runs or writes until [`Site::resume`].
    async fn suspend(&self, vm: VmId) -> Result<(), SiteError>;

    async fn resume(&self, vm: VmId) -> Result<(), SiteError>;

    /// Off at once, as if the cord were pulled. Returns when the platform says that it is off.
    async fn power_off(&self, vm: VmId) -> Result<(), SiteError>;

    async fn power_on(&self, vm: VmId) -> Result<(), SiteError>;

    /// Writes counted by the platform, of every writable disk of a running or suspended VM.
    async fn write_counts(&self, vm: VmId) -> Result<Vec<WriteCount>, SiteError>;

    // --- records, at both roles ---------------------------------------------------------------

    /// Keeps a record here, outside every disk that is moved, in place of `expected` (`None`: in
    /// place of nothing). All of it is there afterwards or what was before, and it survives a
    /// restart of the platform's daemon and of its host. Readable by those who administer the site
    /// and by nobody else. A record that is `body` already is success.
    ///
    /// # Errors
    /// [`SiteErrorKind::Conflict`] where the record is neither `body` nor `expected`, and
    /// [`SiteErrorKind::Exhausted`] beyond [`RECORD_MAX`]; nothing is changed then.
    async fn keep(
        &self,
        key: &RecordKey,
        expected: Option<&[u8]>,
        body: &[u8],
    ) -> Result<(), SiteError>;

    /// The record, whole; `None` where there is none.
    async fn kept(&self, key: &RecordKey) -> Result<Option<Vec<u8>>, SiteError>;

    /// The keys of everything that any coordinator keeps here, sorted.
    async fn kept_keys(&self) -> Result<Vec<RecordKey>, SiteError>;

    /// What is gone already is success.
    async fn forget(&self, key: &RecordKey) -> Result<(), SiteError>;

    // --- fence, at the source -----------------------------------------------------------------

    /// How this VM would be fenced here, and what that does not stop. Changes nothing.
    async fn fence_offer(&self, vm: VmId) -> Result<FenceOffer, SiteError>;

    /// All that is needed to undo `stage`. Changes nothing. The caller stores it durably before
    /// [`Site::fence_apply`].
    async fn fence_capture(&self, vm: VmId, stage: FenceStage) -> Result<UnfenceRecord, SiteError>;

    /// Makes the VM start-proof. [`FenceStage::Disks`] needs the VM to be off and refuses otherwise.
    async fn fence_apply(&self, vm: VmId, record: &UnfenceRecord) -> Result<(), SiteError>;

    /// Whether every means of `record`'s stage is in place now.
    async fn fence_holds(&self, vm: VmId, record: &UnfenceRecord) -> Result<bool, SiteError>;

    /// Undoes [`Site::fence_apply`] from the record alone, in whole or what there is of it.
    async fn fence_undo(&self, vm: VmId, record: &UnfenceRecord) -> Result<(), SiteError>;

    /// Renames a fenced source so that people see that it moved; keeps its disks and its fence.
    /// Returns its new name.
    async fn retire(&self, vm: VmId, record: &UnfenceRecord) -> Result<String, SiteError>;

    /// Deletes a fenced source for good: disks that `records` fenced, then the definition. Refuses,
    /// and deletes nothing, where anything is not as the fence left it. What is gone already is
    /// success. The one call that deletes what no migration made: the caller has made sure that
    /// another copy is the good one, and has asked. `moved` are the targets of which there is one: a
    /// fenced disk that is none of them is refused, with [`SiteErrorKind::Conflict`].
    async fn discard(
        &self,
        vm: VmId,
        records: &[UnfenceRecord],
        moved: &[String],
    ) -> Result<Discarded, SiteError>;

    // --- placeholder and helper, at the destination -------------------------------------------

    /// Makes the appliance's kernel and initramfs bootable here. Kept for later migrations.
    async fn put_appliance(&self, files: &ApplianceFiles) -> Result<ApplianceRef, SiteError>;

    /// Creates the volume, all zeros; a volume of that name, size and migration is taken as it is.
    async fn create_disk(
        &self,
        migration: &MigrationId,
        disk: &NewDisk,
    ) -> Result<CreatedDisk, SiteError>;

    /// Defines the VM to come in its held form: same id and name, helper's kernel, target disks,
    /// no card of the guest, never started by itself. Not running afterwards.
    async fn define_placeholder(&self, spec: &PlaceholderSpec) -> Result<(), SiteError>;

    async fn placeholder(&self, vm: VmId) -> Result<PlaceholderState, SiteError>;

    /// Boots the helper in the placeholder; harmless where it already runs.
    async fn start_helper(&self, vm: VmId) -> Result<(), SiteError>;

    /// A byte stream into the helper, over the operator's own management connection. `port` counts
    /// from 0. Taking over from an earlier stream that may still be open is the caller's decision.
    async fn open_channel(
        &self,
        vm: VmId,
        port: u16,
        takeover: Takeover,
    ) -> Result<ByteStream, SiteError>;

    /// Writes the decision onto the placeholder itself: a second place that remembers it. Write
    /// once: another mark there is [`SiteErrorKind::Conflict`].
    async fn write_mark(&self, vm: VmId, mark: &Mark) -> Result<(), SiteError>;

    async fn read_mark(&self, vm: VmId) -> Result<Option<Mark>, SiteError>;

    /// Redefines the placeholder as the VM proper (own disk, cards, mark kept) and starts it.
    /// Refuses without a mark. Harmless where it already runs from its own disk.
    async fn start_from_own_disk(&self, spec: &PlaceholderSpec) -> Result<(), SiteError>;

    /// What this migration made here and has not removed: placeholder, volumes.
    async fn leftovers(&self, migration: &MigrationId) -> Result<Vec<Leftover>, SiteError>;

    /// Removes one of them. Refuses a placeholder that bears a mark. What is gone already is
    /// success.
    async fn remove(&self, leftover: &Leftover) -> Result<(), SiteError>;

    /// What the platform keeps of a VM that never came to be here, by its own live migration, goes.
    async fn remove_belongings(
        &self,
        _migration: &MigrationId,
        _epoch: Epoch,
        _vm: VmId,
        _belongings: &Belongings,
    ) -> Result<(), SiteError> {
        Err(no_live_migration(self.name()))
    }

    // --- its own live migration, at the source ------------------------------------------------

    /// Moves a running VM live by the platform's own workflow, memory and disks, and returns when that has
    /// ended it, either way. What it returns is the platform's word alone: where the VM lives the ledgers
    /// say, and the mobility agents keep them.
    async fn migrate_live(&self, _vm: VmId, _wish: &LiveWish) -> Result<(), SiteError> {
        Err(no_live_migration(self.name()))
    }

    /// How long a running VM may stand still at the end of one, in milliseconds, as its hypervisor has it.
    async fn max_downtime_ms(&self, _vm: VmId) -> Result<u64, SiteError> {
        Err(no_live_migration(self.name()))
    }

    /// Also while one is under way. The hypervisor keeps it for as long as the VM runs there.
    async fn allow_downtime_ms(&self, _vm: VmId, _most: u64) -> Result<(), SiteError> {
        Err(no_live_migration(self.name()))
    }

    /// How it gets on; `None`: none is under way.
    async fn live_job(&self, _vm: VmId) -> Result<Option<LiveJob>, SiteError> {
        Err(no_live_migration(self.name()))
    }

    /// How the last one went, at either site; `None`: the platform does not remember.
    async fn last_live_job(&self, _vm: VmId) -> Result<Option<LiveJob>, SiteError> {
        Err(no_live_migration(self.name()))
    }

    /// Calls it off; [`Site::migrate_live`] then returns. Harmless where none is under way.
    async fn cancel_live(&self, _vm: VmId) -> Result<(), SiteError> {
        Err(no_live_migration(self.name()))
    }
}

/// One life of a VM, from the machine that it is on.
#[async_trait]
pub trait VmProcess: Send + Sync {
    /// Whether a definition outlives it, by which the VM can be started again.
    fn is_persistent(&self) -> bool;

    /// Returns once it has ended, by whatever: what it had open is closed, and it writes nothing any more.
    async fn ended(&self);
}

fn no_live_migration(site: &SiteName) -> SiteError {
    SiteError {
        site: site.clone(),
        kind: SiteErrorKind::Unsupported,
        attempt: "migrate live".to_owned(),
        what: "this cloud has no live migration that causeway drives".to_owned(),
        hint: Some("use --method guest".to_owned()),
        remedy: Remedy::GiveUp,
        source: None,
    }
}

/// What brought a VM to its stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StoppedBy {
    /// Powered off hard, by an API call (ours or somebody's).
    PoweredOff,
    /// From inside or by request: it went on running until its end.
    Shutdown,
    Crashed,
    /// Its memory was saved: a start goes on from there.
    Saved,
    /// It went on at another host, by the platform's own live migration.
    Migrated,
    Other,
}

/// Fences are made in two stages, because the second can only be captured from a stopped VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FenceStage {
    /// The definition: from here on a start fails, however the VM stopped. Applied while the VM
    /// still runs.
    Definition,
    /// The disks: from here on nothing else can use them either. Applied once the VM is off.
    Disks,
}

/// What undoes one stage of a fence: written by the adapter, understood by it alone, stored by the
/// caller outside the disks being copied before the stage is applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnfenceRecord {
    pub stage: FenceStage,
    /// JSON of the adapter's own, with a version in it.
    pub body: String,
}

/// What became of a retired source, in words for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Discarded {
    pub removed: Vec<String>,
    /// Disks that the platform cannot delete by its interface, or that it does not find.
    pub left: Vec<String>,
}

/// What to do about a stream that is already open on the same port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Takeover {
    /// [`SiteErrorKind::Conflict`] if there is one.
    Refuse,
    /// Cut it off. Only for the coordinator that holds the state directory's lock.
    Force,
}
