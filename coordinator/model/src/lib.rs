//! The nouns: what a site, a VM, a disk and a network card are, in no cloud's words.
//!
//! Adapters read their cloud's description into these types and write it anew from them; nothing
//! that a source site said is ever passed on as text. Values only: no I/O, no clock.

mod site;
mod vm;

pub use site::{
    Capability, FenceMeans, FenceOffer, NetworkOffer, PoolOffer, SiteName, SiteNameError,
    SiteReport,
};
pub use vm::{
    Cpu, Device, Disk, DiskBus, DiskFormat, DiskLocation, DiskUse, Firmware, NetworkRef, Nic,
    PciAddress, Power, Vm, VmId, WriteCount,
};
