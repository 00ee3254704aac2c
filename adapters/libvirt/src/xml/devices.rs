//! Devices that no migration carries, and whether the guest would miss them.

use std::collections::BTreeMap;

use model::Device;
use roxmltree::Node;

use super::node::{at, attribute, children, text_at};

/// What every VM of ours has anyway, or what the host alone sees.
const CARRIED: &[&str] = &[
    "disk",
    "interface",
    "emulator",
    "controller",
    "input",
    "console",
    "serial",
    "channel",
    "memballoon",
    "rng",
    "hub",
    "lease",
    "audio",
];

/// What a Linux server does without.
const OPTIONAL: &[&str] = &[
    "graphics",
    "video",
    "sound",
    "watchdog",
    "redirdev",
    "redirfilter",
    "smartcard",
    "panic",
    "parallel",
    "vsock",
    "iommu",
    "crypto",
    "pstore",
];

/// Everything of a VM that is neither disk nor card and takes no part. What we do not know counts
/// as essential: nobody can say that the guest does without it.
pub(super) fn devices(root: Node<'_, '_>) -> Vec<Device> {
    let listed = at(root, "devices")
        .into_iter()
        .flat_map(|devices| devices.children().filter(Node::is_element))
        .filter_map(device);
    listed.chain(beside(root)).collect()
}

/// A card that is a piece of the host's hardware.
pub(super) fn is_passed_through(interface: Node<'_, '_>) -> bool {
    matches!(interface.attribute("type"), Some("hostdev" | "vdpa"))
}

/// CPU features asked for one by one: another host names them anew at the guest's boot.
pub(super) fn cpu_features(root: Node<'_, '_>) -> Option<Device> {
    let cpu = at(root, "cpu")?;
    let details: BTreeMap<_, _> = children(cpu, "feature")
        .filter_map(|feature| {
            let policy = feature.attribute("policy").unwrap_or("require");
            Some((feature.attribute("name")?.to_owned(), policy.to_owned()))
        })
        .collect();
    let kind = "cpu features".to_owned();
    (!details.is_empty()).then_some(Device { kind, essential: false, details })
}

fn device(node: Node<'_, '_>) -> Option<Device> {
    let kind = node.tag_name().name();
    if kind == "interface" && is_passed_through(node) {
        return Some(described("hostdev", true, node));
    }
    if CARRIED.contains(&kind) {
        return None;
    }
    // Memory that outlives the guest's power is a disk in all but name; more of the other is size.
    let persistent_memory =
        kind == "memory" && matches!(node.attribute("model"), Some("nvdimm" | "virtio-pmem"));
    let essential = if kind == "memory" { persistent_memory } else { !OPTIONAL.contains(&kind) };
    let kind = if persistent_memory { "nvdimm" } else { kind };
    Some(described(kind, essential, node))
}

/// Parts of the definition outside `<devices>` on which a guest may depend.
fn beside(root: Node<'_, '_>) -> impl Iterator<Item = Device> {
    let parts = [("launchSecurity", true), ("sysinfo", false), ("commandline", true)];
    parts.into_iter().filter_map(move |(name, essential)| {
        // QEMU's own command line has a namespace, the others have none.
        let node = root.children().find(|child| child.tag_name().name() == name)?;
        Some(described(name, essential, node))
    })
}

fn described(kind: &str, essential: bool, node: Node<'_, '_>) -> Device {
    let mut details = BTreeMap::new();
    for name in ["type", "model", "mode", "name"] {
        if let Some(value) = node.attribute(name) {
            details.insert(name.to_owned(), value.to_owned());
        }
    }
    let below = [
        ("source", attribute(node, "source", "dir").or_else(|| attribute(node, "source", "dev"))),
        ("target", attribute(node, "target", "dir")),
        ("path", text_at(node, "source/path")),
        ("address", host_address(node)),
    ];
    for (name, value) in below {
        if let Some(value) = value {
            details.insert(name.to_owned(), value);
        }
    }
    Device { kind: kind.to_owned(), essential, details }
}

/// Where on the host a passed-through device sits.
fn host_address(node: Node<'_, '_>) -> Option<String> {
    let address = at(node, "source/address")?;
    let parts = ["domain", "bus", "slot", "function", "device"];
    let parts: Vec<_> = parts.iter().filter_map(|name| address.attribute(*name)).collect();
    (!parts.is_empty()).then(|| parts.join(":"))
}
