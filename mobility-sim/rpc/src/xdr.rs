//! XDR (RFC 4506), as far as libvirt uses it: big-endian words of four bytes, texts and opaque
//! bytes with their length before them and zeros up to the next word behind them.
//!
//! A [`Reader`] never allocates: texts and bytes are borrowed from the payload. A length is
//! compared with its limit and with what is left before it is used; a count of elements also with
//! how many of the smallest ones could be left, so that whoever makes room for `count` elements
//! takes no more than the sender spent. Lengths have no sign: what another implementation would
//! read as negative is larger than every limit here.

mod reader;
mod writer;

pub use reader::{Reader, XdrError};
pub use writer::Writer;

/// The longest text, in bytes: `REMOTE_STRING_MAX`.
pub const TEXT_MAX: usize = 4 << 20;

/// How deep optional values, lists and their elements may lie in one another. No payload that is
/// read here goes beyond 3.
pub const DEPTH_MAX: u8 = 8;

#[cfg(test)]
mod tests;
