//! The disks that a VM brings along, and the volumes made for them.

use std::collections::BTreeMap;

use model::{DiskBus, DiskFormat, PoolOffer};
use rpc::flags::Flags;
use rpc::params::{Name, Params};
use site::{NewDisk, SiteError};
use units::{Bytes, DiskNo, MigrationId};

use crate::config::Format;
use crate::domain::DiskPlace;
use crate::domain::node::Element;
use crate::domain::translate::SAID_IN;
use crate::serve::Agent;

/// A disk to make room for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// `vda`
    pub target: String,
    pub size: u64,
    pub format: Format,
}

/// Every disk of the definition that has something in it. Each is copied whole, or the VM does not
/// come: nothing is shared between the two sites.
pub fn wanted(
    definition: &Element,
    copied: &[(String, u64)],
    flags: Flags,
    params: &Params,
    format: Option<Format>,
) -> Result<Vec<Wanted>, String> {
    let chosen: Vec<&str> = params.all(&Name::MIGRATE_DISKS).collect();
    let devices = definition.first("devices").map(|devices| &*devices.children).unwrap_or_default();
    let mut wanted = Vec::new();
    for disk in devices.iter().filter(|device| device.name == "disk") {
        let is_disk = matches!(disk.attribute("device"), None | Some("disk"));
        if !is_disk || disk.first("source").is_none() {
            continue;
        }
        let target = disk.first("target").and_then(|target| target.attribute("dev"));
        let target = target.unwrap_or_default();
        if !flags.contains(Flags::NON_SHARED_DISK) {
            return Err(format!(
                "the two sites share no storage, and {target} would stay behind: add \
                 --copy-storage-all"
            ));
        }
        if disk.first("readonly").is_some() {
            return Err(format!(
                "{target} is read-only: libvirt does not copy such disks, detach it"
            ));
        }
        if !chosen.is_empty() && !chosen.contains(&target) {
            return Err(format!(
                "{target} would stay behind: leave --migrate-disks out, or name all disks"
            ));
        }
        let Some((_, size)) = copied.iter().find(|(copied, _)| copied == target) else {
            return Err(format!("the source does not say how large {target} is"));
        };
        if *size == 0 {
            return Err(format!("{target} has no bytes, as the source says"));
        }
        let theirs = disk.first("driver").and_then(|driver| driver.attribute("type"));
        let format = match (format, theirs) {
            (Some(format), _) => format,
            (None, Some("raw")) => Format::Raw,
            (None, Some("qcow2")) => Format::Qcow2,
            (None, other) => {
                let other = other.unwrap_or("unknown");
                return Err(format!("{target} is of format {other:?}: give `format`, {SAID_IN}"));
            }
        };
        // libvirt makes qcow2 volumes in whole KiB, and QEMU copies to the same size alone.
        let format = if size % 1024 == 0 { format } else { Format::Raw };
        wanted.push(Wanted { target: target.to_owned(), size: *size, format });
    }
    Ok(wanted)
}

/// Where they would come to lie; to see whether anything else is in the way.
pub fn supposed(wanted: &[Wanted]) -> BTreeMap<String, DiskPlace> {
    let place = |one: &Wanted| (one.target.clone(), one.format.place(String::new()));
    wanted.iter().map(place).collect()
}

/// In names of what belongs to this attempt alone, so that what an earlier one left is not in the way.
pub fn attempt(id: &MigrationId) -> &str {
    id.as_str().rsplit('-').next().unwrap_or_default()
}

/// Room for the whole of every disk: one that is sparse grows, and running out in the last round is the worst moment.
/// What others that are on their way will take is not counted.
///
/// # Errors
/// What is wrong with the pool; `None` is one that is not there.
pub fn fit(wanted: &[Wanted], name: &str, pool: Option<&PoolOffer>) -> Result<(), String> {
    let pool = pool.ok_or_else(|| format!("there is no pool {name}"))?;
    if !pool.active {
        return Err(format!("pool {name} is not active: virsh pool-start {name}"));
    }
    let sizes = wanted.iter().map(|one| one.size);
    let needed = Bytes(sizes.fold(0, u64::saturating_add));
    if needed > pool.available {
        let available = pool.available;
        return Err(format!(
            "pool {name} has {available} free, and the disks may grow to {needed}: make room there (virsh pool-refresh {name} counts anew)"
        ));
    }
    Ok(())
}

/// Makes them, all zeros.
pub async fn make(
    agent: &Agent,
    id: &MigrationId,
    vm: &str,
    wanted: &[Wanted],
) -> Result<BTreeMap<String, DiskPlace>, SiteError> {
    let mut made = BTreeMap::new();
    for (no, Wanted { target, size, format }) in (0..).zip(wanted) {
        let (extension, attempt) = (format.name(), attempt(id));
        let disk = NewDisk {
            no: DiskNo(no),
            pool: agent.config.arrivals.pool.clone(),
            volume: format!("{vm}-{target}-{attempt}.{extension}"),
            size: Bytes(*size),
            format: format.model(),
            target: target.clone(),
            bus: DiskBus::Virtio,
            serial: None,
            address: None,
            boot_order: None,
        };
        let location = agent.site.create_disk(id, &disk).await?.location;
        made.insert(target.clone(), format.place(location));
    }
    Ok(made)
}

impl Format {
    const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }

    const fn model(self) -> DiskFormat {
        match self {
            Self::Raw => DiskFormat::Raw,
            Self::Qcow2 => DiskFormat::Qcow2,
        }
    }

    fn place(self, path: String) -> DiskPlace {
        let is_block = path.starts_with("/dev/");
        // A block device holds the disk itself.
        let format = if is_block { Self::Raw } else { self };
        DiskPlace { path, is_block, format: format.name().to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = "<domain><devices>\
        <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/a'/>\
        <target dev='vda'/></disk>\
        <disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/b'/>\
        <target dev='vdb'/></disk>\
        <disk type='file' device='cdrom'><target dev='sda'/></disk>\
        </devices></domain>";

    fn of(xml: &str, flags: Flags, chosen: &[&str]) -> Result<Vec<Wanted>, String> {
        let mut params = Params::new();
        for disk in chosen {
            params.add(&Name::MIGRATE_DISKS, *disk).unwrap();
        }
        let copied = [("vda".to_owned(), 1 << 20), ("vdb".to_owned(), 2 << 20)];
        wanted(&Element::parse(xml, "domain").unwrap(), &copied, flags, &params, None)
    }

    #[test]
    fn every_disk_is_made_as_it_was_and_an_empty_drive_is_not() {
        let disk = |target: &str, size, format| Wanted { target: target.to_owned(), size, format };
        let both = vec![disk("vda", 1 << 20, Format::Qcow2), disk("vdb", 2 << 20, Format::Raw)];
        assert_eq!(of(TWO, Flags::NON_SHARED_DISK, &[]), Ok(both.clone()));
        assert_eq!(of(TWO, Flags::NON_SHARED_DISK, &["vdb", "vda"]), Ok(both));
    }

    #[test]
    fn a_pool_without_room_for_all_of_every_disk_refuses_the_vm() {
        let both = of(TWO, Flags::NON_SHARED_DISK, &[]).unwrap();
        let pool = |available, active| PoolOffer {
            name: "default".to_owned(),
            capacity: Bytes(1 << 40),
            available: Bytes(available),
            active,
            kind: "dir".to_owned(),
        };
        let fit = |available, active| fit(&both, "default", Some(&pool(available, active)));
        assert_eq!(fit(3 << 20, true), Ok(()));
        let refused = fit((3 << 20) - 1, true).unwrap_err();
        assert!(refused.contains("may grow to 3.0 MiB"), "{refused}");
        assert!(fit(3 << 20, false).unwrap_err().contains("default is not active"));
        let huge = [Wanted { size: u64::MAX, ..both[0].clone() }, both[1].clone()];
        assert!(super::fit(&huge, "default", Some(&pool(1 << 40, true))).is_err());
        assert!(super::fit(&both, "default", None).unwrap_err().contains("no pool default"));
    }

    #[test]
    fn a_disk_of_an_odd_size_is_raw() {
        let definition = Element::parse(TWO, "domain").unwrap();
        let copied = [("vda".to_owned(), (1 << 20) + 512), ("vdb".to_owned(), 1 << 20)];
        let format = Some(Format::Qcow2);
        let flags = Flags::NON_SHARED_DISK;
        let wanted = wanted(&definition, &copied, flags, &Params::new(), format).unwrap();
        assert_eq!((wanted[0].format, wanted[1].format), (Format::Raw, Format::Qcow2));
    }

    #[test]
    fn a_disk_that_would_stay_behind_or_arrive_empty_refuses_the_vm() {
        let whole = Flags::NON_SHARED_DISK;
        for (xml, flags, chosen, said) in [
            (TWO.to_owned(), Flags::LIVE, &[][..], "--copy-storage-all"),
            (TWO.to_owned(), whole, &["vda"], "vdb would stay behind"),
            (TWO.replace("dev='vdb'/>", "dev='vdb'/><readonly/>"), whole, &[], "vdb is read-only"),
            (TWO.replace("'vdb'", "'vdc'"), whole, &[], "how large vdc"),
            (TWO.replace("type='raw'", "type='vmdk'"), whole, &[], "vmdk"),
        ] {
            let refused = of(&xml, flags, chosen).unwrap_err();
            assert!(refused.contains(said), "{refused}");
        }
    }
}
