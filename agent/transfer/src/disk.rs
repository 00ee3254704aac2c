//! Disks as the sender and the receiver see them.

mod file;

use std::io;

use units::Bytes;

pub use file::{Caching, FileDisk, OpenDiskError};

/// A disk to read from. Blocking: called on threads that may block, from several at once.
pub trait BlockRead: Send + Sync + 'static {
    fn size(&self) -> Bytes;

    /// Fills `into` from `offset`. The offset is a multiple of 4 KiB; so is the length, but at the
    /// end of a disk of an odd size; the memory is aligned to 4 KiB.
    fn read_at(&self, offset: Bytes, into: &mut [u8]) -> io::Result<()>;

    /// Where the next data lies at or behind `from`; `None`: only holes up to the end. Holes read
    /// as zeros. What does not know its holes is all data.
    fn next_data(&self, from: Bytes) -> io::Result<Option<Bytes>> {
        Ok(Some(from))
    }
}

/// A disk to write to. What was written is durable after [`Self::sync`] has returned.
pub trait BlockWrite: BlockRead {
    /// Alignment as for [`BlockRead::read_at`].
    fn write_at(&self, offset: Bytes, from: &[u8]) -> io::Result<()>;

    /// Makes `len` bytes read as zeros, giving the space back where that is possible.
    fn zero(&self, offset: Bytes, len: Bytes) -> io::Result<()>;

    fn sync(&self) -> io::Result<()>;
}
