//! Placeholders, volumes and helpers: what a destination does.

use std::sync::{Arc, Mutex};

use model::{Cpu, Disk, DiskLocation, DiskUse, Firmware, Nic, Power, Vm, VmId};
use site::{
    ApplianceRef, ByteStream, CreatedDisk, Leftover, Mark, NewDisk, PlaceholderSpec,
    PlaceholderState, SiteErrorKind, Takeover,
};
use units::{Bytes, Epoch, MigrationId};
use uuid::Uuid;

use crate::channel::Port;
use crate::machine::{Form, Machine, Trouble, Volume, conflict, lock, wrong_state};
use crate::world::Estate;

pub(crate) fn create_disk(
    estate: &mut Estate,
    migration: &MigrationId,
    disk: &NewDisk,
) -> Result<CreatedDisk, Trouble> {
    let capacity = *estate.pools.get(&disk.pool).ok_or_else(|| {
        let names: Vec<_> = estate.pools.keys().map(String::as_str).collect();
        Trouble::new(SiteErrorKind::NotFound, format!("there is no pool {}", disk.pool))
            .hint(format!("the pools are: {}", names.join(", ")))
    })?;
    let key = (disk.pool.clone(), disk.volume.clone());
    let created =
        |fresh| CreatedDisk { no: disk.no, location: format!("{}/{}", key.0, key.1), fresh };
    if let Some(there) = estate.volumes.get(&key) {
        let size = u64::try_from(lock(&there.data).len()).unwrap_or(u64::MAX);
        if there.owner.as_ref() == Some(migration) && size == disk.size.0 {
            return Ok(created(false));
        }
        return Err(conflict(format!("volume {} is there already and is not ours", disk.volume)));
    }
    let used: u64 = estate
        .volumes
        .iter()
        .filter(|((pool, _), _)| *pool == disk.pool)
        .map(|(_, volume)| u64::try_from(lock(&volume.data).len()).unwrap_or(u64::MAX))
        .sum();
    let size = usize::try_from(disk.size.0).ok();
    let Some(size) = size.filter(|_| used.saturating_add(disk.size.0) <= capacity.0) else {
        return Err(Trouble::new(
            SiteErrorKind::Exhausted,
            format!("pool {} has no room for {}", disk.pool, disk.size),
        ));
    };
    let data = Arc::new(Mutex::new(vec![0; size]));
    estate.volumes.insert(key.clone(), Volume { owner: Some(migration.clone()), data });
    Ok(created(true))
}

pub(crate) fn define(estate: &mut Estate, spec: &PlaceholderSpec) -> Result<(), Trouble> {
    if let Some(there) = estate.machines.get(&spec.vm) {
        return match &there.form {
            Form::Held(held) if is_same_attempt(held, spec) => Ok(()),
            Form::Held(held) => Err(conflict(format!(
                "a placeholder of migration {}, epoch {}, is there",
                held.migration, held.epoch
            ))
            .hint("remove it first")),
            Form::Released(_) => Err(wrong_state("it was released already")),
            Form::Own => Err(conflict(format!("VM {} has this id", there.vm.name))),
        };
    }
    if estate.machines.values().any(|machine| machine.vm.name == spec.name) {
        return Err(conflict(format!("another VM is called {}", spec.name)));
    }
    if let Some(disk) = spec
        .disks
        .iter()
        .find(|disk| !estate.volumes.contains_key(&(disk.pool.clone(), disk.volume.clone())))
    {
        return Err(Trouble::new(
            SiteErrorKind::NotFound,
            format!("volume {} does not exist", disk.volume),
        ));
    }
    if !estate.appliances.contains(&spec.appliance.kernel) {
        return Err(Trouble::new(SiteErrorKind::NotFound, "the appliance is not here"));
    }
    let mut held = vm_of(spec);
    held.nics = Vec::new();
    held.autostart = false;
    estate.machines.insert(spec.vm, Machine::new(held, Form::Held(spec.clone())));
    Ok(())
}

pub(crate) fn state(estate: &Estate, vm: VmId) -> PlaceholderState {
    let Some(machine) = estate.machines.get(&vm) else { return PlaceholderState::Absent };
    let power = machine.vm.power;
    match &machine.form {
        Form::Own => PlaceholderState::Foreign { name: machine.vm.name.clone(), power },
        Form::Held(spec) => {
            PlaceholderState::Held { migration: spec.migration.clone(), epoch: spec.epoch, power }
        }
        Form::Released(spec) => PlaceholderState::Released {
            migration: spec.migration.clone(),
            epoch: spec.epoch,
            power,
        },
    }
}

pub(crate) fn start_helper(estate: &mut Estate, vm: VmId) -> Result<(), Trouble> {
    let Estate { machines, volumes, .. } = estate;
    let machine = machines
        .get_mut(&vm)
        .ok_or_else(|| Trouble::new(SiteErrorKind::NotFound, "there is no placeholder"))?;
    if !matches!(machine.form, Form::Held(_)) {
        return Err(wrong_state("it is no placeholder in its held form"));
    }
    machine.start(volumes)
}

pub(crate) fn open_channel(
    estate: &mut Estate,
    vm: VmId,
    port: u16,
    takeover: Takeover,
) -> Result<ByteStream, Trouble> {
    let machine = estate.machines.get(&vm);
    let helper_runs = machine.is_some_and(|machine| {
        matches!(machine.form, Form::Held(_)) && machine.vm.power == Power::Running
    });
    if !helper_runs {
        return Err(wrong_state("no helper runs in it").hint("start the helper"));
    }
    let port = estate.ports.entry((vm, port)).or_insert_with(Port::new);
    if port.is_open() && takeover == Takeover::Refuse {
        return Err(conflict("the channel is in use"));
    }
    let stream = port
        .open()
        .ok_or_else(|| Trouble::new(SiteErrorKind::Platform, "nobody accepts at the far end"))?;
    Ok(Box::new(stream))
}

pub(crate) fn write_mark(estate: &mut Estate, vm: VmId, mark: &Mark) -> Result<(), Trouble> {
    let machine = ours(estate, vm)?;
    match &machine.mark {
        Some(there) if there != mark => Err(conflict(format!(
            "it bears the mark of migration {}, epoch {}",
            there.migration, there.epoch
        ))),
        _ => {
            machine.mark = Some(mark.clone());
            Ok(())
        }
    }
}

pub(crate) fn release(estate: &mut Estate, spec: &PlaceholderSpec) -> Result<(), Trouble> {
    let machine = ours(estate, spec.vm)?;
    if machine.mark.is_none() {
        return Err(wrong_state("it bears no mark of a decision"));
    }
    match &machine.form {
        Form::Own => return Err(conflict("it is no placeholder")),
        Form::Held(held) | Form::Released(held) if !is_same_attempt(held, spec) => {
            return Err(conflict(format!(
                "the placeholder belongs to migration {}, epoch {}",
                held.migration, held.epoch
            )));
        }
        Form::Held(_) => {
            machine.vm = vm_of(spec);
            machine.form = Form::Released(spec.clone());
            estate.cut_channels(spec.vm);
        }
        Form::Released(_) => {}
    }
    let Estate { machines, volumes, .. } = estate;
    machines.get_mut(&spec.vm).map_or(Ok(()), |machine| machine.start(volumes))
}

pub(crate) fn leftovers(estate: &Estate, migration: &MigrationId) -> Vec<Leftover> {
    let machines = estate.machines.values().filter_map(|machine| match &machine.form {
        Form::Held(spec) | Form::Released(spec) if spec.migration == *migration => {
            Some(Leftover::Placeholder { vm: spec.vm, name: spec.name.clone() })
        }
        _ => None,
    });
    let volumes =
        estate.volumes.iter().filter(|(_, volume)| volume.owner.as_ref() == Some(migration)).map(
            |((pool, volume), _)| Leftover::Volume {
                pool: pool.clone(),
                volume: volume.clone(),
                location: format!("{pool}/{volume}"),
            },
        );
    machines.chain(volumes).collect()
}

pub(crate) fn remove(estate: &mut Estate, leftover: &Leftover) -> Result<(), Trouble> {
    match leftover {
        Leftover::Placeholder { vm, .. } => {
            let Some(machine) = estate.machines.get(vm) else { return Ok(()) };
            if machine.mark.is_some() {
                return Err(wrong_state("it bears the mark of a decision"));
            }
            if matches!(machine.form, Form::Own) {
                return Err(conflict(format!("VM {} is not ours", machine.vm.name)));
            }
            estate.cut_channels(*vm);
            estate.machines.remove(vm);
        }
        Leftover::Volume { pool, volume, .. } => {
            let key = (pool.clone(), volume.clone());
            let Some(there) = estate.volumes.get(&key) else { return Ok(()) };
            if there.owner.is_none() {
                return Err(conflict(format!("volume {volume} is not ours")));
            }
            let user = estate
                .machines
                .values()
                .find(|machine| machine.data_disks().any(|(_, used)| used == key));
            if let Some(user) = user {
                return Err(wrong_state(format!("volume {volume} is in use by {}", user.vm.name)));
            }
            estate.volumes.remove(&key);
        }
    }
    Ok(())
}

/// The least that a placeholder can be.
pub(crate) fn diskless(name: &str) -> PlaceholderSpec {
    PlaceholderSpec {
        migration: MigrationId::try_from("test".to_owned()).expect("four letters are an id"),
        epoch: Epoch(1),
        vm: VmId(Uuid::new_v4()),
        name: name.to_owned(),
        vcpus: 1,
        memory: Bytes::mib(256),
        arch: "x86_64".to_owned(),
        machine: "q35".to_owned(),
        cpu: Cpu::Default,
        firmware: Firmware::Bios,
        disks: Vec::new(),
        nics: Vec::new(),
        autostart: false,
        appliance: ApplianceRef { kernel: String::new(), initrd: String::new() },
        channels: 1,
        helper_nic: None,
        helper_args: Vec::new(),
    }
}

fn ours(estate: &mut Estate, vm: VmId) -> Result<&mut Machine, Trouble> {
    match estate.machines.get_mut(&vm) {
        None => Err(Trouble::new(SiteErrorKind::NotFound, "there is no placeholder")),
        Some(machine) if matches!(machine.form, Form::Own) => {
            Err(conflict(format!("VM {} is not ours", machine.vm.name)))
        }
        Some(machine) => Ok(machine),
    }
}

fn is_same_attempt(held: &PlaceholderSpec, spec: &PlaceholderSpec) -> bool {
    held.migration == spec.migration && held.epoch == spec.epoch
}

pub(crate) fn vm_of(spec: &PlaceholderSpec) -> Vm {
    Vm {
        id: spec.vm,
        name: spec.name.clone(),
        vcpus: spec.vcpus,
        memory: spec.memory,
        arch: spec.arch.clone(),
        machine: spec.machine.clone(),
        cpu: spec.cpu.clone(),
        firmware: spec.firmware.clone(),
        disks: spec
            .disks
            .iter()
            .map(|disk| Disk {
                target: disk.target.clone(),
                bus: disk.bus,
                format: disk.format.clone(),
                size: disk.size,
                allocated: None,
                location: DiskLocation::Volume {
                    pool: disk.pool.clone(),
                    volume: disk.volume.clone(),
                    path: None,
                },
                usage: DiskUse::Data,
                serial: disk.serial.clone(),
                address: disk.address,
                boot_order: disk.boot_order,
            })
            .collect(),
        nics: spec
            .nics
            .iter()
            .map(|nic| Nic {
                mac: nic.mac.clone(),
                model: nic.model.clone(),
                network: nic.network.clone(),
                address: nic.address,
            })
            .collect(),
        devices: Vec::new(),
        power: Power::Off,
        autostart: spec.autostart,
        persistent: true,
    }
}
