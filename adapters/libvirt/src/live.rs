//! libvirt's own live migration, to a host that it is told of: begun, watched, called off.

use model::{Power, VmId};
use site::{LiveJob, LivePart, LiveWish};
use units::Bytes;
use virt::connect::Connect;
use virt::domain::MigrateParameters;
use virt_sys as sys;

use crate::fault::Fault;
use crate::look;
use crate::sys::{JobStats, abort_job, job_stats, max_downtime};

/// Returns when libvirt has ended it, either way.
///
/// `--live --p2p --copy-storage-all`: the source's libvirtd drives it, memory and disks. A VM that is defined
/// is defined there as well, and no more here: else it could be started here again.
pub(crate) fn migrate(connection: &Connect, vm: VmId, wish: &LiveWish) -> Result<(), Fault> {
    let domain = look::require(connection, vm)?;
    match look::power(&domain)? {
        Power::Running => {}
        power => {
            let fault = Fault::wrong_state(format!("the VM is {power}"));
            return Err(fault.hint("only a VM that runs is moved live"));
        }
    }
    let mut flags =
        sys::VIR_MIGRATE_LIVE | sys::VIR_MIGRATE_PEER2PEER | sys::VIR_MIGRATE_NON_SHARED_DISK;
    if domain.is_persistent()? {
        flags |= sys::VIR_MIGRATE_PERSIST_DEST | sys::VIR_MIGRATE_UNDEFINE_SOURCE;
    }
    // It is QEMU's own, and stays for as long as that runs.
    let mut before = None;
    if let Some(most) = wish.max_downtime_ms {
        before = Some(max_downtime(&domain)?);
        domain.migrate_set_max_downtime(most, 0)?;
    }
    // libvirt counts in MiB/s, and takes 0 for no limit.
    let bandwidth = wish.limit_rate.map(|limit| (limit.0 >> 20).max(1));
    let parameters = MigrateParameters { bandwidth, ..MigrateParameters::default() };
    let ended = domain.migrate_to_uri3(Some(&wish.neighbour), parameters, flags);
    if ended.is_err()
        && let Some(before) = before
        && let Err(error) = domain.migrate_set_max_downtime(before, 0)
    {
        tracing::info!(%error, before, "the downtime that was allowed before is not put back");
    }
    Ok(ended?)
}

pub(crate) fn downtime_allowed(connection: &Connect, vm: VmId) -> Result<u64, Fault> {
    Ok(max_downtime(&look::require(connection, vm)?)?)
}

pub(crate) fn allow_downtime(connection: &Connect, vm: VmId, most_ms: u64) -> Result<(), Fault> {
    look::require(connection, vm)?.migrate_set_max_downtime(most_ms, 0)?;
    Ok(())
}

/// `None`: none is under way.
pub(crate) fn job(connection: &Connect, vm: VmId) -> Result<Option<LiveJob>, Fault> {
    let Some(domain) = look::find(connection, vm)? else { return Ok(None) };
    // One that has ended meanwhile runs no more.
    match job_stats(&domain, 0) {
        Ok(stats) => Ok(stats.map(|stats| told(&stats))),
        Err(_) if !domain.is_active().unwrap_or(false) => Ok(None),
        Err(said) => Err(said.into()),
    }
}

/// Of the last one that ended. Whoever else looks finds it still there.
pub(crate) fn last_job(connection: &Connect, vm: VmId) -> Result<Option<LiveJob>, Fault> {
    let Some(domain) = look::find(connection, vm)? else { return Ok(None) };
    let (completed, keep) =
        (sys::VIR_DOMAIN_JOB_STATS_COMPLETED, sys::VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED);
    // Before libvirt 6.0 it is gone with the first look.
    let stats = job_stats(&domain, completed | keep).or_else(|_| job_stats(&domain, completed))?;
    Ok(stats.map(|stats| told(&stats)))
}

/// Harmless where nothing is under way.
pub(crate) fn cancel(connection: &Connect, vm: VmId) -> Result<(), Fault> {
    let Some(domain) = look::find(connection, vm)? else { return Ok(()) };
    match abort_job(&domain) {
        Ok(()) => Ok(()),
        Err(said) => match job(connection, vm)? {
            None => Ok(()),
            Some(_) => Err(said.into()),
        },
    }
}

fn told(stats: &JobStats) -> LiveJob {
    let number = |field: &std::ffi::CStr| stats.get(field).copied();
    let bytes = |field| Bytes(number(field).unwrap_or_default());
    let page = number(sys::VIR_DOMAIN_JOB_MEMORY_PAGE_SIZE).unwrap_or(4096);
    let pages = number(sys::VIR_DOMAIN_JOB_MEMORY_DIRTY_RATE).unwrap_or_default();
    LiveJob {
        elapsed_ms: number(sys::VIR_DOMAIN_JOB_TIME_ELAPSED).unwrap_or_default(),
        memory: LivePart {
            total: bytes(sys::VIR_DOMAIN_JOB_MEMORY_TOTAL),
            done: bytes(sys::VIR_DOMAIN_JOB_MEMORY_PROCESSED),
            left: bytes(sys::VIR_DOMAIN_JOB_MEMORY_REMAINING),
            per_s: bytes(sys::VIR_DOMAIN_JOB_MEMORY_BPS),
        },
        disks: LivePart {
            total: bytes(sys::VIR_DOMAIN_JOB_DISK_TOTAL),
            done: bytes(sys::VIR_DOMAIN_JOB_DISK_PROCESSED),
            left: bytes(sys::VIR_DOMAIN_JOB_DISK_REMAINING),
            per_s: bytes(sys::VIR_DOMAIN_JOB_DISK_BPS),
        },
        dirtied_per_s: Bytes(pages.saturating_mul(page)),
        passes: number(sys::VIR_DOMAIN_JOB_MEMORY_ITERATION).unwrap_or_default(),
        downtime_ms: number(sys::VIR_DOMAIN_JOB_DOWNTIME),
    }
}
