//! Against a made-up sysfs and made-up programs.

use std::fs;

use tempfile::TempDir;
use units::{BlockSize, DiskNo};

use super::*;
use crate::DeviceId;

const PAGES: u64 = 1024;
const PAGE: u64 = 4096;

/// A disk with its statistics, and the programs that watch it.
struct World {
    sysfs: TempDir,
    written: u64,
    discarded: u64,
    /// Writes.
    inflight: u64,
    reads: u64,
    region: Region,
    completed: Vec<AtomicU64>,
    issued: Vec<AtomicU64>,
    counters: Vec<AtomicU64>,
    nowhere: Vec<AtomicU64>,
}

#[derive(Clone, Copy, PartialEq)]
enum Program {
    Runs,
    Misses,
}
use Program::{Misses, Runs};

impl World {
    fn new() -> Self {
        let region = Region::new(Bytes(PAGES * PAGE), Region::MIN_SHIFT);
        let zeroes = |len: usize| (0..len).map(|_| AtomicU64::new(0)).collect::<Vec<_>>();
        let world = Self {
            sysfs: tempfile::tempdir().unwrap(),
            // The disk was in use long before.
            written: 80_000,
            discarded: 1000,
            inflight: 0,
            reads: 0,
            region,
            completed: zeroes(region.all_words()),
            issued: zeroes(region.all_words()),
            counters: zeroes(Counters::WORDS),
            nowhere: zeroes(Counters::WORDS),
        };
        world.put("size", &(PAGES * 8).to_string());
        world.put("diskseq", "7");
        world.put("queue/iostats", "1");
        world.show_stat();
        world
    }

    fn put(&self, name: &str, text: &str) {
        let path = self.sysfs.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn show_stat(&self) {
        let (written, discarded, reads, writes) =
            (self.written, self.discarded, self.reads, self.inflight);
        let all = reads + writes;
        let text = format!("1 2 3 4 5 6 {written} 8 {all} 10 11 12 13 {discarded} 15 16 17\n");
        // As the kernel prints it.
        self.put("inflight", &format!("{reads:9} {writes:9}\n"));
        self.put("stat", &text);
    }

    fn disk(&self) -> TrackedDisk {
        TrackedDisk {
            no: DiskNo(0),
            device: DeviceId { major: 254, minor: 0 },
            size: Bytes(PAGES * PAGE),
            block_size: BlockSize::MIN,
            sysfs: self.sysfs.path().to_owned(),
        }
    }

    fn mapped(&self) -> Mapped<'_> {
        Mapped {
            completed: &self.completed,
            issued: &self.issued,
            counters: Counters(&self.counters),
            nowhere: Counters(&self.nowhere),
        }
    }

    fn start(&self) -> Watch {
        Watch::start(self.disk(), self.region, self.mapped()).unwrap()
    }

    fn issue(&mut self, page: u64, program: Program) {
        self.inflight += 1;
        if program == Runs {
            self.counters[Counters::ISSUED].fetch_add(8, Ordering::SeqCst);
            self.issued[usize::try_from(page / 64).unwrap()]
                .fetch_or(1 << (page % 64), Ordering::SeqCst);
        }
        self.show_stat();
    }

    fn complete(&mut self, page: u64, program: Program) {
        self.inflight -= 1;
        self.written += 8;
        if program == Runs {
            self.counters[Counters::COMPLETED].fetch_add(8, Ordering::SeqCst);
            self.completed[usize::try_from(page / 64).unwrap()]
                .fetch_or(1 << (page % 64), Ordering::SeqCst);
        }
        self.show_stat();
    }

    fn write(&mut self, page: u64, issue: Program, completion: Program) {
        self.issue(page, issue);
        self.complete(page, completion);
    }

    /// Everything dirty, as page numbers.
    fn take_all(&self, watch: &mut Watch) -> Vec<u64> {
        let mut pages = Vec::new();
        let mut from = BlockIndex(0);
        while let Some(block) = watch.next_dirty(self.mapped(), from) {
            let mask = watch.take(self.mapped(), block);
            pages.extend(
                (0..64).filter(|page| mask.contains(*page)).map(|page| block.0 * 64 + page),
            );
            from = BlockIndex(block.0 + 1);
        }
        pages
    }
}

#[test]
fn what_completed_is_dirty_and_balances() {
    let mut world = World::new();
    let mut watch = world.start();
    world.write(70, Runs, Runs);
    assert_eq!(watch.audit(world.mapped(), Moment::Running), Ok(Audited::Balanced));
    assert_eq!(world.take_all(&mut watch), [70]);
    assert_eq!(watch.written(), Bytes(PAGE));
}

#[test]
fn a_missed_completion_makes_everything_issued_dirty_again() {
    let mut world = World::new();
    let mut watch = world.start();
    world.write(3, Runs, Runs);
    assert_eq!(world.take_all(&mut watch), [3]);
    world.write(3, Runs, Misses);
    world.write(900, Runs, Misses);
    assert_eq!(world.take_all(&mut watch), [0_u64; 0], "the marks alone know nothing of it");
    let audited = watch.audit(world.mapped(), Moment::Quiesced);
    assert_eq!(audited, Ok(Audited::Remarked { missed: Bytes(2 * PAGE) }));
    assert_eq!(world.take_all(&mut watch), [3, 900]);
    assert_eq!(watch.audit(world.mapped(), Moment::Quiesced), Ok(Audited::Balanced));
}

#[test]
fn issue_marks_outlive_an_audit_on_a_busy_disk() {
    let mut world = World::new();
    let mut watch = world.start();
    world.issue(5, Runs);
    // Balanced so far; what is in flight may still be missed.
    assert_eq!(watch.audit(world.mapped(), Moment::Running), Ok(Audited::Balanced));
    world.complete(5, Misses);
    let audited = watch.audit(world.mapped(), Moment::Quiesced);
    assert_eq!(audited, Ok(Audited::Remarked { missed: Bytes(PAGE) }));
    assert_eq!(world.take_all(&mut watch), [5]);
}

#[test]
fn a_quiet_audit_forgets_issue_marks_that_are_settled() {
    let mut world = World::new();
    let mut watch = world.start();
    world.write(5, Runs, Runs);
    assert_eq!(watch.audit(world.mapped(), Moment::Running), Ok(Audited::Balanced));
    assert_eq!(world.take_all(&mut watch), [5]);
    world.write(600, Runs, Misses);
    assert!(watch.audit(world.mapped(), Moment::Running).is_ok());
    assert_eq!(world.take_all(&mut watch), [600], "page 5 was settled");
}

#[test]
fn a_write_that_neither_program_saw_is_a_doubt_and_dirties_the_disk() {
    let mut world = World::new();
    let mut watch = world.start();
    world.write(5, Misses, Misses);
    let doubt = watch.audit(world.mapped(), Moment::Quiesced).unwrap_err();
    let Doubt::Unbalanced { figures } = doubt else { panic!("{doubt}") };
    assert_eq!(figures.kernel.written, 8);
    assert_eq!(figures.completed, Sectors::default());
    assert_eq!(world.take_all(&mut watch), (0..PAGES).collect::<Vec<_>>());
    // Tracking starts anew from the doubt.
    world.write(9, Runs, Runs);
    assert_eq!(watch.audit(world.mapped(), Moment::Quiesced), Ok(Audited::Balanced));
    assert_eq!(world.take_all(&mut watch), [9]);
}

#[test]
fn a_missed_discard_does_not_hide_behind_written_sectors() {
    let mut world = World::new();
    let mut watch = world.start();
    world.discarded += 8;
    world.counters[Counters::COMPLETED].fetch_add(8, Ordering::SeqCst);
    world.show_stat();
    assert!(matches!(watch.audit(world.mapped(), Moment::Quiesced), Err(Doubt::Unbalanced { .. })));
}

#[test]
fn a_requeued_request_counts_once() {
    let mut world = World::new();
    let mut watch = world.start();
    world.issue(5, Runs);
    world.counters[Counters::REQUEUED].fetch_add(8, Ordering::SeqCst);
    world.inflight -= 1;
    world.write(5, Runs, Misses);
    let audited = watch.audit(world.mapped(), Moment::Quiesced);
    assert_eq!(audited, Ok(Audited::Remarked { missed: Bytes(PAGE) }));
}

#[test]
fn a_loss_on_a_busy_disk_stays_open_until_it_is_quiet_or_must_be_told() {
    let mut world = World::new();
    let mut watch = world.start();
    world.write(5, Runs, Misses);
    world.issue(6, Runs);
    assert_eq!(watch.audit(world.mapped(), Moment::Running), Ok(Audited::Open));
    assert_eq!(watch.audit(world.mapped(), Moment::Quiesced), Err(Doubt::StillBusy));
    assert_eq!(world.take_all(&mut watch).len(), 1024);
}

#[test]
fn reads_in_flight_do_not_keep_a_disk_busy_where_the_kernel_tells_them_apart() {
    let mut world = World::new();
    world.reads = 3;
    world.show_stat();
    let mut watch = world.start();
    world.write(5, Runs, Misses);
    let audited = watch.audit(world.mapped(), Moment::Quiesced);
    assert_eq!(audited, Ok(Audited::Remarked { missed: Bytes(PAGE) }));

    let mut world = World::new();
    world.reads = 3;
    world.show_stat();
    fs::remove_file(world.sysfs.path().join("inflight")).unwrap();
    let mut watch = world.start();
    let audited = watch.audit(world.mapped(), Moment::Quiesced);
    assert_eq!(audited, Err(Doubt::StillBusy), "the sum may be of writes");
}

#[test]
fn passthrough_on_this_disk_or_on_one_unknown_is_a_doubt_once() {
    for place in [Counters::ISSUED, Counters::COMPLETED] {
        for unknown in [false, true] {
            let world = World::new();
            let mut watch = world.start();
            let counters = if unknown { &world.nowhere } else { &world.counters };
            counters[place + 2].fetch_add(1, Ordering::SeqCst);
            let doubt = watch.audit(world.mapped(), Moment::Running);
            assert_eq!(doubt, Err(Doubt::Passthrough { requests: 1 }));
            assert_eq!(watch.audit(world.mapped(), Moment::Running), Ok(Audited::Balanced));
        }
    }
}

#[test]
fn a_request_outside_the_map_is_a_doubt() {
    let world = World::new();
    let mut watch = world.start();
    world.counters[9].fetch_add(2, Ordering::SeqCst);
    let doubt = watch.audit(world.mapped(), Moment::Running);
    assert_eq!(doubt, Err(Doubt::OutsideMap { requests: 2 }));
}

#[test]
fn another_disk_under_the_same_number_is_a_doubt_for_good() {
    let world = World::new();
    let mut watch = world.start();
    world.put("diskseq", "8");
    for _ in 0..2 {
        let doubt = watch.audit(world.mapped(), Moment::Running);
        assert_eq!(doubt, Err(Doubt::Replaced { device: "254:0".to_owned() }));
    }
}

#[test]
fn a_disk_that_grew_went_or_is_not_counted_is_a_doubt() {
    let world = World::new();
    let mut watch = world.start();
    world.put("queue/iostats", "0\n");
    assert_eq!(watch.audit(world.mapped(), Moment::Running), Err(Doubt::IostatsOff));
    world.put("size", &(PAGES * 16).to_string());
    assert_eq!(
        watch.audit(world.mapped(), Moment::Running),
        Err(Doubt::Resized { was: Bytes(PAGES * PAGE), is: Bytes(PAGES * PAGE * 2) })
    );
    fs::remove_dir_all(world.sysfs.path()).unwrap();
    let doubt = watch.audit(world.mapped(), Moment::Running);
    assert_eq!(doubt, Err(Doubt::Gone { device: "254:0".to_owned() }));
}
