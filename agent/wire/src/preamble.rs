//! How two ends find each other on a pipe that outlives sessions.
//!
//! A virtio-serial port is one pipe for the life of a VM. When a session over it dies, some of its
//! bytes are lost and some still lie in the pipe (measured with libvirt 9.0 and QEMU 7.2: up to
//! 18 MB lost, the rest contiguous), so the next session cannot tell where it begins. The preamble
//! tells it:
//!
//! ```text
//!  opener                                        acceptor
//!    OPEN(a)        every 200 ms until answered →   scans; everything else is discarded
//!    discards all else                            ← ACCEPT(a, b)    once for each OPEN
//!    START(a, b)    once                          →
//!    discards all else                            ← GO(a, b)        the session begins
//!    session bytes                               ⇄   session bytes
//! ```
//!
//! `a` and `b` are fresh random numbers of the opener's and the acceptor's attempt. Both are
//! needed: without `b` an OPEN and a START that a dead session left in the pipe would start a
//! session made of that session's bytes. The opener waits for GO because several ACCEPTs may be
//! under way, and because GO is the first byte position that both ends agree on.
//!
//! Whoever drives these machines gives up after a while and tries again with fresh numbers.

mod acceptor;
mod message;
mod opener;

pub use acceptor::{Accepting, Acceptor};
pub use message::{MESSAGE_LEN, Nonce};
pub use opener::{Opener, Opening};

use thiserror::Error;

/// The version of the preamble, and of the choice of what follows it, that this build speaks.
pub const PREAMBLE_VERSION: u16 = 1;

/// How often the opener repeats OPEN, in milliseconds. Answers come in one round trip; the pause
/// only matters while nobody listens yet.
pub const OPEN_EVERY_MS: u64 = 200;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "the other end speaks version {theirs} of the preamble, this one speaks {PREAMBLE_VERSION}"
)]
pub struct PreambleVersionError {
    pub theirs: u16,
}

#[cfg(test)]
mod tests;
