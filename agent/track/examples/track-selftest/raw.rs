//! Long discards and zeroes on a disk without a file system: what is marked must be what was hit.

use std::fs::OpenOptions;

use anyhow::{Result, bail};
use rustix::fs::{FallocateFlags, fallocate};
use track::{TrackedDisk, Tracker};
use units::BlockIndex;

use crate::guest;

const PAGE: u64 = 4096;

/// Ranges in pages: from one page to what is marked coarsely, across all kinds of borders.
const RANGES: [(u64, u64); 7] =
    [(0, 1), (63, 2), (4095, 4098), (100, 8191), (5000, 8193), (12_345, 200_000), (0, 1 << 20)];

pub fn discard_and_zero(tracker: &mut dyn Tracker, disk: &TrackedDisk, name: &str) -> Result<()> {
    let path = format!("/dev/{name}");
    let node = OpenOptions::new().write(true).open(&path)?;
    for kind in ["discard", "zero"] {
        for (first, pages) in RANGES {
            if kind == "discard" {
                let (offset, len) = ((first * PAGE).to_string(), (pages * PAGE).to_string());
                guest::busybox(&["blkdiscard", "-o", &offset, "-l", &len, &path])?;
            } else {
                let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
                fallocate(&node, flags, first * PAGE, pages * PAGE)?;
            }
            let dirty = tracker.dirty(disk.no);
            let marked = marked(tracker, disk);
            guest::say(&format!(
                "raw {kind} first={first} pages={pages} dirty={} taken={}",
                dirty.bytes.0 / PAGE,
                marked.iter().map(|(_, run)| run).sum::<u64>(),
            ));
            if marked != [(first, pages)] || dirty.bytes.0 != pages * PAGE {
                bail!("{kind} of {pages} pages from {first} was marked as {marked:?}");
            }
        }
    }
    Ok(())
}

/// Takes everything: the runs of pages as (first, count).
fn marked(tracker: &mut dyn Tracker, disk: &TrackedDisk) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let mut from = BlockIndex(0);
    while let Some(block) = tracker.next_dirty(disk.no, from) {
        let mask = tracker.take(disk.no, block);
        let start = disk.block_size.offset_of(block).0 / PAGE;
        for (offset, len) in mask.runs(disk.block_size.bytes()) {
            let (first, count) = (start + offset / PAGE, len / PAGE);
            match runs.last_mut() {
                Some((at, run)) if *at + *run == first => *run += count,
                _ => runs.push((first, count)),
            }
        }
        from = BlockIndex(block.0 + 1);
    }
    runs
}
