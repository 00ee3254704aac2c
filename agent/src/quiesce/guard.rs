//! The proof that a file system may be frozen.
//!
//! FIFREEZE freezes whatever its path lies on. A mount that failed unnoticed, or one hidden below
//! another, would freeze something else: in the worst case the root of a machine that this agent
//! has no business with. So only a [`Guard`] can be frozen, and the only way to one is to open a
//! mount, see that the kernel says of the open descriptor that it is that mount, and see that all
//! the disks below it are tracked.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::inspect::filesystems::Mounted;
use crate::sys;

/// An open file system that lies on tracked disks and nothing else.
#[derive(Debug)]
pub struct Guard {
    fd: OwnedFd,
    place: Place,
}

/// A mount, by path and by the kernel's id of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub path: String,
    pub mount_id: u64,
}

#[derive(Debug, Error)]
pub enum GuardError {
    #[error("{path} lies on {untracked}, which is not being copied")]
    Untracked { path: String, untracked: String },

    #[error("{path} is hidden below another mount")]
    Hidden { path: String },

    #[error("cannot open {path}")]
    Open { path: String, source: io::Error },
}

impl Guard {
    /// `tracked`: the whole disks whose writes are tracked, by name.
    pub fn of(file_system: &Mounted, tracked: &BTreeSet<String>) -> Result<Self, GuardError> {
        let path = || file_system.mount.path.clone();
        let disks = &file_system.ground.disks;
        if disks.is_empty() || !disks.is_subset(tracked) {
            let untracked: Vec<String> = disks.difference(tracked).cloned().collect();
            let untracked =
                if disks.is_empty() { "no disk".to_owned() } else { untracked.join(", ") };
            return Err(GuardError::Untracked { path: path(), untracked });
        }
        let mut first_error = None;
        for mount in std::iter::once(&file_system.mount).chain(&file_system.others) {
            match Self::open(Place { path: mount.path.clone(), mount_id: mount.id }) {
                Ok(guard) => return Ok(guard),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        Err(first_error.unwrap_or_else(|| GuardError::Hidden { path: path() }))
    }

    /// Opens a place that was guarded before, by another process of this agent.
    pub fn open(place: Place) -> Result<Self, GuardError> {
        // Neither a FIFO nor a terminal may stop us: a mount point can be any kind of file.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = rustix::fs::open(place.path.as_str(), flags, Mode::empty())
            .map_err(|errno| GuardError::Open { path: place.path.clone(), source: errno.into() })?;
        if mount_id(&fd) != Some(place.mount_id) {
            return Err(GuardError::Hidden { path: place.path });
        }
        Ok(Self { fd, place })
    }

    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Writes out what is dirty, so that freezing has less to do.
    pub fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.fd)?)
    }

    pub fn freeze(&self) -> io::Result<()> {
        sys::freeze(self.fd.as_fd())
    }

    pub fn thaw(&self) -> io::Result<()> {
        sys::thaw(self.fd.as_fd())
    }
}

/// Which mount an open descriptor belongs to, by the kernel (3.15 and later).
fn mount_id(fd: &OwnedFd) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).ok()?;
    text.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::filesystems::mounted;
    use crate::inspect::{Tree, mounts};

    /// The file systems of the machine that runs the tests: none of them may ever be frozen.
    fn of_this_machine() -> Vec<Mounted> {
        let tree = Tree::of_this_system();
        mounted(&tree, &mounts::all(&tree))
    }

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn nothing_is_guarded_on_a_machine_without_tracked_disks() {
        for file_system in of_this_machine() {
            let refused = Guard::of(&file_system, &BTreeSet::new());
            assert!(matches!(refused, Err(GuardError::Untracked { .. })), "{file_system:?}");
        }
    }

    #[test]
    fn a_file_system_that_is_only_in_part_on_tracked_disks_is_refused() {
        let mut file_system = made_up("/", 1);
        file_system.ground.disks = names(&["vda", "vdb"]);
        let refused = Guard::of(&file_system, &names(&["vda"]));
        assert!(
            matches!(refused, Err(GuardError::Untracked { untracked, .. }) if untracked == "vdb")
        );
    }

    #[test]
    fn a_path_that_leads_to_another_mount_is_refused() {
        // The path is there, but it is not the mount it is said to be: a mount that failed
        // unnoticed, or one that lies below another.
        let refused = Guard::of(&made_up("/proc", u64::MAX), &names(&["vda"]));
        assert!(matches!(refused, Err(GuardError::Hidden { .. })));
    }

    #[test]
    fn the_right_mount_is_opened() {
        let tree = Tree::of_this_system();
        let proc = mounts::own(&tree).into_iter().find(|mount| mount.path == "/proc").unwrap();
        let guard = Guard::of(&made_up("/proc", proc.id), &names(&["vda"])).unwrap();
        assert_eq!(guard.place().mount_id, proc.id);
    }

    fn made_up(path: &str, id: u64) -> Mounted {
        let device = mounts::DeviceNumber { major: 254, minor: 1 };
        let mount = mounts::Mount {
            id,
            device,
            path: path.to_owned(),
            kind: "ext4".to_owned(),
            source: "/dev/vda1".to_owned(),
            options: "rw".to_owned(),
            read_only: false,
        };
        let ground = crate::inspect::stack::Ground { disks: names(&["vda"]), loops: 0 };
        Mounted { mount, others: Vec::new(), ground }
    }
}
