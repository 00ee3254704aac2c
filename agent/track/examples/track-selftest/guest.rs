//! Being the init of a guest: console, file systems, modules, power.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::mount::MountFlags;
use rustix::system::{RebootCommand, reboot};
use track::TrackedDisk;
use units::{BlockSize, DiskNo};

/// One line on the serial console, in one piece.
#[expect(clippy::print_stdout, reason = "the console is what the test reads")]
pub fn say(line: &str) {
    println!("TRACK {line}");
}

pub fn prepare() -> Result<()> {
    for (kind, at) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        fs::create_dir_all(at)?;
        rustix::mount::mount(kind, at, kind, MountFlags::empty(), None)
            .with_context(|| format!("cannot mount {at}"))?;
    }
    for module in fs::read_to_string("/modules")?.lines() {
        busybox(&["modprobe", module])?;
    }
    Ok(())
}

pub fn disk(no: usize, name: &str) -> Result<TrackedDisk> {
    let node = PathBuf::from(format!("/dev/{name}"));
    // Disks of slow buses come after their module.
    for _ in 0..100 {
        if node.exists() {
            break;
        }
        sleep(Duration::from_millis(100));
    }
    let no = DiskNo(u16::try_from(no)?);
    let disk = TrackedDisk::find(no, &node, BlockSize::MIN)?;
    say(&format!("disk {no} is {name}, {} bytes", disk.size.0));
    Ok(disk)
}

pub fn mount_point(name: &str) -> PathBuf {
    Path::new("/mnt").join(name)
}

pub fn mount(name: &str, file_system: &str) -> Result<()> {
    let at = mount_point(name);
    fs::create_dir_all(&at)?;
    let (kind, discards) = file_system.split_once('+').unwrap_or((file_system, ""));
    let options = if discards.is_empty() { "rw" } else { "rw,discard" };
    let node = format!("/dev/{name}");
    busybox(&["mount", "-t", kind, "-o", options, &node, at.to_str().context("ASCII name")?])
}

pub fn freeze(name: &str) -> Result<()> {
    busybox(&["fsfreeze", "--freeze", mount_point(name).to_str().context("ASCII name")?])
}

pub fn thaw(name: &str) -> Result<()> {
    busybox(&["fsfreeze", "--unfreeze", mount_point(name).to_str().context("ASCII name")?])
}

pub fn busybox(arguments: &[&str]) -> Result<()> {
    let output = Command::new("/bin/busybox").args(arguments).output()?;
    if !output.status.success() {
        bail!("busybox {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

pub fn power_off() -> Result<()> {
    reboot(RebootCommand::PowerOff).context("cannot power off")
}
