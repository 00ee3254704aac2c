//! Which disks move, onto what.

use std::collections::BTreeMap;

use model::{Disk, DiskFormat, DiskUse, PciAddress, SiteReport, Vm};
use units::{BlockSize, Bytes, DiskNo};

use crate::facts::{Facts, GuestDevice};
use crate::plan::PlannedDisk;
use crate::refusal::Refusal;
use crate::request::{Request, VolumeFormat};

/// Plans every disk that moves, and refuses those that cannot.
pub(crate) fn disks(
    request: &Request,
    facts: &Facts,
    vm: &Vm,
    destination: &SiteReport,
    refusals: &mut Vec<Refusal>,
) -> Vec<PlannedDisk> {
    let moving: Vec<&Disk> = vm.disks.iter().filter(|disk| moves(disk, refusals)).collect();
    if moving.is_empty() {
        refusals.push(Refusal::new(
            "no-disk",
            format!("{} has no writable disk of its own: there is nothing to move", vm.name),
            "define the VM anew at the destination",
        ));
    }
    let devices = facts.guest.as_ref().map(|guest| guest.devices.as_slice());
    let sought: Vec<_> = moving.iter().map(|disk| Sought::from(*disk)).collect();
    let mut planned = Vec::new();
    for (index, disk) in moving.iter().enumerate() {
        let Ok(no) = u16::try_from(index) else { break };
        let device = devices.ok().and_then(|devices| {
            find_device(&sought[index], &sought, devices)
                .map_err(|refusal| refusals.push(refusal))
                .ok()
        });
        let Some(pool) = pool_for(request, disk, destination, refusals) else { continue };
        planned.push(PlannedDisk {
            no: DiskNo(no),
            target: disk.target.clone(),
            bus: disk.bus,
            size: disk.size,
            allocated: disk.allocated,
            block_size: BlockSize::for_disk(disk.size),
            device: device.unwrap_or_default(),
            pool,
            volume: volume_name(&vm.name, disk, &format(request, disk)),
            format: format(request, disk),
            serial: disk.serial.clone(),
            address: disk.address,
            boot_order: disk.boot_order,
        });
    }
    space(&planned, destination, refusals);
    planned
}

/// Does this slot take part? Slots that never can are refused here.
fn moves(disk: &Disk, refusals: &mut Vec<Refusal>) -> bool {
    let refuse = |text: String, remedy: &str| Refusal::new("disk-kind", text, remedy);
    match disk.usage {
        DiskUse::Cdrom | DiskUse::Floppy => false,
        DiskUse::ReadOnly => {
            refusals.push(refuse(
                format!("disk {} is read-only at the source: it may belong to others", disk.target),
                "detach it, or make it writable for this VM alone",
            ));
            false
        }
        DiskUse::Shared => {
            refusals.push(refuse(
                format!(
                    "disk {} is shared: another VM may write it while it is copied",
                    disk.target
                ),
                "detach it, or stop sharing it (<shareable/>) before the migration",
            ));
            false
        }
        DiskUse::Data => {
            if let DiskFormat::Other(format) = &disk.format {
                refusals.push(refuse(
                    format!(
                        "disk {} is of format {format}, which the destination is not given",
                        disk.target
                    ),
                    "choose --format raw or --format qcow2",
                ));
            }
            if disk.size == Bytes::ZERO {
                refusals.push(refuse(
                    format!("the source does not tell the size of disk {}", disk.target),
                    "check that its image exists: `causeway site check`",
                ));
            }
            true
        }
    }
}

/// What the guest calls each planned disk now, in their order. The kernel names disks as it finds
/// them, and after a reboot it may find them in another order.
///
/// # Errors
/// As in planning: a disk that is not there, has another size, or cannot be told from another.
pub fn devices_of(
    planned: &[PlannedDisk],
    devices: &[GuestDevice],
) -> Result<Vec<String>, Refusal> {
    let all: Vec<_> = planned.iter().map(Sought::from).collect();
    all.iter().map(|disk| find_device(disk, &all, devices)).collect()
}

/// What a disk is known by in the guest.
struct Sought<'a> {
    target: &'a str,
    size: Bytes,
    serial: Option<&'a str>,
    address: Option<PciAddress>,
}

impl<'a> From<&'a Disk> for Sought<'a> {
    fn from(disk: &'a Disk) -> Self {
        let Disk { target, size, serial, address, .. } = disk;
        Self { target, size: *size, serial: serial.as_deref(), address: *address }
    }
}

impl<'a> From<&'a PlannedDisk> for Sought<'a> {
    fn from(disk: &'a PlannedDisk) -> Self {
        let PlannedDisk { target, size, serial, address, .. } = disk;
        Self { target, size: *size, serial: serial.as_deref(), address: *address }
    }
}

/// Which of the guest's devices this disk is: by serial number, else by address, else by a size
/// that no other has. Two that could be it is a refusal, never a guess.
fn find_device(
    disk: &Sought<'_>,
    all: &[Sought<'_>],
    devices: &[GuestDevice],
) -> Result<String, Refusal> {
    let address = disk.address.map(|address| address.to_string());
    let by_serial = devices
        .iter()
        .find(|device| disk.serial.is_some_and(|s| !s.is_empty() && s == device.serial));
    let by_address = || {
        devices
            .iter()
            .find(|device| address.is_some() && device.pci == address && device.size == disk.size)
    };
    let by_size = || {
        let twins = all.iter().filter(|other| other.size == disk.size).count();
        let mut matching = devices.iter().filter(|device| device.size == disk.size);
        matching.next().filter(|_| twins == 1 && matching.next().is_none())
    };
    let Some(device) = by_serial.or_else(by_address).or_else(by_size) else {
        return Err(Refusal::new(
            "disk-unknown-in-guest",
            format!(
                "cannot tell which of the guest's devices is disk {} of {} bytes; the guest has: {}",
                disk.target,
                disk.size.0,
                devices
                    .iter()
                    .map(|d| format!("{} ({} bytes)", d.name, d.size.0))
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
            "give each disk a <serial> of its own and restart the VM",
        ));
    };
    if device.size != disk.size {
        return Err(Refusal::new(
            "disk-size",
            format!(
                "disk {} has {} bytes at its site, but {} has {} in the guest",
                disk.target, disk.size.0, device.name, device.size.0
            ),
            "let the guest see the new size (reboot or rescan it), then plan again",
        ));
    }
    Ok(device.name.clone())
}

fn format(request: &Request, disk: &Disk) -> DiskFormat {
    match request.options.format {
        VolumeFormat::Raw => DiskFormat::Raw,
        VolumeFormat::Qcow2 => DiskFormat::Qcow2,
        VolumeFormat::AsSource => match disk.format {
            DiskFormat::Qcow2 => DiskFormat::Qcow2,
            DiskFormat::Raw | DiskFormat::Other(_) => DiskFormat::Raw,
        },
    }
}

/// A name that every pool accepts: the VM's own may hold anything.
fn volume_name(vm: &str, disk: &Disk, format: &DiskFormat) -> String {
    let plain: String = vm
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' })
        .collect();
    let ending = match format {
        DiskFormat::Qcow2 => "qcow2",
        DiskFormat::Raw | DiskFormat::Other(_) => "img",
    };
    format!("{plain}-{}.{ending}", disk.target)
}

fn pool_for(
    request: &Request,
    disk: &Disk,
    destination: &SiteReport,
    refusals: &mut Vec<Refusal>,
) -> Option<String> {
    let active = || destination.pools.iter().filter(|pool| pool.active);
    let names = || active().map(|pool| pool.name.as_str()).collect::<Vec<_>>().join(", ");
    let asked = request.pools.get(&disk.target).or_else(|| request.pools.get("*"));
    let Some(name) = asked else {
        let mut pools = active();
        return match (pools.next(), pools.next()) {
            (Some(only), None) => Some(only.name.clone()),
            _ => {
                let refusal = Refusal::new(
                    "pool-unmapped",
                    format!(
                        "no pool is named for disk {}; {} has: {}",
                        disk.target,
                        request.to,
                        names()
                    ),
                    format!("add --pool {}=NAME, or --pool NAME for all disks", disk.target),
                );
                refusals.push(refusal);
                None
            }
        };
    };
    if active().any(|pool| pool.name == *name) {
        return Some(name.clone());
    }
    refusals.push(Refusal::new(
        "pool-missing",
        format!("{} has no active pool {name}; it has: {}", request.to, names()),
        format!("start it (virsh pool-start {name}) or name another with --pool"),
    ));
    None
}

/// Room for the whole of every disk: a sparse target grows, and running out in the last round is
/// the worst moment.
fn space(disks: &[PlannedDisk], destination: &SiteReport, refusals: &mut Vec<Refusal>) {
    let mut needed: BTreeMap<&str, Bytes> = BTreeMap::new();
    for disk in disks {
        let of_pool = needed.entry(&disk.pool).or_default();
        *of_pool = of_pool.saturating_add(disk.size);
    }
    for (pool, bytes) in needed {
        let available = destination.pools.iter().find(|p| p.name == pool).map(|p| p.available);
        if available.is_some_and(|available| available < bytes) {
            let available = available.unwrap_or_default();
            refusals.push(Refusal::new(
                "no-space",
                format!(
                    "pool {pool} has {available} free; the disks need {bytes} ({} bytes more)",
                    bytes.saturating_sub(available).0
                ),
                "free space in the pool, or spread the disks with --pool SLOT=NAME",
            ));
        }
    }
}
