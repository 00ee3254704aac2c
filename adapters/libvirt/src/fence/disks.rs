//! The second stage: disks that nothing recognises, or that are not where they were.

use model::{DiskFormat, VmId};
use site::Discarded;
use virt::connect::Connect;
use virt::domain::Domain;

use super::definition::writable_disks;
use super::host;
use super::image::{self, Image};
use super::notice::{Found, compare, is_noticed, notice};
use super::record::{Piece, Record, SavedDisk, SavedDisks, Stage};
use crate::fault::Fault;
use crate::xml::FencedDisk;
use crate::{HostAccess, LibvirtConfig, inventory, look, storage};

/// Boot sector, partition table, boot loader, first superblock, LVM label; an image's header.
const HEADER: u64 = 64 * 1024;

pub(super) fn capture(
    connection: &Connect,
    config: &LibvirtConfig,
    domain: &Domain,
    vm: VmId,
) -> Result<Record, Fault> {
    let xml = look::config_xml(domain)?;
    let (disks, _) = writable_disks(connection, &xml)?;
    let mut saved = Vec::new();
    for disk in &disks {
        refuse_if_used(connection, vm, &disk.path)?;
        let Some(image) = image::find(connection, config, disk)? else { continue };
        saved.push(capture_disk(connection, config, disk, &image)?);
    }
    // The fenced definition may bear the name of a retired VM; what counts is the id.
    Ok(Record::new(vm, xml.name, Stage::Disks(SavedDisks { disks: saved })))
}

fn capture_disk(
    connection: &Connect,
    config: &LibvirtConfig,
    disk: &FencedDisk,
    image: &Image,
) -> Result<SavedDisk, Fault> {
    let mut pieces = Vec::new();
    for (offset, length) in places(disk, image) {
        let once = storage::read(connection, &image.volume, offset, length)?;
        let twice = storage::read(connection, &image.volume, offset, length)?;
        if once != twice {
            return Err(Fault::wrong_state(format!("something writes to {}", disk.path))
                .hint("find out what uses the disk of a VM that is off"));
        }
        if is_noticed(&once) {
            return Err(Fault::wrong_state(format!("{} is fenced already", disk.path))
                .hint("its record was stored when it was fenced"));
        }
        pieces.push(Piece { offset, bytes: once });
    }
    let access = config.host.as_ref().filter(|_| image.is_file());
    Ok(SavedDisk {
        target: disk.target.clone(),
        path: disk.path.clone(),
        pieces,
        host: access.map(|access| host::capture(access, &disk.path)).transpose()?,
    })
}

/// Offsets and lengths of what the notice replaces. A raw disk keeps a copy of its partition table
/// at its end.
fn places(disk: &FencedDisk, image: &Image) -> Vec<(u64, u64)> {
    let size = if image.xml.physical > 0 { image.xml.physical } else { image.xml.capacity };
    let first = HEADER.min(size);
    let mut places = vec![(0, first)];
    let last = size.saturating_sub(HEADER).max(first);
    if disk.format == DiskFormat::Raw && last < size {
        places.push((last, size - last));
    }
    places
}

pub(super) fn apply(
    connection: &Connect,
    config: &LibvirtConfig,
    vm: VmId,
    record: &Record,
    saved: &SavedDisks,
) -> Result<(), Fault> {
    for disk in &saved.disks {
        refuse_if_used(connection, vm, &disk.path)?;
        let image = require(connection, disk)?;
        for piece in &disk.pieces {
            let notice = notice(&record.name, &record.id, piece.bytes.len());
            match look_at(connection, &image, piece, &notice)? {
                Found::Notice => continue,
                Found::Original | Found::Mixed => {}
                Found::Used | Found::Damaged => {
                    let what = format!("{} changed since it was captured", disk.path);
                    return Err(Fault::conflict(what).hint("capture it again"));
                }
            }
            // libvirt writes under a running VM without a word: so look once more, and last.
            refuse_if_used(connection, vm, &disk.path)?;
            put(connection, &image, piece.offset, &notice)?;
        }
        drop(image);
        if let Some(means) = &disk.host {
            host::apply(access(config)?, &disk.path, means)?;
        }
    }
    Ok(())
}

pub(super) fn holds(
    connection: &Connect,
    config: &LibvirtConfig,
    record: &Record,
    saved: &SavedDisks,
) -> Result<bool, Fault> {
    for disk in &saved.disks {
        let Some(image) = find(connection, disk)? else { return Ok(false) };
        for piece in &disk.pieces {
            let notice = notice(&record.name, &record.id, piece.bytes.len());
            if look_at(connection, &image, piece, &notice)? != Found::Notice {
                return Ok(false);
            }
        }
        drop(image);
        if let Some(means) = &disk.host
            && !host::holds(access(config)?, &disk.path, means)?
        {
            return Ok(false);
        }
    }
    Ok(true)
}

pub(super) fn undo(
    connection: &Connect,
    config: &LibvirtConfig,
    vm: VmId,
    record: &Record,
    saved: &SavedDisks,
) -> Result<(), Fault> {
    for disk in &saved.disks {
        if let Some(means) = &disk.host {
            host::undo(access(config)?, &disk.path, means)?;
        }
        let image = require(connection, disk)?;
        for piece in &disk.pieces {
            let notice = notice(&record.name, &record.id, piece.bytes.len());
            match look_at(connection, &image, piece, &notice)? {
                // Never fenced, or unfenced already, and used since perhaps.
                Found::Original | Found::Used => continue,
                Found::Notice | Found::Mixed => {}
                Found::Damaged => {
                    let what = format!("{} was changed while it was fenced", disk.path);
                    return Err(Fault::conflict(what)
                        .hint("put its header back from the stored record by hand"));
                }
            }
            refuse_if_used(connection, vm, &disk.path)?;
            put(connection, &image, piece.offset, &piece.bytes)?;
        }
    }
    Ok(())
}

/// A disk that came while the others were being copied is fenced like them, and is the only copy.
pub(super) fn all_moved(saved: &SavedDisks, moved: &[String]) -> Result<(), Fault> {
    match saved.disks.iter().find(|disk| !moved.contains(&disk.target)) {
        None => Ok(()),
        Some(disk) => Err(Fault::conflict(format!(
            "disk {} at {} was fenced and not moved: this is its only copy",
            disk.target, disk.path
        ))
        .hint(
            "save what is on it, with the header from the fence's record in the source's ledger, \
             and then delete the VM by hand",
        )),
    }
}

/// Disks that are under none of their names.
pub(super) fn missing(connection: &Connect, saved: &SavedDisks) -> Result<Vec<String>, Fault> {
    let mut missing = Vec::new();
    for disk in &saved.disks {
        if find(connection, disk)?.is_none() {
            missing.push(format!("disk {}", disk.path));
        }
    }
    Ok(missing)
}

/// Nothing but images that bear this very fence, and that nobody uses.
pub(super) fn may_discard(
    connection: &Connect,
    config: &LibvirtConfig,
    vm: VmId,
    record: &Record,
    saved: &SavedDisks,
) -> Result<(), Fault> {
    for disk in &saved.disks {
        refuse_if_used(connection, vm, &disk.path)?;
        if disk.host.is_some() {
            access(config)?;
        }
        let Some(image) = find(connection, disk)? else { continue };
        bears_notice(connection, &image, record, disk)?;
    }
    Ok(())
}

fn bears_notice(
    connection: &Connect,
    image: &Image,
    record: &Record,
    disk: &SavedDisk,
) -> Result<(), Fault> {
    for piece in &disk.pieces {
        let notice = notice(&record.name, &record.id, piece.bytes.len());
        if look_at(connection, image, piece, &notice)? != Found::Notice {
            let what = format!("{} does not bear the fence's notice any more", disk.path);
            return Err(Fault::conflict(what)
                .hint("somebody wrote to it since: see what it is, then delete it by hand"));
        }
    }
    Ok(())
}

/// Deletes what it can and says what it could not, so that what is gone is never called kept.
pub(super) fn discard(
    connection: &Connect,
    config: &LibvirtConfig,
    record: &Record,
    saved: &SavedDisks,
    discarded: &mut Discarded,
) -> Result<(), Fault> {
    for disk in &saved.disks {
        let Some(image) = find(connection, disk)? else {
            let why = "not found: deleted before, or its pool is not active";
            discarded.left.push(format!("disk {}: {why}", disk.path));
            continue;
        };
        match discard_disk(connection, config, record, disk, image) {
            Ok(()) => discarded.removed.push(format!("disk {}", disk.path)),
            Err(fault) if fault.is_unsupported() => {
                discarded.left.push(format!("disk {}: its pool cannot delete", disk.path));
            }
            Err(fault) => return Err(fault),
        }
    }
    Ok(())
}

fn discard_disk(
    connection: &Connect,
    config: &LibvirtConfig,
    record: &Record,
    disk: &SavedDisk,
    image: Image,
) -> Result<(), Fault> {
    let Some(means) = &disk.host else {
        bears_notice(connection, &image, record, disk)?;
        return Ok(image.volume.delete(0)?);
    };
    drop(image);
    let access = access(config)?;
    // An immutable file cannot be deleted, nor can libvirt delete under another name.
    host::undo(access, &disk.path, means)?;
    let deleted = require(connection, disk).and_then(|image| {
        bears_notice(connection, &image, record, disk)?;
        Ok(image.volume.delete(0)?)
    });
    deleted.or_else(|fault| {
        host::apply(access, &disk.path, means)?;
        Err(fault)
    })
}

fn look_at(
    connection: &Connect,
    image: &Image,
    piece: &Piece,
    notice: &[u8],
) -> Result<Found, Fault> {
    let length = u64::try_from(piece.bytes.len()).unwrap_or(u64::MAX);
    let now = storage::read(connection, &image.volume, piece.offset, length)?;
    Ok(compare(&now, &piece.bytes, notice))
}

/// Writes and reads back.
fn put(connection: &Connect, image: &Image, offset: u64, bytes: &[u8]) -> Result<(), Fault> {
    let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    storage::write(connection, &image.volume, offset, length, &mut &*bytes)?;
    if storage::read(connection, &image.volume, offset, length)? == bytes {
        return Ok(());
    }
    let what = format!("{} does not keep what is written", image.volume.path()?);
    Err(Fault::found(site::SiteErrorKind::Platform, what))
}

/// Where the image is now: under its own name, or the one that the fence gave it.
fn find(connection: &Connect, disk: &SavedDisk) -> Result<Option<Image>, Fault> {
    if let Some(image) = image::open(connection, &disk.path)? {
        return Ok(Some(image));
    }
    match &disk.host {
        Some(means) => image::open(connection, &means.renamed_to),
        None => Ok(None),
    }
}

fn require(connection: &Connect, disk: &SavedDisk) -> Result<Image, Fault> {
    find(connection, disk)?
        .ok_or_else(|| Fault::not_found(format!("the image {} is not there", disk.path)))
}

fn access(config: &LibvirtConfig) -> Result<&HostAccess, Fault> {
    config.host.as_ref().ok_or_else(|| {
        Fault::wrong_state("the fence was made with access to the host, which is gone")
            .hint("give the site its host access back")
    })
}

/// Neither this VM nor another may have the disk open.
fn refuse_if_used(connection: &Connect, vm: VmId, path: &str) -> Result<(), Fault> {
    let power = look::power_of(connection, vm)?;
    if power.is_loaded() {
        return Err(Fault::loaded(power));
    }
    for (name, xml) in inventory::loaded_others(connection, vm)? {
        let mut uses = xml.paths().any(|used| used == path);
        for (pool, volume) in xml.volumes() {
            let source =
                crate::xml::XmlSource::Volume { pool: pool.to_owned(), volume: volume.to_owned() };
            if let Some(volume) = inventory::volume_of(connection, &source)? {
                uses |= volume.path()? == path;
            }
        }
        if uses {
            return Err(Fault::wrong_state(format!("VM {name:?} uses {path}"))
                .hint("stop that VM: a disk in use is never fenced"));
        }
    }
    Ok(())
}
