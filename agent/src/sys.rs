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

fn checked(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
