//! Device names that change when a disk sits on another bus.

use crate::inspect::Tree;

/// How a disk or partition is named somewhere in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// By what is on it, or by what stands on it: the same everywhere.
    Content,
    /// By the kernel's name or its place on a bus: `/dev/vda1`, `/dev/disk/by-path/…`.
    Place,
}

/// `None` for what names no disk: tmpfs, NFS, labels of other kinds.
pub fn naming(name: &str) -> Option<Naming> {
    const BY_CONTENT: [&str; 8] = [
        "UUID=",
        "LABEL=",
        "PARTUUID=",
        "PARTLABEL=",
        "/dev/disk/by-uuid/",
        "/dev/disk/by-label/",
        "/dev/disk/by-partuuid/",
        "/dev/mapper/",
    ];
    if BY_CONTENT.iter().any(|start| name.starts_with(start)) {
        return Some(Naming::Content);
    }
    if name.starts_with("/dev/disk/") {
        return Some(Naming::Place);
    }
    let device = name.strip_prefix("/dev/")?;
    let disk = |prefix: &str| {
        device.strip_prefix(prefix).is_some_and(|rest| {
            let rest = rest.trim_end_matches(|c: char| c.is_ascii_digit());
            !rest.is_empty() && rest.chars().all(|c| c.is_ascii_lowercase())
        })
    };
    if ["vd", "sd", "xvd", "hd"].into_iter().any(disk) || device.starts_with("nvme") {
        return Some(Naming::Place);
    }
    // `/dev/data/srv`: a logical volume by its group.
    device.contains('/').then_some(Naming::Content)
}

/// What to write instead of `/dev/vda1`, as udev knows it.
pub fn by_uuid(tree: &Tree, device: &str) -> Option<String> {
    let wanted = device.strip_prefix("/dev/")?;
    let links = "dev/disk/by-uuid";
    let uuid = tree.names(links).into_iter().find(|uuid| {
        let target = tree.link(format!("{links}/{uuid}"));
        target.as_deref().and_then(|target| target.rsplit('/').next()) == Some(wanted)
    })?;
    Some(format!("UUID={uuid}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_by_place_are_told_from_names_by_content() {
        for name in [
            "/dev/vda1",
            "/dev/sda",
            "/dev/xvda2",
            "/dev/nvme0n1p1",
            "/dev/disk/by-path/pci-1",
            "/dev/disk/by-id/virtio-x",
        ] {
            assert_eq!(naming(name), Some(Naming::Place), "{name}");
        }
        for name in
            ["UUID=1", "LABEL=root", "/dev/mapper/a-b", "/dev/data/srv", "/dev/disk/by-uuid/1"]
        {
            assert_eq!(naming(name), Some(Naming::Content), "{name}");
        }
        for name in ["tmpfs", "server:/export", "/dev/fuse", "/swapfile"] {
            assert_eq!(naming(name), None, "{name}");
        }
    }
}
