//! The placeholder: defined held, marked, released, removed.

use model::{Power, VmId};
use site::{Leftover, Mark, PlaceholderSpec, PlaceholderState, SiteErrorKind};
use tracing::warn;
use units::MigrationId;
use virt::connect::Connect;
use virt::domain::Domain;
use virt_sys as sys;

use crate::fault::{Fault, maybe};
use crate::xml::{
    CACHED, DIRECT, DomainXml, Form, Located, Ours, OursState, VolumeXml, WriteError,
    metadata_text, ours_uri,
};
use crate::{LibvirtConfig, look, power, probe, storage, volumes, xml};

/// What a VM of ours is under its id.
struct Held {
    domain: Domain,
    ours: Ours,
    power: Power,
}

pub(crate) fn define(
    connection: &Connect,
    config: &LibvirtConfig,
    spec: &PlaceholderSpec,
) -> Result<(), Fault> {
    let there = match look::find(connection, spec.vm)? {
        None => None,
        Some(domain) => Some(ours(domain)?),
    };
    let mark = match there {
        None => {
            refuse_if_named(connection, &spec.name)?;
            None
        }
        Some(held) => {
            refuse_other_attempt(&held.ours, spec)?;
            if held.ours.state == OursState::Released {
                return Err(Fault::wrong_state("the VM was released already"));
            }
            if held.power.is_loaded() {
                return Ok(());
            }
            held.ours.mark
        }
    };
    let domain = redefine(connection, config, spec, Form::Held, mark.as_ref())?;
    Ok(domain.set_autostart(false)?)
}

fn redefine(
    connection: &Connect,
    config: &LibvirtConfig,
    spec: &PlaceholderSpec,
    form: Form,
    mark: Option<&Mark>,
) -> Result<Domain, Fault> {
    let host = probe::host(connection, config, &spec.arch, &spec.machine)?;
    let mut disks = Vec::new();
    for disk in &spec.disks {
        let pool = storage::pool(connection, &disk.pool)?;
        let volume = storage::volume(&pool, &disk.volume)?
            .ok_or_else(|| Fault::not_found(format!("there is no volume {:?}", disk.volume)))?;
        let block = VolumeXml::parse(&volume.xml_desc(0)?)?.kind == "block";
        disks.push(Located { disk, path: volume.path()?, block });
    }
    let xml = xml::placeholder(spec, &disks, &host, form, mark).map_err(unwritable)?;
    Ok(connection.define_domain_xml(&xml)?)
}

pub(crate) fn unwritable(cause: WriteError) -> Fault {
    match cause {
        WriteError::Unsupported { what } => Fault::found(SiteErrorKind::Unsupported, what),
        WriteError::Control { .. } | WriteError::Io(_) => Fault::internal(cause.to_string()),
    }
}

pub(crate) fn state(connection: &Connect, vm: VmId) -> Result<PlaceholderState, Fault> {
    let Some(domain) = look::find(connection, vm)? else { return Ok(PlaceholderState::Absent) };
    let power = look::power(&domain)?;
    let xml = look::live_xml(&domain)?;
    Ok(match xml.ours {
        None => PlaceholderState::Foreign { name: xml.name, power },
        Some(Ours { migration, epoch, state: OursState::Held, .. }) => {
            PlaceholderState::Held { migration, epoch, power }
        }
        Some(Ours { migration, epoch, state: OursState::Released, .. }) => {
            PlaceholderState::Released { migration, epoch, power }
        }
    })
}

pub(crate) fn start_helper(connection: &Connect, vm: VmId) -> Result<(), Fault> {
    let domain = look::require(connection, vm)?;
    let held = ours(domain)?;
    if held.ours.state != OursState::Held {
        return Err(Fault::wrong_state("the VM is released: it boots from its own disk"));
    }
    match held.power {
        Power::Running => Ok(()),
        Power::Paused => Ok(held.domain.resume()?),
        Power::Off | Power::Absent => start(connection, &held.domain),
    }
}

/// Starts a VM of ours; where its file system does no direct I/O, through the host's cache.
fn start(connection: &Connect, domain: &Domain) -> Result<(), Fault> {
    let said = match domain.create() {
        Ok(()) => return Ok(()),
        Err(said) => said,
    };
    let without_direct_io = ["O_DIRECT", "multiple of request alignment"];
    if !without_direct_io.iter().any(|words| said.message().contains(words)) {
        return Err(said.into());
    }
    // libvirt's own text of a definition that we wrote: the two attributes stand nowhere else in
    // it, because every value that holds a quote is escaped.
    let text = domain.xml_desc(sys::VIR_DOMAIN_XML_INACTIVE)?;
    let text = text.replace(DIRECT, CACHED);
    warn!(%said, "no direct I/O on these disks: the host's cache is used");
    Ok(connection.define_domain_xml(&text)?.create()?)
}

pub(crate) fn write_mark(connection: &Connect, vm: VmId, mark: &Mark) -> Result<(), Fault> {
    let domain = look::require(connection, vm)?;
    let held = ours(domain)?;
    if let Some(there) = held.ours.mark.as_ref().filter(|there| *there != mark) {
        return Err(Fault::conflict(format!(
            "it bears the mark of migration {}, epoch {}",
            there.migration, there.epoch
        )));
    }
    let Ours { migration, epoch, state, .. } = &held.ours;
    let text =
        metadata_text(migration.as_str(), epoch.0, *state, Some(mark)).map_err(unwritable)?;
    let live = if held.power.is_loaded() { sys::VIR_DOMAIN_AFFECT_LIVE } else { 0 };
    // One that came by its platform's own migration need not have a definition beside.
    let config = if held.domain.is_persistent()? { sys::VIR_DOMAIN_AFFECT_CONFIG } else { 0 };
    held.domain.set_metadata(
        i32::try_from(sys::VIR_DOMAIN_METADATA_ELEMENT).unwrap_or(2),
        Some(&text),
        Some("causeway"),
        Some(ours_uri()),
        live | config,
    )?;
    // What counts is what libvirt stored.
    match read_mark(connection, vm)? {
        Some(stored) if stored == *mark => Ok(()),
        _ => Err(Fault::found(SiteErrorKind::Platform, "libvirt did not keep the mark")),
    }
}

/// From the definition that outlives the VM's power, with the live one agreeing.
pub(crate) fn read_mark(connection: &Connect, vm: VmId) -> Result<Option<Mark>, Fault> {
    let Some(domain) = look::find(connection, vm)? else { return Ok(None) };
    let mark = |xml: DomainXml| xml.ours.and_then(|ours| ours.mark);
    let config = mark(look::config_xml(&domain)?);
    let live = mark(look::live_xml(&domain)?);
    match (config, live) {
        (Some(config), Some(live)) if config != live => {
            Err(Fault::conflict("it bears two marks that differ"))
        }
        // A mark that reached one of the two is a mark: losing it would be the worse mistake.
        (config, live) => Ok(config.or(live)),
    }
}

pub(crate) fn release(
    connection: &Connect,
    config: &LibvirtConfig,
    spec: &PlaceholderSpec,
) -> Result<(), Fault> {
    let mark = read_mark(connection, spec.vm)?;
    let held = ours(look::require(connection, spec.vm)?)?;
    refuse_other_attempt(&held.ours, spec)?;
    let Some(mark) = mark else {
        return Err(Fault::wrong_state("it bears no mark of a decision"));
    };
    if held.ours.state == OursState::Released && held.power == Power::Running {
        return finish(connection, spec, &held.domain);
    }
    if held.ours.state == OursState::Held {
        power::destroy(&held.domain)?;
    }
    if held.ours.state == OursState::Released && held.power == Power::Paused {
        held.domain.resume()?;
        return finish(connection, spec, &held.domain);
    }
    let domain = redefine(connection, config, spec, Form::Released, Some(&mark))?;
    start(connection, &domain)?;
    finish(connection, spec, &domain)
}

/// What comes after the start and is harmless when repeated.
fn finish(connection: &Connect, spec: &PlaceholderSpec, domain: &Domain) -> Result<(), Fault> {
    domain.set_autostart(spec.autostart)?;
    if let Err(fault) = volumes::hand_over(connection, &spec.migration, &spec.disks) {
        warn!(?fault, "the VM runs; notes about its volumes could not be removed");
    }
    Ok(())
}

pub(crate) fn leftovers(
    connection: &Connect,
    migration: &MigrationId,
) -> Result<Vec<Leftover>, Fault> {
    let mut left = Vec::new();
    for domain in look::all(connection)? {
        let xml = match look::live_xml(&domain) {
            Err(fault) if fault.is_absence() => continue,
            xml => xml?,
        };
        if xml.ours.is_some_and(|ours| ours.migration == *migration) {
            left.push(Leftover::Placeholder { vm: xml.id, name: xml.name });
        }
    }
    left.extend(volumes::leftovers(connection, migration)?);
    Ok(left)
}

pub(crate) fn remove(connection: &Connect, leftover: &Leftover) -> Result<(), Fault> {
    let vm = match leftover {
        Leftover::Volume { pool, volume, .. } => return volumes::remove(connection, pool, volume),
        Leftover::Placeholder { vm, .. } => *vm,
    };
    let Some(domain) = look::find(connection, vm)? else { return Ok(()) };
    let held = ours(domain)?;
    if held.ours.state == OursState::Released || read_mark(connection, vm)?.is_some() {
        return Err(Fault::wrong_state("it bears the mark of a decision: it is the VM now"));
    }
    power::destroy(&held.domain)?;
    match maybe(held.domain.undefine_flags(sys::VIR_DOMAIN_UNDEFINE_NVRAM))? {
        Some(()) | None => Ok(()),
    }
}

/// Of a VM that somebody else made, nothing here is done.
fn ours(domain: Domain) -> Result<Held, Fault> {
    let xml = look::live_xml(&domain)?;
    let power = look::power(&domain)?;
    match xml.ours {
        Some(ours) => Ok(Held { domain, ours, power }),
        None => Err(Fault::conflict(format!("VM {:?} has this id and is not ours", xml.name))
            .hint("remove or rename it, if it is of no use any more")),
    }
}

fn refuse_other_attempt(ours: &Ours, spec: &PlaceholderSpec) -> Result<(), Fault> {
    if ours.migration == spec.migration && ours.epoch == spec.epoch {
        return Ok(());
    }
    let what = format!("a VM of migration {}, epoch {}, is there", ours.migration, ours.epoch);
    Err(Fault::conflict(what).hint("abort that migration, or remove its VM"))
}

fn refuse_if_named(connection: &Connect, name: &str) -> Result<(), Fault> {
    match look::find_named(connection, name)? {
        None => Ok(()),
        Some(_) => Err(Fault::conflict(format!("another VM is called {name:?}"))
            .hint("rename it, or move the VM under another name")),
    }
}
