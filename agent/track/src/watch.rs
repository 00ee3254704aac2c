//! One disk under watch: its marks, its baseline and the doubts about it.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::Duration;

use units::{BlockIndex, Bytes, PageMask};

use crate::audit::{Baseline, Sample, Verdict, sample};
use crate::device::{Identity, SECTOR_SIZE, StatFile, Written};
use crate::doubt::Sectors;
use crate::marks::{Marks, Region, forget_while};
use crate::{Audited, Dirty, Doubt, Moment, TrackedDisk};

/// Between two looks at the sums, so that a request between its program and its count is through.
const PAUSE: Duration = Duration::from_micros(300);

/// About 20 ms on a disk that is never quiet. One that is ends after two.
const TRIES_RUNNING: u32 = 50;

/// About 200 ms: the last requests of a frozen guest may still be on their way.
const TRIES_QUIESCED: u32 = 500;

/// Looks again before it says that sums disagree: the kernel may be about to count.
const SECOND_THOUGHTS: u32 = 3;

/// The kernel's half of one disk's marks and counters, mapped.
#[derive(Clone, Copy)]
pub(crate) struct Mapped<'a> {
    pub(crate) completed: &'a [AtomicU64],
    pub(crate) issued: &'a [AtomicU64],
    pub(crate) counters: Counters<'a>,
    /// Of requests whose disk the program could not tell.
    pub(crate) nowhere: Counters<'a>,
}

/// `struct counters` of the program: the volumes completed, issued and requeued (each sectors
/// written, sectors discarded, passthrough requests), then what lay outside the map.
#[derive(Clone, Copy)]
pub(crate) struct Counters<'a>(pub(crate) &'a [AtomicU64]);

impl Counters<'_> {
    pub(crate) const WORDS: usize = 10;
    const COMPLETED: usize = 0;
    const ISSUED: usize = 3;
    const REQUEUED: usize = 6;

    fn at(self, index: usize) -> u64 {
        self.0[index].load(Ordering::SeqCst)
    }

    fn volume(self, index: usize) -> Sectors {
        Sectors { written: self.at(index), discarded: self.at(index + 1) }
    }

    fn completed(self) -> Sectors {
        self.volume(Self::COMPLETED)
    }

    fn issued(self) -> Sectors {
        self.volume(Self::ISSUED).since(self.volume(Self::REQUEUED))
    }

    fn oddities(self) -> Oddities {
        Oddities {
            passthrough_issued: self.at(Self::ISSUED + 2),
            passthrough_completed: self.at(Self::COMPLETED + 2),
            outside: self.at(9),
        }
    }
}

/// Requests that void what was tracked, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Oddities {
    /// Both ends: a rescan between them would miss what landed after it.
    passthrough_issued: u64,
    passthrough_completed: u64,
    outside: u64,
}

#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) disk: TrackedDisk,
    marks: Marks,
    identity: Identity,
    stat: StatFile,
    written: Written,
    /// None while the disk has been too busy for one.
    baseline: Option<Baseline>,
    oddities: [Oddities; 2],
}

impl Watch {
    /// Begins to watch a disk that the programs already see.
    pub(crate) fn start(disk: TrackedDisk, region: Region, mapped: Mapped<'_>) -> io::Result<Self> {
        let mut watch = Self {
            marks: Marks::new(region, disk.size, disk.block_size),
            identity: Identity::of(&disk)?,
            stat: StatFile::open(&disk)?,
            written: Written::start(&disk),
            baseline: None,
            oddities: oddities(mapped),
            disk,
        };
        watch.baseline = watch.sample(mapped, TRIES_QUIESCED)?.map(Baseline::at);
        Ok(watch)
    }

    pub(crate) fn region(&self) -> Region {
        self.marks.region()
    }

    pub(crate) fn take(&mut self, mapped: Mapped<'_>, block: BlockIndex) -> PageMask {
        self.marks.take(mapped.completed, block)
    }

    pub(crate) fn put_back(&mut self, block: BlockIndex, mask: &PageMask) {
        self.marks.put_back(block, mask);
    }

    pub(crate) fn next_dirty(&self, mapped: Mapped<'_>, from: BlockIndex) -> Option<BlockIndex> {
        self.marks.next_dirty(mapped.completed, from)
    }

    pub(crate) fn dirty(&self, mapped: Mapped<'_>) -> Dirty {
        self.marks.dirty(mapped.completed)
    }

    pub(crate) fn written(&self) -> Bytes {
        self.written.so_far()
    }

    pub(crate) fn audit(&mut self, mapped: Mapped<'_>, moment: Moment) -> Result<Audited, Doubt> {
        let result = self.same_device().and_then(|()| self.settle(mapped, moment));
        if result.is_err() {
            // Marked before the sample that the next audit starts from: nothing falls between.
            self.marks.mark_all();
            self.oddities = oddities(mapped);
            self.baseline = self.sample(mapped, TRIES_RUNNING).ok().flatten().map(Baseline::at);
        }
        result
    }

    /// Whether this is still the disk that we started with, counted by the kernel.
    fn same_device(&self) -> Result<(), Doubt> {
        self.identity.still(&self.disk)?;
        if self.disk.counts_writes() { Ok(()) } else { Err(Doubt::IostatsOff) }
    }

    fn settle(&mut self, mapped: Mapped<'_>, moment: Moment) -> Result<Audited, Doubt> {
        self.check_oddities(mapped)?;
        let tries = match moment {
            Moment::Running => TRIES_RUNNING,
            Moment::Quiesced => TRIES_QUIESCED,
        };
        let open = || match moment {
            Moment::Running => Ok(Audited::Open),
            Moment::Quiesced => Err(Doubt::StillBusy),
        };
        let mut thoughts = SECOND_THOUGHTS;
        loop {
            let sampled = self.sample(mapped, tries);
            let sampled = sampled.map_err(|_| Doubt::Gone { device: self.disk.device.to_string() });
            let Some(now) = sampled? else { return open() };
            if moment == Moment::Quiesced && !now.quiet {
                return open();
            }
            let Some(baseline) = &mut self.baseline else { return Err(Doubt::NoBaseline) };
            let verdict = baseline.judge(&now);
            if matches!(verdict, Verdict::Missed(_) | Verdict::Unbalanced(_)) && thoughts > 0 {
                thoughts -= 1;
                sleep(PAUSE * 10);
                continue;
            }
            let audited = match verdict {
                Verdict::Open => return open(),
                Verdict::Unbalanced(figures) => return Err(Doubt::Unbalanced { figures }),
                Verdict::Balanced => Audited::Balanced,
                Verdict::Missed(missed) => {
                    self.marks.absorb(mapped.issued);
                    let sectors = missed.written.saturating_add(missed.discarded);
                    Audited::Remarked { missed: Bytes(sectors.saturating_mul(SECTOR_SIZE)) }
                }
            };
            baseline.settle(now);
            if now.quiet {
                // The program counts before it marks, so a mark of a new request shows here.
                forget_while(mapped.issued, || mapped.counters.issued() == now.issued);
            }
            return Ok(audited);
        }
    }

    fn check_oddities(&self, mapped: Mapped<'_>) -> Result<(), Doubt> {
        let pairs = oddities(mapped).into_iter().zip(self.oddities);
        let (mut passthrough, mut outside) = (0, 0);
        for (now, before) in pairs {
            let issued = now.passthrough_issued.wrapping_sub(before.passthrough_issued);
            let completed = now.passthrough_completed.wrapping_sub(before.passthrough_completed);
            passthrough += issued.max(completed);
            outside += now.outside.wrapping_sub(before.outside);
        }
        match (passthrough, outside) {
            (0, 0) => Ok(()),
            (0, requests) => Err(Doubt::OutsideMap { requests }),
            (requests, _) => Err(Doubt::Passthrough { requests }),
        }
    }

    fn sample(&self, mapped: Mapped<'_>, tries: u32) -> io::Result<Option<Sample>> {
        let sums = || (mapped.counters.completed(), mapped.counters.issued());
        let look = || {
            let (completed, issued) = sums();
            let stat = self.stat.read()?;
            let (completed_after, issued_after) = sums();
            if completed != completed_after {
                return Ok(None);
            }
            let kernel = Sectors { written: stat.written, discarded: stat.discarded };
            let quiet = stat.inflight == 0 && issued == issued_after;
            Ok(Some(Sample { kernel, completed, issued, quiet }))
        };
        sample(tries, look, || sleep(PAUSE))
    }
}

fn oddities(mapped: Mapped<'_>) -> [Oddities; 2] {
    [mapped.counters.oddities(), mapped.nowhere.oddities()]
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
