//! Copies that go well.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use transfer::{Holds, RoundOptions};
use units::Bytes;

use crate::world::disk::{Marks, MemoryDisk};
use crate::world::{self, BLOCK, World, ok, sum};

/// Sizes that are no multiple of a block, a page or a sector, and less than a block.
const ODD_SIZES: [usize; 4] = [7 * BLOCK, 5 * BLOCK + 4096 + 513, 1, 3 * BLOCK - 1];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disks_of_odd_sizes_arrive_whole_over_any_number_of_streams() {
    for streams in [1, 2, 5] {
        for compress in [0, 1, 3] {
            let mut world = World::new(&ODD_SIZES);
            world.connect_plainly(streams).await;
            let progress = ok(world
                .round_with(RoundOptions { limit_rate: None, limit_read: None, compress })
                .await);
            world.assert_equal().await;
            let total: usize = ODD_SIZES.iter().sum();
            assert_eq!(sum(&progress, |disk| disk.total), total);
            assert_eq!(sum(&progress, |disk| disk.done), total);
            assert_eq!(sum(&progress, |disk| disk.zero + disk.equal + disk.sent), total);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_round_over_what_nobody_wrote_sends_nothing() {
    let mut world = World::new(&ODD_SIZES);
    world.connect_plainly(2).await;
    ok(world.round().await);
    assert_eq!(world.sender.remaining(), Bytes::ZERO);
    let reads: u32 = world.sources.iter().map(|source| source.reads.load(Ordering::Relaxed)).sum();
    let progress = ok(world.round().await);
    assert_eq!(sum(&progress, |disk| disk.total + disk.sent + disk.done), 0);
    let again: u32 = world.sources.iter().map(|source| source.reads.load(Ordering::Relaxed)).sum();
    assert_eq!(reads, again);
    world.assert_equal().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_few_changed_pages_travel_as_a_patch() {
    let sizes = [4 * BLOCK + 100];
    let marks = Arc::new(Marks::new(&sizes));
    let source = Arc::new(MemoryDisk::filled(sizes[0]));
    let mut world = World::with(vec![Arc::clone(&source)], Arc::clone(&marks) as _);
    world.connect_plainly(2).await;
    ok(world.round().await);
    marks.write(0, &source, 5000, &[1; 10]);
    marks.write(0, &source, 3 * BLOCK - 1, &[2; 2]);
    // The last page is shorter than a page.
    marks.write(0, &source, 4 * BLOCK + 50, &[3; 50]);
    let progress = ok(world.round_with(RoundOptions::default()).await);
    assert_eq!(sum(&progress, |disk| disk.sent), 3 * 4096 + 100);
    world.assert_equal().await;
}

/// What a guest writes between the take and the read belongs to the patch, and to the next round.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_in_the_middle_of_a_read_does_not_spoil_the_patch() {
    let sizes = [4 * BLOCK];
    let marks = Arc::new(Marks::new(&sizes));
    let source = Arc::new(MemoryDisk::filled(sizes[0]));
    let mut world = World::with(vec![Arc::clone(&source)], Arc::clone(&marks) as _);
    world.connect_plainly(1).await;
    ok(world.round().await);
    marks.write(0, &source, 5000, &[1; 10]);
    let guest = (Arc::clone(&source), Arc::clone(&marks));
    let write = move || guest.1.write(0, &guest.0, 100_000, &[2; 10]);
    *source.in_next_read.lock().unwrap() = Some(Box::new(write));
    let progress = ok(world.round_with(RoundOptions::default()).await);
    assert_eq!(sum(&progress, |disk| disk.sent), 2 * 4096);
    assert_eq!(marks.dirty_pages(0), 1);
    ok(world.round().await);
    world.assert_equal().await;
}

/// What was a hole when it was asked for need not be one any more when its block is looked at.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_into_a_hole_that_was_just_found_is_not_lost() {
    let sizes = [64 * BLOCK];
    let marks = Arc::new(Marks::new(&sizes));
    let source = Arc::new(MemoryDisk::zeros(sizes[0]));
    let mut world = World::with(vec![Arc::clone(&source)], Arc::clone(&marks) as _);
    world.connect_plainly(1).await;
    let guest = (Arc::clone(&source), Arc::clone(&marks));
    let write = move || {
        for block in 4..64 {
            guest.1.write(0, &guest.0, block * BLOCK + 77, &[2; 10]);
        }
    };
    *source.behind_next_hole.lock().unwrap() = Some(Box::new(write));
    ok(world.round().await);
    ok(world.round().await);
    world.assert_equal().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zeros_are_not_sent_and_overwrite_what_was_there() {
    let sizes = [6 * BLOCK + 10];
    let marks = Arc::new(Marks::new(&sizes));
    let source = Arc::new(MemoryDisk::filled(sizes[0]));
    let mut world = World::with(vec![Arc::clone(&source)], Arc::clone(&marks) as _);
    world.connect_plainly(1).await;
    ok(world.round().await);
    marks.write(0, &source, 0, &vec![0; 2 * BLOCK]);
    let progress = ok(world.round().await);
    assert_eq!(sum(&progress, |disk| disk.sent), 0);
    assert_eq!(sum(&progress, |disk| disk.zero), 2 * BLOCK);
    world.assert_equal().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_indexed_target_gets_only_what_differs() {
    let mut world = World::new(&[8 * BLOCK + 5, 3 * BLOCK]);
    for (source, target) in world.sources.iter().zip(&world.targets) {
        target.poke(0, &source.content());
    }
    world.targets[0].poke(4 * BLOCK + 7, &[9]);
    world.targets[0].poke(8 * BLOCK, &[9]);
    world.targets.iter().for_each(|target| transfer::BlockWrite::sync(&**target).unwrap());
    world.restart_receiver(Holds::Anything);
    world.receiver.index(|_, _| {}).await.unwrap();
    world.connect_plainly(2).await;
    let progress = ok(world.round_with(RoundOptions::default()).await);
    // Block 8 is one of zeros.
    assert_eq!(sum(&progress, |disk| disk.sent), BLOCK);
    assert_eq!(sum(&progress, |disk| disk.equal + disk.zero), 10 * BLOCK + 5);
    world.assert_equal().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_was_not_indexed_gets_everything() {
    let mut world = World::new(&[4 * BLOCK]);
    world.targets[0].poke(0, &vec![7; 4 * BLOCK]);
    transfer::BlockWrite::sync(&*world.targets[0]).unwrap();
    world.restart_receiver(Holds::Anything);
    world.connect_plainly(1).await;
    assert!(world.receiver.digests().await.is_err(), "nothing is known yet");
    ok(world.round().await);
    world.assert_equal().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_may_be_larger_than_the_source() {
    let mut world = World::new(&[2 * BLOCK + 7]);
    let large = Arc::new(MemoryDisk::zeros(4 * BLOCK));
    let mut disks = world::target_disks(&world.targets, Holds::Zeros);
    disks[0].disk = Arc::clone(&large) as _;
    world.receiver =
        transfer::Receiver::new(world::migration(), disks, world::small_limits()).unwrap();
    world.connect_plainly(1).await;
    ok(world.round().await);
    let size = world.sources[0].len();
    assert!(large.content()[..size] == world.sources[0].content());
    assert!(large.content()[size..].iter().all(|byte| *byte == 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_tracker_only_a_whole_round_since_seals() {
    let sizes = [3 * BLOCK];
    let marks = Arc::new(Marks::imprecise(&sizes));
    let source = Arc::new(MemoryDisk::filled(sizes[0]));
    let mut world = World::with(vec![source], marks);
    world.connect_plainly(1).await;
    ok(world.round().await);
    assert!(world.sender.seal(2).is_err(), "round 2 has not been");
    let progress = ok(world.round().await);
    assert_eq!(sum(&progress, |disk| disk.total), 3 * BLOCK);
    assert_eq!(sum(&progress, |disk| disk.sent), 0);
    world.assert_equal().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_tracker_a_round_that_was_stopped_does_not_seal() {
    let sizes = [30 * BLOCK];
    let source = Arc::new(MemoryDisk::filled(sizes[0]));
    let mut world = World::with(vec![Arc::clone(&source)], Arc::new(Marks::imprecise(&sizes)));
    world.connect_plainly(1).await;
    ok(world.round().await);
    source.poke(30 * BLOCK - 9, b"a write");
    let sender = world.sender.clone();
    *source.in_next_read.lock().unwrap() = Some(Box::new(move || sender.stop_round()));
    ok(world.round().await);
    assert!(world.sender.seal(2).is_err());
    ok(world.round().await);
    world.assert_equal().await;
}

/// Numbers are the coordinator's, which may have died and begun anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_round_that_was_stopped_is_not_sealed_by_an_earlier_one_of_its_number() {
    let sizes = [30 * BLOCK];
    let source = Arc::new(MemoryDisk::filled(sizes[0]));
    let mut world = World::with(vec![Arc::clone(&source)], Arc::new(Marks::imprecise(&sizes)));
    world.connect_plainly(1).await;
    let whole = world.round().await;
    assert!(!whole.stopped);
    ok(whole);
    assert!(world.sender.seal(1).is_ok());
    source.poke(30 * BLOCK - 9, b"a write");
    let sender = world.sender.clone();
    *source.in_next_read.lock().unwrap() = Some(Box::new(move || sender.stop_round()));
    world.rounds -= 1;
    let stopped = world.round().await;
    assert!(stopped.stopped);
    ok(stopped);
    assert!(world.sender.seal(1).is_err(), "the write is not there");
    ok(world.round().await);
    world.assert_equal().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_since_the_last_round_is_not_sealed() {
    let sizes = [3 * BLOCK];
    let marks = Arc::new(Marks::new(&sizes));
    let source = Arc::new(MemoryDisk::filled(sizes[0]));
    let mut world = World::with(vec![Arc::clone(&source)], Arc::clone(&marks) as _);
    assert!(world.sender.seal(0).is_err());
    world.connect_plainly(1).await;
    ok(world.round().await);
    assert!(world.sender.seal(1).is_ok());
    marks.write(0, &source, 9, &[1]);
    assert!(world.sender.seal(1).is_err());
    assert_eq!(world.sender.remaining(), Bytes(4096));
    ok(world.round().await);
    world.assert_equal().await;
}

/// The guest writes all the time; the last round follows its last write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_written_to_all_the_time_arrives_as_it_is_at_the_end() {
    let sizes = [6 * BLOCK + 3000, 2 * BLOCK];
    let marks = Arc::new(Marks::new(&sizes));
    let sources: Vec<_> = sizes.iter().map(|size| Arc::new(MemoryDisk::filled(*size))).collect();
    let mut world = World::with(sources.clone(), Arc::clone(&marks) as _);
    world.connect_plainly(3).await;
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let guest = std::thread::spawn({
        let (stop, marks) = (Arc::clone(&stop), Arc::clone(&marks));
        move || {
            let mut random = 1_u64;
            let mut next = |below: usize| {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
                usize::try_from(random >> 33).unwrap() % below
            };
            while !stop.load(Ordering::Relaxed) {
                let disk = next(2);
                let len = 1 + next(20_000);
                let at = next(sources[disk].len() - len);
                let value = u8::try_from(next(3)).unwrap();
                marks.write(disk, &sources[disk], at, &vec![value; len]);
                std::thread::yield_now();
            }
        }
    });
    for _ in 0..20 {
        ok(world.round().await);
    }
    stop.store(true, Ordering::Relaxed);
    guest.join().unwrap();
    ok(world.round().await);
    world.assert_equal().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_round_that_is_stopped_is_acknowledged_and_goes_on_in_the_next() {
    let mut world = World::new(&[40 * BLOCK]);
    world.connect_plainly(1).await;
    let sender = world.sender.clone();
    world.targets[0].close_gate();
    let target = Arc::clone(&world.targets[0]);
    let stopping = tokio::spawn(async move {
        while target.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        sender.stop_round();
        target.open_gate();
    });
    let stopped = world.round().await;
    stopping.await.unwrap();
    assert!(stopped.failure.is_none());
    let done = sum(&stopped.progress, |disk| disk.done);
    assert!(done < 40 * BLOCK, "it was stopped");
    assert_eq!(stopped.remaining, Bytes((40 * BLOCK - done) as u64));
    assert!(world.sender.seal(1).is_err());
    let rest = ok(world.round().await);
    assert_eq!(sum(&rest, |disk| disk.total), 40 * BLOCK - done);
    world.assert_equal().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_rounds_at_a_time_are_refused() {
    let mut world = World::new(&[4 * BLOCK]);
    world.connect_plainly(1).await;
    world.targets[0].close_gate();
    let (sender, target) = (world.sender.clone(), Arc::clone(&world.targets[0]));
    let second = tokio::spawn(async move {
        while target.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        let (progress, _) = tokio::sync::watch::channel(Default::default());
        let second = sender.round(9, RoundOptions::default(), &progress).await;
        assert!(sender.seal(0).is_err());
        target.open_gate();
        second.failure
    });
    ok(world.round().await);
    assert!(matches!(second.await.unwrap(), Some(transfer::SenderError::Busy)));
    world.assert_equal().await;
}

#[tokio::test]
async fn a_round_without_a_connection_says_so() {
    let mut world = World::new(&[4 * BLOCK]);
    let round = world.round().await;
    assert!(matches!(round.failure, Some(transfer::SenderError::NotConnected)));
    assert_eq!(round.remaining, Bytes(4 * BLOCK as u64));
}
