//! A disk in memory that knows what a crash would leave of it.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use transfer::{BlockRead, BlockWrite};
use units::{BlockIndex, BlockSize, Bytes, Digest};

pub struct Disk(Mutex<State>);

struct State {
    content: Vec<u8>,
    /// As of the last sync.
    durable: Vec<u8>,
}

impl Disk {
    pub fn holding(content: Vec<u8>) -> Self {
        Self(Mutex::new(State { durable: content.clone(), content }))
    }

    pub fn content(&self) -> Vec<u8> {
        self.lock().content.clone()
    }

    pub fn durable(&self) -> Vec<u8> {
        self.lock().durable.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BlockRead for Disk {
    fn size(&self) -> Bytes {
        Bytes(self.lock().content.len() as u64)
    }

    fn read_at(&self, offset: Bytes, into: &mut [u8]) -> io::Result<()> {
        let at = index(offset.0);
        into.copy_from_slice(&self.lock().content[at..at + into.len()]);
        Ok(())
    }
}

impl BlockWrite for Disk {
    fn write_at(&self, offset: Bytes, from: &[u8]) -> io::Result<()> {
        let at = index(offset.0);
        self.lock().content[at..at + from.len()].copy_from_slice(from);
        Ok(())
    }

    fn zero(&self, offset: Bytes, len: Bytes) -> io::Result<()> {
        self.lock().content[index(offset.0)..index(offset.0 + len.0)].fill(0);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.lock();
        let State { content, durable } = &mut *state;
        durable.copy_from_slice(content);
        Ok(())
    }
}

/// The blocks of a disk of the smallest block size.
pub fn blocks(content: &[u8]) -> impl Iterator<Item = &[u8]> {
    content.chunks(index(BlockSize::MIN.bytes()))
}

/// Where one of them lies; nowhere past the end.
pub fn place(block: BlockIndex, size: usize) -> std::ops::Range<usize> {
    let at = index(BlockSize::MIN.offset_of(block).0).min(size);
    at..(at + index(BlockSize::MIN.bytes())).min(size)
}

pub fn hash(content: &[u8]) -> Digest {
    Digest(blake3::hash(content).into())
}

fn index(n: u64) -> usize {
    usize::try_from(n).expect("64 bits fit")
}
