//! Calls that crate `virt` 0.5.0 lacks or gets wrong.
//!
//! Its `Domain::state`, `block_info`, `set_memory` and `attach_device` ignore that the call failed:
//! the first answers with a state that is none, the second reads memory that nobody wrote. Its
//! `Domain::job_stats` frees a null pointer, and its `Secret::value` never frees what it copied
//! from. None of them is used in this crate.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_int};

use virt::domain::Domain;
use virt::error::Error;
use virt::secret::Secret;

/// What libvirt says of a disk's size, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockSizes {
    /// As the guest sees it.
    pub capacity: u64,
    /// What it takes.
    pub allocation: u64,
}

/// `virDomainGetState`: the state's number, and that of the reason, which each state counts anew.
#[expect(unsafe_code, reason = "the safe wrapper hides a failed call")]
pub(crate) fn state(domain: &Domain) -> Result<(virt_sys::virDomainState, u32), Error> {
    let (mut state, mut reason): (c_int, c_int) = (0, 0);
    // SAFETY: the pointer is live as long as `domain` is; libvirt writes one int into each of the
    // two others.
    let answer =
        unsafe { virt_sys::virDomainGetState(domain.as_ptr(), &raw mut state, &raw mut reason, 0) };
    if answer < 0 {
        return Err(Error::last_error());
    }
    // Both are small and never negative; one that is would be unknown to every caller.
    let number = |int: c_int| u32::try_from(int).unwrap_or(u32::MAX);
    Ok((number(state), number(reason)))
}

/// `virDomainGetBlockInfo` of a disk, by its target or path.
#[expect(unsafe_code, reason = "the safe wrapper reads memory that a failed call did not write")]
pub(crate) fn block_sizes(domain: &Domain, disk: &str) -> Result<BlockSizes, Error> {
    let name = CString::new(disk)?;
    let mut sizes = virt_sys::_virDomainBlockInfo { capacity: 0, allocation: 0, physical: 0 };
    // SAFETY: both pointers are live for the call; libvirt fills the one struct it is given.
    let answer = unsafe {
        virt_sys::virDomainGetBlockInfo(domain.as_ptr(), name.as_ptr(), &raw mut sizes, 0)
    };
    if answer < 0 {
        return Err(Error::last_error());
    }
    Ok(BlockSizes { capacity: sizes.capacity, allocation: sizes.allocation })
}

/// The numbers of a job, by libvirt's names for them.
pub(crate) type JobStats = BTreeMap<CString, u64>;

/// `virDomainGetJobStats`; `None`: there is no such job.
#[expect(unsafe_code, reason = "the safe wrapper frees a null pointer")]
pub(crate) fn job_stats(
    domain: &Domain,
    flags: virt_sys::virDomainGetJobStatsFlags,
) -> Result<Option<JobStats>, Error> {
    let (mut kind, mut count): (c_int, c_int) = (0, 0);
    let mut params = std::ptr::null_mut();
    // SAFETY: the pointer is live as long as `domain` is; libvirt writes two ints, and a list of
    // `count` parameters that it allocates, or leaves that null.
    let answer = unsafe {
        virt_sys::virDomainGetJobStats(
            domain.as_ptr(),
            &raw mut kind,
            &raw mut params,
            &raw mut count,
            flags,
        )
    };
    if answer < 0 {
        return Err(Error::last_error());
    }
    let len = usize::try_from(count).unwrap_or(0);
    let mut stats = JobStats::new();
    if !params.is_null() {
        // SAFETY: libvirt says that so many are there.
        for param in unsafe { std::slice::from_raw_parts(params, len) } {
            // SAFETY: a field is a string that ends within its array.
            let field = unsafe { CStr::from_ptr(param.field.as_ptr()) };
            if u32::try_from(param.type_) == Ok(virt_sys::VIR_TYPED_PARAM_ULLONG) {
                // SAFETY: its type says which of the union it is.
                stats.insert(field.to_owned(), unsafe { param.value.ul });
            }
        }
        // SAFETY: the list is libvirt's own, and nothing points into it any more.
        unsafe { virt_sys::virTypedParamsFree(params, count) };
    }
    let none = u32::try_from(kind) == Ok(virt_sys::VIR_DOMAIN_JOB_NONE);
    Ok((!none).then_some(stats))
}

/// `virDomainMigrateGetMaxDowntime`, in milliseconds.
#[expect(unsafe_code, reason = "crate `virt` lacks it")]
pub(crate) fn max_downtime(domain: &Domain) -> Result<u64, Error> {
    let mut downtime = 0;
    // SAFETY: the pointer is live as long as `domain` is; libvirt writes one number.
    let answer =
        unsafe { virt_sys::virDomainMigrateGetMaxDowntime(domain.as_ptr(), &raw mut downtime, 0) };
    if answer < 0 { Err(Error::last_error()) } else { Ok(downtime) }
}

/// `virDomainAbortJob`.
#[expect(unsafe_code, reason = "crate `virt` lacks it")]
pub(crate) fn abort_job(domain: &Domain) -> Result<(), Error> {
    // SAFETY: the pointer is live as long as `domain` is.
    match unsafe { virt_sys::virDomainAbortJob(domain.as_ptr()) } {
        0 => Ok(()),
        _ => Err(Error::last_error()),
    }
}

/// `virSecretGetValue`; what libvirt allocated for it is freed.
#[expect(unsafe_code, reason = "the safe wrapper leaks every value that it reads")]
pub(crate) fn secret_value(secret: &Secret) -> Result<Vec<u8>, Error> {
    let mut size = 0;
    // SAFETY: the pointer is live as long as `secret` is; libvirt writes one size.
    let value = unsafe { virt_sys::virSecretGetValue(secret.as_ptr(), &raw mut size, 0) };
    if value.is_null() {
        return Err(Error::last_error());
    }
    // SAFETY: libvirt hands out `size` bytes of its own, which nobody else knows of.
    let bytes = unsafe { std::slice::from_raw_parts(value, size) }.to_vec();
    // SAFETY: libvirt made it with malloc and leaves it to the caller, who forgets it here.
    unsafe { libc::free(value.cast()) };
    Ok(bytes)
}
