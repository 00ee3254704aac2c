//! The VM to come: what it is made from, and what of it a site holds.

use std::fmt;
use std::path::PathBuf;

use model::{Cpu, DiskBus, DiskFormat, Firmware, NetworkRef, PciAddress, Power, VmId};
use serde::{Deserialize, Serialize};
use units::{Bytes, Digest, DiskNo, Epoch, MigrationId};

/// Kernel and initramfs of the helper, on the operator's machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ApplianceFiles {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    /// Of both files together: names the copy at the site, so that a newer build is not mistaken
    /// for an older one.
    pub digest: Digest,
    /// The pool to keep them in.
    pub pool: String,
}

/// The appliance as the site knows it; opaque to everyone else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplianceRef {
    pub kernel: String,
    pub initrd: String,
}

/// A volume to create.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewDisk {
    pub no: DiskNo,
    pub pool: String,
    /// The volume's name: unique in the pool, made from VM and slot.
    pub volume: String,
    /// Exactly the source's size, odd or not.
    pub size: Bytes,
    pub format: DiskFormat,
    /// The slot in the VM to come.
    pub target: String,
    pub bus: DiskBus,
    pub serial: Option<String>,
    pub address: Option<PciAddress>,
    pub boot_order: Option<u32>,
}

/// A volume that exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreatedDisk {
    pub no: DiskNo,
    /// The site's own name for it.
    pub location: String,
    /// `false`: it was there already from an earlier try and may hold data.
    pub fresh: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewNic {
    pub mac: String,
    pub model: String,
    pub network: NetworkRef,
    pub address: Option<PciAddress>,
}

/// The VM to come, in full: enough to define it held and to define it for good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaceholderSpec {
    pub migration: MigrationId,
    pub epoch: Epoch,
    pub vm: VmId,
    pub name: String,
    pub vcpus: u32,
    pub memory: Bytes,
    pub arch: String,
    pub machine: String,
    pub cpu: Cpu,
    pub firmware: Firmware,
    pub disks: Vec<NewDisk>,
    /// Not plugged in while held: two copies must not answer on one address.
    pub nics: Vec<NewNic>,
    pub autostart: bool,
    pub appliance: ApplianceRef,
    /// How many channels into the helper: port 0 for control, the rest for data.
    pub channels: u16,
    /// A card for the helper alone, where agents reach each other directly.
    pub helper_nic: Option<NetworkRef>,
    /// Words for the helper's kernel command line, each free of spaces.
    pub helper_args: Vec<String>,
}

/// The decision as it is written on the placeholder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    pub migration: MigrationId,
    pub epoch: Epoch,
    /// The grant receipt's encoding, in hexadecimal.
    pub receipt: String,
}

/// What the site holds under the VM's id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlaceholderState {
    Absent,
    /// Ours, in its held form.
    Held {
        migration: MigrationId,
        epoch: Epoch,
        power: Power,
    },
    /// Ours, booting from its own disk.
    Released {
        migration: MigrationId,
        epoch: Epoch,
        power: Power,
    },
    /// A VM that we did not make.
    Foreign {
        name: String,
        power: Power,
    },
}

impl fmt::Display for PlaceholderState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("no VM of that id"),
            Self::Held { migration, .. } => write!(f, "the placeholder of {migration}"),
            Self::Released { migration, power, .. } => {
                write!(f, "the VM as {migration} started it, which is {power}")
            }
            Self::Foreign { name, power } => {
                write!(f, "VM {name:?}, which no migration made and which is {power}")
            }
        }
    }
}

/// Something that a migration made at a site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Leftover {
    Placeholder { vm: VmId, name: String },
    Volume { pool: String, volume: String, location: String },
}
