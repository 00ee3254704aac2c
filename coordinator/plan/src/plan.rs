//! The plan itself.

use model::{
    Cpu, DiskBus, DiskFormat, FenceMeans, FenceOffer, Firmware, NetworkRef, PciAddress, SiteName,
    Vm, VmId,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use units::{BlockSize, Bytes, Digest, DiskNo, MigrationId};

use crate::facts::{Facts, network_named};
use crate::forecast::Forecast;
use crate::plain::plain;
use crate::request::{Options, Request, Route};

/// The version of the plan's file format.
pub const PLAN_VERSION: u32 = 1;

/// All that will be done, agreed to before anything is touched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    pub version: u32,
    pub id: MigrationId,
    pub from: SiteName,
    pub to: SiteName,
    pub options: Options,
    pub vm: PlannedVm,
    pub disks: Vec<PlannedDisk>,
    pub nics: Vec<PlannedNic>,
    /// Where the helper's own card is, for a direct route.
    pub helper_card: Option<NetworkRef>,
    pub fence: FenceOffer,
    pub forecast: Forecast,
    /// What was looked at in the guest and needs nothing to be done, one sentence each. The copy
    /// gets the hardware that the guest runs on now: buses, addresses, card models, firmware.
    pub guest_checked: Vec<String>,
    /// The tracker that the guest allows, and why.
    pub tracker: Option<(String, String)>,
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedVm {
    pub id: VmId,
    pub name: String,
    pub vcpus: u32,
    pub memory: Bytes,
    pub arch: String,
    pub machine: String,
    pub cpu: Cpu,
    pub firmware: Firmware,
    pub autostart: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedDisk {
    pub no: DiskNo,
    /// The slot, the same at both sites: `vda`.
    pub target: String,
    pub bus: DiskBus,
    pub size: Bytes,
    pub allocated: Option<Bytes>,
    pub block_size: BlockSize,
    /// What the guest calls it.
    pub device: String,
    pub pool: String,
    pub volume: String,
    pub format: DiskFormat,
    pub serial: Option<String>,
    pub address: Option<PciAddress>,
    pub boot_order: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedNic {
    pub mac: String,
    pub model: String,
    /// The network or bridge at the source.
    pub from: String,
    pub network: NetworkRef,
    pub address: Option<PciAddress>,
}

#[derive(Debug, Error)]
#[error("the plan cannot be encoded")]
pub struct PlanDigestError(#[from] serde_json::Error);

impl Plan {
    /// What receipts bind themselves to: BLAKE3 of the plan as JSON in field order. Without what
    /// `resume` may change, or the attempt in the ledgers would be another plan's.
    pub fn digest(&self) -> Result<Digest, PlanDigestError> {
        let mut bound = self.clone();
        let Options { max_downtime_ms, limit_rate, limit_read, .. } = &mut bound.options;
        (*max_downtime_ms, *limit_rate, *limit_read) = (0, None, None);
        let json = serde_json::to_vec(&bound)?;
        Ok(Digest(
            *blake3::Hasher::new_derive_key("causeway plan v1").update(&json).finalize().as_bytes(),
        ))
    }

    pub fn total_size(&self) -> Bytes {
        self.disks.iter().map(|disk| disk.size).sum()
    }
}

fn helper_card(route: &Route, facts: &Facts) -> Option<NetworkRef> {
    let Route::Direct { network, .. } = route else { return None };
    facts.destination.as_ref().ok().and_then(|site| network_named(site, network))
}

/// What the checks made of the VM for its destination.
pub(crate) struct Mapped<'a> {
    pub machine: &'a str,
    pub disks: Vec<PlannedDisk>,
    pub nics: Vec<PlannedNic>,
    pub forecast: Forecast,
    pub warnings: Vec<String>,
}

pub(crate) fn assemble(request: &Request, facts: &Facts, vm: &Vm, mapped: Mapped<'_>) -> Plan {
    let Mapped { machine, disks, nics, forecast, warnings } = mapped;
    let guest = facts.guest.as_ref().ok();
    Plan {
        version: PLAN_VERSION,
        id: request.id.clone(),
        from: request.from.clone(),
        to: request.to.clone(),
        forecast,
        options: request.options.clone(),
        vm: PlannedVm {
            id: vm.id,
            name: vm.name.clone(),
            vcpus: vm.vcpus,
            memory: vm.memory,
            arch: vm.arch.clone(),
            machine: machine.to_owned(),
            cpu: vm.cpu.clone(),
            firmware: vm.firmware.clone(),
            autostart: vm.autostart,
        },
        disks,
        nics,
        helper_card: helper_card(&request.options.route, facts),
        fence: facts.fence.as_ref().map_or_else(|_| no_fence(), fence),
        guest_checked: guest.map(|guest| all_plain(&guest.fine)).unwrap_or_default(),
        tracker: guest.and_then(|guest| guest.tracker.clone()),
        warnings: all_plain(&warnings),
    }
}

const fn no_fence() -> FenceOffer {
    FenceOffer { means: vec![], does_not_stop: vec![] }
}

fn fence(offer: &FenceOffer) -> FenceOffer {
    let plain =
        |means: &FenceMeans| FenceMeans { name: plain(&means.name), does: plain(&means.does) };
    FenceOffer {
        means: offer.means.iter().map(plain).collect(),
        does_not_stop: all_plain(&offer.does_not_stop),
    }
}

fn all_plain(texts: &[String]) -> Vec<String> {
    texts.iter().map(|text| plain(text)).collect()
}
