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
    ahead: Ahead,
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
            let from = BlockIndex(self.next);
            if let Some(block) = next_in(source, &*shared.changes, from, &mut self.ahead) {
                self.next = block.0 + 1;
                return Some((self.disk, block));
            }
            self.disk += 1;
            self.next = 0;
            self.ahead = Ahead::default();
        }
    }
}

/// The first written block of a disk from some place on, as it was when it was last looked for.
///
/// A tracker looks for it bit by bit. Asked at every block, an idle disk would be looked through to
/// its end each time: minutes for 64 GiB, and four times that for twice the size.
#[derive(Debug, Default)]
struct Ahead(Option<Option<BlockIndex>>);

impl Ahead {
    /// What is written in between, after it was looked for, waits for the next round.
    fn next_dirty(
        &mut self,
        source: &Source,
        changes: &dyn Changes,
        from: BlockIndex,
    ) -> Option<BlockIndex> {
        match self.0 {
            Some(None) => None,
            Some(Some(found)) if found.0 >= from.0 => Some(found),
            Some(Some(_)) | None => {
                let found = changes.next_dirty(source.no, from);
                self.0 = Some(found);
                found
            }
        }
    }
}

fn next_in(
    source: &Source,
    changes: &dyn Changes,
    from: BlockIndex,
    ahead: &mut Ahead,
) -> Option<BlockIndex> {
    let unknown = source.held().next_unknown(from);
    if unknown == Some(from) {
        return unknown;
    }
    let blocks = source.block_size.blocks_to_hold(source.size);
    let dirty = ahead.next_dirty(source, changes, from).filter(|block| block.0 < blocks.0);
    match (dirty, unknown) {
        (Some(dirty), Some(unknown)) => Some(dirty.min(unknown)),
        (dirty, unknown) => dirty.or(unknown),
    }
}

/// All that a round that begins now has to look at, in whole blocks.
pub fn blocks_to_visit(source: &Source, changes: &dyn Changes) -> Bytes {
    let mut bytes = Bytes::ZERO;
    let (mut from, mut ahead) = (BlockIndex(0), Ahead::default());
    while let Some(block) = next_in(source, changes, from, &mut ahead) {
        bytes += source.len_of(block);
        from = BlockIndex(block.0 + 1);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use units::{BlockSize, Digest, DiskNo, PageMask};

    use super::super::SourceDisk;
    use super::*;
    use crate::disk::BlockRead;

    struct Empty(Bytes);

    impl BlockRead for Empty {
        fn size(&self) -> Bytes {
            self.0
        }

        fn read_at(&self, _: Bytes, into: &mut [u8]) -> std::io::Result<()> {
            into.fill(0);
            Ok(())
        }
    }

    /// Counts the blocks that were looked through for the one that is dirty.
    struct Counted {
        dirty: u64,
        looked_through: AtomicU64,
    }

    impl Changes for Counted {
        fn next_dirty(&self, _: DiskNo, from: BlockIndex) -> Option<BlockIndex> {
            let end = if from.0 <= self.dirty { self.dirty } else { BLOCKS };
            self.looked_through.fetch_add(end - from.0 + 1, Ordering::Relaxed);
            (end < BLOCKS).then_some(BlockIndex(end))
        }

        fn take(&self, _: DiskNo, _: BlockIndex) -> PageMask {
            PageMask::default()
        }

        fn put_back(&self, _: DiskNo, _: BlockIndex, _: &PageMask) {}

        fn dirty(&self, _: DiskNo) -> Bytes {
            Bytes::ZERO
        }

        fn written(&self, _: DiskNo) -> Bytes {
            Bytes::ZERO
        }

        fn precise(&self) -> bool {
            true
        }
    }

    const BLOCKS: u64 = 10_000;

    #[test]
    fn a_disk_is_looked_through_once_however_much_of_it_is_idle() {
        let size = Bytes(BLOCKS * BlockSize::MIN.bytes());
        let disk = Arc::new(Empty(size));
        let block_size = BlockSize::MIN;
        let source = Source::new(SourceDisk { no: DiskNo(0), size, block_size, disk }).unwrap();
        let visited = |known: fn(u64) -> bool, dirty| {
            for block in (0..BLOCKS).filter(|block| known(*block)) {
                source.held().settle(BlockIndex(block), Digest([1; 32]));
            }
            let changes = Counted { dirty, looked_through: AtomicU64::new(0) };
            let bytes = blocks_to_visit(&source, &changes);
            let looked_through = changes.looked_through.into_inner();
            assert!(looked_through <= 2 * BLOCKS, "{looked_through} of {BLOCKS}");
            bytes.0 / BlockSize::MIN.bytes()
        };
        assert_eq!(visited(|_| false, BLOCKS), BLOCKS, "all of it is unknown");
        assert_eq!(visited(|block| block % 2 == 0, BLOCKS), BLOCKS / 2, "every other block");
        assert_eq!(visited(|block| block % 2 == 0, 4_000), BLOCKS / 2 + 1, "and one written");
        assert_eq!(visited(|_| true, 4_001), 1, "only the one that was written");
    }
}
