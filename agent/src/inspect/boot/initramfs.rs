//! Does the boot image hold the drivers that other clouds need?

use std::collections::BTreeSet;

use wire::control::BootFinding;

use super::{cpio, fine, warning};
use crate::inspect::{self, Tree};

const CHECK: &str = "initramfs-drivers";

/// Without the driver of its disk a guest cannot mount its root: these belong into the image.
const DISK_DRIVERS: [&str; 7] =
    ["ahci", "nvme", "sd_mod", "virtio_blk", "virtio_pci", "virtio_scsi", "xen_blkfront"];

/// Loaded from the root file system; it is enough that they are installed.
const NETWORK_DRIVERS: [&str; 4] = ["e1000e", "ena", "virtio_net", "xen_netfront"];

/// What every libvirt site offers. Lacking these, a guest boots only where its own hardware is
/// imitated.
const USUAL: [&str; 2] = ["virtio_blk", "virtio_pci"];

pub fn check(tree: &Tree) -> Vec<BootFinding> {
    let running = inspect::kernel(tree);
    let newest = newest_kernel(tree);
    let mut findings = of_kernel(tree, &running);
    if let Some(newest) = newest.filter(|newest| *newest != running) {
        findings.push(warning(
            "kernel-version",
            format!(
                "kernel {newest} is installed, {running} is running: the copy may boot another one"
            ),
            "restart the guest once before the migration, so that what boots has been seen to boot",
        ));
        findings.extend(of_kernel(tree, &newest));
    }
    findings
}

fn of_kernel(tree: &Tree, version: &str) -> Vec<BootFinding> {
    let builtin = drivers_in(
        &tree.text(format!("lib/modules/{version}/modules.builtin")).unwrap_or_default(),
    );
    let installed =
        drivers_in(&tree.text(format!("lib/modules/{version}/modules.dep")).unwrap_or_default());
    let Some(image) = image_of(tree, version) else {
        return vec![warning(
            CHECK,
            format!(
                "no boot image of kernel {version} was found below /boot; {}",
                listing("built into the kernel", &builtin)
            ),
            "make sure that the kernel has the drivers of the destination's disks built in",
        )];
    };
    let mut held = builtin;
    let mut dracut = false;
    let listed = cpio::names(&tree.path(&image), |name| {
        held.extend(driver_name(name));
        dracut |=
            name.ends_with("/dracut") || name.contains("/dracut/") || name.contains("/dracut-");
    });
    if let Err(cause) = listed {
        return vec![warning(
            CHECK,
            format!("/{image} was not checked: {}", units::chain(&cause)),
            "check with lsinitramfs or lsinitrd that it holds virtio_blk and virtio_pci",
        )];
    }
    let network: BTreeSet<String> = installed.union(&held).cloned().collect();
    let mut findings = vec![judge(&image, &held, &network)];
    if dracut {
        findings.push(warning(
            "initramfs-dracut",
            format!("/{image} was made by dracut: its drivers were checked, its stored command line, device names and host-only udev rules were not"),
            "if the destination's disks are of another kind, rebuild it once with `dracut --no-hostonly --force`",
        ));
    }
    findings
}

fn judge(image: &str, held: &BTreeSet<String>, network: &BTreeSet<String>) -> BootFinding {
    let pick = |wanted: &[&str], from: &BTreeSet<String>| -> Vec<String> {
        wanted.iter().filter(|driver| from.contains(**driver)).map(|d| (*d).to_owned()).collect()
    };
    let mut present = pick(&DISK_DRIVERS, held);
    present.extend(pick(&NETWORK_DRIVERS, network));
    let all = DISK_DRIVERS.iter().chain(&NETWORK_DRIVERS);
    let absent: Vec<&str> =
        all.copied().filter(|driver| !present.iter().any(|known| known == driver)).collect();
    let text = format!(
        "drivers that /{image} can boot with: {}; missing: {}",
        or_none(&present.join(", ")),
        or_none(&absent.join(", "))
    );
    if USUAL.iter().all(|driver| held.contains(*driver)) {
        fine(CHECK, text)
    } else {
        warning(
            CHECK,
            text,
            "add virtio_pci and virtio_blk to /etc/initramfs-tools/modules and run `update-initramfs -u`, or `dracut --add-drivers` with them",
        )
    }
}

fn listing(what: &str, drivers: &BTreeSet<String>) -> String {
    let known = DISK_DRIVERS.iter().copied().filter(|driver| drivers.contains(*driver));
    format!("{what}: {}", or_none(&known.collect::<Vec<_>>().join(", ")))
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "none" } else { text }
}

/// Every driver named in `modules.builtin` or at the line starts of `modules.dep`.
fn drivers_in(text: &str) -> BTreeSet<String> {
    text.lines().filter_map(|line| driver_name(line.split(':').next()?)).collect()
}

/// `kernel/drivers/block/xen-blkfront.ko.xz` is `xen_blkfront`.
fn driver_name(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let name = [".ko", ".ko.gz", ".ko.xz", ".ko.zst"]
        .iter()
        .find_map(|suffix| file.strip_suffix(suffix))?;
    Some(name.replace('-', "_"))
}

fn image_of(tree: &Tree, version: &str) -> Option<String> {
    let places = [
        format!("boot/initrd.img-{version}"),
        format!("boot/initramfs-{version}.img"),
        format!("boot/initrd-{version}"),
        format!("boot/initrd-{version}.img"),
    ];
    places.into_iter().find(|place| tree.exists(place))
}

/// The highest version below `/boot`, by the numbers in it: what boot loaders start by default.
fn newest_kernel(tree: &Tree) -> Option<String> {
    let versions = tree.names("boot").into_iter().filter_map(|name| {
        let version = name.strip_prefix("vmlinuz-")?;
        (!version.contains("rescue")).then(|| version.to_owned())
    });
    versions.max_by_key(|version| numbers(version))
}

fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use wire::control::Severity;

    use super::*;
    use crate::inspect::testing::FakeSystem;

    #[test]
    fn drivers_are_known_by_any_spelling() {
        assert_eq!(driver_name("a/xen-blkfront.ko.zst").as_deref(), Some("xen_blkfront"));
        assert_eq!(driver_name("a/nvme.ko").as_deref(), Some("nvme"));
        assert_eq!(driver_name("a/nvme.koala"), None);
    }

    #[test]
    fn versions_compare_by_number() {
        let system = FakeSystem::new();
        system.file("boot/vmlinuz-6.1.0-9-amd64", "").file("boot/vmlinuz-6.1.0-10-amd64", "");
        assert_eq!(newest_kernel(&system.tree()).as_deref(), Some("6.1.0-10-amd64"));
    }

    #[test]
    fn an_image_without_virtio_is_warned_of_unless_it_is_built_in() {
        let held = |drivers: &[&str]| drivers.iter().map(|d| (*d).to_owned()).collect();
        let none = judge("boot/initrd", &held(&["nvme"]), &BTreeSet::new());
        assert_eq!(none.severity, Severity::Warning);
        let both = judge("boot/initrd", &held(&["virtio_blk", "virtio_pci"]), &BTreeSet::new());
        assert_eq!(both.severity, Severity::Fine);
    }

    #[test]
    fn an_image_that_cannot_be_read_is_said_to_be_unchecked() {
        let system = FakeSystem::new();
        system.file("proc/sys/kernel/osrelease", "6.1.0\n");
        system.file("boot/initrd.img-6.1.0", "BZh91AY&SY........");
        let found = check(&system.tree());
        assert_eq!(found[0].severity, Severity::Warning);
        assert!(found[0].text.contains("was not checked"), "{}", found[0].text);
    }
}
