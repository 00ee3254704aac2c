//! Starting and stopping.

use model::{Power, VmId};
use virt::connect::Connect;
use virt::domain::Domain;

use crate::fault::Fault;
use crate::look;

pub(crate) fn suspend(connection: &Connect, vm: VmId) -> Result<(), Fault> {
    let domain = look::require(connection, vm)?;
    match look::power(&domain)? {
        Power::Paused => Ok(()),
        Power::Running => Ok(domain.suspend()?),
        power => Err(Fault::wrong_state(format!("the VM is {power}"))),
    }
}

pub(crate) fn resume(connection: &Connect, vm: VmId) -> Result<(), Fault> {
    let domain = look::require(connection, vm)?;
    match look::power(&domain)? {
        Power::Running => Ok(()),
        Power::Paused => Ok(domain.resume()?),
        power => Err(Fault::wrong_state(format!("the VM is {power}"))),
    }
}

pub(crate) fn power_off(connection: &Connect, vm: VmId) -> Result<(), Fault> {
    let Some(domain) = look::find(connection, vm)? else { return Ok(()) };
    destroy(&domain)?;
    match look::power_of(connection, vm)? {
        Power::Off | Power::Absent => Ok(()),
        power => Err(Fault::wrong_state(format!("the VM is still {power}"))),
    }
}

/// Pulls the cord, if it is in.
pub(crate) fn destroy(domain: &Domain) -> Result<(), Fault> {
    let loaded = |domain: &Domain| match look::power(domain) {
        Err(fault) if fault.is_absence() => Ok(false),
        power => power.map(Power::is_loaded),
    };
    if !loaded(domain)? {
        return Ok(());
    }
    match domain.destroy() {
        Ok(()) => Ok(()),
        // It went off by itself in between.
        Err(_) if !loaded(domain)? => Ok(()),
        Err(said) => Err(said.into()),
    }
}

pub(crate) fn power_on(connection: &Connect, vm: VmId) -> Result<(), Fault> {
    let domain = look::require(connection, vm)?;
    match look::power(&domain)? {
        Power::Running => Ok(()),
        Power::Paused => Err(Fault::wrong_state("the VM is paused").hint("resume it instead")),
        Power::Off | Power::Absent => {
            domain.create()?;
            // From saved memory it goes on as it was saved, which may be paused.
            match look::power(&domain)? {
                Power::Paused => Ok(domain.resume()?),
                Power::Running | Power::Off | Power::Absent => Ok(()),
            }
        }
    }
}
