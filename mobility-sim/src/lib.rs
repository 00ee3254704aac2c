//! A site's mobility agent: it plays the host next door, so that the site's own live migration runs
//! against a neighbour that it believes in, and carries memory and disks to where they really go.
//!
//! ```text
//!  source's                                                                    destination's
//!  libvirtd ── RPC ──► destination_host ══ wan: control ══► source_host ── RPC ──► libvirtd
//!  QEMU ───── data ──► doors ═════════════ wan: streams ══► streams ───── data ──► QEMU
//! ```
//! A VM arrives paused, and who may run it the ledgers of both sites decide, by crate `handover`
//! ([`custody`]): the source's agent records that it
//! offers success *before* it says so, then looks at the source until its VM is dead, and only with
//! that receipt is the destination's granted and resumed. Whatever breaks in between, no timeout ever
//! starts anything.

pub mod cli;
pub mod config;
mod custody;
mod destination_host;
pub mod domain;
mod flags;
mod introduce;
mod key;
mod ledger;
pub mod libvirt;
mod lost;
pub mod net;
mod ports;
mod progress;
pub mod relay;
pub mod serve;
mod source_host;
pub mod wan;
