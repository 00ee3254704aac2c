//! Fences: a VM that left must not come up here again, however somebody tries.
//!
//! | means | stops | needs |
//! |---|---|---|
//! | `definition` | `virsh start`, autostart, a reboot of the host | the API |
//! | `disk-header` | also a saved definition, and another VM with the same disk | the API, VM off |
//! | `image-renamed`, `image-immutable` | the same, before the disk is even opened | SSH to the host |
//!
//! The first is made while the VM still runs, so that there is no moment at which a stopped VM
//! could be started. All that undoes a fence is in the record, which the caller has stored before.

mod definition;
mod disks;
mod host;
mod image;
mod notice;
mod record;

use model::{FenceMeans, FenceOffer, VmId};
use site::{Discarded, FenceStage, UnfenceRecord};
use virt::connect::Connect;

use crate::fault::Fault;
use crate::xml::{DomainXml, FencedDisk, NOWHERE};
use crate::{LibvirtConfig, look};

use record::{Record, Stage};

pub(crate) fn capture(
    connection: &Connect,
    config: &LibvirtConfig,
    vm: VmId,
    stage: FenceStage,
) -> Result<UnfenceRecord, Fault> {
    let domain = look::require(connection, vm)?;
    match stage {
        FenceStage::Definition => definition::capture(connection, &domain, vm)?.into_stored(stage),
        FenceStage::Disks => disks::capture(connection, config, &domain, vm)?.into_stored(stage),
    }
}

pub(crate) fn apply(
    connection: &Connect,
    config: &LibvirtConfig,
    vm: VmId,
    record: &UnfenceRecord,
) -> Result<(), Fault> {
    let record = Record::read(record, vm)?;
    match &record.stage {
        Stage::Definition(saved) => definition::apply(connection, vm, &record, saved),
        Stage::Disks(saved) => disks::apply(connection, config, vm, &record, saved),
    }
}

pub(crate) fn holds(
    connection: &Connect,
    config: &LibvirtConfig,
    vm: VmId,
    record: &UnfenceRecord,
) -> Result<bool, Fault> {
    let record = Record::read(record, vm)?;
    match &record.stage {
        Stage::Definition(_) => definition::holds(connection, vm, &record),
        Stage::Disks(saved) => disks::holds(connection, config, &record, saved),
    }
}

pub(crate) fn undo(
    connection: &Connect,
    config: &LibvirtConfig,
    vm: VmId,
    record: &UnfenceRecord,
) -> Result<(), Fault> {
    let record = Record::read(record, vm)?;
    match &record.stage {
        Stage::Definition(saved) => definition::undo(connection, vm, &record, saved),
        Stage::Disks(saved) => disks::undo(connection, config, vm, &record, saved),
    }
}

pub(crate) fn retire(
    connection: &Connect,
    vm: VmId,
    record: &UnfenceRecord,
) -> Result<String, Fault> {
    definition::retire(connection, vm, &Record::read(record, vm)?)
}

/// Every refusal comes before the first deletion. The definition goes last: as long as it is there,
/// an interrupted call can be made again.
pub(crate) fn discard(
    connection: &Connect,
    config: &LibvirtConfig,
    vm: VmId,
    records: &[UnfenceRecord],
) -> Result<Discarded, Fault> {
    let records: Vec<_> =
        records.iter().map(|record| Record::read(record, vm)).collect::<Result<_, _>>()?;
    for record in &records {
        match &record.stage {
            Stage::Definition(_) => definition::may_discard(connection, vm, record)?,
            Stage::Disks(saved) => disks::may_discard(connection, config, vm, record, saved)?,
        }
    }
    let mut discarded = Discarded::default();
    // It goes last: without it nothing is left to do.
    if crate::look::find(connection, vm)?.is_none() {
        return Ok(discarded);
    }
    for record in &records {
        if let Stage::Disks(saved) = &record.stage {
            disks::discard(connection, config, record, saved, &mut discarded)?;
        }
    }
    for record in &records {
        if let Stage::Definition(saved) = &record.stage {
            let others = saved.disks.iter().filter(|disk| !fenced(&records, &disk.path));
            let others = others.map(|disk| format!("disk {}: no pool holds it", disk.path));
            discarded.left.extend(others);
            definition::discard(connection, vm, &mut discarded)?;
        }
    }
    Ok(discarded)
}

/// Did a record of disks cover the one at `path`?
fn fenced(records: &[Record], path: &str) -> bool {
    records.iter().any(|record| match &record.stage {
        Stage::Disks(saved) => saved.disks.iter().any(|disk| disk.path == path),
        Stage::Definition(_) => false,
    })
}

/// What would be done to this VM with the access that there is, and what remains open.
pub(crate) fn offer(
    connection: &Connect,
    config: &LibvirtConfig,
    vm: VmId,
) -> Result<FenceOffer, Fault> {
    let domain = look::require(connection, vm)?;
    let xml = look::live_xml(&domain)?;
    let (disks, unreachable) = definition::writable_disks(connection, &xml)?;
    let mut means = vec![FenceMeans {
        name: "definition".to_owned(),
        does: format!(
            "{:?} is defined anew with the same id and name, with its disks at {NOWHERE}... where \
             nothing is, and is not started by itself any more",
            xml.name
        ),
    }];
    let mut open = Vec::new();
    if !domain.is_persistent()? {
        open.push(
            "the VM is transient: whoever has its definition can create it again, and then only \
             the fence of its disks stands in the way"
                .to_owned(),
        );
    }
    let mut headers = Vec::new();
    for disk in &disks {
        match image::find(connection, config, disk)? {
            Some(found) => headers.push((disk, found)),
            None => open.push(format!(
                "disk {} at {} is in no pool and cannot be put into one: another VM can use it",
                disk.target, disk.path
            )),
        }
    }
    if !headers.is_empty() {
        means.push(header_means(headers.iter().map(|(disk, _)| *disk)));
    }
    if let Some(access) = &config.host {
        let files: Vec<_> = headers.iter().filter(|(_, found)| found.is_file()).collect();
        for (disk, _) in files {
            means.extend(host::offer(access, disk)?);
        }
    }
    open.extend(unreachable.into_iter().map(|what| {
        format!("disk {what} is not in a file or block device: another VM can use it")
    }));
    open.extend(remains_open(&xml, &disks, config));
    Ok(FenceOffer { means, does_not_stop: open })
}

fn header_means<'d>(disks: impl Iterator<Item = &'d FencedDisk>) -> FenceMeans {
    let paths: Vec<_> = disks.map(|disk| disk.path.as_str()).collect();
    FenceMeans {
        name: "disk-header".to_owned(),
        does: format!(
            "once the VM is off, the first 64 KiB, and of raw images the last 64 KiB too, are \
             replaced by a notice, after they were saved: {}",
            paths.join(", ")
        ),
    }
}

fn remains_open(xml: &DomainXml, disks: &[FencedDisk], config: &LibvirtConfig) -> Vec<String> {
    let mut open = Vec::new();
    if config.host.is_none() && disks.iter().any(|disk| disk.format == model::DiskFormat::Raw) {
        open.push(
            "a VM can still be started with a raw image, but finds no system, partitions or file \
             systems on it"
                .to_owned(),
        );
    }
    let behind: Vec<_> =
        xml.disks.iter().flat_map(|disk| disk.behind.iter().map(String::as_str)).collect();
    if !behind.is_empty() {
        open.push(format!("images behind the disks are left alone: {}", behind.join(", ")));
    }
    if config.host.is_none() {
        open.push(
            "a power cut of the host within about half a minute of the fence may lose the notices \
             on the disks, not the definition's fence"
                .to_owned(),
        );
    }
    open.push("someone who takes the fence off by hand".to_owned());
    open
}
