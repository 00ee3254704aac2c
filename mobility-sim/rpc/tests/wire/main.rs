//! The protocol's bytes: as libvirt writes them, as attackers wrote them, and any.

mod golden;
mod hostile;
mod memory;
mod random;
mod samples;
