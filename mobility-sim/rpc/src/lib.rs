//! libvirt's remote protocol, both sides of what live migration needs of it. Bytes, values and
//! times that somebody else read off a clock: no I/O, no randomness.
//!
//! ```text
//!  virsh, libvirtd -- bytes --> server::Session -- events --> who impersonates a destination
//!  a real libvirtd <-- bytes -- client::Client  <-- calls --  who drives the real destination
//! ```
//!
//! * [`frame`]: a length, a header, a payload; cut out of a stream with limits.
//! * [`xdr`]: how payloads are written, with budgets for reading them.
//! * [`procedures`]: calls and replies by name, with [`params`], [`flags`] and [`feature`]s; and
//!   [`error`], which takes a reply's place.
//! * [`keepalive`]: who still answers.
//! * [`server`] and [`client`]: one connection each.
//!
//! Numbers, shapes and limits are those of libvirt 9.0.0 (`src/remote/remote_protocol.x`,
//! `src/rpc/virnetprotocol.x`, `src/rpc/virkeepaliveprotocol.x`, `src/libvirt_internal.h`,
//! `include/libvirt/libvirt-domain.h`, `include/libvirt/virterror.h`); they belong to its stable
//! interface.
//! Everything that another end says is untrusted on either side: the source because it may be
//! anybody who reaches the port, the destination because a broken one must not break the source.

pub mod client;
pub mod error;
pub mod feature;
pub mod flags;
pub mod frame;
pub mod keepalive;
mod line;
pub mod params;
pub mod procedures;
pub mod server;
pub mod xdr;
