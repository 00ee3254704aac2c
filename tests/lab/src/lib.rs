//! Real sites on one machine: libvirtd and QEMU in namespaces, guests, and the network between them.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use lab::{Between, Boot, Disk, Format, Lab, VmSpec};
//!
//! let lab = Lab::relay()?; // sites east and west, which only the operator reaches
//! let east = lab.site("east")?;
//! let spec = VmSpec::new("web1", Boot::Disk).disk(Disk::copy_of("/images/web.raw", Format::Raw));
//! let web1 = east.start(&spec)?;
//! println!("{} at {}", web1.name, web1.address(east)?);
//!
//! let listed = lab.operator().command("virsh").args(["-c", &lab.operator().uri(east), "list"]).status()?;
//! assert!(listed.success());
//! lab.cut(Between::Operator("east"))?;
//! # Ok(())
//! # }
//! ```
//!
//! # Addresses
//! | what | where |
//! |---|---|
//! | operator, seen from everywhere | 10.99.0.1 |
//! | site number n, its bridge `br0`, gateway of its guests | 10.77.n.1/24, n from 1 |
//! | guests with a reserved MAC; others | 10.77.n.10 to .127; .128 to .250 |
//! | ends of the paths operator to site, site to site | 10.98.x.y, 10.97.x.y |
//!
//! They are the same in every lab: each has network namespaces of its own, and nothing of them is
//! seen in the machine's.
//!
//! # How a lab ends
//! Every process that holds a namespace reads a pipe whose writing end only the lab's owner has. A
//! site's first process exits when the pipe ends, and takes its pid namespace (libvirtd, QEMU) along;
//! with the last process go mounts, veth pairs and bridges. The warden, which holds the operator's
//! namespace, then kills what still runs there or carries the lab's mark in its environment, and
//! removes the directory. Dropping a [`Lab`] does just this, so that it is tried all the time. If the
//! warden was killed too, [`reap`](state::reap) does it when the next lab starts.

pub mod cache;
mod capabilities;
pub mod check;
pub mod daemon;
pub mod guest;
pub mod kernel;
mod lab;
pub mod ledger;
mod net;
mod operator;
mod process;
pub mod run;
mod site;
pub mod state;

pub use lab::{Builder, Lab, Route, Scenario};
pub use net::{Between, Traffic, Wan};
pub use operator::{ADDRESS as OPERATOR, Operator};
pub use site::{
    Boot, Cpu, Disk, Firmware, Format, HostAccess, Nic, QemuUser, Site, SiteSpec, Vm, VmSpec,
};
