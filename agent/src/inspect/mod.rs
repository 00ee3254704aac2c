//! A look around inside the guest: which disks there are, what stands on them, who writes to them,
//! and what may keep a copy from booting elsewhere. Changes nothing.
//!
//! Everything is read through a [`Tree`], so that tests can show it systems that this machine is
//! not.

pub mod boot;
pub mod devices;
pub mod filesystems;
pub mod mounts;
mod network;
pub mod stack;
mod startup;
pub mod stat;
pub mod swaps;
#[cfg(test)]
pub mod testing;
mod tree;
pub mod writers;

pub use tree::Tree;

use units::Bytes;
use wire::control::{GuestReport, TrackerReport};

use stack::Stack;

/// The whole report. Decompresses the boot image: takes seconds on a slow machine.
pub fn look_around(tree: &Tree, tracker: Option<TrackerReport>) -> GuestReport {
    let mounts = mounts::all(tree);
    let stack = Stack::new(tree, &mounts);
    let swaps = swaps::swaps(tree);
    let mounted = filesystems::mounted(tree, &mounts);
    let addresses = network::addresses();
    let memory = |key: &str| memory(tree, key).unwrap_or(Bytes::ZERO);
    GuestReport {
        kernel: kernel(tree),
        arch: std::env::consts::ARCH.to_owned(),
        os: os_name(tree).unwrap_or_default(),
        boot_id: boot_id(tree),
        hostname: tree.text("proc/sys/kernel/hostname").unwrap_or_default(),
        devices: devices::devices(tree, &mounts, &swaps),
        file_systems: filesystems::file_systems(&mounted),
        swaps: swaps::report(&stack, &swaps),
        raw_writers: writers::raw_writers(tree, &stack),
        interfaces: network::interfaces(tree, &addresses),
        boot: boot::findings(tree, &mounted),
        tracker,
        memory_total: memory("MemTotal:"),
        memory_available: memory("MemAvailable:"),
        boot_ms: startup::boot_ms(tree),
        sandbox: crate::sandbox::possible(),
    }
}

pub use network::addresses as network_addresses;

/// `uname -r`.
pub fn kernel(tree: &Tree) -> String {
    tree.text("proc/sys/kernel/osrelease").unwrap_or_default()
}

/// Differs after every boot.
pub fn boot_id(tree: &Tree) -> String {
    tree.text("proc/sys/kernel/random/boot_id").unwrap_or_default()
}

fn os_name(tree: &Tree) -> Option<String> {
    let text = tree.text("etc/os-release").or_else(|| tree.text("usr/lib/os-release"))?;
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(name.trim_matches('"').to_owned())
}

/// A line of `/proc/meminfo`.
pub fn memory(tree: &Tree, key: &str) -> Option<Bytes> {
    kib_after(&tree.text("proc/meminfo")?, key)
}

/// Resident memory of this process.
pub fn own_memory(tree: &Tree) -> Bytes {
    memory_with(tree, None)
}

/// Resident memory of this process and of another one of the same program. What both have of its
/// file counts once.
pub fn memory_with(tree: &Tree, other: Option<u32>) -> Bytes {
    let of = |pid: &str, key| {
        let status = tree.text(format!("proc/{pid}/status")).unwrap_or_default();
        kib_after(&status, key).unwrap_or(Bytes::ZERO)
    };
    match other {
        None => of("self", "VmRSS:"),
        Some(other) => of("self", "RssAnon:") + of(&other.to_string(), "VmRSS:"),
    }
}

fn kib_after(text: &str, key: &str) -> Option<Bytes> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = rest.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(Bytes(kib * 1024))
}

#[cfg(test)]
mod tests {
    use super::testing::FakeSystem;
    use super::*;

    #[test]
    fn memory_and_name_of_the_system_are_read() {
        let system = FakeSystem::new();
        system.file("proc/meminfo", "MemTotal:       1000 kB\nMemAvailable:    500 kB\n");
        system.file("etc/os-release", "NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n");
        let tree = system.tree();
        assert_eq!(memory(&tree, "MemAvailable:"), Some(Bytes(512_000)));
        assert_eq!(os_name(&tree).as_deref(), Some("Debian GNU/Linux 12 (bookworm)"));
    }
}
