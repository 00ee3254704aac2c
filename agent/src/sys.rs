//! Calls that have no safe wrapper. Nothing here decides anything.
#![expect(unsafe_code, reason = "each function is one call without a safe wrapper")]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use tokio::io::unix::AsyncFd;

/// `_IOWR('X', 119, int)` and the one after it, from linux/fs.h.
const FIFREEZE: libc::c_ulong = 0xC004_5877;
const FITHAW: libc::c_ulong = 0xC004_5878;

/// Freezes the file system that `fd` lies on. Who calls this has proved which one that is.
pub fn freeze(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the descriptor is open for the whole call; the argument is not looked at.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), FIFREEZE, 0) })
}

/// Thaws it. `EINVAL`: it was not frozen.
pub fn thaw(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: as above.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), FITHAW, 0) })
}

pub fn swap_off(path: &str) -> io::Result<()> {
    let path = CString::new(path)?;
    // SAFETY: a string with its terminator, alive for the whole call.
    checked(unsafe { libc::swapoff(path.as_ptr()) })
}

/// A negative `priority` leaves the choice to the kernel.
pub fn swap_on(path: &str, priority: i32) -> io::Result<()> {
    const PREFER: libc::c_int = 0x8000;
    let path = CString::new(path)?;
    let flags = if priority < 0 { 0 } else { PREFER | (priority & 0x7fff) };
    // SAFETY: as above.
    checked(unsafe { libc::swapon(path.as_ptr(), flags) })
}

/// Best effort, lowest level: yields to everybody else's disk access where the scheduler of the
/// disk knows priorities.
pub fn lowest_io_priority() -> io::Result<()> {
    const WHO_PROCESS: libc::c_int = 1;
    const CLASS_BEST_EFFORT: libc::c_int = 2 << 13;
    // SAFETY: three integers; zero means this process.
    let done =
        unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, CLASS_BEST_EFFORT | 7) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Few heaps: every thread that allocates would otherwise get one of its own, and keep what was
/// freed in it.
pub fn bound_heaps(most: libc::c_int) {
    // SAFETY: two integers; called before there is a second thread.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, most) };
}

/// A device that is read and written without blocking.
pub fn watch(file: File) -> io::Result<AsyncFd<File>> {
    // SAFETY: a `File` names the same open descriptor for as long as it lives, and `AsyncFd` keeps
    // it; nothing replaces it through the shared reference.
    unsafe { AsyncFd::register(file) }.map_err(io::Error::from)
}

/// The version of Landlock that the kernel offers.
pub fn landlock_abi() -> io::Result<i32> {
    const CREATE_RULESET_VERSION: libc::c_int = 1;
    let (none, no_len) = (std::ptr::null::<libc::c_void>(), 0_usize);
    // SAFETY: asked for its version, the kernel looks at no memory.
    let abi = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, none, no_len, CREATE_RULESET_VERSION)
    };
    if abi < 0 {
        let error = io::Error::last_os_error();
        return Err(match error.raw_os_error() {
            Some(libc::ENOSYS) => io::Error::other("not in this kernel"),
            Some(libc::EOPNOTSUPP) => io::Error::other("switched off in this kernel"),
            _ => error,
        });
    }
    i32::try_from(abi).map_err(io::Error::other)
}

/// Can the kernel let calls fail by a filter (Linux 4.14 and later)?
pub fn has_seccomp() -> bool {
    let action = libc::SECCOMP_RET_ERRNO;
    let (ask, no_flags) = (libc::SECCOMP_GET_ACTION_AVAIL, 0);
    // SAFETY: a number that lives for the whole call, and is only read.
    unsafe { libc::syscall(libc::SYS_seccomp, ask, no_flags, &raw const action) == 0 }
}

/// Puts a filter before every system call of this thread and of those it starts. Filters add up,
/// and none is ever taken off.
pub fn add_filter(program: &[seccompiler::sock_filter]) -> io::Result<()> {
    let len = libc::c_ushort::try_from(program.len()).map_err(io::Error::other)?;
    // The kernel copies it and writes nothing.
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut().cast() };
    let add = |flags: libc::c_ulong| {
        // SAFETY: `program` and what it points to live for the whole call; the elements have the
        // layout that the kernel's interface gives to both crates' types of this name.
        unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                flags,
                &raw const program,
            )
        }
    };
    // Before 5.16 the kernel otherwise slows such a process down, against an attack on secrets
    // within one process: the filter is not here for that.
    if add(libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW) == 0 || add(0) == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A system call of which all arguments but the first are zero.
#[cfg(test)]
pub fn call(number: i64, first: i64) -> io::Result<()> {
    // SAFETY: for tests, of calls that so do nothing to this process.
    let result = unsafe { libc::syscall(number, first, 0, 0, 0, 0, 0) };
    if result >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Can memory be had with this protection?
#[cfg(test)]
pub fn map_and_forget(
    len: usize,
    protection: rustix::mm::ProtFlags,
    flags: rustix::mm::MapFlags,
) -> io::Result<()> {
    // SAFETY: a place that the kernel chooses, which nothing refers to afterwards.
    unsafe {
        let at = rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, protection, flags)?;
        rustix::mm::munmap(at, len)?;
    }
    Ok(())
}
