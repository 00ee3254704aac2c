//! Whole disks.

use units::Bytes;
use wire::control::{BlockDevice, BlockKind};

use super::mounts::Mount;
use super::stack::Stack;
use super::swaps::Swap;
use super::tree::Tree;

/// Every whole disk of more than nothing: no partitions, nothing stacked.
pub fn devices(tree: &Tree, mounts: &[Mount], swaps: &[Swap]) -> Vec<BlockDevice> {
    let stack = Stack::new(tree, mounts);
    let layout = Layout { tree, stack: &stack, mounts, swaps };
    tree.names("sys/block")
        .into_iter()
        .filter(|name| tree.names(format!("sys/class/block/{name}/slaves")).is_empty())
        .filter_map(|name| device(tree, &layout, name))
        .collect()
}

fn device(tree: &Tree, layout: &Layout<'_>, name: String) -> Option<BlockDevice> {
    let dir = format!("sys/block/{name}");
    let at = tree.link(&dir).unwrap_or_default();
    // In sectors of 512 bytes, whatever the device's own are.
    let size = Bytes(tree.number::<u64>(format!("{dir}/size"))? * 512);
    if size == Bytes::ZERO || name.starts_with("dm-") || name.starts_with("md") {
        return None;
    }
    let mut lines = Vec::new();
    layout.describe(&name, 0, &mut lines);
    Some(BlockDevice {
        size,
        kind: kind(&name, &at, tree.number(format!("{dir}/device/type"))),
        serial: serial(tree, &name).unwrap_or_default(),
        pci: pci_address(&at),
        scsi: scsi_address(&at),
        read_only: tree.text(format!("{dir}/ro")).as_deref() == Some("1"),
        removable: tree.text(format!("{dir}/removable")).as_deref() == Some("1"),
        logical_block: tree.number(format!("{dir}/queue/logical_block_size")).unwrap_or(512),
        layout: lines,
        name,
    })
}

/// `scsi_type`: what SCSI calls the peripheral device type; 0 is a disk, 5 a CD.
fn kind(name: &str, at: &str, scsi_type: Option<u32>) -> BlockKind {
    let scsi_disk = name.starts_with("sd") && scsi_type.unwrap_or(0) == 0;
    if name.starts_with("vd") && at.contains("/virtio") {
        BlockKind::Virtio
    } else if name.starts_with("nvme") {
        BlockKind::Nvme
    } else if name.starts_with("xvd") || at.contains("/vbd-") {
        BlockKind::Xen
    } else if scsi_disk && at.split('/').any(is_ata_port) {
        BlockKind::Ata
    } else if scsi_disk {
        BlockKind::Scsi
    } else {
        BlockKind::Other
    }
}

fn is_ata_port(component: &str) -> bool {
    component
        .strip_prefix("ata")
        .is_some_and(|no| !no.is_empty() && no.bytes().all(|b| b.is_ascii_digit()))
}

/// As the device says it, or as udev was told.
pub fn serial(tree: &Tree, name: &str) -> Option<String> {
    let dir = format!("sys/block/{name}");
    let direct = tree.text(format!("{dir}/serial"));
    let of_controller = || tree.text(format!("{dir}/device/serial"));
    let vital_data = || page_80(&tree.bytes(format!("{dir}/device/vpd_pg80"))?);
    let from_udev = || {
        let database = tree.text(format!("run/udev/data/b{}", tree.number_of(name)?))?;
        let value =
            |key: &str| database.lines().find_map(|line| line.strip_prefix(key)).map(str::to_owned);
        value("E:ID_SCSI_SERIAL=").or_else(|| value("E:ID_SERIAL_SHORT="))
    };
    direct
        .filter(|serial| !serial.is_empty())
        .or_else(of_controller)
        .or_else(vital_data)
        .or_else(from_udev)
}

/// SCSI's page of vital product data that holds the serial number: four bytes of header, the last
/// two of them its length.
fn page_80(page: &[u8]) -> Option<String> {
    let len = usize::from(u16::from_be_bytes([*page.get(2)?, *page.get(3)?]));
    let text = String::from_utf8_lossy(page.get(4..4 + len)?).trim().to_owned();
    (!text.is_empty()).then_some(text)
}

/// The last PCI function on the way to the device: `0000:04:00.0`.
pub fn pci_address(at: &str) -> Option<String> {
    at.split('/').rev().find(|part| is_pci_address(part)).map(str::to_owned)
}

fn is_pci_address(text: &str) -> bool {
    let digits =
        |part: &str, len: usize| part.len() == len && part.bytes().all(|b| b.is_ascii_hexdigit());
    let Some((slot, function)) = text.rsplit_once('.') else { return false };
    let mut parts = slot.split(':');
    digits(function, 1)
        && parts.next().is_some_and(|domain| domain.len() >= 4 && digits(domain, domain.len()))
        && parts.next().is_some_and(|bus| digits(bus, 2))
        && parts.next().is_some_and(|device| digits(device, 2))
        && parts.next().is_none()
}

/// `2:0:0:1`.
fn scsi_address(at: &str) -> Option<String> {
    let fits = |part: &&str| {
        part.split(':').count() == 4
            && part.split(':').all(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    at.split('/').rev().find(fits).map(str::to_owned)
}

/// What lies on a disk, for people.
struct Layout<'a> {
    tree: &'a Tree,
    stack: &'a Stack<'a>,
    mounts: &'a [Mount],
    swaps: &'a [Swap],
}

impl Layout<'_> {
    /// One line for the device and each that stands on it, such as `vda1 ext4 /`.
    fn describe(&self, name: &str, depth: usize, lines: &mut Vec<String>) {
        // Cycles do not occur in sysfs; this bounds what a broken one can do.
        if depth > 8 {
            return;
        }
        let class = format!("sys/class/block/{name}");
        let title = self.tree.text(format!("{class}/dm/name")).unwrap_or_else(|| name.to_owned());
        let mut words = vec![title];
        words.extend(self.content(name));
        if depth > 0 || words.len() > 1 {
            lines.push(words.join(" "));
        }
        let partition = |child: &String| self.tree.exists(format!("{class}/{child}/partition"));
        for child in self.tree.names(&class).into_iter().filter(partition) {
            self.describe(&child, depth + 1, lines);
        }
        for holder in self.tree.names(format!("{class}/holders")) {
            self.describe(&holder, depth + 1, lines);
        }
    }

    /// `ext4 /srv`, `swap`, or what udev saw on it.
    fn content(&self, name: &str) -> Vec<String> {
        let number = self.stack.number(name);
        let mount = self.mounts.iter().find(|mount| {
            Some(mount.device) == number
                || (mount.device.major == 0
                    && self.stack.devices_of(mount).iter().any(|device| device == name))
        });
        if let Some(mount) = mount {
            return vec![mount.kind.clone(), mount.path.clone()];
        }
        let is_swap = |swap: &Swap| self.stack.by_path(&swap.path).as_deref() == Some(name);
        if self.swaps.iter().any(is_swap) {
            return vec!["swap".to_owned()];
        }
        let seen = number.and_then(|number| {
            let database = self.tree.text(format!("run/udev/data/b{number}"))?;
            let kind = database.lines().find_map(|line| line.strip_prefix("E:ID_FS_TYPE="));
            kind.map(str::to_owned)
        });
        seen.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::FakeSystem;
    use super::*;

    #[test]
    fn a_disk_is_described_with_all_that_stands_on_it() {
        let system = FakeSystem::new();
        system.disk("vdb", "254:16", 4_194_304).partition("vdb", "vdb1", "254:17");
        system.stacked("dm-0", "253:0", &["vdb1"]).mapper("dm-0", "data-srv");
        system.file("sys/block/vdb/serial", "web1-data\n");
        system.mountinfo("40 20 253:0 / /srv rw - xfs /dev/mapper/data-srv rw\n");
        let tree = system.tree();
        let mounts = super::super::mounts::own(&tree);
        let found = devices(&tree, &mounts, &[]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].size, Bytes(2 << 30));
        assert_eq!(found[0].kind, BlockKind::Virtio);
        assert_eq!(found[0].serial, "web1-data");
        assert_eq!(found[0].pci.as_deref(), Some("0000:00:04.0"));
        assert_eq!(found[0].layout, ["vdb1", "data-srv xfs /srv"]);
    }

    #[test]
    fn scsi_and_ata_disks_are_told_apart_and_a_cd_is_no_disk() {
        let system = FakeSystem::new();
        let hba = "pci0000:00/0000:00:05.0";
        system.disk_at("sda", "8:0", 8, &format!("{hba}/virtio2/host0/target0:0:1/0:0:1:3"));
        system.disk_at("sdb", "8:16", 8, &format!("{hba}/ata3/host3/target3:0:0/3:0:0:0"));
        system.disk_at("sr0", "11:0", 8, &format!("{hba}/ata1/host1/target1:0:0/1:0:0:0"));
        system.file("sys/block/sda/device/vpd_pg80", b"\0\x80\0\x04 s-1");
        let found = devices(&system.tree(), &[], &[]);
        let kinds: Vec<_> = found.iter().map(|disk| (disk.name.as_str(), disk.kind)).collect();
        assert_eq!(
            kinds,
            [("sda", BlockKind::Scsi), ("sdb", BlockKind::Ata), ("sr0", BlockKind::Other)]
        );
        assert_eq!(found[0].scsi.as_deref(), Some("0:0:1:3"));
        assert_eq!(found[0].serial, "s-1");
    }
}
