//! One VM at one site, and what may be done to it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::{Disk, DiskLocation, DiskUse, Power, Vm};
use site::{Mark, PlaceholderSpec, Remedy, SiteErrorKind, StoppedBy};
use units::MigrationId;

/// What a disk holds, shared with whoever plays the helper or the guest.
pub type SharedDisk = Arc<Mutex<Vec<u8>>>;

/// Pool and volume.
pub(crate) type VolumeKey = (String, String);

/// Why a state does not allow what was asked: an error without its site and attempt.
#[derive(Debug)]
pub(crate) struct Trouble {
    pub kind: SiteErrorKind,
    pub what: String,
    pub hint: Option<String>,
}

impl Trouble {
    pub(crate) fn new(kind: SiteErrorKind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into(), hint: None }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The state is known, so asking again without changing it is of no use.
    pub(crate) const fn remedy(&self) -> Remedy {
        Remedy::GiveUp
    }
}

pub(crate) fn wrong_state(what: impl Into<String>) -> Trouble {
    Trouble::new(SiteErrorKind::WrongState, what)
}

pub(crate) fn conflict(what: impl Into<String>) -> Trouble {
    Trouble::new(SiteErrorKind::Conflict, what)
}

pub(crate) struct Volume {
    pub owner: Option<MigrationId>,
    pub data: SharedDisk,
}

/// What a definition makes of the VM when it is started.
#[derive(Clone)]
pub(crate) enum Form {
    /// Not made by us.
    Own,
    Held(PlaceholderSpec),
    Released(PlaceholderSpec),
}

pub(crate) struct Machine {
    pub vm: Vm,
    pub form: Form,
    pub mark: Option<Mark>,
    /// How it last came to a stop, as long as it is off.
    pub stopped_by: Option<StoppedBy>,
    /// The definition points nowhere: a start fails.
    pub start_proof: bool,
    /// Requests and bytes written since it was last started.
    pub writes: BTreeMap<String, (u64, u64)>,
}

impl Machine {
    pub(crate) const fn new(vm: Vm, form: Form) -> Self {
        Self { vm, form, mark: None, stopped_by: None, start_proof: false, writes: BTreeMap::new() }
    }

    /// What is off already stays as it came to be.
    pub(crate) const fn stop(&mut self, by: StoppedBy) {
        if self.vm.power.is_loaded() {
            self.vm.power = Power::Off;
            self.stopped_by = Some(by);
        }
    }

    /// Could it write to the disks that are the VM's own? A helper's writes are a copy's.
    pub(crate) const fn is_loaded_for_good(&self) -> bool {
        self.vm.power.is_loaded() && !matches!(self.form, Form::Held(_))
    }

    pub(crate) fn data_disks(&self) -> impl Iterator<Item = (&Disk, VolumeKey)> {
        self.vm
            .disks
            .iter()
            .filter(|disk| disk.usage == DiskUse::Data)
            .filter_map(|disk| Some((disk, volume_key(&disk.location)?)))
    }

    pub(crate) fn start(&mut self, volumes: &BTreeMap<VolumeKey, Volume>) -> Result<(), Trouble> {
        match self.vm.power {
            Power::Running => return Ok(()),
            Power::Paused => return Err(wrong_state("it is paused").hint("resume it instead")),
            Power::Off | Power::Absent => {}
        }
        if self.start_proof {
            return Err(wrong_state("its definition is fenced: it moved to another site"));
        }
        for (disk, key) in self.data_disks() {
            let volume = volumes
                .get(&key)
                .ok_or_else(|| wrong_state(format!("disk {}: no volume {}", disk.target, key.1)))?;
            if lock(&volume.data).starts_with(crate::fence::BANNER) {
                return Err(wrong_state(format!("disk {} is fenced", disk.target)));
            }
        }
        self.writes = self.vm.disks.iter().map(|disk| (disk.target.clone(), (0, 0))).collect();
        self.vm.power = Power::Running;
        self.stopped_by = None;
        Ok(())
    }
}

pub(crate) fn volume_key(location: &DiskLocation) -> Option<VolumeKey> {
    match location {
        DiskLocation::Volume { pool, volume, .. } => Some((pool.clone(), volume.clone())),
        DiskLocation::File { .. } | DiskLocation::Block { .. } | DiskLocation::Other { .. } => None,
    }
}

/// A panic of another test thread leaves the bytes as they are.
pub(crate) fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
