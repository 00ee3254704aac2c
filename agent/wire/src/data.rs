//! The data protocol: blocks of disks, from the source's agent to the destination's.
//!
//! A frame is a *prefix* of eight bytes, a *head* of fields and a *payload* of plain bytes; all
//! numbers are little-endian.
//!
//! ```text
//!  | tag u8 | 0 u8 | head length u16 | payload length u32 | head ... | payload ... |
//! ```
//!
//! [`Frame::parse`] reads prefix and head and tells the payload's length, so that whoever reads
//! the stream puts the payload where it belongs without a copy. Every length is checked against
//! its limit, and every field against the others, before anything is allocated for it.

mod block;
mod fields;
mod frame;

pub use block::{Block, Content, Encoding, PageRun};
pub use frame::{ErrorCode, Frame, FrameError, NackReason, Parsed};

/// The version of the data protocol that this build speaks.
pub const DATA_VERSION: u16 = 1;

/// The length of every frame's prefix, in bytes.
pub const PREFIX_LEN: usize = 8;

/// The longest head, in bytes: a patch of a block of 4 MiB in which every other page changed.
pub const HEAD_MAX: usize = 2304;

/// The longest payload, in bytes: a block of the largest size.
pub const PAYLOAD_MAX: u32 = 4 << 20;

/// The longest text of an error, in bytes.
pub const TEXT_MAX: usize = 1024;

/// How many streams one session may have.
pub const STREAMS_MAX: u16 = 64;

/// How many blocks of one stream may wait for their acknowledgement. Bounds what both ends
/// remember of them; credit bounds their bytes.
pub const UNACKED_MAX: u64 = 4096;

/// How many blocks one span of a table covers. The digest of a disk is a tree of two levels: over
/// the spans' digests, each over the hashes of its blocks.
pub const SPAN_BLOCKS: u64 = 1024;

/// In a table: nothing is known of what the block holds.
pub const UNKNOWN: units::Digest = units::Digest([0; 32]);

/// Each end sends something at least this often, in milliseconds: [`Frame::Alive`] if there is
/// nothing else.
pub const ALIVE_EVERY_MS: u64 = 5_000;

/// An end from which nothing was heard for this long is taken for dead, in milliseconds.
pub const DEAD_AFTER_MS: u64 = 30_000;

/// What a block with a payload of `payload_len` costs of the receiver's credit: the memory that
/// holds it until it is written, a power of two from 4 KiB. Both ends compute it alike.
pub const fn credit_cost(payload_len: u32) -> u64 {
    let len = if payload_len < 4096 { 4096 } else { payload_len };
    len.next_power_of_two() as u64
}

#[cfg(test)]
mod tests;
