//! Programs that write to a block device past any file system.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::io::Errno;
use wire::control::RawWriter;

use super::mounts::DeviceNumber;
use super::stack::Stack;
use super::tree::Tree;

/// Programs that hold a block device open for writing now; not this one.
///
/// What the kernel itself writes (LVM, RAID, swap, file systems) has no open file. A program that
/// maps a device into memory and closes it is missed; the trackers see its writes all the same.
pub fn raw_writers(tree: &Tree, stack: &Stack<'_>) -> Vec<RawWriter> {
    let own = std::process::id().to_string();
    let mut found: Vec<RawWriter> = Vec::new();
    for pid in tree.names("proc") {
        let Ok(number) = pid.parse::<u32>() else { continue };
        if pid == own {
            continue;
        }
        for fd in tree.names(format!("proc/{pid}/fd")) {
            let Some(device) = block_device(tree, &pid, &fd) else { continue };
            if !is_writable(tree, &pid, &fd) {
                continue;
            }
            let name = stack.name(device).unwrap_or_else(|| device.to_string());
            let device = format!("/dev/{name}");
            if found.iter().any(|known| known.pid == number && known.device == device) {
                continue;
            }
            found.push(RawWriter {
                pid: number,
                program: tree.text(format!("proc/{pid}/comm")).unwrap_or_default(),
                disks: stack.ground(&name).disks.into_iter().collect(),
                device,
            });
        }
    }
    found
}

fn block_device(tree: &Tree, pid: &str, fd: &str) -> Option<DeviceNumber> {
    let path = tree.path(format!("proc/{pid}/fd/{fd}"));
    // What the kernel knows already: asking a dead file server would block for ever.
    let cached = rustix::fs::statx(CWD, &path, AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE);
    match cached {
        Ok(found) => (u32::from(found.stx_mode) & libc::S_IFMT == libc::S_IFBLK)
            .then_some(DeviceNumber { major: found.stx_rdev_major, minor: found.stx_rdev_minor }),
        // Kernels before 4.11.
        Err(Errno::NOSYS) => {
            let target = fs::read_link(&path).ok()?;
            let found = target.starts_with("/dev").then(|| fs::metadata(&path).ok()).flatten()?;
            found.file_type().is_block_device().then(|| DeviceNumber {
                major: rustix::fs::major(found.rdev()),
                minor: rustix::fs::minor(found.rdev()),
            })
        }
        Err(_) => None,
    }
}

/// The access mode is in the last two bits of `flags`, which stand in octal.
fn is_writable(tree: &Tree, pid: &str, fd: &str) -> bool {
    let text = tree.text(format!("proc/{pid}/fdinfo/{fd}")).unwrap_or_default();
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|octal| u64::from_str_radix(octal.trim(), 8).ok());
    // Unreadable flags of a block device: rather one writer too many.
    flags.is_none_or(|flags| flags & 3 != 0)
}

#[cfg(test)]
mod tests {
    use super::super::testing::FakeSystem;
    use super::*;

    #[test]
    fn only_write_access_counts() {
        let system = FakeSystem::new();
        system.file("proc/7/fdinfo/3", "pos:\t0\nflags:\t0100000\nmnt_id:\t5\n");
        system.file("proc/7/fdinfo/4", "pos:\t0\nflags:\t02100002\nmnt_id:\t5\n");
        let tree = system.tree();
        assert!(!is_writable(&tree, "7", "3"));
        assert!(is_writable(&tree, "7", "4"));
        assert!(is_writable(&tree, "7", "5"), "a file whose flags cannot be read");
    }
}
