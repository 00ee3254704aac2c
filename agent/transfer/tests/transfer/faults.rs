//! Copies that are interrupted, everywhere.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::io::duplex;
use transfer::secure::{self, Identity, Trust};
use transfer::{Holds, Round, RoundOptions, SenderError};
use units::{BlockIndex, DiskNo};
use wire::control::{ErrorCode, Failure};

use crate::world::disk::{Marks, MemoryDisk};
use crate::world::pipe::{cut_after, flip_at};
use crate::world::{BLOCK, World, ok, sum};

const RAW: RoundOptions = RoundOptions { limit_rate: None, limit_read: None, compress: 0 };

/// A disk of 17 blocks, a third of them zeros, the last one odd.
const SIZE: usize = 16 * BLOCK + 4096 + 7;

/// What is sent of such a disk.
const TO_SEND: u64 = 12 * BLOCK as u64;

/// Places to cut a stream of `len` bytes: densely at the start, where the greeting is, then all
/// over.
fn cuts(len: u64) -> impl Iterator<Item = u64> {
    (0..120).step_by(11).chain((120..len).step_by(usize::try_from(len / 30).unwrap()))
}

/// Connects and copies, both of which may fail; answers what was acknowledged.
async fn try_copy<A, B>(world: &mut World, pair: impl FnMut(u16) -> (A, B), streams: u16) -> usize
where
    A: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
    B: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    if world.connect(streams, pair).await.is_err() {
        return 0;
    }
    let round = world.round_with(RAW).await;
    sum(&round.progress, |disk| disk.done)
}

/// The second round finishes; nothing that was acknowledged in the first is sent again.
async fn finish(world: &mut World, acknowledged: usize) {
    world.connect_plainly(2).await;
    let progress = ok(world.round_with(RAW).await);
    let again = sum(&progress, |disk| disk.total);
    let total: usize = world.sources.iter().map(|source| source.len()).sum();
    assert!(again <= total - acknowledged, "{again} of {total}, {acknowledged} acknowledged");
    world.assert_equal().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_cut_anywhere_on_the_way_there_goes_on_from_there() {
    for cut in cuts(TO_SEND / 2) {
        let mut world = World::new(&[SIZE]);
        let done = try_copy(
            &mut world,
            |no| if no == 0 { cut_after(cut) } else { cut_after(u64::MAX) },
            2,
        )
        .await;
        finish(&mut world, done).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_cut_anywhere_on_the_way_back_goes_on_from_there() {
    for cut in cuts(600) {
        let mut world = World::new(&[SIZE]);
        let pair = |_| {
            let (there, here) = cut_after(cut);
            (here, there)
        };
        let done = try_copy(&mut world, pair, 1).await;
        finish(&mut world, done).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_cut_again_and_again_still_ends() {
    let mut world = World::new(&[SIZE, 3 * BLOCK]);
    for attempt in 0..200 {
        if world.connect(1, |_| cut_after(900_000)).await.is_err() {
            continue;
        }
        // The round says when all is there. What was acknowledged does not add up to it: what is on
        // stable storage when its acknowledgement is lost is learnt from the table afterwards.
        if world.round_with(RAW).await.failure.is_none() {
            assert!(attempt > 0, "it took several attempts");
            return world.assert_equal().await;
        }
    }
    panic!("no end: {:?}", world.round_with(RAW).await.remaining);
}

/// One bit changes under TLS: the stream breaks, wherever it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bit_that_changes_on_the_way_is_never_believed() {
    let (source, destination) = (Identity::generate(), Identity::generate());
    for at in (0..400).step_by(23).chain((400..TO_SEND).step_by(300_000)) {
        let mut world = World::new(&[SIZE]);
        let (here, there) = flip_at(at);
        let (here, there) = tokio::join!(
            async {
                // An alert that the other end does not read to the end blocks nobody.
                let trust = Trust::Only(destination.public());
                secure::connect(here, &source, trust).await
            },
            secure::accept(there, &destination, Trust::Only(source.public())),
        );
        let mut done = 0;
        if let (Ok(here), Ok(there)) = (here, there) {
            let mut ends = Some((here.stream, there.stream));
            done = try_copy(&mut world, |_| ends.take().unwrap(), 1).await;
        }
        finish(&mut world, done).await;
    }
}

/// Without TLS: the block's hash is what notices.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_payload_is_refused_and_sent_again() {
    for at in (200..TO_SEND).step_by(333_333) {
        let mut world = World::new(&[SIZE]);
        world.connect(1, |_| flip_at(at)).await.unwrap();
        let progress = ok(world.round_with(RAW).await);
        let whole = sum(&progress, |disk| disk.sent);
        assert!(whole > usize::try_from(TO_SEND).unwrap() - BLOCK, "{whole}");
        world.assert_equal().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_killed_anywhere_learns_what_is_there_and_sends_the_rest() {
    for (n, cut) in cuts(TO_SEND).enumerate() {
        let mut world = World::new(&[SIZE]);
        let acknowledged = try_copy(&mut world, |_| cut_after(cut), 1).await;
        match n % 3 {
            0 => world.restart_sender(),
            1 => {
                world.restart_receiver(Holds::Anything);
                world.receiver.index(|_, _| {}).await.unwrap();
            }
            _ => {
                world.restart_sender();
                world.restart_receiver(Holds::Anything);
                world.receiver.index(|_, _| {}).await.unwrap();
            }
        }
        world.connect_plainly(2).await;
        let progress = ok(world.round_with(RAW).await);
        let again = sum(&progress, |disk| disk.sent);
        assert!(again <= SIZE - acknowledged, "{again} sent, {acknowledged} were acknowledged");
        world.assert_equal().await;
    }
}

fn code(round: &Round) -> Failure {
    Failure::from(round.failure.as_ref().expect("the round fails"))
}

/// What a failed sync lost is not acknowledged, neither then nor by a later sync that succeeds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_failed_sync_lost_is_sent_again() {
    let mut lost = 0;
    // The first sync is that of the generation's start.
    for failing in 2..8 {
        let mut world = World::new(&[SIZE]);
        world.targets[0].faults.fail_sync.store(failing, Ordering::Relaxed);
        world.connect_plainly(2).await;
        let round = world.round_with(RAW).await;
        if world.targets[0].syncs.load(Ordering::Relaxed) < failing {
            continue;
        }
        assert_eq!(code(&round).code, ErrorCode::Io, "{:?}", round.failure);
        let acknowledged = sum(&round.progress, |disk| disk.done);
        // Where the other stream's sync came first, nothing is lost, and that may be said.
        let (durable, source) = (world.targets[0].durable(), world.sources[0].content());
        let blocks = durable.chunks(BLOCK).zip(source.chunks(BLOCK));
        let there: usize = blocks.filter(|(ours, theirs)| ours == theirs).map(|b| b.0.len()).sum();
        assert!(acknowledged <= there, "{acknowledged} acknowledged, {there} there");
        lost += SIZE - there;
        finish(&mut world, acknowledged).await;
    }
    assert!(lost > 0, "no sync that failed lost anything");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_fails_half_way_is_repeated() {
    for failing in 1..10 {
        let mut world = World::new(&[SIZE]);
        world.targets[0].faults.fail_write.store(failing, Ordering::Relaxed);
        world.connect_plainly(2).await;
        let round = world.round_with(RAW).await;
        let failure = code(&round);
        assert_eq!(failure.code, ErrorCode::Io, "{failure:?}");
        assert!(failure.text.contains("writing the target failed: injected"), "{failure:?}");
        finish(&mut world, sum(&round.progress, |disk| disk.done)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_destination_is_told_with_what_to_do() {
    let mut world = World::new(&[SIZE]);
    world.targets[0].faults.full_at.store(5 * BLOCK as u64, Ordering::Relaxed);
    world.connect_plainly(1).await;
    let round = world.round_with(RAW).await;
    assert_eq!(code(&round).code, ErrorCode::Io);
    let served = world.serving.join_next().await.unwrap().unwrap();
    assert!(served.is_err());
    world.targets[0].faults.full_at.store(0, Ordering::Relaxed);
    finish(&mut world, sum(&round.progress, |disk| disk.done)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_cannot_be_read_fails_the_round_and_keeps_the_connection() {
    let sizes = [SIZE];
    let marks = Arc::new(Marks::new(&sizes));
    let source = Arc::new(MemoryDisk::filled(SIZE));
    let mut world = World::with(vec![Arc::clone(&source)], Arc::clone(&marks) as _);
    world.connect_plainly(2).await;
    ok(world.round_with(RAW).await);
    marks.write(0, &source, 3 * BLOCK, &[5; 100]);
    source.faults.fail_read_of_block.store(4, Ordering::Relaxed);
    let round = world.round_with(RAW).await;
    assert!(matches!(round.failure, Some(SenderError::Read { .. })));
    assert_eq!(marks.dirty_pages(0), 1, "what was taken is put back");
    assert_eq!(world.sender.generation(), Some(1));
    source.faults.fail_read_of_block.store(0, Ordering::Relaxed);
    ok(world.round_with(RAW).await);
    world.assert_equal().await;
}

/// Whatever was in flight when the streams broke is dirty again, page by page.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_in_flight_are_put_back_when_the_streams_break() {
    let sizes = [SIZE];
    let marks = Arc::new(Marks::new(&sizes));
    let source = Arc::new(MemoryDisk::filled(SIZE));
    let mut world = World::with(vec![Arc::clone(&source)], Arc::clone(&marks) as _);
    world.connect_plainly(2).await;
    ok(world.round_with(RAW).await);
    for block in 0..16_u8 {
        marks.write(0, &source, usize::from(block) * BLOCK + 8192, &[block; 4096]);
    }
    world.connect(2, |_| cut_after(20_000)).await.unwrap();
    let round = world.round_with(RAW).await;
    assert!(round.failure.is_some());
    let done = sum(&round.progress, |disk| disk.done);
    assert_eq!(marks.dirty_pages(0), u32::try_from(16 - done / BLOCK).unwrap());
    finish(&mut world, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disconnecting_in_the_middle_puts_everything_back() {
    let sizes = [SIZE];
    let marks = Arc::new(Marks::new(&sizes));
    let source = Arc::new(MemoryDisk::filled(SIZE));
    let mut world = World::with(vec![Arc::clone(&source)], Arc::clone(&marks) as _);
    world.connect_plainly(2).await;
    ok(world.round_with(RAW).await);
    for block in 0..16_u8 {
        marks.write(0, &source, usize::from(block) * BLOCK, &[block + 1; 9]);
    }
    world.targets[0].close_gate();
    let (sender, target) = (world.sender.clone(), Arc::clone(&world.targets[0]));
    let disconnecting = tokio::spawn(async move {
        while target.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        sender.disconnect().await;
    });
    let round = world.round_with(RAW).await;
    disconnecting.await.unwrap();
    assert!(matches!(round.failure, Some(SenderError::NotConnected)), "{:?}", round.failure);
    assert_eq!(marks.dirty_pages(0), 16);
    world.targets[0].open_gate();
    finish(&mut world, 0).await;
}

/// The target was changed behind everybody's back: a patch of it would be wrong.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_patch_that_does_not_fit_is_refused_and_the_block_sent_in_full() {
    let sizes = [3 * BLOCK];
    let marks = Arc::new(Marks::new(&sizes));
    let source = Arc::new(MemoryDisk::filled(sizes[0]));
    let mut world = World::with(vec![Arc::clone(&source)], Arc::clone(&marks) as _);
    world.connect_plainly(2).await;
    ok(world.round_with(RAW).await);
    world.targets[0].poke(100_000, b"not what was written");
    marks.write(0, &source, 9, b"a change elsewhere");
    let progress = ok(world.round_with(RAW).await);
    assert_eq!(sum(&progress, |disk| disk.sent), 4096 + BLOCK);
    world.assert_equal().await;
}

/// A tracker that forgets pages: patches do not hash right, and blocks go in full.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_the_tracker_names_only_in_part_arrives_whole() {
    let sizes = [3 * BLOCK];
    let marks = Arc::new(Marks::new(&sizes));
    let source = Arc::new(MemoryDisk::filled(sizes[0]));
    let mut world = World::with(vec![Arc::clone(&source)], Arc::clone(&marks) as _);
    world.connect_plainly(1).await;
    ok(world.round_with(RAW).await);
    source.poke(5 * 4096, &[1; 4096]);
    marks.write(0, &source, 9 * 4096, &[2; 4096]);
    ok(world.round_with(RAW).await);
    world.assert_equal().await;
}

/// A block of the first generation is still being written when its successor is on its way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_write_of_an_old_generation_cannot_overwrite_a_newer_block() {
    for _ in 0..5 {
        let sizes = [3 * BLOCK];
        let marks = Arc::new(Marks::new(&sizes));
        let source = Arc::new(MemoryDisk::filled(sizes[0]));
        let mut world = World::with(vec![Arc::clone(&source)], Arc::clone(&marks) as _);
        let target = Arc::clone(&world.targets[0]);
        target.hold_next_write();
        world.connect_plainly(1).await;
        let interrupted = tokio::spawn({
            let sender = world.sender.clone();
            let (progress, _) = tokio::sync::watch::channel(Default::default());
            async move { sender.round(9, RAW, &progress).await }
        });
        while target.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        world.serving.abort_all();
        assert!(interrupted.await.unwrap().failure.is_some());
        marks.write(0, &source, 0, &[9; BLOCK]);
        marks.write(0, &source, BLOCK, &[8; BLOCK]);

        let releasing = tokio::spawn({
            let target = Arc::clone(&target);
            async move {
                // Time enough for a receiver that does not wait to go all the way.
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                target.open_gate();
            }
        });
        world.connect_plainly(1).await;
        assert_eq!(target.waiting(), 0, "answered while an older write was under way");
        ok(world.round_with(RAW).await);
        releasing.await.unwrap();
        world.assert_equal().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_generation_that_does_not_grow_is_refused_at_both_ends() {
    let mut world = World::new(&[BLOCK]);
    world.generation = 4;
    world.connect_plainly(1).await;
    world.generation = 3;
    let (here, _there) = duplex(1000);
    let mut ends = vec![here];
    assert!(matches!(
        world.sender.connect(5, ends.split_off(0)).await,
        Err(SenderError::Generation { asked: 5, last: 5 })
    ));
    world.restart_sender();
    let refused = world.connect(1, |_| duplex(64 << 10)).await;
    assert!(matches!(refused, Err(SenderError::Peer { .. })), "{refused:?}");
    world.generation = 5;
    world.connect_plainly(1).await;
    ok(world.round_with(RAW).await);
    world.assert_equal().await;
    assert_eq!(world.changes.next_dirty(DiskNo(0), BlockIndex(0)), None);
}
