//! What the source's agent sees in its guest.

use serde::{Deserialize, Serialize};
use units::Bytes;

/// A look around inside the guest.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GuestReport {
    /// `uname -r`.
    pub kernel: String,
    pub arch: String,
    /// `PRETTY_NAME` of os-release.
    pub os: String,
    pub boot_id: String,
    pub hostname: String,
    /// Whole disks, as the kernel names them.
    pub devices: Vec<BlockDevice>,
    pub file_systems: Vec<FileSystem>,
    pub swaps: Vec<SwapArea>,
    /// Programs that write to a block device past any file system.
    pub raw_writers: Vec<RawWriter>,
    pub interfaces: Vec<NetworkInterface>,
    /// What may keep the copy from booting, or from being found, elsewhere.
    pub boot: Vec<BootFinding>,
    /// Which tracker would be used, and why.
    pub tracker: Option<super::request::TrackerReport>,
    pub memory_total: Bytes,
    pub memory_available: Bytes,
    /// From the kernel's start until the SSH server listened, in the last boot.
    #[serde(default)]
    pub boot_ms: Option<u64>,
    /// What of this kernel confines the processes of the agent that read from the network.
    #[serde(default)]
    pub sandbox: String,
}

/// A whole disk and what lies on it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BlockDevice {
    /// `vda`.
    pub name: String,
    pub size: Bytes,
    pub kind: BlockKind,
    /// As the device reports it; empty if it has none.
    pub serial: String,
    /// `0000:04:00.0`, of the controller for SCSI.
    pub pci: Option<String>,
    /// SCSI `host:channel:target:lun`.
    pub scsi: Option<String>,
    pub read_only: bool,
    pub removable: bool,
    pub logical_block: u32,
    /// Partitions and what is stacked on them, as one would read it: `vda1 ext4 /`.
    pub layout: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockKind {
    Virtio,
    Scsi,
    Nvme,
    Ata,
    Xen,
    /// Loop, ram, zram, network: no disk of the VM.
    Other,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FileSystem {
    pub mount_point: String,
    /// `ext4`.
    pub kind: String,
    /// The device it is mounted from: `/dev/mapper/data-srv`.
    pub device: String,
    /// The whole disks below it.
    pub disks: Vec<String>,
    pub read_only: bool,
    /// Can the kernel freeze it?
    pub freezable: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SwapArea {
    pub path: String,
    pub used: Bytes,
    pub size: Bytes,
    pub disks: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RawWriter {
    pub pid: u32,
    pub program: String,
    pub device: String,
    pub disks: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetworkInterface {
    pub name: String,
    pub mac: String,
    pub addresses: Vec<String>,
    pub pci: Option<String>,
}

/// Something about how the guest boots that matters at another site.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BootFinding {
    /// Short name: `initramfs-drivers`, `fstab-device-names`, `grub-root`, `interface-names`.
    pub check: String,
    pub severity: Severity,
    pub text: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Looked at, nothing to do.
    Fine,
    Warning,
    /// The copy would not come up.
    Blocking,
}
