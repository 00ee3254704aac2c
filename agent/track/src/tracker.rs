//! What every tracker can do.

use std::fmt;

use units::{BlockCount, BlockIndex, Bytes, DiskNo, PageMask};

use crate::Doubt;

/// Knows which pages of which disks were written since it last said so.
///
/// # When a page leaves the tracker
///
/// Only [`take`](Self::take) removes pages, and whoever took them owes them: a block leaves for
/// good when the target has it on stable storage, and until then every failure (a cut connection,
/// a failed read, a block refused) ends in [`put_back`](Self::put_back). A round that fails and
/// forgets this loses data silently in the *next* round.
///
/// Always take first and read afterwards. A write that lands after the take is reported by the
/// next take; the other way round it would be lost.
///
/// # What a fresh tracker knows
///
/// Nothing about the past: a tracker sees what is written after it was started. Every block has to
/// be copied, or compared by hash, once after that.
///
/// # Panics
///
/// Every method that takes a [`DiskNo`] panics for a disk that the tracker was not started with.
pub trait Tracker: Send {
    fn kind(&self) -> TrackerKind;

    /// The first block from `from` on that has something to take.
    ///
    /// A pass over a disk is `next_dirty` and `take` in turn. What is written behind the pass
    /// waits for the next one, so a pass always ends.
    fn next_dirty(&self, disk: DiskNo, from: BlockIndex) -> Option<BlockIndex>;

    /// How much there is to take now. Scans bitmaps (about 10 ms per TiB): ask per pass, not per
    /// block.
    fn dirty(&self, disk: DiskNo) -> Dirty;

    /// The pages of `block` written since this was last asked; forgets them. Call *before* reading
    /// the block. May name pages that were not written, never fewer than were.
    fn take(&mut self, disk: DiskNo, block: BlockIndex) -> PageMask;

    /// Makes pages dirty again: of a block that was not acknowledged.
    fn put_back(&mut self, disk: DiskNo, block: BlockIndex, mask: &PageMask);

    /// Can what was tracked since the last audit be trusted?
    ///
    /// An audit may add dirty pages, so ask it *before* the pass it is meant to cover, and once
    /// more after the last pass. On a doubt, every page of the disk has been marked dirty: the
    /// next pass compares the whole disk by hash, and tracking starts anew from here. A doubt is
    /// never to be ignored; it needs no handling beyond that pass (and, under freeze, the decision
    /// whether the downtime still allows it).
    ///
    /// Costs at most some 100 ms, usually under 1 ms.
    fn audit(&mut self, disk: DiskNo, moment: Moment) -> Result<Audited, Doubt>;

    /// Bytes written to the disk since the start, by the kernel's statistics. For the dirty rate:
    /// a page written twice counts twice, discards do not count. Never falls.
    fn written(&self, disk: DiskNo) -> Bytes;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrackerKind {
    /// Programs in the kernel mark what the block layer writes.
    Bpf,
    /// Nothing is tracked: every pass reads and hashes the whole disk.
    Rescan,
}

impl fmt::Display for TrackerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bpf => "bpf",
            Self::Rescan => "rescan",
        })
    }
}

/// When an audit is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The guest works: what cannot be settled on a busy disk waits for the next audit.
    Running,
    /// Every file system is frozen and no writer is left: what cannot be settled now never can,
    /// and is a [`Doubt`].
    Quiesced,
}

/// How an audit ended without a doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "an audit may have left the answer open, or marked pages dirty"]
pub enum Audited {
    /// Everything the kernel counted was seen.
    Balanced,
    /// The kernel counted writes whose completion was not seen, but all of them were seen being
    /// issued. Every page issued since the last quiet audit was marked dirty again.
    Remarked { missed: Bytes },
    /// The disk was too busy to tell. Only at [`Moment::Running`].
    Open,
}

/// What waits to be taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dirty {
    /// Blocks with at least one dirty page.
    pub blocks: BlockCount,
    /// The dirty pages, in bytes.
    pub bytes: Bytes,
}
