//! Fences: a definition that does not start, and a disk that nothing recognises.

use serde::{Deserialize, Serialize};
use site::{Discarded, FenceStage, SiteErrorKind, UnfenceRecord};

use crate::machine::{Machine, Trouble, VolumeKey, conflict, lock, wrong_state};
use crate::world::Estate;
use model::{FenceMeans, FenceOffer, Power, VmId};

/// What a fenced disk begins with.
pub(crate) const BANNER: &[u8] = b"FENCED: this disk moved to another site\n";

/// How much of a disk's beginning is replaced.
const HEADER: usize = 64 * 1024;

/// The only layout of a record's body so far.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Body {
    version: u32,
    name: String,
    autostart: bool,
    disks: Vec<Saved>,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    target: String,
    pool: String,
    volume: String,
    #[serde(with = "hex")]
    header: Vec<u8>,
}

impl Saved {
    fn key(&self) -> VolumeKey {
        (self.pool.clone(), self.volume.clone())
    }

    /// What replaces the header: as long as it.
    fn fenced(&self) -> Vec<u8> {
        let mut fenced = BANNER.to_vec();
        fenced.resize(self.header.len(), 0);
        fenced
    }
}

pub(crate) fn offer(machine: &Machine) -> FenceOffer {
    FenceOffer {
        means: vec![
            FenceMeans {
                name: "definition".to_owned(),
                does: format!("{} is defined anew so that it cannot start", machine.vm.name),
            },
            FenceMeans {
                name: "disk-header".to_owned(),
                does: "the first 64 KiB of each disk are replaced by a notice".to_owned(),
            },
        ],
        does_not_stop: vec!["someone who writes the saved headers back by hand".to_owned()],
    }
}

pub(crate) fn capture(
    estate: &Estate,
    machine: &Machine,
    stage: FenceStage,
) -> Result<UnfenceRecord, Trouble> {
    let disks = match stage {
        FenceStage::Definition => Vec::new(),
        FenceStage::Disks => {
            refuse_if_loaded(machine)?;
            machine
                .data_disks()
                .map(|(disk, (pool, volume))| {
                    let key = (pool, volume);
                    let held = estate
                        .volumes
                        .get(&key)
                        .ok_or_else(|| wrong_state(format!("no volume {}", key.1)))?;
                    let data = lock(&held.data);
                    if data.starts_with(BANNER) {
                        return Err(wrong_state(format!("volume {} is fenced already", key.1)));
                    }
                    let header = data[..data.len().min(HEADER)].to_vec();
                    Ok(Saved { target: disk.target.clone(), pool: key.0, volume: key.1, header })
                })
                .collect::<Result<_, Trouble>>()?
        }
    };
    let body = Body {
        version: VERSION,
        name: machine.vm.name.clone(),
        autostart: machine.vm.autostart,
        disks,
    };
    let body = serde_json::to_string(&body)
        .map_err(|cause| Trouble::new(SiteErrorKind::Internal, cause.to_string()))?;
    Ok(UnfenceRecord { stage, body })
}

pub(crate) fn apply(estate: &mut Estate, vm: VmId, record: &UnfenceRecord) -> Result<(), Trouble> {
    let body = read(record)?;
    let machine = machine(estate, vm)?;
    match record.stage {
        FenceStage::Definition => {
            machine.start_proof = true;
            machine.vm.autostart = false;
        }
        FenceStage::Disks => {
            refuse_if_loaded(machine)?;
            for saved in &body.disks {
                replace(estate, saved, &saved.header, &saved.fenced())?;
            }
        }
    }
    Ok(())
}

pub(crate) fn holds(estate: &Estate, vm: VmId, record: &UnfenceRecord) -> Result<bool, Trouble> {
    let body = read(record)?;
    let machine = estate.machines.get(&vm).ok_or_else(|| absent(vm))?;
    Ok(match record.stage {
        FenceStage::Definition => machine.start_proof && !machine.vm.autostart,
        FenceStage::Disks => body.disks.iter().all(|saved| {
            let volume = estate.volumes.get(&saved.key());
            volume.is_some_and(|volume| lock(&volume.data).starts_with(&saved.fenced()))
        }),
    })
}

pub(crate) fn undo(estate: &mut Estate, vm: VmId, record: &UnfenceRecord) -> Result<(), Trouble> {
    let body = read(record)?;
    match record.stage {
        FenceStage::Definition => {
            let machine = machine(estate, vm)?;
            machine.start_proof = false;
            machine.vm.autostart = body.autostart;
            machine.vm.name = body.name;
        }
        FenceStage::Disks => {
            for saved in &body.disks {
                // Unfenced already, and used since perhaps.
                let volume = estate.volumes.get(&saved.key());
                if volume.is_some_and(|volume| lock(&volume.data).starts_with(BANNER)) {
                    replace(estate, saved, &saved.fenced(), &saved.header)?;
                }
            }
        }
    }
    Ok(())
}

pub(crate) fn retire(
    estate: &mut Estate,
    vm: VmId,
    record: &UnfenceRecord,
) -> Result<String, Trouble> {
    let body = read(record)?;
    let machine = machine(estate, vm)?;
    refuse_if_loaded(machine)?;
    if !machine.start_proof {
        return Err(wrong_state("it is not fenced"));
    }
    machine.vm.name = format!("{}-moved", body.name);
    Ok(machine.vm.name.clone())
}

pub(crate) fn discard(
    estate: &mut Estate,
    vm: VmId,
    records: &[UnfenceRecord],
    moved: &[String],
) -> Result<Discarded, Trouble> {
    let mut discarded = Discarded::default();
    if let Ok(machine) = machine(estate, vm) {
        refuse_if_loaded(machine)?;
        if !machine.start_proof {
            return Err(wrong_state("it is not fenced"));
        }
    }
    let disks = |record: &&UnfenceRecord| record.stage == FenceStage::Disks;
    let mut keys = Vec::new();
    for record in records.iter().filter(disks) {
        for saved in read(record)?.disks {
            if !moved.contains(&saved.target) {
                return Err(conflict(format!("disk {} was never moved", saved.target)));
            }
            let Some(volume) = estate.volumes.get(&saved.key()) else { continue };
            if !lock(&volume.data).starts_with(&saved.fenced()) {
                return Err(conflict(format!("volume {} is not fenced any more", saved.volume)));
            }
            keys.push(saved.key());
        }
    }
    for key in keys {
        estate.volumes.remove(&key);
        discarded.removed.push(format!("volume {}", key.1));
    }
    if let Some(machine) = estate.machines.remove(&vm) {
        discarded.removed.push(format!("definition {}", machine.vm.name));
    }
    Ok(discarded)
}

/// Puts `to` where `from` is; where `to` is already, nothing is left to do.
fn replace(estate: &Estate, saved: &Saved, from: &[u8], to: &[u8]) -> Result<(), Trouble> {
    let volume = estate.volumes.get(&saved.key());
    let volume = volume.ok_or_else(|| wrong_state(format!("no volume {}", saved.volume)))?;
    let mut data = lock(&volume.data);
    if data.starts_with(from) {
        data[..to.len()].copy_from_slice(to);
    } else if !data.starts_with(to) {
        return Err(conflict(format!("volume {} changed since it was captured", saved.volume)));
    }
    Ok(())
}

fn read(record: &UnfenceRecord) -> Result<Body, Trouble> {
    let body: Body = serde_json::from_str(&record.body).map_err(|cause| {
        Trouble::new(SiteErrorKind::Internal, format!("not a record of this site: {cause}"))
    })?;
    if body.version != VERSION {
        let what = format!("a record of version {}, not {VERSION}", body.version);
        return Err(Trouble::new(SiteErrorKind::Unsupported, what));
    }
    Ok(body)
}

fn refuse_if_loaded(machine: &Machine) -> Result<(), Trouble> {
    match machine.vm.power {
        Power::Off | Power::Absent => Ok(()),
        power => Err(wrong_state(format!("{} is {power}", machine.vm.name)).hint("power it off")),
    }
}

fn machine(estate: &mut Estate, vm: VmId) -> Result<&mut Machine, Trouble> {
    estate.machines.get_mut(&vm).ok_or_else(|| absent(vm))
}

fn absent(vm: VmId) -> Trouble {
    Trouble::new(SiteErrorKind::NotFound, format!("there is no VM {vm}"))
}
