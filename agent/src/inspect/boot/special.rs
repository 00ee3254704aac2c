//! Storage that is not simply the VM's disks, and tools that bind a guest to its place.

use wire::control::BootFinding;

use super::{blocking, warning};
use crate::inspect::Tree;
use crate::inspect::filesystems::Mounted;

pub fn check(tree: &Tree, mounted: &[Mounted]) -> Vec<BootFinding> {
    let mut findings = Vec::new();
    let mapped = tree.names("sys/block").into_iter().find(|name| {
        tree.text(format!("sys/block/{name}/dm/uuid"))
            .is_some_and(|uuid| uuid.starts_with("mpath-"))
    });
    if mapped.is_some() {
        findings.push(blocking(
            "multipath",
            "disks are used through multipath: several devices are one disk, and the copy would have one",
            "migrate this VM by its site's own means, or give it the disk over one path",
        ));
    }
    if !tree.names("sys/class/iscsi_session").is_empty() {
        findings.push(blocking(
            "iscsi",
            "the guest uses iSCSI disks: they are not the VM's and are not copied",
            "log out of the targets before the migration and in again from the destination, or migrate their content by itself",
        ));
    }
    let remote = tree.names("sys/class/nvme").into_iter().find(|name| {
        tree.text(format!("sys/class/nvme/{name}/transport")).is_some_and(|kind| kind != "pcie")
    });
    if let Some(name) = remote {
        findings.push(blocking(
            "nvme-fabrics",
            format!("{name} is reached over a network: it is not the VM's and is not copied"),
            "disconnect it before the migration and connect again from the destination",
        ));
    }
    if mounted_kind(tree, "zfs") {
        findings.push(blocking(
            "zfs",
            "the guest uses ZFS: Linux cannot freeze it, so its last state cannot be caught",
            "export the pools in a hook before the switchover, or send the datasets by `zfs send`",
        ));
    }
    for one in mounted.iter().filter(|one| one.writable() && !one.freezable()) {
        let (kind, path) = (&one.mount.kind, &one.mount.path);
        findings.push(warning(
            "not-freezable",
            format!("{path} is {kind}, which Linux cannot freeze: it is made read-only for the switchover"),
            format!("make sure that nothing keeps files on {path} open for writing, or unmount it in a hook"),
        ));
    }
    findings.extend(lvm(tree));
    findings.extend(cloud_init(tree));
    findings
}

fn mounted_kind(tree: &Tree, kind: &str) -> bool {
    crate::inspect::mounts::own(tree).iter().any(|mount| mount.kind == kind)
}

fn lvm(tree: &Tree) -> Option<BootFinding> {
    let listed = tree.text("etc/lvm/devices/system.devices")?;
    listed.lines().any(|line| line.starts_with("IDTYPE=")).then(|| {
        warning(
            "lvm-devices",
            "/etc/lvm/devices/system.devices lists the disks that LVM may use by serial number or name",
            "run `lvmdevices --deldev` or remove the file, so that LVM finds its disks by content",
        )
    })
}

fn cloud_init(tree: &Tree) -> Option<BootFinding> {
    let installed = tree.exists("etc/cloud/cloud.cfg");
    (installed && !tree.exists("etc/cloud/cloud-init.disabled")).then(|| {
        warning(
            "cloud-init",
            "cloud-init is active: offered another instance id at the destination, it makes new SSH host keys and network settings",
            "create /etc/cloud/cloud-init.disabled in the guest if it is set up",
        )
    })
}

#[cfg(test)]
mod tests {
    use wire::control::Severity;

    use super::*;
    use crate::inspect::testing::FakeSystem;

    #[test]
    fn a_plain_guest_has_nothing_special() {
        assert_eq!(check(&FakeSystem::new().tree(), &[]), []);
    }

    #[test]
    fn storage_that_is_not_the_vms_blocks() {
        let system = FakeSystem::new();
        system.file("sys/class/iscsi_session/session1/state", "");
        system.file("sys/block/dm-0/dm/uuid", "mpath-3600");
        system.file("sys/class/nvme/nvme0/transport", "tcp\n");
        system.file("sys/class/nvme/nvme1/transport", "pcie\n");
        let found = check(&system.tree(), &[]);
        assert_eq!(found.len(), 3);
        assert!(found.iter().all(|finding| finding.severity == Severity::Blocking));
    }
}
