//! What an init does: file systems of the kernel, drivers, and the end of the machine.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::process::Child;

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use rustix::process::{WaitOptions, wait};
use rustix::system::{RebootCommand, finit_module, reboot};
use thiserror::Error;

use crate::inspect::Tree;

#[derive(Debug, Error)]
pub enum SystemError {
    #[error("cannot mount {kind} on {path}")]
    Mount {
        kind: &'static str,
        path: &'static str,
        #[source]
        cause: io::Error,
    },

    #[error("cannot use the console")]
    Console(#[source] io::Error),
}

/// proc, sys, dev, run: nothing that is on a disk.
pub fn mount_kernel_file_systems() -> Result<(), SystemError> {
    for (kind, path) in
        [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/run")]
    {
        let cause = |cause: io::Error| SystemError::Mount { kind, path, cause };
        fs::create_dir_all(path).map_err(cause)?;
        let options = CString::default();
        match mount(kind, path, kind, MountFlags::NOSUID, Some(options.as_c_str())) {
            // The kernel, or whoever packed the image, was here before.
            Ok(()) | Err(Errno::BUSY) => {}
            Err(errno) => return Err(cause(errno.into())),
        }
    }
    Ok(())
}

/// Standard input, output and error, whatever the kernel left there.
pub fn use_console() -> Result<(), SystemError> {
    let use_it = || -> io::Result<()> {
        let console = File::options().read(true).write(true).open("/dev/console")?;
        rustix::stdio::dup2_stdin(&console)?;
        rustix::stdio::dup2_stdout(&console)?;
        rustix::stdio::dup2_stderr(&console)?;
        Ok(())
    };
    use_it().map_err(SystemError::Console)
}

/// Loads the drivers that `/modules/order` names, one path below `/modules` per line, in its
/// order. One that cannot be loaded may not be needed: it is said, and the rest goes on.
pub fn load_drivers(tree: &Tree) {
    let order = tree.text("modules/order").unwrap_or_default();
    for line in order.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let path = tree.path("modules").join(line.trim_start_matches('/'));
        let path = if path.exists() { path } else { tree.path(line) };
        let loaded = File::open(&path)
            .and_then(|file| finit_module(file, &CString::default(), 0).map_err(io::Error::from));
        match loaded {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            Err(error) => tracing::warn!(path = %path.display(), %error, "driver not loaded"),
        }
    }
}

/// Takes leave of every process that ends, until this one has.
pub fn reap_until(child: &Child) {
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, _))) if u32::try_from(pid.as_raw_nonzero().get()) == Ok(child.id()) => {
                return;
            }
            Ok(_) | Err(Errno::INTR) => {}
            // There is none any more.
            Err(_) => return,
        }
    }
}

/// Everything written out, and the machine off.
pub fn power_off() -> ! {
    rustix::fs::sync();
    // If this fails, there is nothing else that could be done but to wait for the cord.
    let refused = reboot(RebootCommand::PowerOff);
    loop {
        tracing::error!(?refused, "not powered off");
        std::thread::sleep(std::time::Duration::from_secs(60));
    }
}
