//! The adapter against a real libvirtd and QEMU, started by each test for itself.
//!
//! Needs root, and of Debian: libvirt-daemon-system, libvirt-clients, qemu-system-x86, qemu-utils,
//! busybox-static, openssh-server, openssh-client, e2fsprogs, iproute2, util-linux.

#![expect(clippy::unwrap_used, reason = "a test's own helpers fail as the test does")]

mod connection;
mod daemon;
mod destination;
mod discards;
mod fences;
mod guest;
mod helper;
mod records;
mod stops;
