//! Takes away from a process of the agent what it does not need, before it reads the first byte
//! that a stranger may have written.
//!
//! | process | reads | is left with |
//! |---|---|---|
//! | [`crate::carrier`] | data streams | what it has open; reading below `/sys` |
//! | the receiver, below [`crate::init`] | all that comes into the helper | devices, its port |
//! | `pipe` ([`crate::daemon::pipe`]) | nothing: it passes bytes on | what it has open |
//!
//! The agent itself (`serve`) and its warden are not confined: they run the operator's hooks as
//! root and start services, and whatever is taken from a process is taken from its children too.
//! They listen to the owner of the agent alone, who is root in the guest anyway.
//!
//! Three means, since none is everywhere: Landlock (Linux 5.13 and later, if it is switched on) for
//! files, TCP and signals; seccomp, by which forbidden calls fail; and no capabilities. What a
//! kernel does not have is gone without, and said. No confinement kills: what is forbidden fails
//! with `EPERM` or `EACCES`, and whoever asked for it can say so.

mod files;
mod syscalls;

use std::fmt;
use std::path::Path;

use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::sys;

/// What a process still has to be able to do, beyond using what it has open.
#[derive(Clone, Copy, Debug)]
pub struct Needs<'a> {
    /// Folders below which files are read.
    pub read: &'a [&'a Path],
    /// Folders below which devices are opened for reading and writing.
    pub devices: &'a [&'a Path],
    pub sockets: Sockets,
    pub capabilities: CapabilitySet,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sockets {
    /// Those that are open, or are handed in.
    Given,
    /// It makes its own. TCP only to listen, on this port, if at all.
    Own { listen: Option<u16> },
}

impl Needs<'_> {
    /// Nothing but what is open.
    pub const NONE: Self = Self {
        read: &[],
        devices: &[],
        sockets: Sockets::Given,
        capabilities: CapabilitySet::empty(),
    };
}

/// How far a process was confined, for people. Each part that is missing says why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Level {
    pub landlock: Result<Landlock, String>,
    pub seccomp: Result<(), String>,
    pub capabilities: Result<(), String>,
}

/// What Landlock watches over, by the version of its interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Landlock(pub i32);

impl Level {
    /// Is anything missing that the agent knows how to use?
    pub const fn is_whole(&self) -> bool {
        matches!(self.landlock, Ok(Landlock(files::ABI_OF_ALL..)))
            && self.seccomp.is_ok()
            && self.capabilities.is_ok()
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.landlock {
            Ok(landlock) => write!(f, "{landlock}")?,
            Err(why) => write!(f, "no Landlock ({why})")?,
        }
        match &self.seccomp {
            Ok(()) => f.write_str(", seccomp")?,
            Err(why) => write!(f, ", no seccomp ({why})")?,
        }
        match &self.capabilities {
            Ok(()) => f.write_str(", no capabilities beyond its needs"),
            Err(why) => write!(f, ", capabilities kept ({why})"),
        }
    }
}

impl fmt::Display for Landlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let watched = match self.0 {
            files::ABI_OF_SIGNALS.. => "files, TCP and signals",
            files::ABI_OF_TCP.. => "files and TCP",
            _ => "files",
        };
        write!(f, "Landlock {} ({watched})", self.0)
    }
}

/// Confines this thread, and all that it starts from now on. To be called while there is no other.
pub fn confine(needs: &Needs<'_>) -> Level {
    // Capabilities first: the calls that drop them are forbidden afterwards.
    let capabilities = drop_capabilities(needs.capabilities);
    let landlock = files::confine(needs);
    let seccomp = syscalls::confine(needs);
    let level = Level { landlock, seccomp, capabilities };
    if level.is_whole() {
        tracing::info!(%level, "confined");
    } else {
        tracing::warn!(%level, "confined as far as this kernel can");
    }
    level
}

/// What a process of the agent could be confined by on this machine; nothing is.
pub fn possible() -> String {
    let landlock = match sys::landlock_abi() {
        Ok(abi) => Landlock(abi).to_string(),
        Err(error) => format!("no Landlock ({error})"),
    };
    let seccomp = if sys::has_seccomp() { "seccomp" } else { "no seccomp" };
    format!("{landlock}, {seccomp}")
}

fn drop_capabilities(needed: CapabilitySet) -> Result<(), String> {
    for capability in CapabilitySet::all().difference(needed) {
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // One that this kernel does not know, or a process that had none to begin with: there
            // the bound does not matter, since it starts no program.
            Ok(()) | Err(Errno::INVAL | Errno::PERM) => {}
            Err(errno) => return Err(errno.to_string()),
        }
    }
    let had = rustix::thread::capabilities(None).map_err(|errno| errno.to_string())?;
    let left = had.permitted.intersection(needed);
    let sets =
        CapabilitySets { effective: left, permitted: left, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).map_err(|errno| errno.to_string())
}

#[cfg(test)]
mod tests;
