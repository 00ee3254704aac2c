//! The Debian guest: Debian 12 as `debootstrap` installs it, with systemd, OpenSSH, sudo and GRUB.
//!
//! Its root is an ext4 on the first partition, beside swap; with the usual options a second disk
//! has XFS in a logical volume, on `/srv`. A ledger is written on both.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::{
    Content, GuestOptions, KERNEL_WORDS,
    disk::{self, DiskFile, Ext4, MEBIBYTE},
    edit::Edits,
    keys::Keys,
    noise::Noise,
    program,
};
use crate::{Format, cache, run::run};

const ROOT_START: u64 = MEBIBYTE;
const ROOT_BYTES: u64 = 1600 * MEBIBYTE;
const SWAP_START: u64 = ROOT_START + ROOT_BYTES;
const SWAP_BYTES: u64 = 256 * MEBIBYTE;
const TABLE_END: u64 = SWAP_START + SWAP_BYTES;
/// An odd number of sectors behind the last partition.
const DISK_BYTES: u64 = TABLE_END + MEBIBYTE + 5 * 512;

/// 1 GiB and an odd number of sectors.
const DATA_BYTES: u64 = 1024 * MEBIBYTE + 13 * 512;

const FALLBACK_MIRROR: &str = "http://deb.debian.org/debian";

/// The image in the cache.
#[derive(Debug, Clone)]
pub struct DebianImage {
    /// The root disk, raw; never to be booted or changed itself.
    pub root: PathBuf,
    uuids: [String; 2],
}

/// Options for the guest as it is meant: swap on, and 1 GiB of XFS in a logical volume on `/srv`.
#[must_use]
pub fn usual(name: &str) -> GuestOptions {
    GuestOptions::new(name).with_swap().data(DATA_BYTES, Content::LvmXfs, Format::Raw)
}

/// The image in the cache. Made if its ingredients changed; Debian itself is only installed once,
/// which takes a minute or two.
pub fn build() -> Result<DebianImage> {
    let archive = archive()?;
    let uuids = ["debian root", "debian swap"].map(|name| Noise::new(name).uuid());
    let mut hasher = blake3::Hasher::new();
    hasher.update(archive.as_os_str().as_encoded_bytes());
    hasher.update(&fs::read(program::ledger()?)?);
    hasher.update(Keys::get()?.public()?.as_bytes());
    for text in FILES.iter().map(|(_, _, text)| *text) {
        hasher.update(text.as_bytes());
    }
    hasher.update(concat!(include_str!("mod.rs"), include_str!("../disk.rs")).as_bytes());
    let name = format!("debian/image-{}", &hasher.finalize().to_hex()[..16]);
    let dir = cache::entry(&name, |dir| make(dir, &archive, &uuids))?;
    super::forget_old(&dir, "image-")?;
    super::forget_old(&archive, "tree-")?;
    Ok(DebianImage { root: dir.join("root.raw"), uuids })
}

impl DebianImage {
    /// Makes the disks of one guest in `dir`: its root as `NAME-root`, then its data disks, in the
    /// order in which it must get them.
    pub fn clone_to(&self, dir: &Path, options: &GuestOptions) -> Result<Vec<DiskFile>> {
        let mut edits = Edits::new()?;
        let [root_uuid, swap_uuid] = &self.uuids;
        let mut fstab = format!("UUID={root_uuid} / ext4 errors=remount-ro 0 1\n");
        if options.swap {
            fstab += &format!("UUID={swap_uuid} none swap sw 0 0\n");
        }
        let mounts = ["/srv", "/data2", "/data3", "/data4"];
        let data = options.make_data(dir, &mounts, &mut fstab)?;
        edits.file("/etc/fstab", 0o644, fstab)?;
        let hosts = format!("127.0.0.1 localhost\n127.0.1.1 {}\n", options.name);
        edits.file("/etc/hosts", 0o644, hosts)?;
        let machine = uuid::Uuid::new_v4().simple();
        edits.file("/etc/machine-id", 0o444, format!("{machine}\n"))?;
        options.add_to(&mut edits, &mounts)?;
        let root = dir.join(format!("{}-root.raw", options.name));
        disk::copy(&self.root, &root)?;
        edits.apply(&root, ROOT_START)?;
        let mut disks = vec![disk::finish(&root, options.root_format)?];
        disks.extend(data);
        Ok(disks)
    }
}

/// Debian, installed and packed.
fn archive() -> Result<PathBuf> {
    let script = include_str!("tree.sh");
    let name = format!("debian/tree-{}.tar.zst", &blake3::hash(script.as_bytes()).to_hex()[..16]);
    cache::entry(&name, |archive| {
        let scratch = scratch_beside(archive)?;
        let text = scratch.path().join("tree.sh");
        fs::write(&text, script)?;
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "sh"]).arg(&text);
        command.arg(mirror()?).arg(scratch.path().join("tree")).arg(archive);
        if let Some(proxy) = proxy()? {
            command.env("http_proxy", proxy);
        }
        run(&mut command)?;
        Ok(())
    })
}

fn make(dir: &Path, archive: &Path, uuids: &[String; 2]) -> Result<()> {
    fs::create_dir_all(dir)?;
    let scratch = scratch_beside(dir)?;
    let tree = scratch.path();
    run(Command::new("tar").args(["--zstd", "-xf"]).arg(archive).arg("-C").arg(tree))?;
    configure(tree, uuids)?;
    let image = dir.join("root.raw");
    let file = disk::create(&image, DISK_BYTES)?;
    let partitions = [(ROOT_START, ROOT_BYTES, "83"), (SWAP_START, SWAP_BYTES, "82")];
    disk::partition(&image, 0xDEB1_2CA0, &partitions)?;
    let [root_uuid, swap_uuid] = uuids;
    let (at, bytes, uuid) = (ROOT_START, ROOT_BYTES, root_uuid.as_str());
    Ext4 { at, bytes, uuid, tree: Some(tree) }.make(&image)?;
    disk::swap(&image, SWAP_START, SWAP_BYTES, swap_uuid)?;
    disk::install_grub(&image)?;
    disk::fill_tail(&file, TABLE_END, DISK_BYTES)
}

/// Everything that is not in Debian's packages.
fn configure(tree: &Path, uuids: &[String; 2]) -> Result<()> {
    let keys = Keys::get()?;
    let put = |path: &str, mode: u32, bytes: &[u8]| -> Result<()> {
        let path = tree.join(path);
        fs::create_dir_all(path.parent().context("a file has a directory")?)?;
        fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(fs::set_permissions(&path, fs::Permissions::from_mode(mode))?)
    };
    for (path, mode, text) in FILES {
        put(path, *mode, text.as_bytes())?;
    }
    put("usr/local/bin/ledger", 0o755, &fs::read(program::ledger()?)?)?;
    put("etc/ssh/ssh_host_ed25519_key", 0o600, keys.host_private()?.as_bytes())?;
    put("etc/ssh/ssh_host_ed25519_key.pub", 0o644, keys.host_public()?.as_bytes())?;
    for home in ["root", "home/ops"] {
        let ssh = tree.join(home).join(".ssh");
        put(&format!("{home}/.ssh/authorized_keys"), 0o600, keys.public()?.as_bytes())?;
        fs::set_permissions(&ssh, fs::Permissions::from_mode(0o700))?;
    }
    let mut chown = Command::new("chown");
    chown.arg("--recursive").arg("--reference").arg(tree.join("home/ops"));
    run(chown.arg(tree.join("home/ops/.ssh")))?;
    let wants = "etc/systemd/system/multi-user.target.wants/ledger.service";
    symlink("/etc/systemd/system/ledger.service", tree.join(wants))?;

    let version = kernel_version(tree)?;
    let root = &uuids[0];
    let grub = format!(
        "set timeout=0\nset default=0\nsearch --no-floppy --fs-uuid --set=root {root}\n\
         menuentry 'Debian GNU/Linux' {{\n\
         \tlinux /boot/vmlinuz-{version} root=UUID={root} ro {KERNEL_WORDS}\n\
         \tinitrd /boot/initrd.img-{version}\n}}\n"
    );
    put("boot/grub/grub.cfg", 0o644, grub.as_bytes())?;
    let modules = tree.join("boot/grub/i386-pc");
    fs::create_dir_all(&modules)?;
    for file in fs::read_dir(tree.join("usr/lib/grub/i386-pc"))? {
        let file = file?;
        let name = file.file_name();
        if name.as_encoded_bytes().ends_with(b".mod") || name.as_encoded_bytes().ends_with(b".lst")
        {
            fs::copy(file.path(), modules.join(name))?;
        }
    }
    Ok(())
}

fn kernel_version(tree: &Path) -> Result<String> {
    let modules = tree.join("usr/lib/modules");
    let first = fs::read_dir(&modules)?.next().context("Debian came without a kernel")??;
    first.file_name().into_string().ok().context("odd kernel version")
}

/// A directory on the cache's disk, which has room.
fn scratch_beside(path: &Path) -> Result<tempfile::TempDir> {
    let parent = path.parent().context("a cache entry has a directory")?;
    Ok(tempfile::Builder::new().prefix(".scratch-").tempdir_in(parent)?)
}

/// Where this machine's apt gets Debian 12 from.
fn mirror() -> Result<String> {
    let format = ["indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)"];
    let listed = run(Command::new("apt-get").args(format).arg("Created-By: Packages"))?;
    let ours = listed.lines().find_map(|line| line.strip_suffix(" bookworm main"));
    Ok(ours.unwrap_or(FALLBACK_MIRROR).to_owned())
}

fn proxy() -> Result<Option<String>> {
    let shell = run(Command::new("apt-config").args(["shell", "P", "Acquire::http::Proxy"]))?;
    let value = shell.trim().strip_prefix("P='").and_then(|rest| rest.strip_suffix('\''));
    Ok(value.filter(|value| !value.is_empty() && *value != "DIRECT").map(ToOwned::to_owned))
}

const FILES: &[(&str, u32, &str)] = &[
    ("etc/systemd/system/ledger.service", 0o644, include_str!("ledger.service")),
    ("etc/systemd/network/80-ether.network", 0o644, include_str!("network")),
    ("etc/ssh/sshd_config.d/lab.conf", 0o644, include_str!("sshd.conf")),
    ("etc/default/grub", 0o644, include_str!("default-grub")),
    ("etc/sudoers.d/ops", 0o440, "ops ALL=(ALL) NOPASSWD: ALL\n"),
    ("etc/hostname", 0o644, "debian\n"),
    ("etc/resolv.conf", 0o644, ""),
    ("etc/apt/sources.list", 0o644, "deb http://deb.debian.org/debian bookworm main\n"),
];
