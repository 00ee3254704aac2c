//! Which block to look at next.

use units::{BlockIndex, Bytes};

use super::Shared;
use super::source::Source;
use crate::changes::{Changes, Taken};

/// A round's way over the disks: every block that is not known to be equal or was written, once,
/// in order. What is written behind it waits for the next round, so a round always ends.
#[derive(Debug, Default)]
pub struct Cursor {
    disk: usize,
    next: u64,
    /// Blocks that the destination refused.
    again: Vec<(usize, BlockIndex)>,
}

/// A block to look at. Its pages are taken: what is read from now on is at least as new.
pub struct Visit {
    pub disk: usize,
    pub block: BlockIndex,
    pub taken: Taken,
}

impl Cursor {
    /// Looks at these blocks once more.
    pub fn again(&mut self, blocks: Vec<(usize, BlockIndex)>) {
        self.again = blocks;
    }

    pub fn next(&mut self, shared: &Shared) -> Option<Visit> {
        let (disk, block) = match self.again.pop() {
            Some(refused) => refused,
            None => self.advance(shared)?,
        };
        let taken = Taken::take(&shared.changes, shared.sources[disk].no, block);
        Some(Visit { disk, block, taken })
    }

    fn advance(&mut self, shared: &Shared) -> Option<(usize, BlockIndex)> {
        loop {
            let source = shared.sources.get(self.disk)?;
            if let Some(block) = next_in(source, &*shared.changes, BlockIndex(self.next)) {
                self.next = block.0 + 1;
                return Some((self.disk, block));
            }
            self.disk += 1;
            self.next = 0;
        }
    }
}

fn next_in(source: &Source, changes: &dyn Changes, from: BlockIndex) -> Option<BlockIndex> {
    let blocks = source.block_size.blocks_to_hold(source.size);
    let dirty = changes.next_dirty(source.no, from).filter(|block| block.0 < blocks.0);
    let unknown = source.held().next_unknown(from);
    match (dirty, unknown) {
        (Some(dirty), Some(unknown)) => Some(dirty.min(unknown)),
        (dirty, unknown) => dirty.or(unknown),
    }
}

/// All that a round that begins now has to look at, in whole blocks.
pub fn blocks_to_visit(source: &Source, changes: &dyn Changes) -> Bytes {
    let mut bytes = Bytes::ZERO;
    let mut from = BlockIndex(0);
    while let Some(block) = next_in(source, changes, from) {
        bytes += source.len_of(block);
        from = BlockIndex(block.0 + 1);
    }
    bytes
}
