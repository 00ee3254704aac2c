//! Numbers and ids that the data path speaks in, and how errors are told everywhere. No I/O, no
//! clock, no randomness.
//!
//! Three things that are easily confused have three types: a *size or offset in bytes*
//! ([`Bytes`]), *which block* ([`BlockIndex`]) and *how many blocks* ([`BlockCount`]). Only
//! [`BlockSize`] converts between them.
//!
//! ```text
//!  disk   |<------------------------- DiskSize ------------------------->|
//!  block  |   0   |   1   |   2   |  ...                          | last |   256 KiB by default
//!  page   ||||||||||||||||||||||||                                           always 4 KiB
//! ```
//!
//! A *block* is the unit that is hashed, acknowledged and listed in the digest. A *page* is the
//! unit in which trackers notice writes; within a block the written pages are a [`PageMask`].

mod block;
mod chain;
mod digest;
mod id;
mod mask;

pub use block::{BlockCount, BlockIndex, BlockSize, BlockSizeError, Bytes, PAGE_SIZE};
pub use chain::chain;
pub use digest::{Digest, DigestParseError};
pub use id::{DiskNo, Epoch, IdError, MigrationId};
pub use mask::PageMask;
