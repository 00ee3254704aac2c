//! Which block device stands on which: partitions, LVM, RAID, encryption, loops.

use std::collections::BTreeSet;

use super::mounts::{DeviceNumber, Mount};
use super::tree::Tree;

/// Deeper stacks than this are taken for a loop in a broken tree.
const DEPTH_MAX: u32 = 16;

/// The block devices by the kernel's names, and the mounts, which loop devices need.
#[derive(Debug)]
pub struct Stack<'a> {
    tree: &'a Tree,
    mounts: &'a [Mount],
}

/// What a device or a file system finally stands on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ground {
    /// Whole disks by name.
    pub disks: BTreeSet<String>,
    /// How many loop devices are in between: what lies on a file of another file system has to be
    /// frozen before that one.
    pub loops: u32,
}

impl<'a> Stack<'a> {
    pub fn new(tree: &'a Tree, mounts: &'a [Mount]) -> Self {
        Self { tree, mounts }
    }

    /// The kernel's name of the block device with this number: `vda1`, `dm-0`.
    pub fn name(&self, device: DeviceNumber) -> Option<String> {
        let link = self.tree.link(format!("sys/dev/block/{device}"))?;
        Some(link.rsplit('/').next()?.to_owned())
    }

    pub fn number(&self, name: &str) -> Option<DeviceNumber> {
        self.tree.number_of(name)
    }

    /// The whole disk that `name` is a partition of.
    pub fn parent(&self, name: &str) -> Option<String> {
        let class = format!("sys/class/block/{name}");
        if !self.tree.exists(format!("{class}/partition")) {
            return None;
        }
        let link = self.tree.link(&class)?;
        Some(link.rsplit('/').nth(1)?.to_owned())
    }

    /// What a block device stands on; itself, if it is a whole disk.
    pub fn ground(&self, name: &str) -> Ground {
        let mut ground = Ground::default();
        self.descend(name, 0, 0, &mut ground);
        ground
    }

    /// What a mounted file system stands on: nothing for tmpfs, NFS and the like.
    pub fn ground_of_mount(&self, mount: &Mount) -> Ground {
        let mut ground = Ground::default();
        self.descend_mount(mount, 0, 0, &mut ground);
        ground
    }

    /// What the file system below `path` stands on.
    pub fn ground_of_file(&self, path: &str) -> Ground {
        let mut ground = Ground::default();
        if let Some(mount) = self.mount_of(path) {
            self.descend_mount(mount, 0, 0, &mut ground);
        }
        ground
    }

    /// The mount that `path` lies in: the longest that leads to it, the latest among equals.
    pub fn mount_of(&self, path: &str) -> Option<&'a Mount> {
        let leads = |mount: &&Mount| {
            path.strip_prefix(mount.path.trim_end_matches('/'))
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.mounts.iter().filter(leads).max_by_key(|mount| mount.path.len())
    }

    fn descend(&self, name: &str, depth: u32, loops: u32, ground: &mut Ground) {
        ground.loops = ground.loops.max(loops);
        if depth > DEPTH_MAX {
            return;
        }
        if let Some(disk) = self.parent(name) {
            return self.descend(&disk, depth + 1, loops, ground);
        }
        let slaves = self.tree.names(format!("sys/class/block/{name}/slaves"));
        for slave in &slaves {
            self.descend(slave, depth + 1, loops, ground);
        }
        if let Some(file) = self.tree.text(format!("sys/class/block/{name}/loop/backing_file")) {
            if let Some(mount) = self.mount_of(&file) {
                self.descend_mount(mount, depth + 1, loops + 1, ground);
            } else if let Some(device) = file.strip_prefix("/dev/") {
                self.descend(device, depth + 1, loops + 1, ground);
            }
        } else if slaves.is_empty() {
            ground.disks.insert(name.to_owned());
        }
    }

    fn descend_mount(&self, mount: &Mount, depth: u32, loops: u32, ground: &mut Ground) {
        for device in self.devices_of(mount) {
            self.descend(&device, depth + 1, loops, ground);
        }
    }

    /// The block devices that a mounted file system uses directly.
    pub fn devices_of(&self, mount: &Mount) -> Vec<String> {
        if mount.device.major != 0 {
            return self.name(mount.device).into_iter().collect();
        }
        if mount.kind != "btrfs" {
            return Vec::new();
        }
        let Some(source) = self.by_path(&mount.source) else { return Vec::new() };
        for id in self.tree.names("sys/fs/btrfs") {
            let devices = self.tree.names(format!("sys/fs/btrfs/{id}/devices"));
            if devices.contains(&source) {
                return devices;
            }
        }
        vec![source]
    }

    /// The kernel's name of a device that people name `/dev/vda1` or `/dev/mapper/data-srv`.
    pub fn by_path(&self, path: &str) -> Option<String> {
        let name = path.strip_prefix("/dev/")?;
        if self.tree.exists(format!("sys/class/block/{name}")) {
            return Some(name.to_owned());
        }
        if let Some(wanted) = name.strip_prefix("mapper/") {
            let names = self.tree.names("sys/class/block");
            return names.into_iter().find(|dm| {
                self.tree.text(format!("sys/class/block/{dm}/dm/name")).as_deref() == Some(wanted)
            });
        }
        let link = self.tree.link(format!("dev/{name}"))?;
        let last = link.rsplit('/').next()?.to_owned();
        self.tree.exists(format!("sys/class/block/{last}")).then_some(last)
    }
}

impl Tree {
    /// The number of the block device with this kernel name.
    pub fn number_of(&self, name: &str) -> Option<DeviceNumber> {
        self.number(format!("sys/class/block/{name}/dev"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::FakeSystem;
    use super::*;

    fn disks(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_volume_over_two_disks_stands_on_both() {
        let system = FakeSystem::new();
        system.disk("vda", "254:0", 100).partition("vda", "vda1", "254:1");
        system.disk("vdb", "254:16", 100);
        system.stacked("dm-0", "253:0", &["vda1", "vdb"]).mapper("dm-0", "data-srv");
        let tree = system.tree();
        let stack = Stack::new(&tree, &[]);
        assert_eq!(stack.ground("dm-0").disks, disks(&["vda", "vdb"]));
        assert_eq!(stack.by_path("/dev/mapper/data-srv").as_deref(), Some("dm-0"));
    }

    #[test]
    fn a_loop_device_stands_on_the_disk_of_its_file() {
        let system = FakeSystem::new();
        system.disk("vda", "254:0", 100).partition("vda", "vda1", "254:1");
        system.looped("loop0", "7:0", "/var/images/a.img");
        system.mountinfo(
            "20 1 254:1 / / rw - ext4 /dev/vda1 rw\n30 20 7:0 / /mnt rw - ext4 /dev/loop0 rw\n",
        );
        let tree = system.tree();
        let mounts = super::super::mounts::own(&tree);
        let stack = Stack::new(&tree, &mounts);
        let ground = stack.ground_of_mount(&mounts[1]);
        assert_eq!(ground, Ground { disks: disks(&["vda"]), loops: 1 });
    }

    #[test]
    fn every_device_of_a_btrfs_counts() {
        let system = FakeSystem::new();
        system.disk("vda", "254:0", 100).disk("vdb", "254:16", 100);
        system.file("sys/fs/btrfs/1234/devices/vda/size", "1");
        system.file("sys/fs/btrfs/1234/devices/vdb/size", "1");
        system.mountinfo("20 1 0:33 /@ / rw - btrfs /dev/vda rw\n");
        let tree = system.tree();
        let mounts = super::super::mounts::own(&tree);
        assert_eq!(
            Stack::new(&tree, &mounts).ground_of_mount(&mounts[0]).disks,
            disks(&["vda", "vdb"])
        );
    }

    #[test]
    fn a_file_belongs_to_the_longest_mount_that_leads_to_it() {
        let system = FakeSystem::new();
        system.mountinfo("1 0 1:1 / / rw - ext4 a rw\n2 1 1:2 / /srv rw - ext4 b rw\n3 1 1:3 / /srv2 rw - ext4 c rw\n");
        let tree = system.tree();
        let mounts = super::super::mounts::own(&tree);
        let stack = Stack::new(&tree, &mounts);
        assert_eq!(stack.mount_of("/srv/x").unwrap().id, 2);
        assert_eq!(stack.mount_of("/srv2").unwrap().id, 3);
        assert_eq!(stack.mount_of("/srvx").unwrap().id, 1);
    }
}
