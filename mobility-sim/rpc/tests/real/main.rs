//! Both sides of the protocol against libvirt's own: a real libvirtd, a real virsh. As root.

mod client;
mod daemon;
mod peer;
mod source;
mod virsh;
