//! VMs as the model knows them.

use model::{Disk, DiskBus, DiskFormat, DiskLocation, DiskUse, Power, Vm, VmId, WriteCount};
use tracing::debug;
use units::Bytes;
use virt::connect::Connect;
use virt::domain::Domain;
use virt::storage_vol::StorageVol;

use crate::fault::{Fault, maybe};
use crate::look;
use crate::sys::block_sizes;
use crate::xml::{DomainXml, VolumeXml, XmlDisk, XmlSource};

pub(crate) fn vms(connection: &Connect) -> Result<Vec<(VmId, String)>, Fault> {
    let mut vms = Vec::new();
    for domain in look::all(connection)? {
        vms.push((look::id(&domain)?, domain.name()?));
    }
    vms.sort_by(|(_, a), (_, b)| a.cmp(b));
    Ok(vms)
}

pub(crate) fn vm(connection: &Connect, name_or_id: &str) -> Result<Vm, Fault> {
    let by_id = match name_or_id.parse() {
        Ok(id) => look::find(connection, VmId(id))?,
        Err(_) => None,
    };
    let found = match by_id {
        None => look::find_named(connection, name_or_id)?,
        found => found,
    };
    let Some(domain) = found else {
        let names: Vec<_> = vms(connection)?.into_iter().map(|(_, name)| name).collect();
        let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        let missing = Fault::not_found(format!("there is no VM {name_or_id:?}"));
        return Err(missing.hint(format!("the VMs there are: {there}")));
    };
    describe(connection, &domain)
}

fn describe(connection: &Connect, domain: &Domain) -> Result<Vm, Fault> {
    let power = look::power(domain)?;
    let persistent = domain.is_persistent()?;
    // Disks and cards as they are plugged now; the CPU as it was asked for, because libvirt writes
    // out in the running definition what `host-model` came to on this host.
    let live = look::live_xml(domain)?;
    let config = if persistent { look::config_xml(domain)? } else { live.clone() };
    // A fenced definition says nothing of the VM that still runs beside it.
    let asked = if config.fenced.is_some() { live.clone() } else { config };
    let disks = live
        .disks
        .iter()
        .filter(|disk| !is_empty_drive(disk))
        .map(|disk| describe_disk(connection, domain, disk))
        .collect::<Result<_, _>>()?;
    Ok(Vm {
        id: live.id,
        name: live.name,
        vcpus: live.vcpus,
        memory: live.memory,
        arch: live.arch,
        machine: live.machine,
        cpu: asked.cpu,
        firmware: live.firmware,
        disks,
        nics: live.nics,
        devices: live.devices.into_iter().chain(asked.cpu_features).collect(),
        power,
        autostart: persistent && domain.autostart()?,
        persistent,
    })
}

fn is_empty_drive(disk: &XmlDisk) -> bool {
    disk.source == XmlSource::Nothing && matches!(disk.usage, DiskUse::Cdrom | DiskUse::Floppy)
}

fn describe_disk(connection: &Connect, domain: &Domain, disk: &XmlDisk) -> Result<Disk, Fault> {
    let volume = volume_of(connection, &disk.source)?;
    let sizes = sizes(domain, disk, volume.as_ref())?;
    Ok(Disk {
        target: disk.target.clone(),
        // A bus without a name of ours has no driver in our helper: the plan sees the format too.
        bus: disk.bus.unwrap_or(DiskBus::Ide),
        format: format(disk),
        size: Bytes(sizes.map_or(0, |(capacity, _)| capacity)),
        allocated: sizes.map(|(_, allocation)| Bytes(allocation)),
        location: location(disk, volume.as_ref())?,
        usage: disk.usage,
        serial: disk.serial.clone(),
        address: disk.address,
        boot_order: disk.boot_order,
    })
}

/// A bus that the model has no word for is told in the format, where the plan refuses it.
fn format(disk: &XmlDisk) -> DiskFormat {
    match disk.bus {
        Some(_) => disk.format.clone(),
        None => DiskFormat::Other(format!("{} on bus {}", word(&disk.format), disk.bus_word)),
    }
}

fn word(format: &DiskFormat) -> &str {
    match format {
        DiskFormat::Raw => "raw",
        DiskFormat::Qcow2 => "qcow2",
        DiskFormat::Other(other) => other,
    }
}

/// Capacity and allocation; `None` where the site cannot tell, as of a disk whose image is gone.
fn sizes(
    domain: &Domain,
    disk: &XmlDisk,
    volume: Option<&StorageVol>,
) -> Result<Option<(u64, u64)>, Fault> {
    match block_sizes(domain, &disk.target) {
        Ok(sizes) if sizes.capacity > 0 => return Ok(Some((sizes.capacity, sizes.allocation))),
        Ok(_) => {}
        Err(said) => debug!(disk = disk.target, %said, "no sizes from the domain"),
    }
    let Some(volume) = volume else { return Ok(None) };
    let xml = VolumeXml::parse(&volume.xml_desc(0)?)?;
    Ok(Some((xml.capacity, xml.allocation)))
}

/// The volume behind a source, if a pool knows it.
pub(crate) fn volume_of(
    connection: &Connect,
    source: &XmlSource,
) -> Result<Option<StorageVol>, Fault> {
    match source {
        XmlSource::File(path) | XmlSource::Block(path) => {
            match maybe(connection.lookup_storage_vol_by_path(path))? {
                Some(volume) => Ok(Some(volume)),
                None => volume_after_refresh(connection, path),
            }
        }
        XmlSource::Volume { pool, volume } => {
            let pool = maybe(connection.lookup_storage_pool_by_name(pool))?;
            match pool.filter(|pool| pool.is_active().unwrap_or(false)) {
                Some(pool) => maybe(pool.lookup_storage_vol_by_name(volume)),
                None => Ok(None),
            }
        }
        XmlSource::Other(_) | XmlSource::Nothing => Ok(None),
    }
}

/// A file that came into a pool's directory after libvirt last looked there.
fn volume_after_refresh(connection: &Connect, path: &str) -> Result<Option<StorageVol>, Fault> {
    let Some((directory, _)) = path.rsplit_once('/') else { return Ok(None) };
    let Some(pool) = maybe(connection.lookup_storage_pool_by_target_path(directory))? else {
        return Ok(None);
    };
    if !pool.is_active()? || pool.refresh(0).is_err() {
        return Ok(None);
    }
    maybe(connection.lookup_storage_vol_by_path(path))
}

fn location(disk: &XmlDisk, volume: Option<&StorageVol>) -> Result<DiskLocation, Fault> {
    if let Some(volume) = volume {
        return Ok(DiskLocation::Volume {
            pool: volume.lookup_storage_pool()?.name()?,
            volume: volume.name()?,
            path: Some(volume.path()?),
        });
    }
    Ok(match disk.source.clone() {
        XmlSource::File(path) => DiskLocation::File { path },
        XmlSource::Block(path) => DiskLocation::Block { path },
        XmlSource::Volume { pool, volume } => DiskLocation::Volume { pool, volume, path: None },
        XmlSource::Other(kind) => DiskLocation::Other { kind },
        XmlSource::Nothing => DiskLocation::Other { kind: "empty".to_owned() },
    })
}

pub(crate) fn write_counts(connection: &Connect, vm: VmId) -> Result<Vec<WriteCount>, Fault> {
    let domain = look::require(connection, vm)?;
    let power = look::power(&domain)?;
    if !power.is_loaded() {
        return Err(Fault::wrong_state(format!("the VM is {power}: there is nothing to count")));
    }
    let live = look::live_xml(&domain)?;
    let mut counts = Vec::new();
    for disk in live.disks.iter().filter(|disk| is_written(disk)) {
        let stats = domain.block_stats(&disk.target)?;
        let count = |name: &str, value: i64| {
            u64::try_from(value).map_err(|_| {
                let what = format!("libvirt does not count the {name} of disk {}", disk.target);
                Fault::found(site::SiteErrorKind::Unsupported, what)
            })
        };
        counts.push(WriteCount {
            target: disk.target.clone(),
            requests: count("writes", stats.wr_req)?,
            bytes: Bytes(count("bytes written", stats.wr_bytes)?),
        });
    }
    Ok(counts)
}

fn is_written(disk: &XmlDisk) -> bool {
    matches!(disk.usage, DiskUse::Data | DiskUse::Shared)
}

/// Every VM that is loaded now, with what it touches, except `but`.
pub(crate) fn loaded_others(
    connection: &Connect,
    but: VmId,
) -> Result<Vec<(String, DomainXml)>, Fault> {
    let mut others = Vec::new();
    for domain in look::all(connection)? {
        if look::id(&domain)? == but {
            continue;
        }
        let power = match look::power(&domain) {
            // It ended between the list and the look.
            Err(fault) if fault.is_absence() => continue,
            power => power?,
        };
        if power != Power::Off {
            others.push((domain.name()?, look::live_xml(&domain)?));
        }
    }
    Ok(others)
}
