//! Somebody does something at a platform while a migration goes on, at every point of it.

use engine::{Halt, Phase};
use handover::{Next, Side};
use model::Power;
use site::Site as _;

use crate::crash::clean;
use crate::points::{Fate, Point, Points};
use crate::stage::{Ask, Doing, End, Stage};

/// Resumes, until it ends or a person is needed.
async fn to_the_end(stage: &Stage, points: &Points) -> End {
    let mut end = stage.live(Doing::Migrate, points).await;
    for _ in 0..3 {
        if matches!(end, End::Halted(_)) {
            end = stage.live(Doing::Migrate, &Points::default()).await;
        }
    }
    end
}

/// Points at which the source is there and it is not decided yet who has the VM.
async fn before_the_decision() -> Vec<Point> {
    let points = clean().await;
    let decided = points.iter().position(|point| point.name == "journal: Decided").unwrap();
    points[..decided].to_vec()
}

/// `virsh resume` of a source that was suspended with its writes accounted for: it writes on.
#[tokio::test(start_paused = true)]
async fn a_source_that_is_resumed_by_hand_loses_nothing() {
    let (mut moved, mut stayed) = (0, 0);
    // What is done between its last look and its own next call nobody can see.
    let seen = |point: &Point| point.name != "east: power_off";
    for point in before_the_decision().await.into_iter().filter(seen) {
        let stage = Stage::new();
        let (world, guest, east, vm) =
            (stage.world.clone(), stage.guest.clone(), stage.east.clone(), stage.id());
        let resumed = Points::beside(point.clone(), move |_| {
            world.admin_resumes(&east, vm);
            guest.write_raw(true);
            guest.write();
            guest.write_raw(false);
        });
        match to_the_end(&stage, &resumed).await {
            End::Final(Phase::Retired) => {
                stage.assert_moved().await;
                moved += 1;
            }
            End::Final(Phase::RolledBack) => {
                stage.assert_stayed().await;
                stayed += 1;
            }
            other => panic!("{point}: {other:?}"),
        }
    }
    println!("{moved} moved, {stayed} taken back");
}

/// The guest shuts down by itself, or its host does it.
#[tokio::test(start_paused = true)]
async fn a_source_that_shuts_down_loses_nothing() {
    let (mut moved, mut stayed, mut told) = (0, 0, 0);
    for point in before_the_decision().await {
        let stage = Stage::new();
        let (world, east, vm) = (stage.world.clone(), stage.east.clone(), stage.id());
        let down = Points::beside(point.clone(), move |_| world.guest_powers_off(&east, vm));
        match to_the_end(&stage, &down).await {
            End::Final(Phase::Retired) => {
                stage.assert_moved().await;
                moved += 1;
            }
            End::Final(Phase::RolledBack) => {
                // It is left as its guest had it, unless it was meant to be powered off anyway.
                if stage.world.power(&stage.east, stage.id()) == Power::Off {
                    stage.site(&stage.east).power_on(stage.id()).await.unwrap();
                }
                stage.assert_stayed().await;
                stayed += 1;
            }
            // It is off, and there is no guest to copy from: its operator starts it.
            End::Halted(Halt::Resumable { .. }) => {
                stage.site(&stage.east).power_on(stage.id()).await.unwrap();
                assert!(stage.guest.write());
                let end = to_the_end(&stage, &Points::default()).await;
                assert!(matches!(end, End::Final(Phase::Retired)), "{point}: {end:?}");
                stage.assert_moved().await;
                told += 1;
            }
            other => panic!("{point}: {other:?}"),
        }
    }
    println!("{moved} moved, {stayed} taken back, {told} moved once it was started again");
}

/// Somebody takes the fence off by hand and starts the source: it is not started at the destination as
/// well. What this cannot see is what is done between its last look and its own next call.
#[tokio::test(start_paused = true)]
async fn a_source_that_is_started_by_hand_is_never_the_second() {
    let (mut told, mut back, mut moved) = (0, 0, 0);
    let points = clean().await;
    let started = points.iter().position(|p| p.name == "west: start_from_own_disk").unwrap();
    for point in &points[..started] {
        let stage = Stage::new();
        let (world, guest, vm) = (stage.world.clone(), stage.guest.clone(), stage.id());
        let start = stage.starter();
        let by_hand = Points::beside(point.clone(), move |_| {
            if world.loaded_at(vm).is_none() {
                start();
                assert!(guest.write());
            }
        });
        match stage.live(Doing::Migrate, &by_hand).await {
            End::Final(Phase::Retired) => {
                stage.assert_moved().await;
                moved += 1;
            }
            End::Halted(halt) => {
                let power = stage.world.power(&stage.east, stage.id());
                assert_eq!(power, Power::Running, "{point}: {halt}");
                let why = units::chain(&halt);
                let noticed = why.contains("is running") || why.contains("does not hold");
                assert!(noticed, "{point}: {why}");
                told += 1;
                // Nor is it when it is told again, whatever was decided.
                match stage.live(Doing::Migrate, &Points::default()).await {
                    End::Final(Phase::RolledBack) => back += 1,
                    End::Halted(_) => assert!(stage.guest.write(), "{point}"),
                    other => panic!("{point}: {other:?}"),
                }
                assert_eq!(stage.world.loaded_at(stage.id()), Some(stage.east.clone()));
                stage.assert_whole(&stage.east).await;
            }
            other => panic!("{point}: {other:?}"),
        }
    }
    println!("{told} told, {back} of them taken back, {moved} moved");
}

/// The same while no coordinator lives: then nothing is decided for the destination that was not yet, and
/// whoever asks is told that it runs.
#[tokio::test(start_paused = true)]
async fn a_source_that_is_started_between_two_lives_is_noticed() {
    let (mut told, mut back, mut moved) = (0, 0, 0);
    for point in clean().await {
        let stage = Stage::new();
        stage.dies(&point, Fate::DiesAfter, "between").await;
        let by_hand = stage.world.loaded_at(stage.id()).is_none();
        if by_hand {
            stage.starter()();
            assert!(stage.guest.write());
        }
        let (was_decided, _) = stage.decided();
        let verdict = stage.verdict(Ask::Both, true).await;
        let runs = verdict.lives_at == Some(Side::Source)
            || verdict.next == Next::FenceAgain(Side::Source);
        assert!(runs || !by_hand, "{point}: {verdict:#?}");
        match stage.live(Doing::Migrate, &Points::default()).await {
            End::Final(Phase::Retired) => {
                stage.assert_moved().await;
                moved += 1;
            }
            End::Final(Phase::RolledBack) => {
                stage.assert_stayed().await;
                back += 1;
            }
            End::Halted(halt) => {
                assert!(by_hand, "{point}: {halt}");
                let (decided, _) = stage.decided();
                assert_eq!(decided, was_decided, "{point}: decided beside a running source");
                stage.assert_whole(&stage.east).await;
                told += 1;
            }
            other => panic!("{point}: {other:?}"),
        }
    }
    println!("{told} told, {back} taken back, {moved} moved");
}

/// Suspended with its writes accounted for, and then resumed and shut down while no coordinator lives.
#[tokio::test(start_paused = true)]
async fn a_source_that_went_on_and_shut_down_between_two_lives_loses_nothing() {
    let mut back = 0;
    for point in before_the_decision().await {
        let stage = Stage::new();
        stage.dies(&point, Fate::DiesAfter, "between").await;
        if stage.world.power(&stage.east, stage.id()) != Power::Paused {
            continue;
        }
        stage.world.admin_resumes(&stage.east, stage.id());
        stage.guest.write_raw(true);
        assert!(stage.guest.write());
        stage.guest.write_raw(false);
        stage.world.guest_powers_off(&stage.east, stage.id());
        let end = to_the_end(&stage, &Points::default()).await;
        if let End::Final(Phase::RolledBack) = end {
            stage.assert_whole(&stage.east).await;
            back += 1;
        } else {
            let halted = matches!(end, End::Halted(Halt::Resumable { .. }));
            assert!(halted, "{point}: {end:?}");
            stage.assert_whole(&stage.east).await;
        }
    }
    assert!(back > 0);
}

/// The platform forgets a fence that it was given.
#[tokio::test(start_paused = true)]
async fn a_fence_that_does_not_hold_is_no_fence() {
    let stage = Stage::new();
    let (world, east, vm) = (stage.world.clone(), stage.east.clone(), stage.id());
    let looked = Point { name: "east: fence_holds".to_owned(), nth: 1 };
    let forgets = Points::beside(looked, move |_| world.admin_unfences(&east, vm));
    let end = stage.live(Doing::Migrate, &forgets).await;
    assert!(matches!(end, End::Halted(Halt::Undecided { .. })), "{end:?}");
    let end = to_the_end(&stage, &Points::default()).await;
    assert!(matches!(end, End::Final(Phase::Retired)), "{end:?}");
    stage.assert_moved().await;
}

/// A byte of the copy changes after it was acknowledged: with `--reread` it is noticed, and put right.
#[tokio::test(start_paused = true)]
async fn a_copy_that_differs_is_not_started() {
    let mut stage = Stage::new();
    stage.plan.options.reread = true;
    let digests = Point { name: "helper: Reread".to_owned(), nth: 1 };
    let (world, target) = (stage.world.clone(), stage.target.clone());
    let changed = Points::beside(digests, move |_| {
        let volume = world.volume(&target.site, &target.pool, &target.volume).unwrap();
        volume.lock().unwrap()[4000] ^= 1;
    });
    let end = stage.live(Doing::Migrate, &changed).await;
    assert!(changed.struck());
    if matches!(end, End::Halted(Halt::Resumable { .. })) {
        // It takes a helper that reads the target anew.
        stage.target.powers_off(&stage.world, stage.id());
        let end = stage.live(Doing::Migrate, &Points::default()).await;
        assert!(matches!(end, End::Final(Phase::Retired)), "{end:?}");
    }
    stage.assert_moved().await;
}
