//! Mounted file systems and the disks below them.

use std::collections::{BTreeMap, BTreeSet};

use wire::control::FileSystem;

use super::mounts::Mount;
use super::stack::{Ground, Stack};
use super::tree::Tree;

/// File systems whose Linux drivers implement freezing (`freeze_fs` or `freeze_super`). A kernel
/// that lacks it for one of them says so when asked, and nothing is frozen then.
const FREEZABLE: [&str; 11] = [
    "bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "gfs2", "jfs", "nilfs2", "reiserfs", "xfs",
];

/// A file system on disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// The mount with the shortest path: least likely to be hidden below another one.
    pub mount: Mount,
    /// The other mounts of it.
    pub others: Vec<Mount>,
    pub ground: Ground,
}

impl Mounted {
    pub fn freezable(&self) -> bool {
        FREEZABLE.contains(&self.mount.kind.as_str())
    }

    /// Can it be written now?
    pub fn writable(&self) -> bool {
        !self.mount.read_only
    }

    fn report(&self) -> FileSystem {
        FileSystem {
            mount_point: self.mount.path.clone(),
            kind: self.mount.kind.clone(),
            device: self.mount.source.clone(),
            disks: self.ground.disks.iter().cloned().collect(),
            read_only: self.mount.read_only,
            freezable: self.freezable(),
        }
    }
}

/// Each mounted file system that stands on a block device, once, however often it is mounted.
pub fn mounted(tree: &Tree, mounts: &[Mount]) -> Vec<Mounted> {
    let stack = Stack::new(tree, mounts);
    let mut found: BTreeMap<_, Mounted> = BTreeMap::new();
    for mount in mounts {
        if let Some(known) = found.get_mut(&mount.device) {
            let mut other = mount.clone();
            if other.path.len() < known.mount.path.len() {
                std::mem::swap(&mut other, &mut known.mount);
            }
            known.others.push(other);
            continue;
        }
        let ground = stack.ground_of_mount(mount);
        if !ground.disks.is_empty() {
            let mounted = Mounted { mount: mount.clone(), others: Vec::new(), ground };
            found.insert(mount.device, mounted);
        }
    }
    let mut mounted: Vec<Mounted> = found.into_values().collect();
    mounted.sort_by(|a, b| a.mount.path.cmp(&b.mount.path));
    mounted
}

pub fn file_systems(mounted: &[Mounted]) -> Vec<FileSystem> {
    mounted.iter().map(Mounted::report).collect()
}

/// Block devices with a live file system that no mount leads to: unmounted lazily, with files
/// still open. They cannot be frozen, because there is no path to them.
pub fn unreachable(tree: &Tree, mounts: &[Mount]) -> BTreeSet<String> {
    let stack = Stack::new(tree, mounts);
    let reached: BTreeSet<String> =
        mounts.iter().flat_map(|mount| stack.devices_of(mount)).collect();
    let mut live = BTreeSet::new();
    // Each of these drivers keeps a folder per live file system, named after its device.
    for driver in ["ext4", "xfs", "f2fs"] {
        live.extend(tree.names(format!("sys/fs/{driver}")));
    }
    for id in tree.names("sys/fs/btrfs") {
        live.extend(tree.names(format!("sys/fs/btrfs/{id}/devices")));
    }
    live.retain(|name| tree.number_of(name).is_some() && !reached.contains(name));
    live
}

#[cfg(test)]
mod tests {
    use super::super::mounts;
    use super::super::testing::FakeSystem;
    use super::*;

    #[test]
    fn a_file_system_mounted_twice_is_one() {
        let system = FakeSystem::new();
        system.disk("vda", "254:0", 8).partition("vda", "vda1", "254:1");
        system.mountinfo(
            "20 1 254:1 / / rw - ext4 /dev/vda1 rw\n\
             21 20 0:5 / /run rw - tmpfs tmpfs rw\n\
             22 20 254:1 /home /srv/home ro - ext4 /dev/vda1 rw\n",
        );
        let tree = system.tree();
        let found = file_systems(&mounted(&tree, &mounts::all(&tree)));
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].mount_point, "/");
        assert_eq!(found[0].disks, ["vda"]);
        assert!(found[0].freezable && !found[0].read_only);
    }

    #[test]
    fn a_lazily_unmounted_file_system_is_noticed() {
        let system = FakeSystem::new();
        system.disk("vda", "254:0", 8).disk("vdb", "254:16", 8);
        system.file("sys/fs/ext4/vda/errors_count", "0").file("sys/fs/xfs/vdb/stats", "");
        system.file("sys/fs/ext4/features/lazy", "").file("sys/fs/xfs/stats/stats", "");
        system.mountinfo("20 1 254:0 / / rw - ext4 /dev/vda rw\n");
        let tree = system.tree();
        let lost = unreachable(&tree, &mounts::all(&tree));
        assert_eq!(lost.into_iter().collect::<Vec<_>>(), ["vdb"]);
    }
}
