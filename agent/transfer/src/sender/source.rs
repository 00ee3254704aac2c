//! One disk being copied, and what the destination has of it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use units::{BlockIndex, BlockSize, Bytes, Digest, DiskNo};

use super::{SenderError, SourceDisk};
use crate::disk::BlockRead;
use crate::table::Table;

pub struct Source {
    pub no: DiskNo,
    pub size: Bytes,
    pub block_size: BlockSize,
    pub disk: Arc<dyn BlockRead>,
    held: Mutex<Held>,
}

/// What the destination holds on stable storage, by its acknowledgements and its tables, and which
/// of it this sender has seen to be equal to the source since it began to track writes.
pub struct Held {
    table: Table,
    block_size: BlockSize,
    size: Bytes,
    /// One bit per block.
    known: Vec<u64>,
    unknown_bytes: Bytes,
}

impl Source {
    pub fn new(disk: SourceDisk) -> Result<Self, SenderError> {
        let SourceDisk { no, size, block_size, disk } = disk;
        let device = disk.size();
        if device < size {
            return Err(SenderError::TooSmall { disk: no, size, device });
        }
        let held = Mutex::new(Held::new(size, block_size));
        Ok(Self { no, size, block_size, disk, held })
    }

    pub fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn len_of(&self, block: BlockIndex) -> Bytes {
        self.block_size.len_of(block, self.size)
    }
}

impl Held {
    fn new(size: Bytes, block_size: BlockSize) -> Self {
        // Most targets are fresh, and zeros need no table to be fetched then.
        let table = Table::zeros(size, block_size);
        let words = table.blocks().0.div_ceil(64);
        let known = vec![0; usize::try_from(words).expect("a table of 64 bits fits the memory")];
        Self { table, block_size, size, known, unknown_bytes: size }
    }

    pub fn hash(&self, block: BlockIndex) -> Digest {
        self.table.hash(block)
    }

    pub fn hash_of_zeros(&self, block: BlockIndex) -> Digest {
        self.table.hash_of_zeros(block)
    }

    pub fn root(&mut self) -> Digest {
        self.table.root()
    }

    pub fn table(&mut self) -> &mut Table {
        &mut self.table
    }

    /// In blocks that are not known to be equal.
    pub const fn unknown_bytes(&self) -> Bytes {
        self.unknown_bytes
    }

    pub fn is_known(&self, block: BlockIndex) -> bool {
        let (word, bit) = place(block);
        self.known[word] & bit != 0
    }

    /// The destination has this content on stable storage, and it is what the source had.
    pub fn settle(&mut self, block: BlockIndex, hash: Digest) {
        self.table.set(block, hash);
        if !self.is_known(block) {
            let (word, bit) = place(block);
            self.known[word] |= bit;
            self.unknown_bytes = self.unknown_bytes.saturating_sub(self.len_of(block));
        }
    }

    /// The destination has something else than was believed.
    pub fn contradict(&mut self, block: BlockIndex, hash: Digest) {
        self.table.set(block, hash);
        if self.is_known(block) {
            let (word, bit) = place(block);
            self.known[word] &= !bit;
            self.unknown_bytes += self.len_of(block);
        }
    }

    /// The first block from `from` on that is not known to be equal.
    pub fn next_unknown(&self, from: BlockIndex) -> Option<BlockIndex> {
        let blocks = self.table.blocks().0;
        let (mut word, _) = place(from);
        let mut unknown = !self.known.get(word)? & (u64::MAX << (from.0 % 64));
        while unknown == 0 {
            word += 1;
            unknown = !*self.known.get(word)?;
        }
        let block = word as u64 * 64 + u64::from(unknown.trailing_zeros());
        (block < blocks).then_some(BlockIndex(block))
    }

    fn len_of(&self, block: BlockIndex) -> Bytes {
        self.block_size.len_of(block, self.size)
    }
}

fn place(block: BlockIndex) -> (usize, u64) {
    let word = usize::try_from(block.0 / 64).expect("a table of 64 bits fits the memory");
    (word, 1 << (block.0 % 64))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn unknown_blocks_are_found_in_order_and_counted(
            steps in proptest::collection::vec((0_u64..150, any::<bool>()), 0..200),
        ) {
            let size = Bytes(149 * BlockSize::MIN.bytes() + 5);
            let mut held = Held::new(size, BlockSize::MIN);
            let mut model: BTreeSet<u64> = (0..150).collect();
            for (block, settle) in steps {
                if settle {
                    held.settle(BlockIndex(block), Digest([1; 32]));
                    model.remove(&block);
                } else {
                    held.contradict(BlockIndex(block), Digest([2; 32]));
                    model.insert(block);
                }
            }
            let mut found = Vec::new();
            let mut from = BlockIndex(0);
            while let Some(block) = held.next_unknown(from) {
                found.push(block.0);
                from = BlockIndex(block.0 + 1);
            }
            let bytes: u64 = model.iter().map(|n| if *n == 149 { 5 } else { BlockSize::MIN.bytes() }).sum();
            prop_assert_eq!(found, model.into_iter().collect::<Vec<_>>());
            prop_assert_eq!(held.unknown_bytes(), Bytes(bytes));
        }
    }
}
