//! What was written, as the sender needs to know it.

use std::sync::Arc;

use units::{BlockIndex, Bytes, DiskNo, PageMask};

/// Which pages were written since they were last taken: a tracker, shared with whoever audits it.
///
/// Only [`take`](Self::take) removes pages, and the sender always takes *before* it reads: a write
/// that lands after the take is reported by the next one. What it takes it owes, until the target
/// has the block on stable storage, and puts back when anything goes wrong in between.
pub trait Changes: Send + Sync + 'static {
    /// The first block from `from` on that has something to take.
    fn next_dirty(&self, disk: DiskNo, from: BlockIndex) -> Option<BlockIndex>;

    /// The pages of `block` written since this was last asked; forgets them. May name pages that
    /// were not written, never fewer than were.
    fn take(&self, disk: DiskNo, block: BlockIndex) -> PageMask;

    /// Makes pages dirty again.
    fn put_back(&self, disk: DiskNo, block: BlockIndex, mask: &PageMask);

    /// The pages that wait to be taken, in bytes.
    fn dirty(&self, disk: DiskNo) -> Bytes;

    /// Bytes written to the disk since tracking began. Never falls.
    fn written(&self, disk: DiskNo) -> Bytes;

    /// Does it know what was written? `false` for one that calls everything dirty, always: then
    /// only a whole round that began after the last write shows that nothing is left.
    fn precise(&self) -> bool;
}

/// The changes of disks that nobody writes.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoChanges;

impl Changes for NoChanges {
    fn next_dirty(&self, _: DiskNo, _: BlockIndex) -> Option<BlockIndex> {
        None
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

/// Pages of a block that were taken and are owed: dropping it puts them back. So every way out of
/// the sender but [`Self::settle`], panics included, leaves the block dirty.
pub(crate) struct Taken {
    changes: Arc<dyn Changes>,
    disk: DiskNo,
    block: BlockIndex,
    mask: PageMask,
}

impl Taken {
    pub fn take(changes: &Arc<dyn Changes>, disk: DiskNo, block: BlockIndex) -> Self {
        let mask = changes.take(disk, block);
        Self { changes: Arc::clone(changes), disk, block, mask }
    }

    pub const fn mask(&self) -> &PageMask {
        &self.mask
    }

    /// The target has the block, or had it already.
    pub fn settle(mut self) {
        self.mask = PageMask::default();
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if !self.mask.is_empty() {
            self.changes.put_back(self.disk, self.block, &self.mask);
        }
    }
}
