//! What was found when the operator's request was looked into.

use model::{FenceOffer, NetworkRef, SiteReport, Vm};
use units::Bytes;

/// All that a plan is drawn up from. What could not be learned is a [`Problem`] and becomes a
/// refusal, beside all others.
#[derive(Clone, Debug)]
pub struct Facts {
    pub source: Result<SiteReport, Problem>,
    pub destination: Result<SiteReport, Problem>,
    pub vm: Result<Vm, Problem>,
    pub fence: Result<FenceOffer, Problem>,
    /// Several things can be wrong with a guest at once.
    pub guest: Result<GuestFacts, Vec<Problem>>,
    /// VMs at the destination that have the same name or id already.
    pub taken: Vec<Taken>,
    /// The helper's kernel and initramfs are built and intact.
    pub appliance: Result<(), Problem>,
    /// Measured or stated by the operator; bytes per second.
    pub line: Option<Bytes>,
}

/// Something could not be learned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Short and stable, for scripts: `unreachable`, `host-key`, `not-root`.
    pub code: String,
    pub text: String,
    pub hint: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    pub name: String,
    pub same_id: bool,
    pub same_name: bool,
    /// It is the source that this finished migration keeps.
    pub kept_by: Option<String>,
}

/// What the agent saw inside the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestFacts {
    pub kernel: String,
    pub os: String,
    pub devices: Vec<GuestDevice>,
    pub mounts: Vec<GuestMount>,
    pub swaps: Vec<GuestSwap>,
    pub raw_writers: Vec<GuestWriter>,
    pub findings: Vec<GuestFinding>,
    /// What was looked at and needs nothing, one sentence each.
    pub fine: Vec<String>,
    pub memory_available: Bytes,
    /// Which tracker it would use (`bpf`, `rescan`), and why.
    pub tracker: Option<(String, String)>,
    /// How long its last boot took until it accepted logins.
    pub boot_ms: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestDevice {
    pub name: String,
    pub size: Bytes,
    pub serial: String,
    pub pci: Option<String>,
    /// The `target` of a SCSI `host:channel:target:lun`, and its lun.
    pub scsi: Option<String>,
    pub read_only: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestMount {
    pub mount_point: String,
    pub kind: String,
    pub disks: Vec<String>,
    pub read_only: bool,
    pub freezable: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestSwap {
    pub path: String,
    pub used: Bytes,
    pub disks: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestWriter {
    pub program: String,
    pub pid: u32,
    pub device: String,
    pub disks: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestFinding {
    pub check: String,
    pub blocking: bool,
    pub text: String,
    pub remedy: Option<String>,
}

/// The destination's network of that name, if it has one.
pub(crate) fn network_named(site: &SiteReport, name: &str) -> Option<NetworkRef> {
    site.networks
        .iter()
        .filter(|offer| offer.active)
        .map(|offer| &offer.network)
        .find(|network| network.name() == name)
        .cloned()
}
