//! The copying side: rounds, the last pass under freeze, the comparison.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail};
use track::{Audited, Moment, TrackedDisk, Tracker};
use units::{BlockIndex, PageMask};

use crate::plan::Plan;
use crate::writers::{Aligned, Random, open_direct};
use crate::{guest, scsi};

/// Passes over all disks between two freezes.
const PASSES: u32 = 3;

/// Passes under freeze in which blocks still fail.
const LAST_PASSES: u32 = 2;

pub struct Rounds<'a> {
    plan: &'a Plan,
    copies: Vec<Copy>,
    random: Random,
}

struct Copy {
    name: String,
    disk: TrackedDisk,
    source: File,
    bytes: Vec<u8>,
    buffer: Aligned,
}

impl<'a> Rounds<'a> {
    /// Of the disks with a file system, which come first.
    pub fn new(plan: &'a Plan, disks: Vec<TrackedDisk>) -> Result<Self> {
        let copies = plan.disks.iter().zip(disks).map(|(named, disk)| {
            Ok(Copy {
                source: open_direct(&named.name)?,
                name: named.name.clone(),
                bytes: vec![0; usize::try_from(disk.size.0)?],
                buffer: Aligned::new(usize::try_from(disk.block_size.bytes())?),
                disk,
            })
        });
        Ok(Self { plan, copies: copies.collect::<Result<_>>()?, random: Random(7) })
    }

    pub fn copy_everything(&mut self, tracker: &mut dyn Tracker) -> Result<()> {
        for copy in &mut self.copies {
            for block in copy.disk.block_count().indices() {
                let _seen = tracker.take(copy.disk.no, block);
                copy.fetch(block, &PageMask::full(copy.disk.block_size.pages()))?;
            }
        }
        Ok(())
    }

    /// Passes while writers write, a freeze, the last passes, the verdict, a thaw.
    pub fn run(&mut self, tracker: &mut dyn Tracker, run: u32) -> Result<()> {
        let mut findings = vec![Vec::new(); self.copies.len()];
        let mut blocks = 0;
        for _ in 0..PASSES {
            for (copy, findings) in self.copies.iter_mut().zip(&mut findings) {
                if self.plan.audits {
                    findings.push(audit(tracker, copy, Moment::Running));
                }
                blocks += copy.pass(tracker, &mut self.random)?;
            }
        }
        if let Some(name) = &self.plan.passthrough {
            scsi::write_past_the_block_layer(name)?;
        }
        for disk in &self.plan.disks {
            guest::freeze(&disk.mounted)?;
        }
        for (copy, findings) in self.copies.iter_mut().zip(&mut findings) {
            if self.plan.audits {
                findings.push(audit(tracker, copy, Moment::Quiesced));
            }
            let last = copy.last_passes(tracker, &mut self.random)?;
            if self.plan.audits {
                findings.push(audit(tracker, copy, Moment::Quiesced));
            }
            let bad_pages = copy.compare()?;
            guest::say(&format!(
                "verdict run={run} disk={} bad_pages={bad_pages} blocks={blocks} last_blocks={last} \
                 written={} audits={}",
                copy.name,
                tracker.written(copy.disk.no).0,
                findings.join(","),
            ));
        }
        for disk in &self.plan.disks {
            guest::thaw(&disk.mounted)?;
        }
        Ok(())
    }
}

fn audit(tracker: &mut dyn Tracker, copy: &Copy, moment: Moment) -> String {
    let when = match moment {
        Moment::Running => "running",
        Moment::Quiesced => "quiesced",
    };
    match tracker.audit(copy.disk.no, moment) {
        Ok(Audited::Balanced) => format!("{when}:balanced"),
        Ok(Audited::Open) => format!("{when}:open"),
        Ok(Audited::Remarked { missed }) => format!("{when}:remarked:{}", missed.0),
        Err(doubt) => {
            guest::say(&format!("doubt disk={} {doubt}", copy.name));
            let text = format!("{doubt:?}");
            let name = text.split([' ', '{']).next().unwrap_or_default();
            format!("{when}:doubt:{name}")
        }
    }
}

impl Copy {
    /// Once over what is dirty. Every tenth block fails to arrive and is put back.
    fn pass(&mut self, tracker: &mut dyn Tracker, random: &mut Random) -> Result<u64> {
        let (mut blocks, mut from) = (0, BlockIndex(0));
        while let Some(block) = tracker.next_dirty(self.disk.no, from) {
            let mask = tracker.take(self.disk.no, block);
            if random.below(10) == 0 {
                tracker.put_back(self.disk.no, block, &mask);
            } else {
                self.fetch(block, &mask)?;
            }
            blocks += 1;
            from = BlockIndex(block.0 + 1);
        }
        Ok(blocks)
    }

    fn last_passes(&mut self, tracker: &mut dyn Tracker, random: &mut Random) -> Result<u64> {
        let mut blocks = 0;
        for _ in 0..LAST_PASSES {
            blocks += self.pass(tracker, random)?;
        }
        // The very last pass fails nowhere.
        let mut from = BlockIndex(0);
        while let Some(block) = tracker.next_dirty(self.disk.no, from) {
            let mask = tracker.take(self.disk.no, block);
            self.fetch(block, &mask)?;
            from = BlockIndex(block.0 + 1);
        }
        let left = tracker.dirty(self.disk.no);
        if tracker.kind() == track::TrackerKind::Bpf && left.blocks.0 != 0 {
            bail!("{} blocks of the frozen disk {} are dirty", left.blocks.0, self.name);
        }
        Ok(blocks)
    }

    fn fetch(&mut self, block: BlockIndex, mask: &PageMask) -> Result<()> {
        let start = self.disk.block_size.offset_of(block).0;
        let len = self.disk.block_size.len_of(block, self.disk.size).0;
        for (offset, len) in mask.runs(len) {
            let at = start + offset;
            let buffer = &mut self.buffer.bytes()[..usize::try_from(len)?];
            self.source.read_exact_at(buffer, at).context("cannot read the disk")?;
            let at = usize::try_from(at)?;
            self.bytes[at..at + buffer.len()].copy_from_slice(buffer);
        }
        Ok(())
    }

    /// Counts the pages that differ, and corrects them so that each run stands for itself.
    fn compare(&mut self) -> Result<u64> {
        let mut bad = 0;
        for block in self.disk.block_count().indices() {
            let start = self.disk.block_size.offset_of(block).0;
            let len = usize::try_from(self.disk.block_size.len_of(block, self.disk.size).0)?;
            let buffer = &mut self.buffer.bytes()[..len];
            self.source.read_exact_at(buffer, start).context("cannot read the disk")?;
            let at = usize::try_from(start)?;
            for (copied, source) in
                self.bytes[at..at + len].chunks_mut(4096).zip(buffer.chunks(4096))
            {
                if copied != source {
                    bad += 1;
                    copied.copy_from_slice(source);
                }
            }
        }
        Ok(bad)
    }
}
