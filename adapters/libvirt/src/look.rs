//! Looking at domains: the calls that everything else begins with.

use model::{Power, VmId};
use site::StoppedBy;
use uuid::Uuid;
use virt::connect::Connect;
use virt::domain::Domain;
use virt_sys as sys;

use crate::fault::{Fault, maybe};
use crate::sys::state;
use crate::xml::DomainXml;

/// `None` where there is no such VM.
pub(crate) fn find(connection: &Connect, vm: VmId) -> Result<Option<Domain>, Fault> {
    maybe(connection.lookup_domain_by_uuid_string(&vm.to_string()))
}

pub(crate) fn require(connection: &Connect, vm: VmId) -> Result<Domain, Fault> {
    find(connection, vm)?.ok_or_else(|| Fault::not_found(format!("there is no VM {vm}")))
}

pub(crate) fn find_named(connection: &Connect, name: &str) -> Result<Option<Domain>, Fault> {
    maybe(connection.lookup_domain_by_name(name))
}

pub(crate) fn all(connection: &Connect) -> Result<Vec<Domain>, Fault> {
    Ok(connection.list_all_domains(0)?)
}

pub(crate) fn id(domain: &Domain) -> Result<VmId, Fault> {
    let text = domain.uuid_string()?;
    let id = Uuid::parse_str(&text)
        .map_err(|_| Fault::internal(format!("libvirt's id of a VM is none: {text:?}")))?;
    Ok(VmId(id))
}

/// Whatever could still write, now or after a mere resume, counts as loaded.
pub(crate) fn power(domain: &Domain) -> Result<Power, Fault> {
    Ok(match state(domain)?.0 {
        sys::VIR_DOMAIN_SHUTOFF => Power::Off,
        // A crashed VM may be kept in memory for a look at it.
        sys::VIR_DOMAIN_CRASHED if !domain.is_active()? => Power::Off,
        sys::VIR_DOMAIN_CRASHED | sys::VIR_DOMAIN_PAUSED | sys::VIR_DOMAIN_PMSUSPENDED => {
            Power::Paused
        }
        sys::VIR_DOMAIN_RUNNING | sys::VIR_DOMAIN_BLOCKED | sys::VIR_DOMAIN_SHUTDOWN => {
            Power::Running
        }
        unknown => {
            let what = format!("libvirt says that the VM is in state {unknown}");
            return Err(Fault::found(site::SiteErrorKind::Platform, what));
        }
    })
}

/// Whether libvirt has it paused to move it.
pub(crate) fn is_leaving(domain: &Domain) -> Result<bool, Fault> {
    const MIGRATION: u32 = sys::VIR_DOMAIN_PAUSED_MIGRATION;
    Ok(state(domain)? == (sys::VIR_DOMAIN_PAUSED, MIGRATION))
}

/// As above; [`Power::Absent`] where the VM vanished with its last breath, as transient ones do.
pub(crate) fn power_of(connection: &Connect, vm: VmId) -> Result<Power, Fault> {
    match find(connection, vm)? {
        None => Ok(Power::Absent),
        Some(domain) => match power(&domain) {
            Err(fault) if fault.is_absence() => Ok(Power::Absent),
            power => power,
        },
    }
}

pub(crate) fn stopped_by(connection: &Connect, vm: VmId) -> Result<Option<StoppedBy>, Fault> {
    let Some(domain) = find(connection, vm)? else { return Ok(None) };
    let (state, reason) = match state(&domain).map_err(Fault::Said) {
        // It vanished with its last breath.
        Err(fault) if fault.is_absence() => return Ok(None),
        said => said?,
    };
    match state {
        sys::VIR_DOMAIN_SHUTOFF => Ok(by_reason(reason)),
        sys::VIR_DOMAIN_CRASHED if !domain.is_active()? => Ok(Some(StoppedBy::Crashed)),
        _ => Ok(None),
    }
}

/// Kept by libvirtd alone, in its memory: one that began anew knows no reason. A start that failed
/// replaces it too.
const fn by_reason(reason: sys::virDomainShutoffReason) -> Option<StoppedBy> {
    Some(match reason {
        sys::VIR_DOMAIN_SHUTOFF_UNKNOWN => return None,
        sys::VIR_DOMAIN_SHUTOFF_DESTROYED => StoppedBy::PoweredOff,
        sys::VIR_DOMAIN_SHUTOFF_SHUTDOWN => StoppedBy::Shutdown,
        sys::VIR_DOMAIN_SHUTOFF_CRASHED => StoppedBy::Crashed,
        sys::VIR_DOMAIN_SHUTOFF_SAVED => StoppedBy::Saved,
        sys::VIR_DOMAIN_SHUTOFF_MIGRATED => StoppedBy::Migrated,
        _ => StoppedBy::Other,
    })
}

/// What it is now: what QEMU was started with, and what was plugged since.
pub(crate) fn live_xml(domain: &Domain) -> Result<DomainXml, Fault> {
    DomainXml::parse(&domain.xml_desc(0)?)
}

/// What it will be after the next start.
pub(crate) fn config_xml(domain: &Domain) -> Result<DomainXml, Fault> {
    DomainXml::parse(&domain.xml_desc(sys::VIR_DOMAIN_XML_INACTIVE)?)
}
