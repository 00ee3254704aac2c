//! The guests boot, are reached, and their ledgers notice what they must.

use std::{path::Path, time::Duration};

use anyhow::Result;
use lab::{
    Format,
    guest::{Content, DiskFile, GuestOptions, Machine, Qemu, Start, Writes, small},
};

const PATIENCE: Duration = Duration::from_secs(120);

/// 96 MiB and an odd number of sectors.
const ODD: u64 = (96 << 20) + 37 * 512;

fn boot(disks: &[DiskFile], start: Start, dir: &Path) -> Result<Qemu> {
    let machine = Machine { start, disks, writes: Writes::Keep, memory_mib: 256, vcpus: 1 };
    Qemu::start(&machine, &dir.join("console"))
}

#[test]
fn the_small_guest_boots_from_its_disk() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let image = small::build()?;
    let options = GuestOptions::new("small1")
        .with_swap()
        .data(ODD, Content::Ext4, Format::Raw)
        .data(ODD + 512, Content::LvmXfs, Format::Qcow2);
    let disks = image.clone_to(dir.path(), &options)?;
    let mut qemu = boot(&disks, Start::Disk, dir.path())?;
    let up = qemu.wait_for("is up", PATIENCE)?;
    let ssh = qemu.ssh()?;
    let reached = ssh.wait(PATIENCE)?;
    eprintln!("up {up:?}, ssh {reached:?}");
    eprintln!("{}", ssh.run("uname -a; mount; df -h; cat /proc/swaps; id; lsmod; cat /proc/partitions; ls -la /sys/kernel/btf/vmlinux; ps; free; dmesg | tail -5")?);
    eprintln!("{}", qemu.console());
    ssh.run("poweroff")?;
    qemu.wait(PATIENCE)
}
