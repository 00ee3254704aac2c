//! The first stage: a persistent definition whose every start fails.

use model::{DiskUse, VmId};
use site::Discarded;
use virt::connect::Connect;
use virt::domain::Domain;
use virt_sys as sys;

use super::record::{Record, SavedDefinition, Stage};
use crate::fault::{Fault, maybe};
use crate::placeholder::unwritable;
use crate::xml::{self, DomainXml, Fenced, FencedDisk, NOWHERE};
use crate::{inventory, look};

/// libvirt renames nothing onto a name that is taken: so many are tried.
const NAMES_TRIED: u32 = 20;

/// libvirt 5.6.0: an older one refuses the flag.
const KNOWS_CHECKPOINTS: u32 = 5_006_000;

/// With secrets: what is put back must be what was there.
const AS_STORED: sys::virDomainXMLFlags = sys::VIR_DOMAIN_XML_INACTIVE | sys::VIR_DOMAIN_XML_SECURE;

/// Without what only this run of it has: fit to be defined.
const AS_IT_RUNS: sys::virDomainXMLFlags =
    sys::VIR_DOMAIN_XML_MIGRATABLE | sys::VIR_DOMAIN_XML_SECURE;

pub(super) fn capture(connection: &Connect, domain: &Domain, vm: VmId) -> Result<Record, Fault> {
    let text = next_definition(domain)?;
    let config = DomainXml::parse(&text)?;
    if config.fenced.is_some() {
        return Err(Fault::wrong_state("the VM is fenced already")
            .hint("its record was stored when it was fenced"));
    }
    let persistent = domain.is_persistent()?;
    // What is written to now: a running VM's disks may differ from those of its next start.
    let (disks, _) = writable_disks(connection, &look::live_xml(domain)?)?;
    let saved = SavedDefinition {
        xml: text,
        persistent,
        autostart: persistent && domain.autostart()?,
        disks,
    };
    Ok(Record::new(vm, config.name, Stage::Definition(saved)))
}

/// What the VM would start from. A transient VM that was fenced and unfenced while it ran still
/// shows the fenced definition as its next one; what it runs from is its own.
fn next_definition(domain: &Domain) -> Result<String, Fault> {
    let flags = if domain.is_persistent()? { AS_STORED } else { AS_IT_RUNS };
    Ok(domain.xml_desc(flags)?)
}

/// The VM's own writable disks that have a path on the host, and names of those that have none.
pub(super) fn writable_disks(
    connection: &Connect,
    vm: &DomainXml,
) -> Result<(Vec<FencedDisk>, Vec<String>), Fault> {
    let (mut disks, mut others) = (Vec::new(), Vec::new());
    if let Some(note) = &vm.fenced {
        return Ok((note.disks.clone(), others));
    }
    for disk in vm.disks.iter().filter(|disk| disk.usage == DiskUse::Data) {
        let path = match disk.source.path() {
            Some(path) => Some(path.to_owned()),
            None => match inventory::volume_of(connection, &disk.source)? {
                Some(volume) => Some(volume.path()?),
                None => None,
            },
        };
        // Volumes of network pools have names that look like paths and are none.
        match path.filter(|path| path.starts_with('/')) {
            Some(path) => disks.push(FencedDisk {
                target: disk.target.clone(),
                path,
                format: disk.format.clone(),
            }),
            None => others.push(disk.target.clone()),
        }
    }
    Ok((disks, others))
}

pub(super) fn apply(
    connection: &Connect,
    vm: VmId,
    record: &Record,
    saved: &SavedDefinition,
) -> Result<(), Fault> {
    let domain = look::require(connection, vm)?;
    let text = next_definition(&domain)?;
    let config = DomainXml::parse(&text)?;
    match &config.fenced {
        Some(note) if note.id == record.id => {
            domain.set_autostart(false)?;
            connection.define_domain_xml(&text)?;
            return refuse_saved_memory(&domain);
        }
        Some(_) => return Err(another_fence()),
        None => {}
    }
    if saved.persistent && text != saved.xml {
        return Err(Fault::conflict("the definition changed since it was captured")
            .hint("capture it again"));
    }
    refuse_saved_memory(&domain)?;
    let fence = Fenced { domain: &config, id: &record.id, disks: &saved.disks };
    let fenced = xml::fenced(&fence).map_err(unwritable)?;
    // A transient VM becomes persistent by this, and so stays known once it is off.
    let domain = connection.define_domain_xml(&fenced)?;
    // While libvirt has it paused to move it, it lets nobody do that; what is fenced does not start by itself either.
    if !look::is_leaving(&domain)? {
        domain.set_autostart(false)?;
    }
    // libvirt (virFileRewrite) syncs the file that it writes, and not the folder in which it is
    // renamed and its autostart ends. Written once more, a file is synced behind both: on ext4 and
    // XFS, which log in order, that takes them along, and a power cut does not bring the old
    // definition back.
    connection.define_domain_xml(&fenced)?;
    Ok(())
}

/// A start would go on from it, with the definition and the disks that the image names: past every
/// fence of the definition.
fn refuse_saved_memory(domain: &Domain) -> Result<(), Fault> {
    if !domain.has_managed_save(0)? {
        return Ok(());
    }
    let name = domain.name()?;
    Err(Fault::wrong_state("the VM has a saved memory image").hint(format!(
        "`virsh managedsave-remove {name}` discards the saved memory; to keep it, and only while \
         the VM runs nowhere else, `virsh start {name}` and abort the migration"
    )))
}

pub(super) fn holds(connection: &Connect, vm: VmId, record: &Record) -> Result<bool, Fault> {
    let Some(domain) = look::find(connection, vm)? else { return Ok(false) };
    if !domain.is_persistent()? || domain.has_managed_save(0)? {
        return Ok(false);
    }
    let config = look::config_xml(&domain)?;
    let ours = config.fenced.as_ref().is_some_and(|note| note.id == record.id);
    // One that is loaded is not started, and is looked at once more when it is off.
    let stays_off = !domain.autostart()? || look::power(&domain)?.is_loaded();
    Ok(ours && is_start_proof(&config) && stays_off)
}

/// Does every disk point to nowhere, and is there one?
fn is_start_proof(config: &DomainXml) -> bool {
    let nowhere = |path: Option<&str>| path.is_some_and(|path| path.starts_with(NOWHERE));
    !config.disks.is_empty() && config.disks.iter().all(|disk| nowhere(disk.source.path()))
}

pub(super) fn undo(
    connection: &Connect,
    vm: VmId,
    record: &Record,
    saved: &SavedDefinition,
) -> Result<(), Fault> {
    let Some(domain) = look::find(connection, vm)? else {
        // Somebody removed it: the record is all that there is.
        let domain = connection.define_domain_xml(&saved.xml)?;
        return Ok(domain.set_autostart(saved.autostart)?);
    };
    let loaded = look::power(&domain)?.is_loaded();
    let config = DomainXml::parse(&next_definition(&domain)?)?;
    match &config.fenced {
        Some(note) if note.id != record.id => return Err(another_fence()),
        // Never made, or undone already but for the last step.
        None if !saved.persistent => return Ok(()),
        None => return Ok(domain.set_autostart(saved.autostart)?),
        Some(_) => {}
    }
    if !saved.persistent && loaded {
        // Transient again, as it was.
        return Ok(domain.undefine()?);
    }
    if config.name != record.name {
        domain.rename(&record.name, 0)?;
    }
    let domain = connection.define_domain_xml(&saved.xml)?;
    Ok(domain.set_autostart(saved.autostart)?)
}

pub(super) fn retire(connection: &Connect, vm: VmId, record: &Record) -> Result<String, Fault> {
    let domain = look::require(connection, vm)?;
    let power = look::power(&domain)?;
    if power.is_loaded() {
        return Err(Fault::loaded(power));
    }
    let config = look::config_xml(&domain)?;
    match &config.fenced {
        None => return Err(Fault::wrong_state("the VM is not fenced")),
        Some(note) if matches!(record.stage, Stage::Definition(_)) && note.id != record.id => {
            return Err(another_fence());
        }
        Some(_) => {}
    }
    if config.name != record.name {
        return Ok(config.name);
    }
    for attempt in 1..=NAMES_TRIED {
        let more = if attempt == 1 { String::new() } else { format!("-{attempt}") };
        let name = format!("{}-moved-{}{more}", record.name, record.day());
        if maybe(connection.lookup_domain_by_name(&name))?.is_none() {
            domain.rename(&name, 0)?;
            return Ok(name);
        }
    }
    Err(Fault::conflict(format!("all names like {}-moved-{} are taken", record.name, record.day()))
        .hint("remove VMs that were retired earlier"))
}

/// Nothing but a VM that is off and bears this very fence.
pub(super) fn may_discard(connection: &Connect, vm: VmId, record: &Record) -> Result<(), Fault> {
    let Some(domain) = look::find(connection, vm)? else { return Ok(()) };
    let power = look::power(&domain)?;
    if power.is_loaded() {
        return Err(Fault::loaded(power));
    }
    match &look::config_xml(&domain)?.fenced {
        // libvirt would not let go of the definition, once the disks are gone.
        Some(note) if note.id == record.id => refuse_saved_memory(&domain),
        Some(_) => Err(another_fence()),
        None => Err(Fault::wrong_state("the VM is not fenced: it is not the one that was retired")
            .hint("look at it with `virsh dumpxml`; nothing of it was deleted")),
    }
}

pub(super) fn discard(
    connection: &Connect,
    vm: VmId,
    discarded: &mut Discarded,
) -> Result<(), Fault> {
    let Some(domain) = look::find(connection, vm)? else { return Ok(()) };
    let name = domain.name()?;
    let mut flags = sys::VIR_DOMAIN_UNDEFINE_NVRAM | sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA;
    if connection.lib_version()? >= KNOWS_CHECKPOINTS {
        flags |= sys::VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA;
    }
    domain.undefine_flags(flags)?;
    discarded.removed.push(format!("definition {name}"));
    Ok(())
}

fn another_fence() -> Fault {
    Fault::conflict("the VM is fenced by another migration").hint("take that fence off first")
}
