//! A VM and its parts.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use units::Bytes;
use uuid::Uuid;

/// The identity that a VM keeps for life, at every site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VmId(pub Uuid);

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A VM as its site describes it, or as it is to be made at another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    pub id: VmId,
    pub name: String,
    pub vcpus: u32,
    pub memory: Bytes,
    /// CPU architecture in the words of `uname -m`: `x86_64`.
    pub arch: String,
    /// As the site has it: `pc-q35-7.2`, or an alias, `q35`.
    pub machine: String,
    pub cpu: Cpu,
    pub firmware: Firmware,
    /// In the order in which the guest meets them.
    pub disks: Vec<Disk>,
    pub nics: Vec<Nic>,
    /// Devices that take part in no migration: shown in the plan, refused where the guest depends
    /// on them.
    pub devices: Vec<Device>,
    pub power: Power,
    /// Does the site start it by itself when the host boots?
    pub autostart: bool,
    /// `false`: the definition is gone once the VM is off.
    pub persistent: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Power {
    Running,
    /// Loaded, but its virtual CPUs stand still.
    Paused,
    Off,
    /// The site does not know it.
    Absent,
}

impl Power {
    /// Could this VM write to its disks now, or after a mere `resume`?
    pub const fn is_loaded(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }
}

impl fmt::Display for Power {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Off => "off",
            Self::Absent => "absent",
        })
    }
}

/// What the VM believes its processor is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cpu {
    /// Whatever the site gives by default.
    Default,
    /// A model that a site can be asked about: `Skylake-Server`.
    Model(String),
    /// The host's own features, named at start (`host-model`, `maximum`).
    HostModel,
    /// The host's processor as it is: the guest may depend on what another host lacks.
    HostPassthrough,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Firmware {
    Bios,
    /// `secure_boot`: the loader enforces signatures.
    Uefi {
        secure_boot: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The site's name for the slot, unique within the VM: `vda`.
    pub target: String,
    pub bus: DiskBus,
    pub format: DiskFormat,
    /// As the guest sees it.
    pub size: Bytes,
    /// What it takes at the site; `None` where the site does not tell.
    pub allocated: Option<Bytes>,
    pub location: DiskLocation,
    pub usage: DiskUse,
    /// As the guest reads it from the device.
    pub serial: Option<String>,
    /// Where the guest finds the device; with it a disk is told from its twins.
    pub address: Option<PciAddress>,
    /// Lower boots first; `None` where the site goes by order alone.
    pub boot_order: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskBus {
    Virtio,
    VirtioScsi,
    Sata,
    Ide,
    Nvme,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskFormat {
    Raw,
    Qcow2,
    Other(String),
}

/// Where the site keeps a disk, in the site's own terms. Never sent to another site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskLocation {
    File { path: String },
    Block { path: String },
    Volume { pool: String, volume: String, path: Option<String> },
    Other { kind: String },
}

/// What a disk slot is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskUse {
    /// Writable, this VM's alone: what migrations move.
    Data,
    ReadOnly,
    /// Several VMs may write it.
    Shared,
    Cdrom,
    Floppy,
}

/// A PCI address as the guest sees it: `0000:04:00.0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PciAddress {
    pub domain: u16,
    pub bus: u8,
    pub slot: u8,
    pub function: u8,
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.slot, self.function)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// Six bytes, lower case, with colons.
    pub mac: String,
    pub model: String,
    pub network: NetworkRef,
    /// Kept at the destination, so that guests which name interfaces by slot find them again.
    pub address: Option<PciAddress>,
}

/// What a card is plugged into, in the site's terms: the left side of a network mapping.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkRef {
    Network(String),
    Bridge(String),
    Other(String),
}

impl NetworkRef {
    /// The name that a plan's mapping uses.
    pub fn name(&self) -> &str {
        match self {
            Self::Network(name) | Self::Bridge(name) | Self::Other(name) => name,
        }
    }
}

/// A device that a migration cannot carry or does not need to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// The site's word: `hostdev`, `tpm`, `filesystem`, `video`.
    pub kind: String,
    /// Would the guest miss it? Then the plan refuses.
    pub essential: bool,
    pub details: BTreeMap<String, String>,
}

/// What the platform has counted of one disk's writes since the VM was started.
///
/// Two equal counts around an interval prove that the guest wrote nothing in it, without asking
/// the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteCount {
    pub target: String,
    pub requests: u64,
    pub bytes: Bytes,
}
