//! The tracker that trusts nothing.

use units::{BlockIndex, Bytes, DiskNo, PageMask};

use crate::device::Written;
use crate::{Audited, Dirty, Doubt, Moment, TrackedDisk, Tracker, TrackerKind};

/// Every block is dirty, always: each pass reads and hashes the whole disk. Right on every kernel
/// and every device, at the price of reading; at the switchover too, where it counts as downtime.
#[derive(Debug)]
pub struct Rescan {
    disks: Vec<(TrackedDisk, Written)>,
}

impl Rescan {
    pub fn start(disks: Vec<TrackedDisk>) -> Self {
        let with_baseline = |disk: TrackedDisk| {
            let written = Written::start(&disk);
            (disk, written)
        };
        Self { disks: disks.into_iter().map(with_baseline).collect() }
    }

    fn disk(&self, no: DiskNo) -> &(TrackedDisk, Written) {
        let found = self.disks.iter().find(|(disk, _)| disk.no == no);
        found.expect("the caller asks for disks that it started the tracker with")
    }
}

impl Tracker for Rescan {
    fn kind(&self) -> TrackerKind {
        TrackerKind::Rescan
    }

    fn next_dirty(&self, disk: DiskNo, from: BlockIndex) -> Option<BlockIndex> {
        let (disk, _) = self.disk(disk);
        (from.0 < disk.block_count().0).then_some(from)
    }

    fn dirty(&self, disk: DiskNo) -> Dirty {
        let (disk, _) = self.disk(disk);
        Dirty { blocks: disk.block_count(), bytes: disk.size }
    }

    fn take(&mut self, disk: DiskNo, _: BlockIndex) -> PageMask {
        let (disk, _) = self.disk(disk);
        PageMask::full(disk.block_size.pages())
    }

    fn put_back(&mut self, disk: DiskNo, _: BlockIndex, _: &PageMask) {
        let _known = self.disk(disk);
    }

    /// Always balanced: nothing is claimed, so nothing can be wrong.
    fn audit(&mut self, disk: DiskNo, _: Moment) -> Result<Audited, Doubt> {
        let _known = self.disk(disk);
        Ok(Audited::Balanced)
    }

    fn written(&self, disk: DiskNo) -> Bytes {
        let (_, written) = self.disk(disk);
        written.so_far()
    }
}
