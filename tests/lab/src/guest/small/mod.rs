//! The small guest: Debian's cloud kernel with busybox and dropbear, up in seconds even without KVM.
//!
//! It is a guest like others for all that matters to a migration: its root is an ext4 on a
//! partition of its own disk, booted by GRUB from there; the initramfs has only what finds that
//! root; data disks are named by UUID in `fstab`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use super::{
    GuestOptions, KERNEL_WORDS,
    disk::{self, DiskFile, Ext4, MEBIBYTE},
    edit::Edits,
    keys::Keys,
    modules::Modules,
    noise::Noise,
    program,
    tree::Tree,
};
use crate::{cache, kernel, kernel::Kernel, run::run};

const ROOT_START: u64 = MEBIBYTE;
const ROOT_BYTES: u64 = 128 * MEBIBYTE;
const SWAP_START: u64 = ROOT_START + ROOT_BYTES;
const SWAP_BYTES: u64 = 16 * MEBIBYTE;
const TABLE_END: u64 = SWAP_START + SWAP_BYTES;
/// Of the partition that a guest with UEFI has behind the others.
const ESP_BYTES: u64 = 4 * MEBIBYTE;
/// An odd number of sectors behind the last partition.
const TAIL_BYTES: u64 = 64 * 1024 + 11 * 512;

/// What the initramfs loads. Other disk controllers are left out, as a system installed on virtio
/// may have it.
const INITRD_MODULES: &[&str] = &["virtio_pci", "virtio_blk"];

/// What is on the disk besides.
const ROOT_MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "virtio_scsi",
    "sd_mod",
    "virtio_net",
    "virtio_console",
    "virtio_rng",
    "virtio_balloon",
    "nvme",
    "ena",
    "xen-blkfront",
    "xen-netfront",
    "evdev",
    "button",
];

/// ... for data disks with XFS and LVM. With `lvm` and its libraries a third of all that there is,
/// and copied by every migration, so that only guests with such disks have it.
const XFS_MODULES: &[&str] = &["xfs", "dm-mod"];

/// ... to see and set its firmware's variables.
const UEFI_MODULES: &[&str] = &["efivarfs"];

/// The image in the cache, and its parts for a direct boot.
#[derive(Debug, Clone)]
pub struct SmallImage {
    /// The root disk, raw; never to be booted or changed itself.
    pub root: PathBuf,
    pub vmlinuz: PathBuf,
    pub initrd: PathBuf,
    /// For a direct boot; the image's own GRUB has the same.
    pub cmdline: String,
    uuids: Uuids,
}

#[derive(Debug, Clone)]
struct Uuids {
    root: String,
    swap: String,
}

/// The image of the day for guests with these options: made if its ingredients changed.
pub fn build(options: &GuestOptions) -> Result<SmallImage> {
    let kernel = kernel::debian_cloud()?;
    let uuids =
        Uuids { root: Noise::new("small root").uuid(), swap: Noise::new("small swap").uuid() };
    let cmdline = format!("root=UUID={} ro {KERNEL_WORDS} quiet", uuids.root);
    let initrd = initrd(&kernel)?;
    let mut tree = root_tree(&kernel, &initrd, &uuids, &cmdline)?;
    let with_xfs = options.data.iter().any(|data| data.content.is_xfs());
    let mut modules = ROOT_MODULES.to_vec();
    modules.extend(with_xfs.then_some(XFS_MODULES).into_iter().flatten());
    modules.extend(options.uefi.then_some(UEFI_MODULES).into_iter().flatten());
    Modules::of(&kernel)?.add_to(&mut tree, &modules)?;
    if with_xfs {
        tree.program("lvm")?;
    }
    let recipe = include_str!("mod.rs").to_owned() + include_str!("../disk.rs");
    let hash = blake3::hash(format!("{}{recipe}", tree.hash()).as_bytes()).to_hex();
    let dir = cache::entry(&format!("small/image-{}", &hash[..16]), |dir| {
        fs::create_dir_all(dir)?;
        fs::write(dir.join("initrd"), &initrd)?;
        make_root(&dir.join("root.raw"), &tree, &uuids, options.uefi)
    })?;
    super::forget_old(&dir, "image-")?;
    Ok(SmallImage {
        root: dir.join("root.raw"),
        vmlinuz: kernel.vmlinuz,
        initrd: dir.join("initrd"),
        cmdline,
        uuids,
    })
}

impl SmallImage {
    /// Makes the disks of one guest in `dir`: its root as `NAME-root`, then its data disks, in the
    /// order in which it must get them.
    pub fn clone_to(&self, dir: &Path, options: &GuestOptions) -> Result<Vec<DiskFile>> {
        let mut edits = Edits::new()?;
        let mut fstab = format!("UUID={} / ext4 rw 0 1\n", self.uuids.root);
        if options.swap {
            fstab += &format!("UUID={} none swap sw 0 0\n", self.uuids.swap);
        }
        let mounts = ["/data1", "/data2", "/data3", "/data4"];
        let data = options.make_data(dir, &mounts, &mut fstab)?;
        edits.file("/etc/fstab", 0o644, fstab)?;
        options.add_to(&mut edits, &mounts)?;
        let root = dir.join(format!("{}-root.raw", options.name));
        disk::copy(&self.root, &root)?;
        edits.apply(&root, ROOT_START)?;
        let mut disks = vec![disk::finish(&root, options.root_format)?];
        disks.extend(data);
        Ok(disks)
    }
}

fn make_root(image: &Path, tree: &Tree, uuids: &Uuids, uefi: bool) -> Result<()> {
    let staged = tempfile::tempdir()?;
    tree.write_to(staged.path())?;
    let mut partitions = vec![(ROOT_START, ROOT_BYTES, "83"), (SWAP_START, SWAP_BYTES, "82")];
    partitions.extend(uefi.then_some((TABLE_END, ESP_BYTES, "ef")));
    let table_end = if uefi { TABLE_END + ESP_BYTES } else { TABLE_END };
    let file = disk::create(image, table_end + TAIL_BYTES)?;
    disk::partition(image, 0xCA05_E3A1, &partitions)?;
    let (at, bytes, uuid) = (ROOT_START, ROOT_BYTES, uuids.root.as_str());
    Ext4 { at, bytes, uuid, tree: Some(staged.path()) }.make(image)?;
    disk::swap(image, SWAP_START, SWAP_BYTES, &uuids.swap)?;
    disk::install_grub(image)?;
    if uefi {
        disk::esp(image, TABLE_END, ESP_BYTES, &uuids.root)?;
    }
    disk::fill_tail(&file, table_end, table_end + TAIL_BYTES)
}

fn initrd(kernel: &Kernel) -> Result<Vec<u8>> {
    let mut tree = Tree::default();
    add_busybox(&mut tree)?;
    for dir in ["dev", "proc", "sys", "root"] {
        tree.dir(dir, 0o755);
    }
    tree.file("init", 0o755, include_str!("files/init.sh"));
    tree.file("conf/modules", 0o644, INITRD_MODULES.join("\n") + "\n");
    Modules::of(kernel)?.add_to(&mut tree, INITRD_MODULES)?;
    tree.initrd()
}

fn root_tree(kernel: &Kernel, initrd: &[u8], uuids: &Uuids, cmdline: &str) -> Result<Tree> {
    let mut tree = Tree::default();
    add_busybox(&mut tree)?;
    for (path, mode) in [
        ("dev", 0o755),
        ("proc", 0o555),
        ("sys", 0o555),
        ("run", 0o755),
        ("tmp", 0o1777),
        ("mnt", 0o755),
        ("root", 0o700),
        ("home/ops", 0o755),
        ("var/lib/ledger", 0o755),
        ("var/log", 0o755),
        ("data1", 0o755),
        ("data2", 0o755),
        ("data3", 0o755),
        ("data4", 0o755),
        ("etc/lvm", 0o755),
    ] {
        tree.dir(path, mode);
    }
    tree.program("dropbear")?;
    tree.program("/usr/lib/openssh/sftp-server")?;
    // Where dropbear looks for it.
    tree.link("usr/lib/sftp-server", "../../bin/sftp-server");
    tree.copy("bin/ledger", &program::ledger()?)?;

    let version = &kernel.version;
    tree.copy(&format!("boot/vmlinuz-{version}"), &kernel.vmlinuz)?;
    tree.file(&format!("boot/initrd.img-{version}"), 0o644, initrd);
    let grub = include_str!("files/grub.cfg").replace("@ROOT@", &uuids.root);
    let grub = grub.replace("@VERSION@", version).replace("@CMDLINE@", cmdline);
    tree.file("boot/grub/grub.cfg", 0o644, grub);

    let keys = Keys::get()?;
    tree.copy("etc/dropbear/dropbear_ed25519_host_key", &keys.host_dropbear())?;
    for home in ["root", "home/ops"] {
        tree.dir(&format!("{home}/.ssh"), 0o700);
        tree.file(&format!("{home}/.ssh/authorized_keys"), 0o600, keys.public()?);
    }
    tree.give("home/ops", 1000);
    for (path, mode, text) in ETC {
        tree.file(&format!("etc/{path}"), *mode, *text);
    }
    tree.link("etc/mtab", "/proc/mounts");
    Ok(tree)
}

pub(super) fn add_busybox(tree: &mut Tree) -> Result<()> {
    tree.program("busybox")?;
    for applet in run(Command::new("busybox").arg("--list"))?.lines() {
        if applet != "busybox" {
            tree.link(&format!("bin/{applet}"), "busybox");
        }
    }
    tree.link("sbin", "bin");
    tree.link("usr/bin", "../bin");
    tree.link("usr/sbin", "../bin");
    Ok(())
}

const ETC: &[(&str, u32, &str)] = &[
    ("inittab", 0o644, include_str!("files/inittab")),
    ("init.d/rcS", 0o755, include_str!("files/rcS")),
    ("init.d/rcK", 0o755, include_str!("files/rcK")),
    ("init.d/ledger-service", 0o755, include_str!("files/ledger-service")),
    ("udhcpc.script", 0o755, include_str!("files/udhcpc.script")),
    ("acpi/PWRF/00000080", 0o755, "#!/bin/sh\nexec /bin/poweroff\n"),
    ("passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\nops:x:1000:1000:ops:/home/ops:/bin/sh\n"),
    ("shadow", 0o600, "root:*:19000::::::\nops:*:19000::::::\n"),
    ("group", 0o644, "root:x:0:\nops:x:1000:\n"),
    ("shells", 0o644, "/bin/sh\n"),
    ("profile", 0o644, "export PATH=/bin\n"),
    ("hostname", 0o644, "small\n"),
    ("hosts", 0o644, "127.0.0.1 localhost\n"),
    ("resolv.conf", 0o644, ""),
    ("fstab", 0o644, ""),
    ("os-release", 0o644, "ID=lab-small\nID_LIKE=debian\nPRETTY_NAME=\"small lab guest\"\n"),
    ("lvm/lvm.conf", 0o644, LVM_CONF),
];

/// Without udev LVM looks for devices, and makes its own nodes, itself.
pub(super) const LVM_CONF: &str = "\
devices { obtain_device_list_from_udev=0 use_devicesfile=0 }
activation { udev_sync=0 udev_rules=0 verify_udev_operations=1 monitoring=0 }
backup { backup=0 archive=0 }
";
