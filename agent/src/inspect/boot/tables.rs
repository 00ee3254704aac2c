//! `fstab` and `crypttab`: what is mounted at boot, by which name.

use wire::control::BootFinding;

use super::names::{Naming, by_uuid, naming};
use super::{fine, warning};
use crate::inspect::Tree;

pub fn fstab(tree: &Tree) -> Vec<BootFinding> {
    const CHECK: &str = "fstab-device-names";
    let Some(text) = tree.text("etc/fstab") else { return Vec::new() };
    let findings: Vec<BootFinding> = entries(&text)
        .filter(|words| naming(words[0]) == Some(Naming::Place))
        .map(|words| {
            let place = words.get(1).copied().unwrap_or("?");
            warning(
                CHECK,
                format!(
                    "/etc/fstab names {} for {place}: it has another name on another bus",
                    words[0]
                ),
                instead(tree, "/etc/fstab", words[0]),
            )
        })
        .collect();
    if findings.is_empty() {
        return vec![fine(CHECK, "/etc/fstab names no disk by its place")];
    }
    findings
}

pub fn crypttab(tree: &Tree) -> Vec<BootFinding> {
    let Some(text) = tree.text("etc/crypttab") else { return Vec::new() };
    entries(&text)
        .filter_map(|words| words.get(1).copied())
        .filter(|device| naming(device) == Some(Naming::Place))
        .map(|device| {
            warning(
                "crypttab-device-names",
                format!("/etc/crypttab names {device}: it has another name on another bus"),
                instead(tree, "/etc/crypttab", device),
            )
        })
        .collect()
}

fn entries(text: &str) -> impl Iterator<Item = Vec<&str>> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split_whitespace().collect::<Vec<_>>()).filter(|words| !words.is_empty())
}

fn instead(tree: &Tree, file: &str, device: &str) -> String {
    match by_uuid(tree, device) {
        Some(uuid) => format!("write {uuid} instead of {device} in {file}"),
        None => format!("write UUID=... (see `blkid {device}`) instead of {device} in {file}"),
    }
}

#[cfg(test)]
mod tests {
    use wire::control::Severity;

    use super::*;
    use crate::inspect::testing::FakeSystem;

    #[test]
    fn a_partition_by_name_is_warned_of_with_its_uuid() {
        let system = FakeSystem::new();
        system.file(
            "etc/fstab",
            "# comment /dev/vda9\nUUID=1-2 / ext4 defaults 0 1\n/dev/vda2 none swap sw 0 0\ntmpfs /tmp tmpfs\n\n",
        );
        system.link("dev/disk/by-uuid/ab-cd", "../../vda2");
        let found = fstab(&system.tree());
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].severity, Severity::Warning);
        assert!(found[0].remedy.as_deref().unwrap().starts_with("write UUID=ab-cd"));
    }

    #[test]
    fn a_table_of_uuids_is_fine() {
        let system = FakeSystem::new();
        system.file("etc/fstab", "UUID=1-2 / ext4 defaults 0 1\n/dev/mapper/data-srv /srv xfs\n");
        assert_eq!(fstab(&system.tree())[0].severity, Severity::Fine);
    }

    #[test]
    fn crypttab_is_read_by_its_second_column() {
        let system = FakeSystem::new();
        system.file("etc/crypttab", "root UUID=1 none luks\ndata /dev/sdb1 none luks\n");
        let found = crypttab(&system.tree());
        assert_eq!(found.len(), 1);
        assert!(found[0].text.contains("/dev/sdb1"));
    }
}
