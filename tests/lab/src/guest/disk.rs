//! Disk images made without root's privileges over devices: no loop device, no mount.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::{lvm, noise::Noise};
use crate::{
    Format,
    run::{run, run_with_input},
};

/// Partitions begin on this boundary, as partitioning tools have it.
pub(super) const MEBIBYTE: u64 = 1 << 20;

/// The blocks of the file systems made here, in bytes.
const FS_BLOCK: u64 = 4096;

/// A disk image, ready for QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskFile {
    pub path: PathBuf,
    pub format: Format,
    /// What the guest sees, in bytes.
    pub bytes: u64,
}

impl From<&DiskFile> for crate::Disk {
    /// The image copied into a site's pool, in its own format.
    fn from(file: &DiskFile) -> Self {
        Self::copy_of(&file.path, file.format)
    }
}

/// What is on a data disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Content {
    /// On the whole disk.
    Ext4,
    /// On the whole disk.
    Xfs,
    /// XFS in a logical volume.
    LvmXfs,
    /// Nothing but noise in the last, partial block.
    Blank,
}

impl Content {
    pub(super) fn is_xfs(self) -> bool {
        matches!(self, Self::Xfs | Self::LvmXfs)
    }
}

/// A data disk that is not mounted yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DataDisk {
    /// Device as `fstab` names it; absent when blank.
    pub device: Option<String>,
    pub file_system: &'static str,
}

/// A new image of zeros that takes no room.
pub(super) fn create(path: &Path, bytes: u64) -> Result<File> {
    let mut options = File::options();
    let file = options.read(true).write(true).create_new(true).open(path);
    let file = file.with_context(|| format!("cannot create {}", path.display()))?;
    file.set_len(bytes)?;
    Ok(file)
}

/// Makes the data disk `name` of `bytes` bytes at `path`. The same name gives the same UUIDs.
pub(super) fn make_data(path: &Path, name: &str, bytes: u64, content: Content) -> Result<DataDisk> {
    let image = create(path, bytes)?;
    let uuid = Noise::new(name).uuid();
    let by_uuid = Some(format!("UUID={uuid}"));
    let disk = match content {
        Content::Ext4 => {
            Ext4 { at: 0, bytes, uuid: &uuid, tree: None }.make(path)?;
            DataDisk { device: by_uuid, file_system: "ext4" }
        }
        Content::Xfs => {
            xfs(path, bytes, &uuid)?;
            DataDisk { device: by_uuid, file_system: "xfs" }
        }
        Content::LvmXfs => {
            let group = format!("vg_{}", name.replace(|c: char| !c.is_ascii_alphanumeric(), "_"));
            let volume_bytes = lvm::write(&image, bytes, &group, "data")?;
            let volume = path.with_extension("volume");
            create(&volume, volume_bytes)?;
            xfs(&volume, volume_bytes, &uuid)?;
            place(&volume, &image, lvm::VOLUME_START)?;
            fs::remove_file(&volume)?;
            DataDisk { device: Some(format!("/dev/{group}/data")), file_system: "xfs" }
        }
        Content::Blank => DataDisk { device: None, file_system: "" },
    };
    fill_tail(&image, bytes - bytes % FS_BLOCK, bytes)?;
    Ok(disk)
}

/// An ext4 to be made inside an image.
pub(super) struct Ext4<'a> {
    pub at: u64,
    /// Room; what does not fill a block is left alone.
    pub bytes: u64,
    pub uuid: &'a str,
    pub tree: Option<&'a Path>,
}

impl Ext4<'_> {
    pub fn make(&self, image: &Path) -> Result<()> {
        let mut command = Command::new("mke2fs");
        command.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "1", "-U", self.uuid]);
        // Nothing is left for the kernel to write later: a test counts what its guest writes.
        let lazy = "lazy_itable_init=0,lazy_journal_init=0,assume_storage_prezeroed=1";
        command.args(["-E", &format!("{lazy},offset={}", self.at)]);
        if let Some(tree) = self.tree {
            command.arg("-d").arg(tree);
        }
        command.arg(image).arg((self.bytes / FS_BLOCK).to_string());
        run(&mut command)?;
        Ok(())
    }
}

fn xfs(path: &Path, bytes: u64, uuid: &str) -> Result<()> {
    let mut command = Command::new("mkfs.xfs");
    command.args(["-q", "-f", "-m", &format!("uuid={uuid}")]);
    // Below 300 MB mkfs.xfs wants to be told that we mean it.
    if bytes < 300 << 20 {
        command.arg("--unsupported");
    }
    let size = bytes - bytes % FS_BLOCK;
    command.args(["-d", &format!("file=1,size={size},name={}", path.display())]);
    run(&mut command)?;
    Ok(())
}

/// Writes a swap signature over `bytes` bytes at `at`.
pub(super) fn swap(image: &Path, at: u64, bytes: u64, uuid: &str) -> Result<()> {
    let file = image.with_extension("swap");
    create(&file, bytes)?;
    run(Command::new("mkswap").args(["-q", "-U", uuid]).arg(&file))?;
    let mut options = File::options();
    place(&file, &options.write(true).open(image)?, at)?;
    fs::remove_file(file)?;
    Ok(())
}

/// Writes an MBR; `partitions` are start and size in bytes, and the type.
pub(super) fn partition(image: &Path, id: u32, partitions: &[(u64, u64, &str)]) -> Result<()> {
    let mut script = format!("label: dos\nlabel-id: {id:#010x}\nunit: sectors\n");
    for (start, size, kind) in partitions {
        script += &format!("start={}, size={}, type={kind}\n", start / 512, size / 512);
    }
    run_with_input(Command::new("sfdisk").args(["-q", "--no-reread"]).arg(image), &script)?;
    Ok(())
}

/// Makes the image boot by BIOS from GRUB, whose files are on its first partition, an ext4. Boot
/// code goes where `grub-install` puts it; its defaults (core at sector 1) fit.
pub(super) fn install_grub(image: &Path) -> Result<()> {
    let grub = Path::new("/usr/lib/grub/i386-pc");
    let boot = fs::read(grub.join("boot.img")).context("package grub-pc-bin is missing")?;
    let core = image.with_extension("core");
    let modules = "biosdisk part_msdos ext2 normal search search_fs_uuid linux linux16 echo test \
                   serial configfile boot ls cat reboot halt";
    run(Command::new("grub-mkimage")
        .args(["-O", "i386-pc", "-p", "(hd0,msdos1)/boot/grub", "-o"])
        .arg(&core)
        .args(modules.split_whitespace()))?;
    let core_bytes = fs::read(&core)?;
    fs::remove_file(&core)?;
    anyhow::ensure!(core_bytes.len() < 2047 * 512, "GRUB does not fit before the first partition");
    let file = File::options().write(true).open(image)?;
    // The partition table is in the same sector, behind the code.
    file.write_all_at(boot.get(..440).context("boot.img is not a boot sector")?, 0)?;
    file.write_all_at(&core_bytes, 512)?;
    Ok(())
}

/// Makes an EFI system partition with GRUB where firmware looks without being told; its configuration is
/// that of the root file system.
pub(super) fn esp(image: &Path, at: u64, bytes: u64, root: &str) -> Result<()> {
    let grub = Path::new("/usr/lib/grub/x86_64-efi");
    anyhow::ensure!(grub.exists(), "package grub-efi-amd64-bin is missing");
    let [file, config, core] = ["esp", "cfg", "efi"].map(|name| image.with_extension(name));
    let find = format!(
        "search --no-floppy --fs-uuid --set=root {root}\nset prefix=($root)/boot/grub\nnormal\n"
    );
    fs::write(&config, find)?;
    let modules = "part_msdos ext2 normal search search_fs_uuid linux echo test configfile boot";
    run(Command::new("grub-mkimage")
        .args(["-O", "x86_64-efi", "-p", "/boot/grub", "-c"])
        .args([&config, Path::new("-o"), &core])
        .args(modules.split_whitespace()))?;
    create(&file, bytes)?;
    run(Command::new("mkfs.vfat").args(["-F", "12", "-i", "ca05e3a1", "--invariant"]).arg(&file))
        .context("package dosfstools is missing")?;
    let into = |command: &str| {
        let mut command = Command::new(command);
        command.arg("-i").arg(&file);
        command
    };
    run(into("mmd").args(["::EFI", "::EFI/BOOT"])).context("package mtools is missing")?;
    run(into("mcopy").arg(&core).arg("::EFI/BOOT/BOOTX64.EFI"))?;
    place(&file, &File::options().write(true).open(image)?, at)?;
    [file, config, core].iter().try_for_each(fs::remove_file)?;
    Ok(())
}

/// Fills `from..to` with noise, so that a copy which forgets a disk's odd end is found out.
pub(super) fn fill_tail(image: &File, from: u64, to: u64) -> Result<()> {
    let bytes = Noise::new("tail").take(usize::try_from(to - from)?);
    image.write_all_at(&bytes, from)?;
    Ok(())
}

/// Copies a file into an image at `at`, which holds zeros there: zeros are not written.
pub(super) fn place(from: &Path, image: &File, at: u64) -> Result<()> {
    let from = File::open(from)?;
    let mut piece = vec![0; 1 << 18];
    let mut offset = 0;
    loop {
        let count = from.read_at(&mut piece, offset)?;
        if count == 0 {
            return Ok(());
        }
        if piece[..count].iter().any(|&byte| byte != 0) {
            image.write_all_at(&piece[..count], at + offset)?;
        }
        offset += u64::try_from(count)?;
    }
}

/// A copy that shares its blocks with the original where the file system can.
pub(super) fn copy(from: &Path, to: &Path) -> Result<()> {
    run(Command::new("cp").args(["--reflink=auto", "--"]).args([from, to]))?;
    Ok(())
}

/// Brings a finished raw image into `format`.
pub(super) fn finish(raw: &Path, format: Format) -> Result<DiskFile> {
    let bytes = fs::metadata(raw)?.len();
    let path = match format {
        Format::Raw => raw.to_owned(),
        Format::Qcow2 => {
            let path = raw.with_extension("qcow2");
            let convert = ["convert", "-f", "raw", "-O", "qcow2", "--"];
            run(Command::new("qemu-img").args(convert).args([raw, &path]))?;
            fs::remove_file(raw)?;
            path
        }
    };
    Ok(DiskFile { path, format, bytes })
}
