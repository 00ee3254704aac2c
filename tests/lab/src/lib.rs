//! Real sites on one machine: libvirtd and QEMU in namespaces, guests, and the network between them.

pub mod cache;
pub mod guest;
pub mod kernel;
pub mod ledger;
pub mod run;
