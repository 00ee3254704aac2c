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
use site::{Discarded, FenceStage, SiteErrorKind, UnfenceRecord};
use virt::connect::Connect;

use crate::fault::{Fault, Finding, Op};
use crate::verdict::verdict;
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
/// an interrupted call can be made again. `moved`: the targets that were moved.
pub(crate) fn discard(
    connection: &Connect,
    config: &LibvirtConfig,
    vm: VmId,
    records: &[UnfenceRecord],
    moved: &[String],
) -> Result<Discarded, Fault> {
    let records: Vec<_> =
        records.iter().map(|record| Record::read(record, vm)).collect::<Result<_, _>>()?;
    if let Err(fault) = may_discard(connection, config, vm, &records, moved) {
        // What an earlier call deleted is not there any more.
        let mut missing = Vec::new();
        for saved in records.iter().filter_map(Record::disks) {
            missing.extend(disks::missing(connection, saved)?);
        }
        return Err(in_part(fault, "is not found any more", &missing));
    }
    let mut discarded = Discarded::default();
    // It goes last: without it nothing is left to do.
    if crate::look::find(connection, vm)?.is_none() {
        return Ok(discarded);
    }
    match delete(connection, config, vm, &records, &mut discarded) {
        Ok(()) => Ok(discarded),
        Err(fault) => Err(in_part(fault, "is deleted", &discarded.removed)),
    }
}

fn may_discard(
    connection: &Connect,
    config: &LibvirtConfig,
    vm: VmId,
    records: &[Record],
    moved: &[String],
) -> Result<(), Fault> {
    for record in records {
        match &record.stage {
            Stage::Definition(_) => definition::may_discard(connection, vm, record)?,
            Stage::Disks(saved) => {
                disks::all_moved(saved, moved)?;
                disks::may_discard(connection, config, vm, record, saved)?;
            }
        }
    }
    Ok(())
}

fn delete(
    connection: &Connect,
    config: &LibvirtConfig,
    vm: VmId,
    records: &[Record],
    discarded: &mut Discarded,
) -> Result<(), Fault> {
    for record in records {
        if let Stage::Disks(saved) = &record.stage {
            disks::discard(connection, config, record, saved, discarded)?;
        }
    }
    for record in records {
        if let Stage::Definition(saved) = &record.stage {
            let others = saved.disks.iter().filter(|disk| !fenced(records, &disk.path));
            let others = others.map(|disk| format!("disk {}: no pool holds it", disk.path));
            discarded.left.extend(others);
            definition::discard(connection, vm, discarded)?;
        }
    }
    Ok(())
}

/// These two kinds say that all is as it was, which is not so once something is `gone`.
fn in_part(fault: Fault, became: &str, gone: &[String]) -> Fault {
    let untouched = |kind| matches!(kind, SiteErrorKind::WrongState | SiteErrorKind::Conflict);
    if gone.is_empty() {
        return fault;
    }
    let gone = format!("{} {became}", gone.join(", "));
    match fault {
        Fault::Found(finding) if untouched(finding.kind) => Fault::Found(Finding {
            kind: SiteErrorKind::Platform,
            what: format!("{gone}, and then: {}", finding.what),
            ..finding
        }),
        Fault::Said(said) => {
            let verdict = verdict(&said, Op::Change);
            if !untouched(verdict.kind) {
                return Fault::Said(said);
            }
            Fault::Found(Finding {
                kind: SiteErrorKind::Platform,
                what: format!("{gone}, and then: {}: {}", verdict.what, said.message()),
                hint: verdict.hint.map(str::to_owned),
                remedy: verdict.remedy,
            })
        }
        found @ Fault::Found(_) => found,
    }
}

/// Did a record of disks cover the one at `path`?
fn fenced(records: &[Record], path: &str) -> bool {
    records
        .iter()
        .filter_map(Record::disks)
        .flat_map(|saved| &saved.disks)
        .any(|disk| disk.path == path)
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
    if config.host.is_none() && !disks.is_empty() {
        open.push(
            "a saved memory image (virsh save) can be restored, and goes on from memory without \
             looking for its system"
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
             on the disks and, where /etc/libvirt is neither on ext4 nor XFS, the definition's fence"
                .to_owned(),
        );
    }
    open.push("someone who takes the fence off by hand".to_owned());
    open
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_after_a_deletion_does_not_read_as_if_nothing_was_deleted() {
        let refusal = || Fault::conflict("vdb changed").hint("see what it is");
        let Fault::Found(before) = in_part(refusal(), "is deleted", &[]) else { panic!() };
        assert_eq!(before.kind, SiteErrorKind::Conflict);
        let gone = ["disk /a".to_owned()];
        let Fault::Found(after) = in_part(refusal(), "is deleted", &gone) else { panic!() };
        assert_eq!(after.kind, SiteErrorKind::Platform);
        assert_eq!(after.what, "disk /a is deleted, and then: vdb changed");
        assert_eq!(after.hint.as_deref(), Some("see what it is"));
    }
}
