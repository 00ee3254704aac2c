//! What programs wrote to block devices past any file system, and closed.
//!
//! The kernel writes it out when the last one closes a device. While disks are copied this agent
//! has them open, so nobody else is the last one: what a program wrote and believes to be on its
//! disk waits in memory, and would be written after the drain.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;

use crate::inspect::Tree;
use crate::inspect::mounts;
use crate::inspect::stack::Stack;

/// Writes it out, on every device that stands on a tracked disk. Not by sync(2), which waits for
/// dead file servers as well. An error names the device.
pub fn write_out(tree: &Tree, tracked: &BTreeSet<String>) -> Result<(), (String, io::Error)> {
    for device in standing_on(tree, tracked) {
        // In the kernel's names a `!` stands for the `/` of a folder.
        let node = format!("dev/{}", device.replace('!', "/"));
        // It would be waited for until someone resumes it.
        if tree.text(format!("sys/class/block/{device}/dm/suspended")).as_deref() == Some("1") {
            return Err((device, io::Error::other("it is suspended (dmsetup info)")));
        }
        let written = File::open(tree.path(&node)).and_then(|file| file.sync_all());
        match written {
            Err(error) if !is_gone(tree, &device, &error) => return Err((device, error)),
            _ => {}
        }
    }
    Ok(())
}

/// The tracked disks, their partitions, and what is made of them, by the kernel's names; a loop
/// device before what its file lies on, which it is written to.
fn standing_on(tree: &Tree, tracked: &BTreeSet<String>) -> Vec<String> {
    let mounts = mounts::own(tree);
    let stack = Stack::new(tree, &mounts);
    // Those without a number are hidden paths of others, and cannot be opened.
    let devices = tree.names("sys/class/block").into_iter().filter(|name| {
        let there = tree.number_of(name).is_some();
        there && !stack.ground(name).disks.is_disjoint(tracked)
    });
    let mut devices: Vec<String> = devices.collect();
    devices.sort_by_key(|name| Reverse(stack.ground(name).loops));
    devices
}

/// A device that went, or that has no medium, holds nothing that could be written out. A node that
/// is missing while the device is there says nothing of it.
fn is_gone(tree: &Tree, device: &str, error: &io::Error) -> bool {
    match error.raw_os_error() {
        Some(libc::ENODEV | libc::ENXIO | libc::ENOMEDIUM) => true,
        Some(libc::ENOENT) => tree.number_of(device).is_none(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::testing::FakeSystem;

    fn system() -> FakeSystem {
        let system = FakeSystem::new();
        system.disk("vda", "254:0", 8).partition("vda", "vda1", "254:1");
        system.disk("vdb", "254:16", 8).partition("vdb", "vdb1", "254:17");
        system.disk("vdc", "254:32", 8).partition("vdc", "vdc1", "254:33");
        system.stacked("dm-0", "253:0", &["vda1", "vdc1"]).stacked("dm-1", "253:1", &["dm-0"]);
        system.stacked("md0", "9:0", &["vdc"]);
        system.looped("loop0", "7:0", "/srv/image").looped("loop1", "7:1", "/other/image");
        system.mountinfo(
            "20 1 253:1 / /srv rw - ext4 /dev/dm-1 rw\n21 1 254:33 / /other rw - ext4 /dev/vdc1 rw\n",
        );
        system
    }

    fn tracked() -> BTreeSet<String> {
        ["vda", "vdb"].map(str::to_owned).into()
    }

    #[test]
    fn all_that_stands_on_a_tracked_disk_is_written_out_and_loops_first() {
        let found = standing_on(&system().tree(), &tracked());
        assert_eq!(found, ["loop0", "dm-0", "dm-1", "vda", "vda1", "vdb", "vdb1"]);
    }

    #[test]
    fn a_device_that_cannot_be_opened_is_an_error_by_name_unless_it_is_gone() {
        let system = system();
        for device in ["loop0", "dm-0", "dm-1", "vda", "vda1", "vdb"] {
            system.file(&format!("dev/{device}"), "");
        }
        let tree = system.tree();
        let (device, error) = write_out(&tree, &tracked()).unwrap_err();
        assert_eq!((device.as_str(), error.kind()), ("vdb1", io::ErrorKind::NotFound));
        // A number that was read and is no more: pulled while we looked.
        assert!(!is_gone(&tree, "vdb1", &error) && is_gone(&tree, "vdd", &error));
        assert!(is_gone(&tree, "vda", &io::Error::from_raw_os_error(libc::ENOMEDIUM)));
        assert!(!is_gone(&tree, "vda", &io::Error::from_raw_os_error(libc::EIO)));
        system.file("dev/vdb1", "");
        assert!(write_out(&tree, &tracked()).is_ok());
        system.file("sys/class/block/dm-1/dm/suspended", "0\n");
        assert!(write_out(&tree, &tracked()).is_ok());
        system.file("sys/class/block/dm-1/dm/suspended", "1\n");
        assert_eq!(write_out(&tree, &tracked()).unwrap_err().0, "dm-1");
    }
}
