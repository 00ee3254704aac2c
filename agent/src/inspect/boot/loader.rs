//! The boot loader and the kernel's command line: which root do they name?

use std::collections::BTreeSet;

use wire::control::BootFinding;

use super::names::{Naming, by_uuid, naming};
use super::{fine, warning};
use crate::inspect::Tree;

/// The command line that this boot was given.
pub fn command_line(tree: &Tree) -> Vec<BootFinding> {
    const CHECK: &str = "kernel-root";
    let text = tree.text("proc/cmdline").unwrap_or_default();
    match root_of(&text) {
        Some(root) if naming(root) == Some(Naming::Place) => {
            vec![by_place(tree, CHECK, "the running kernel was told", root)]
        }
        Some(root) => vec![fine(CHECK, format!("the running kernel was told root={root}"))],
        None => Vec::new(),
    }
}

/// What the next boot will be given.
pub fn grub(tree: &Tree) -> Vec<BootFinding> {
    const CHECK: &str = "grub-root";
    let mut roots = BTreeSet::new();
    let mut read = Vec::new();
    let mut files: Vec<String> =
        ["boot/grub/grub.cfg", "boot/grub2/grub.cfg", "boot/grub2/grubenv", "etc/kernel/cmdline"]
            .map(str::to_owned)
            .to_vec();
    let entries = "boot/loader/entries";
    files.extend(tree.names(entries).into_iter().map(|name| format!("{entries}/{name}")));
    for file in files {
        let Some(text) = tree.text(&file) else { continue };
        roots.extend(text.lines().filter_map(root_of).map(str::to_owned));
        read.push(file);
    }
    if read.is_empty() {
        return vec![warning(
            CHECK,
            "no configuration of GRUB or systemd-boot was found: which root the boot loader names was not checked",
            "check that the boot loader names the root file system by UUID",
        )];
    }
    let placed: Vec<BootFinding> = roots
        .iter()
        .filter(|root| naming(root) == Some(Naming::Place))
        .map(|root| by_place(tree, CHECK, &format!("/{} says", read.join(", /")), root))
        .collect();
    if !placed.is_empty() {
        return placed;
    }
    let roots: Vec<String> = roots.into_iter().collect();
    vec![fine(CHECK, format!("/{} names root by content: {}", read.join(", /"), roots.join(", ")))]
}

fn by_place(tree: &Tree, check: &str, who: &str, root: &str) -> BootFinding {
    let instead = by_uuid(tree, root).unwrap_or_else(|| "UUID=...".to_owned());
    warning(
        check,
        format!("{who} root={root}: the disk has another name on another bus"),
        format!(
            "make it root={instead}: remove GRUB_DISABLE_LINUX_UUID from /etc/default/grub and run `update-grub`"
        ),
    )
}

/// The value of `root=` in a command line or a line of configuration. Variables of the loader are
/// none.
fn root_of(line: &str) -> Option<&str> {
    let line = line.trim_start();
    if line.starts_with('#') || line.starts_with("set ") {
        return None;
    }
    let root = line.split_whitespace().find_map(|word| word.strip_prefix("root="))?;
    let root = root.trim_matches(|c| c == '"' || c == '\'');
    (!root.is_empty() && !root.contains('$') && !root.starts_with('(')).then_some(root)
}

/// Firmware entries stay behind in the source's NVRAM: can the copy do without?
pub fn efi(tree: &Tree) -> Vec<BootFinding> {
    const CHECK: &str = "efi-fallback";
    if !tree.exists("sys/firmware/efi") {
        return vec![fine("firmware", "booted by BIOS")];
    }
    let fallback = ["boot/efi", "efi", "boot"].into_iter().find_map(|top| {
        let find = |dir: &str, wanted: &str| {
            tree.names(dir).into_iter().find(|name| name.eq_ignore_ascii_case(wanted))
        };
        let efi = find(top, "EFI")?;
        let boot = find(&format!("{top}/{efi}"), "BOOT")?;
        let dir = format!("{top}/{efi}/{boot}");
        let file = find(&dir, "BOOTX64.EFI").or_else(|| find(&dir, "BOOTAA64.EFI"))?;
        Some(format!("/{dir}/{file}"))
    });
    let found = match fallback {
        Some(file) => {
            fine(CHECK, format!("booted by UEFI; without its entries firmware starts {file}"))
        }
        None => warning(
            CHECK,
            "booted by UEFI, and there is no EFI/BOOT/BOOTX64.EFI: without the source's NVRAM the firmware finds nothing to start",
            "move the NVRAM with the VM, or run `grub-install --removable` in the guest",
        ),
    };
    vec![fine("firmware", "booted by UEFI"), found]
}

#[cfg(test)]
mod tests {
    use wire::control::Severity;

    use super::*;
    use crate::inspect::testing::FakeSystem;

    #[test]
    fn a_root_by_name_in_any_entry_is_warned_of() {
        let system = FakeSystem::new();
        system.file(
            "boot/grub/grub.cfg",
            "set root='hd0,msdos1'\n  linux /boot/vmlinuz root=UUID=1-2 ro\n\tlinux /boot/old root=/dev/vda1 ro\n",
        );
        let found = grub(&system.tree());
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].severity, Severity::Warning);
        assert!(found[0].text.contains("root=/dev/vda1"));
    }

    #[test]
    fn a_root_by_uuid_is_fine_and_variables_are_no_names() {
        let system = FakeSystem::new();
        system.file("boot/grub/grub.cfg", "linux /v root=UUID=1 ro\n linux /v root=${dev} ro\n");
        system.file("proc/cmdline", "BOOT_IMAGE=/v root=UUID=1 ro quiet");
        assert_eq!(grub(&system.tree())[0].severity, Severity::Fine);
        assert_eq!(command_line(&system.tree())[0].severity, Severity::Fine);
    }

    #[test]
    fn a_uefi_guest_without_the_fallback_loader_is_warned_of() {
        let system = FakeSystem::new();
        system.file("sys/firmware/efi/fw_platform_size", "64");
        system.file("boot/efi/EFI/debian/grubx64.efi", "");
        assert_eq!(efi(&system.tree())[1].severity, Severity::Warning);
        system.file("boot/efi/EFI/boot/bootx64.efi", "");
        assert_eq!(efi(&system.tree())[1].severity, Severity::Fine);
    }
}
