//! Sites that speak libvirt: any host that `virsh -c URI` reaches.
//!
//! | what | where |
//! |---|---|
//! | the connection, its limits and its errors | `link`, `fault`, `verdict` |
//! | VMs as they are | `inventory`, `xml` |
//! | VMs to come | `volumes`, `appliance`, `placeholder`, `channel` |
//! | VMs that left | `fence` |
//! | its own live migration | `live`, `belongings`, `process` |
//! | what is kept for a coordinator | `records` |
//!
//! Only the public API is used, over the connection that the operator has anyway. SSH to the host,
//! where it was given, makes fences stronger and does nothing else.

mod appliance;
mod belongings;
mod channel;
mod config;
mod fault;
mod fence;
mod inventory;
mod libvirt_site;
mod link;
mod live;
mod look;
mod placeholder;
mod power;
mod probe;
mod process;
mod records;
mod storage;
mod sys;
mod verdict;
mod volumes;
mod watchdog;
mod xml;

pub use config::{Acceleration, HostAccess, LibvirtConfig, Limits, UefiLoader};
pub use libvirt_site::LibvirtSite;
pub use xml::ARRIVAL_NAMESPACE;
