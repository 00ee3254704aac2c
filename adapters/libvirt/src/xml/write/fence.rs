//! The definition of a fenced VM: it says where the VM went, and every start of it fails.

use model::DiskFormat;

use super::element::{Inside, WriteError, Written, element};
use crate::xml::ours::fence_uri;
use crate::xml::{DomainXml, FencedDisk};

/// Where nothing is, and nothing may ever be.
pub(crate) const NOWHERE: &str = "/FENCED/by-causeway/";

/// What of a VM stays while it is fenced.
#[derive(Clone, Debug)]
pub(crate) struct Fenced<'d> {
    pub domain: &'d DomainXml,
    /// Tells one fence from another.
    pub id: &'d str,
    /// The writable disks and where they really are.
    pub disks: &'d [FencedDisk],
}

/// Same id and name, no cards, and disks that are at paths which say why there is nothing.
pub(crate) fn fenced(fence: &Fenced<'_>) -> Written {
    let Fenced { domain: vm, id, disks } = fence;
    // Any type that libvirt knows will do: it never runs.
    element("domain", &[("type", "qemu")], |domain| {
        domain.text("name", &vm.name)?;
        domain.text("uuid", &vm.id.to_string())?;
        domain.text("title", &format!("FENCED: {} moved to another site", vm.name))?;
        let about = "causeway moved this VM to another site and made it unable to start here, so \
                     that it never runs twice. `causeway status` says where it lives.";
        domain.text("description", about)?;
        domain.nested("metadata", &[], |metadata| {
            let attributes = [("xmlns:causeway", fence_uri()), ("id", id)];
            metadata.nested("causeway:fence", &attributes, |inside| {
                disks.iter().try_for_each(|disk| remember(inside, disk))
            })
        })?;
        domain.text_with("memory", &[("unit", "bytes")], &vm.memory.0.to_string())?;
        domain.text("vcpu", &vm.vcpus.to_string())?;
        domain.nested("os", &[], |os| {
            os.text_with("type", &[("arch", &vm.arch), ("machine", &vm.machine)], "hvm")
        })?;
        domain.text("on_poweroff", "destroy")?;
        domain.text("on_reboot", "destroy")?;
        domain.text("on_crash", "destroy")?;
        domain.nested("devices", &[], |devices| {
            let mut targets: Vec<&str> = disks.iter().map(|disk| disk.target.as_str()).collect();
            // A VM without disks would start: it gets one that is not there.
            if targets.is_empty() {
                targets.push("vda");
            }
            targets.iter().zip('a'..='z').try_for_each(|(target, letter)| {
                nowhere(devices, &vm.name, target, &format!("vd{letter}"))
            })
        })
    })
}

/// The path at which nothing is: it ends up in the message of a start that fails.
fn nowhere_path(name: &str, target: &str) -> String {
    let plain = |text: &str| -> String {
        text.chars()
            .map(|c| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '_' })
            .collect()
    };
    format!("{NOWHERE}{}/moved-to-another-site/{}", plain(name), plain(target))
}

fn nowhere(
    devices: &mut Inside<'_>,
    name: &str,
    target: &str,
    slot: &str,
) -> Result<(), WriteError> {
    devices.nested("disk", &[("type", "file"), ("device", "disk")], |disk| {
        disk.empty("driver", &[("name", "qemu"), ("type", "raw")])?;
        disk.empty("source", &[("file", &nowhere_path(name, target))])?;
        disk.empty("target", &[("dev", slot), ("bus", "virtio")])
    })
}

fn remember(inside: &mut Inside<'_>, disk: &FencedDisk) -> Result<(), WriteError> {
    let format = match &disk.format {
        DiskFormat::Raw => "raw",
        DiskFormat::Qcow2 => "qcow2",
        DiskFormat::Other(other) => other,
    };
    let attributes = [("target", disk.target.as_str()), ("path", &disk.path), ("format", format)];
    inside.empty("disk", &attributes)
}
