//! The tracker that lets the kernel say what it writes.
//!
//! # How it works
//!
//! Two programs (`bpf/track.bpf.c`) hang on the block layer's tracepoints and set bits in an array
//! that we have mapped: one when a request is *issued* to its device, one when it *completes*,
//! after the device has the data and before the writer is told.
//!
//! What is dirty is what completed. A completion that marks before [`take`](Tracker::take) has
//! landed before the read that follows it; one that marks later is seen by the next take. A bit is
//! taken by one atomic instruction, so nothing needs to be swapped or waited for. Under freeze
//! nothing is in flight, and the last pass is exact, **if the program ran for every completion**.
//! On one kernel it did not. Hence the audit (`audit.rs`), and the second set of marks, which is
//! read only when the audit says that completions were missed: every page issued since the last
//! quiet moment is then dirty again. The issue marks alone would not do: a page can be read
//! between issue and landing.
//!
//! # Cost
//!
//! Per write some 200 ns. Per TiB of disk 64 MiB of kernel memory (two bits per page of 4 KiB); in
//! the agent next to nothing, and up to 32 MiB while pages all over the disk are put back.
//! All disks together get at most [`KERNEL_MEMORY`], or a sixteenth of what memory is free: larger
//! disks have a bit per 8, 16, … 256 KiB instead (a write then dirties that much), which reaches
//! 128 TiB in 128 MiB, and beyond that the tracker refuses.

use std::io;
use std::ops::Range;
use std::sync::atomic::AtomicU64;

use aya::maps::{Map, MapData};
use aya::programs::BtfTracePoint;
use aya::{Btf, Ebpf, EbpfLoader};
use thiserror::Error;
use units::{BlockIndex, Bytes, DiskNo, PageMask};

use crate::map::SharedWords;
use crate::marks::Region;
use crate::watch::{Counters, Mapped, Watch};
use crate::{Audited, Dirty, Doubt, Moment, TrackedDisk, Tracker, TrackerKind};

/// The programs' table of disks holds as many.
pub const MAX_DISKS: usize = 16;

/// The most that the marks of all disks take: 2 TiB at a bit per page.
pub const KERNEL_MEMORY: Bytes = Bytes::mib(128);

const PROGRAMS: [(&str, &str); 3] = [
    ("rq_completed", "block_rq_complete"),
    ("rq_requeued", "block_rq_requeue"),
    ("rq_issued", "block_rq_issue"),
];

/// Why the programs did not load or the disks cannot be watched.
#[derive(Debug, Error)]
pub enum BpfError {
    #[error("the kernel's type information cannot be read")]
    Btf(#[source] aya::BtfError),

    #[error("the tracker's program does not load")]
    Object(#[source] aya::EbpfError),

    #[error("the tracker's program lacks its {part}")]
    Incomplete { part: &'static str },

    #[error("the kernel refuses the program {name}")]
    Program { name: &'static str, source: aya::programs::ProgramError },

    #[error("the table of disks cannot be filled")]
    Table(#[source] aya::maps::MapError),

    #[error("the marks cannot be mapped")]
    Memory(#[source] io::Error),

    #[error("disk {disk} cannot be watched")]
    Disk { disk: DiskNo, source: io::Error },

    #[error("{disks} disks of {size} in all need more than {budget} for marks")]
    TooLarge { disks: usize, size: Bytes, budget: Bytes },

    #[error("device {device} was given twice")]
    Twice { device: String },

    #[error("{disks} disks are more than the {MAX_DISKS} that can be watched at once")]
    TooMany { disks: usize },
}

#[derive(Debug)]
pub struct Bpf {
    /// Dropping it takes the programs off their tracepoints.
    programs: Ebpf,
    marks: SharedWords,
    counters: SharedWords,
    disks: Vec<(Watch, Place)>,
}

/// Where a disk's two regions lie among the marks, and its counters.
#[derive(Clone, Debug)]
struct Place {
    slot: usize,
    issued: Range<usize>,
    completed: Range<usize>,
}

impl Bpf {
    /// Loads the programs and watches whole, request-based disks (`choose` sees to that).
    pub fn start(disks: Vec<TrackedDisk>, free_memory: Bytes) -> Result<Self, BpfError> {
        const OBJECT: &[u8] = aya::include_bytes_aligned!("../bpf/track.bpf.o");
        Self::start_object(
            Object { bytes: OBJECT, switches: &[], marking: Marking::Faithful },
            disks,
            free_memory,
        )
    }

    pub(crate) fn start_object(
        object: Object<'_>,
        disks: Vec<TrackedDisk>,
        free_memory: Bytes,
    ) -> Result<Self, BpfError> {
        let (regions, words) = lay_out(&disks, free_memory)?;
        let btf = Btf::from_sys_fs().map_err(BpfError::Btf)?;
        let entries = u32::try_from(words).expect("the budget is far below 2^32 words");
        let mut loader = EbpfLoader::new();
        loader.btf(Some(&btf)).map_max_entries("marks", entries);
        for (name, value) in object.switches {
            loader.override_global(name, value, true);
        }
        let mut programs = loader.load(object.bytes).map_err(BpfError::Object)?;
        drop(loader);

        let marks = SharedWords::map(array(&mut programs, "marks")?.fd(), words)
            .map_err(BpfError::Memory)?;
        let counters_len = (MAX_DISKS + 1) * Counters::WORDS;
        let counters = SharedWords::map(array(&mut programs, "counters")?.fd(), counters_len)
            .map_err(BpfError::Memory)?;
        fill_table(&mut programs, object.marking, &disks, &regions)?;
        attach(&mut programs, &btf)?;

        let mut bpf = Self { programs, marks, counters, disks: Vec::new() };
        for (disk, (region, place)) in disks.into_iter().zip(regions) {
            let no = disk.no;
            let watch = Watch::start(disk, region, bpf.mapped(&place))
                .map_err(|source| BpfError::Disk { disk: no, source })?;
            bpf.disks.push((watch, place));
        }
        Ok(bpf)
    }

    /// How much of each disk one bit stands for, and what the verifier and the marks cost: for the
    /// log.
    pub fn facts(&self) -> Facts {
        let instructions = |(name, _): &(&'static str, &str)| {
            let info = self.programs.program(name).and_then(|program| program.info().ok());
            (*name, info.and_then(|info| info.verified_instruction_count()).unwrap_or_default())
        };
        Facts {
            kernel_memory: Bytes(words_in_bytes(self.marks.cells().len())),
            granularity: self
                .disks
                .iter()
                .map(|(watch, _)| (watch.disk.no, Bytes(1 << watch.region().shift)))
                .collect(),
            verified_instructions: PROGRAMS.iter().map(instructions).collect(),
        }
    }

    fn watch(&self, disk: DiskNo) -> (&Watch, Mapped<'_>) {
        let (watch, place) = &self.disks[self.position(disk)];
        (watch, self.mapped(place))
    }

    fn watch_mut(&mut self, disk: DiskNo) -> (&mut Watch, Mapped<'_>) {
        let position = self.position(disk);
        let (watch, place) = &mut self.disks[position];
        (watch, mapped(&self.marks, &self.counters, place))
    }

    fn position(&self, disk: DiskNo) -> usize {
        let found = self.disks.iter().position(|(watch, _)| watch.disk.no == disk);
        found.expect("the caller asks for disks that it started the tracker with")
    }

    fn mapped(&self, place: &Place) -> Mapped<'_> {
        mapped(&self.marks, &self.counters, place)
    }
}

/// The programs to load.
#[derive(Clone, Copy)]
pub(crate) struct Object<'a> {
    /// Aligned as an ELF file must be.
    pub(crate) bytes: &'a [u8],
    pub(crate) switches: &'a [(&'a str, u32)],
    pub(crate) marking: Marking,
}

/// Which program marks which region.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Marking {
    Faithful,
    /// What was issued counts as dirty, what completed is kept aside.
    #[cfg(feature = "fault-injection")]
    Swapped,
}

/// What a started tracker can say of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    pub kernel_memory: Bytes,
    pub granularity: Vec<(DiskNo, Bytes)>,
    /// By program; 0 where the kernel does not say (before 5.16).
    pub verified_instructions: Vec<(&'static str, u32)>,
}

impl Tracker for Bpf {
    fn kind(&self) -> TrackerKind {
        TrackerKind::Bpf
    }

    fn next_dirty(&self, disk: DiskNo, from: BlockIndex) -> Option<BlockIndex> {
        let (watch, mapped) = self.watch(disk);
        watch.next_dirty(mapped, from)
    }

    fn dirty(&self, disk: DiskNo) -> Dirty {
        let (watch, mapped) = self.watch(disk);
        watch.dirty(mapped)
    }

    fn take(&mut self, disk: DiskNo, block: BlockIndex) -> PageMask {
        let (watch, mapped) = self.watch_mut(disk);
        watch.take(mapped, block)
    }

    fn put_back(&mut self, disk: DiskNo, block: BlockIndex, mask: &PageMask) {
        let (watch, _) = self.watch_mut(disk);
        watch.put_back(block, mask);
    }

    fn audit(&mut self, disk: DiskNo, moment: Moment) -> Result<Audited, Doubt> {
        let (watch, mapped) = self.watch_mut(disk);
        watch.audit(mapped, moment)
    }

    fn written(&self, disk: DiskNo) -> Bytes {
        self.watch(disk).0.written()
    }
}

fn mapped<'a>(marks: &'a SharedWords, counters: &'a SharedWords, place: &Place) -> Mapped<'a> {
    let counters_in = |slot: usize| {
        let start = slot * Counters::WORDS;
        Counters(&counters.cells()[start..start + Counters::WORDS])
    };
    let cells: &[AtomicU64] = marks.cells();
    Mapped {
        completed: &cells[place.completed.clone()],
        issued: &cells[place.issued.clone()],
        counters: counters_in(place.slot),
        nowhere: counters_in(MAX_DISKS),
    }
}

/// The regions of all disks, and the words they take: the finest granularity within the budget.
fn lay_out(
    disks: &[TrackedDisk],
    free_memory: Bytes,
) -> Result<(Vec<(Region, Place)>, usize), BpfError> {
    if disks.len() > MAX_DISKS {
        return Err(BpfError::TooMany { disks: disks.len() });
    }
    for (at, disk) in disks.iter().enumerate() {
        // One entry in the programs' table: the other's writes would go unmarked.
        if disks[..at].iter().any(|other| other.device == disk.device) {
            return Err(BpfError::Twice { device: disk.device.to_string() });
        }
    }
    let budget = KERNEL_MEMORY.min(Bytes(free_memory.0 / 16));
    for shift in Region::MIN_SHIFT..=Region::MAX_SHIFT {
        let mut words = 0;
        let regions: Vec<(Region, Place)> = disks
            .iter()
            .enumerate()
            .map(|(slot, disk)| {
                let region = Region::new(disk.size, shift);
                let (start, len) = (words, region.all_words());
                words += 2 * len;
                let (issued, completed) = (start..start + len, start + len..words);
                (region, Place { slot, issued, completed })
            })
            .collect();
        if words_in_bytes(words) <= budget.0 {
            // No disk at all still makes an array: of one word.
            return Ok((regions, words.max(1)));
        }
    }
    let size = disks.iter().map(|disk| disk.size).sum();
    Err(BpfError::TooLarge { disks: disks.len(), size, budget })
}

fn words_in_bytes(words: usize) -> u64 {
    u64::try_from(words).map_or(u64::MAX, |words| words.saturating_mul(8))
}

fn array<'a>(programs: &'a mut Ebpf, name: &'static str) -> Result<&'a MapData, BpfError> {
    match programs.map(name) {
        Some(Map::Array(data)) => Ok(data),
        _ => Err(BpfError::Incomplete { part: name }),
    }
}

/// Fills the programs' `struct disk` of each disk.
fn fill_table(
    programs: &mut Ebpf,
    marking: Marking,
    disks: &[TrackedDisk],
    regions: &[(Region, Place)],
) -> Result<(), BpfError> {
    let table = programs.map_mut("disks").ok_or(BpfError::Incomplete { part: "disks" })?;
    let mut table: aya::maps::HashMap<_, u32, [u64; 6]> =
        table.try_into().map_err(BpfError::Table)?;
    let number = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    for (disk, (region, place)) in disks.iter().zip(regions) {
        let (issued, completed) = match marking {
            Marking::Faithful => (&place.issued, &place.completed),
            #[cfg(feature = "fault-injection")]
            Marking::Swapped => (&place.completed, &place.issued),
        };
        let entry = [
            number(place.slot),
            u64::from(region.shift),
            region.chunks,
            number(region.words),
            number(issued.start),
            number(completed.start),
        ];
        let key = disk.device.major << 20 | disk.device.minor;
        table.insert(key, entry, 0).map_err(BpfError::Table)?;
    }
    Ok(())
}

/// Completions first: a request that is seen being issued is then also seen completing.
fn attach(programs: &mut Ebpf, btf: &Btf) -> Result<(), BpfError> {
    for (name, tracepoint) in PROGRAMS {
        let program = programs.program_mut(name).ok_or(BpfError::Incomplete { part: name })?;
        let refused = |source| BpfError::Program { name, source };
        let program: &mut BtfTracePoint = program.try_into().map_err(refused)?;
        program.load(tracepoint, btf).map_err(refused)?;
        program.attach().map_err(refused)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use units::BlockSize;

    use super::*;
    use crate::DeviceId;

    const PLENTY: Bytes = Bytes::mib(1 << 20);

    fn disk(minor: u32, size: Bytes) -> TrackedDisk {
        TrackedDisk {
            no: DiskNo(0),
            device: DeviceId { major: 254, minor },
            size,
            block_size: BlockSize::for_disk(size),
            sysfs: "/nowhere".into(),
        }
    }

    fn granularity(disks: &[TrackedDisk], free_memory: Bytes) -> Option<u64> {
        let (regions, words) = lay_out(disks, free_memory).ok()?;
        assert!(words_in_bytes(words) <= KERNEL_MEMORY.0.min(free_memory.0 / 16));
        Some(1 << regions[0].0.shift)
    }

    #[test]
    fn marks_become_coarser_until_they_fit() {
        const TIB: u64 = 1 << 40;
        // The coarse bits take a little too, so a whole 2 TiB does not fit at the finest.
        assert_eq!(granularity(&[disk(0, Bytes(TIB * 19 / 10))], PLENTY), Some(4096));
        assert_eq!(
            granularity(&[disk(0, Bytes(TIB)), disk(1, Bytes(TIB * 2))], PLENTY),
            Some(8192)
        );
        assert_eq!(granularity(&[disk(0, Bytes(TIB * 120))], PLENTY), Some(256 << 10));
        assert_eq!(granularity(&[disk(0, Bytes(TIB * 130))], PLENTY), None);
        // 64 MiB of marks do not go into a sixteenth of 512 MiB.
        assert_eq!(granularity(&[disk(0, Bytes(TIB))], Bytes::mib(512)), Some(16 << 10));
    }

    #[test]
    fn regions_follow_one_another() {
        let disks: Vec<_> = (0..16).map(|n| disk(n, Bytes::mib(u64::from(n) * 77 + 1))).collect();
        let (regions, words) = lay_out(&disks, PLENTY).unwrap();
        let ranges =
            regions.iter().flat_map(|(_, place)| [place.issued.clone(), place.completed.clone()]);
        let end = ranges.fold(0, |end, range| {
            assert_eq!(range.start, end);
            range.end
        });
        assert_eq!(end, words);
        let slots: Vec<usize> = regions.iter().map(|(_, place)| place.slot).collect();
        assert_eq!(slots, (0..MAX_DISKS).collect::<Vec<_>>());
    }

    #[test]
    fn too_many_disks_or_one_disk_twice_are_refused() {
        let disks: Vec<_> = (0..17).map(|n| disk(n, Bytes::mib(1))).collect();
        assert!(matches!(lay_out(&disks, PLENTY), Err(BpfError::TooMany { disks: 17 })));
        let twice = [disk(3, Bytes::mib(1)), disk(3, Bytes::mib(1))];
        assert!(matches!(lay_out(&twice, PLENTY), Err(BpfError::Twice { .. })));
    }
}
