//! Any order of writes, rounds, cuts, kills and failing disks ends in an equal copy.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use proptest::collection::vec;
use proptest::prelude::*;
use transfer::{Changes, Holds, RoundOptions};

use crate::world::disk::{Marks, MemoryDisk};
use crate::world::pipe::cut_after;
use crate::world::{BLOCK, World, ok};

const SIZES: [usize; 2] = [5 * BLOCK + 1234, 2 * BLOCK];

#[derive(Clone, Debug)]
enum Step {
    Write { disk: usize, at: usize, len: usize, value: u8 },
    Connect { streams: u16, cut: Option<u64> },
    Round { compress: i32 },
    Disconnect,
    KillSender,
    KillReceiver { index: bool },
    FailSync { disk: usize, after: u32 },
    FailWrite { disk: usize, after: u32 },
}

fn step() -> impl Strategy<Value = Step> {
    let cut = prop_oneof![Just(None), (0_u64..2_000_000).prop_map(Some)];
    prop_oneof![
        6 => (0_usize..2, 0..SIZES[1] - 70_000, 1_usize..70_000, 0_u8..3)
            .prop_map(|(disk, at, len, value)| Step::Write { disk, at, len, value }),
        4 => (1_u16..4, cut).prop_map(|(streams, cut)| Step::Connect { streams, cut }),
        4 => (0_i32..4).prop_map(|compress| Step::Round { compress }),
        1 => Just(Step::Disconnect),
        1 => Just(Step::KillSender),
        1 => any::<bool>().prop_map(|index| Step::KillReceiver { index }),
        1 => (0_usize..2, 1_u32..4).prop_map(|(disk, after)| Step::FailSync { disk, after }),
        1 => (0_usize..2, 1_u32..6).prop_map(|(disk, after)| Step::FailWrite { disk, after }),
    ]
}

async fn perform(world: &mut World, marks: &Marks, step: Step) {
    match step {
        Step::Write { disk, at, len, value } => {
            marks.write(disk, &world.sources[disk], at, &vec![value; len]);
        }
        Step::Connect { streams, cut } => {
            let pair = |_| cut_after(cut.unwrap_or(u64::MAX));
            let _may_fail = world.connect(streams, pair).await;
        }
        Step::Round { compress } => {
            let options = RoundOptions { limit_rate: None, limit_read: None, compress };
            let _may_fail = world.round_with(options).await;
        }
        Step::Disconnect => world.sender.disconnect().await,
        Step::KillSender => world.restart_sender(),
        Step::KillReceiver { index } => {
            world.sender.disconnect().await;
            world.receiver.disconnect().await;
            world.restart_receiver(Holds::Anything);
            if index {
                world.receiver.index(|_, _| {}).await.unwrap();
            }
        }
        Step::FailSync { disk, after } => {
            let faults = &world.targets[disk];
            let next = faults.syncs.load(Ordering::Relaxed) + after;
            faults.faults.fail_sync.store(next, Ordering::Relaxed);
        }
        Step::FailWrite { disk, after } => {
            let faults = &world.targets[disk];
            let next = faults.writes.load(Ordering::Relaxed) + after;
            faults.faults.fail_write.store(next, Ordering::Relaxed);
        }
    }
}

async fn run(steps: Vec<Step>) {
    let marks = Arc::new(Marks::new(&SIZES));
    let sources = SIZES.iter().map(|size| Arc::new(MemoryDisk::filled(*size))).collect();
    let mut world = World::with(sources, Arc::clone(&marks) as Arc<dyn Changes>);
    for step in steps {
        perform(&mut world, &marks, step).await;
        let sealed = world.sender.seal(0).is_ok();
        for (source, target) in world.sources.iter().zip(&world.targets) {
            assert!(!sealed || source.content() == target.durable(), "sealed and not there");
        }
    }
    for target in &world.targets {
        target.faults.fail_sync.store(0, Ordering::Relaxed);
        target.faults.fail_write.store(0, Ordering::Relaxed);
    }
    world.connect_plainly(2).await;
    ok(world.round().await);
    world.assert_equal().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn every_schedule_ends_in_an_equal_copy_and_seals_only_that(steps in vec(step(), 1..16)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.unwrap().block_on(run(steps));
    }
}
