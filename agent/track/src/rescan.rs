//! The tracker that trusts nothing.

use units::{BlockIndex, Bytes, DiskNo, PageMask};

use crate::device::{Identity, Written};
use crate::{Audited, Dirty, Doubt, Moment, TrackedDisk, Tracker, TrackerKind};

/// Every block is dirty, always: each pass reads and hashes the whole disk. Right on every kernel
/// and every device, at the price of reading; at the switchover too, where it counts as downtime.
#[derive(Debug)]
pub struct Rescan {
    disks: Vec<Scanned>,
}

#[derive(Debug)]
struct Scanned {
    disk: TrackedDisk,
    /// `None`: it went before it was looked at.
    identity: Option<Identity>,
    written: Written,
}

impl Rescan {
    pub fn start(disks: Vec<TrackedDisk>) -> Self {
        let scanned = |disk: TrackedDisk| {
            let identity = Identity::of(&disk).ok();
            Scanned { identity, written: Written::start(&disk), disk }
        };
        Self { disks: disks.into_iter().map(scanned).collect() }
    }

    fn scanned(&self, no: DiskNo) -> &Scanned {
        let found = self.disks.iter().find(|scanned| scanned.disk.no == no);
        found.expect("the caller asks for disks that it started the tracker with")
    }
}

impl Tracker for Rescan {
    fn kind(&self) -> TrackerKind {
        TrackerKind::Rescan
    }

    fn next_dirty(&self, disk: DiskNo, from: BlockIndex) -> Option<BlockIndex> {
        let Scanned { disk, .. } = self.scanned(disk);
        (from.0 < disk.block_count().0).then_some(from)
    }

    fn dirty(&self, disk: DiskNo) -> Dirty {
        let Scanned { disk, .. } = self.scanned(disk);
        Dirty { blocks: disk.block_count(), bytes: disk.size }
    }

    fn take(&mut self, disk: DiskNo, _: BlockIndex) -> PageMask {
        let Scanned { disk, .. } = self.scanned(disk);
        PageMask::full(disk.block_size.pages())
    }

    fn put_back(&mut self, disk: DiskNo, _: BlockIndex, _: &PageMask) {
        let _known = self.scanned(disk);
    }

    /// Of what was written nothing is claimed, so nothing can be wrong. What is read has to be the
    /// same disk, all of it: one that grew is not read to its end.
    fn audit(&mut self, disk: DiskNo, _: Moment) -> Result<Audited, Doubt> {
        let Scanned { disk, identity, .. } = self.scanned(disk);
        let gone = || Doubt::Gone { device: disk.device.to_string() };
        identity.as_ref().ok_or_else(gone)?.still(disk)?;
        Ok(Audited::Balanced)
    }

    fn written(&self, disk: DiskNo) -> Bytes {
        self.scanned(disk).written.so_far()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;
    use units::BlockSize;

    use super::*;
    use crate::DeviceId;

    fn put(sysfs: &TempDir, name: &str, text: &str) {
        fs::write(sysfs.path().join(name), text).unwrap();
    }

    fn start() -> (Rescan, TempDir) {
        let sysfs = tempfile::tempdir().unwrap();
        put(&sysfs, "size", "2048\n");
        put(&sysfs, "diskseq", "7\n");
        let disk = TrackedDisk {
            no: DiskNo(3),
            device: DeviceId { major: 8, minor: 0 },
            size: Bytes::mib(1),
            block_size: BlockSize::MIN,
            sysfs: sysfs.path().to_owned(),
        };
        (Rescan::start(vec![disk]), sysfs)
    }

    fn audit(rescan: &mut Rescan) -> Result<Audited, Doubt> {
        rescan.audit(DiskNo(3), Moment::Quiesced)
    }

    #[test]
    fn a_disk_that_stays_balances_without_any_statistics() {
        let (mut rescan, _sysfs) = start();
        assert_eq!(audit(&mut rescan), Ok(Audited::Balanced));
    }

    #[test]
    fn a_disk_that_was_replaced_resized_or_went_is_a_doubt_for_good() {
        let (mut rescan, sysfs) = start();
        let device = || "8:0".to_owned();
        for _ in 0..2 {
            put(&sysfs, "size", "4096\n");
            let resized = Doubt::Resized { was: Bytes::mib(1), is: Bytes::mib(2) };
            assert_eq!(audit(&mut rescan), Err(resized));
            put(&sysfs, "diskseq", "8\n");
            assert_eq!(audit(&mut rescan), Err(Doubt::Replaced { device: device() }));
            put(&sysfs, "diskseq", "7\n");
        }
        fs::remove_dir_all(sysfs.path()).unwrap();
        assert_eq!(audit(&mut rescan), Err(Doubt::Gone { device: device() }));
    }

    #[test]
    fn a_disk_that_was_gone_at_the_start_is_never_believed() {
        let (rescan, sysfs) = start();
        let disk = rescan.disks[0].disk.clone();
        fs::remove_dir_all(sysfs.path()).unwrap();
        let mut late = Rescan::start(vec![disk]);
        assert_eq!(audit(&mut late), Err(Doubt::Gone { device: "8:0".to_owned() }));
    }
}
