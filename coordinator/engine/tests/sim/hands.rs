//! Somebody does something at a platform while a migration goes on, at every point of it.

use engine::{Halt, Phase};
use handover::{Next, Side};
use model::Power;
use site::Site as _;

use crate::crash::clean;
use crate::points::{Fate, Point, Points};
use crate::stage::{Ask, Doing, End, Ends, Stage};

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
    let mut ends = Ends::default();
    // What is done between its last look and its own next call nobody can see.
    let seen = |point: &Point| point.name != "east: power_off";
    for point in before_the_decision().await.into_iter().filter(seen) {
        let stage = Stage::new().await;
        let (world, guest, east, vm) =
            (stage.world.clone(), stage.guest.clone(), stage.east.clone(), stage.id());
        let resumed = Points::beside(point.clone(), move |_| {
            world.admin_resumes(&east, vm);
            guest.write_past_the_freeze();
        });
        let end = to_the_end(&stage, &resumed).await;
        stage.assert_ended(&end, &point.to_string()).await;
        ends.count(&end);
    }
    println!("{ends:?}");
}

/// The guest shuts down by itself, or its host does it.
#[tokio::test(start_paused = true)]
async fn a_source_that_shuts_down_loses_nothing() {
    let mut ends = Ends::default();
    for point in before_the_decision().await {
        let stage = Stage::new().await;
        let (world, east, vm) = (stage.world.clone(), stage.east.clone(), stage.id());
        let down = Points::beside(point.clone(), move |_| world.guest_powers_off(&east, vm));
        let mut end = to_the_end(&stage, &down).await;
        ends.count(&end);
        // Its operator starts it where it is off: no guest is left to copy from, or the migration was
        // taken back and left it as its guest had it.
        let told = matches!(end, End::Halted(Halt::Resumable { .. }));
        let off = stage.world.power(&stage.east, stage.id()) == Power::Off;
        if told || (off && matches!(end, End::Final(Phase::RolledBack))) {
            stage.site(&stage.east).power_on(stage.id()).await.unwrap();
            assert!(stage.guest.write(), "{point}");
        }
        if told {
            end = to_the_end(&stage, &Points::default()).await;
            assert!(matches!(end, End::Final(Phase::Retired)), "{point}: {end:?}");
        }
        stage.assert_ended(&end, &point.to_string()).await;
    }
    println!("{ends:?}");
}

/// Somebody takes the fence off by hand and starts the source: it is not started at the destination as
/// well. What this cannot see is what is done between its last look and its own next call.
#[tokio::test(start_paused = true)]
async fn a_source_that_is_started_by_hand_is_never_the_second() {
    let mut ends = Ends::default();
    let points = clean().await;
    let started = points.iter().position(|p| p.name == "west: start_from_own_disk").unwrap();
    for point in &points[..started] {
        let stage = Stage::new().await;
        let (world, guest, vm) = (stage.world.clone(), stage.guest.clone(), stage.id());
        let start = stage.starter();
        let by_hand = Points::beside(point.clone(), move |_| {
            if world.loaded_at(vm).is_none() {
                start();
                assert!(guest.write());
            }
        });
        let end = stage.live(Doing::Migrate, &by_hand).await;
        ends.count(&end);
        let End::Halted(halt) = &end else {
            stage.assert_ended(&end, &point.to_string()).await;
            continue;
        };
        let power = stage.world.power(&stage.east, stage.id());
        assert_eq!(power, Power::Running, "{point}: {halt}");
        let why = units::chain(halt);
        let noticed = why.contains("is running") || why.contains("does not hold");
        assert!(noticed, "{point}: {why}");
        // Nor is it when it is told again, whatever was decided.
        match stage.live(Doing::Migrate, &Points::default()).await {
            End::Final(Phase::RolledBack) => {}
            End::Halted(_) => assert!(stage.guest.write(), "{point}"),
            other => panic!("{point}: {other:?}"),
        }
        assert_eq!(stage.world.loaded_at(stage.id()), Some(stage.east.clone()));
        stage.assert_whole(&stage.east).await;
    }
    println!("{ends:?}");
}

/// The same while no coordinator lives: then nothing is decided for the destination that was not yet, and
/// whoever asks is told that it runs.
#[tokio::test(start_paused = true)]
async fn a_source_that_is_started_between_two_lives_is_noticed() {
    let mut ends = Ends::default();
    for point in clean().await {
        let stage = Stage::new().await;
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
        let end = stage.live(Doing::Migrate, &Points::default()).await;
        ends.count(&end);
        let End::Halted(halt) = &end else {
            stage.assert_ended(&end, &point.to_string()).await;
            continue;
        };
        assert!(by_hand, "{point}: {halt}");
        let (decided, _) = stage.decided();
        assert_eq!(decided, was_decided, "{point}: decided beside a running source");
        stage.assert_whole(&stage.east).await;
    }
    println!("{ends:?}");
}

/// Suspended with its writes accounted for, and then resumed and shut down while no coordinator lives.
#[tokio::test(start_paused = true)]
async fn a_source_that_went_on_and_shut_down_between_two_lives_loses_nothing() {
    let mut ends = Ends::default();
    for point in before_the_decision().await {
        let stage = Stage::new().await;
        stage.dies(&point, Fate::DiesAfter, "between").await;
        if stage.world.power(&stage.east, stage.id()) != Power::Paused {
            continue;
        }
        stage.world.admin_resumes(&stage.east, stage.id());
        stage.guest.write_past_the_freeze();
        stage.world.guest_powers_off(&stage.east, stage.id());
        let end = to_the_end(&stage, &Points::default()).await;
        let kept =
            matches!(end, End::Final(Phase::RolledBack) | End::Halted(Halt::Resumable { .. }));
        assert!(kept, "{point}: {end:?}");
        stage.assert_whole(&stage.east).await;
        ends.count(&end);
    }
    assert!(ends.taken_back > 0, "{ends:?}");
}

/// The platform forgets a fence that it was given.
#[tokio::test(start_paused = true)]
async fn a_fence_that_does_not_hold_is_no_fence() {
    let stage = Stage::new().await;
    let (world, east, vm) = (stage.world.clone(), stage.east.clone(), stage.id());
    let looked = Point { name: "east: fence_holds".to_owned(), nth: 1 };
    let forgets = Points::beside(looked, move |_| world.admin_unfences(&east, vm));
    let end = stage.live(Doing::Migrate, &forgets).await;
    assert!(matches!(end, End::Halted(Halt::Undecided { .. })), "{end:?}");
    let end = to_the_end(&stage, &Points::default()).await;
    assert!(matches!(end, End::Final(Phase::Retired)), "{end:?}");
    stage.assert_moved().await;
}

/// Somebody tidied up after the move, before it was retired: nothing is kept, and it ends all the same.
#[tokio::test(start_paused = true)]
async fn a_source_that_was_deleted_does_not_keep_it_from_its_end() {
    let stage = Stage::new().await;
    let confirmed = Point { name: "journal: Answered".to_owned(), nth: 1 };
    stage.dies(&confirmed, Fate::DiesAfter, "confirmed").await;
    stage.world.admin_undefines(&stage.east, stage.id());
    let end = stage.live(Doing::Migrate, &Points::default()).await;
    assert!(matches!(end, End::Final(Phase::Retired)), "{end:?}");
    let state = engine::State::replay(&stage.kept.records()).unwrap();
    assert_eq!(state.retired_as, None, "nothing is kept");
    assert_eq!(stage.world.power(&stage.west, stage.id()), Power::Running);
}

/// The same while no coordinator lives, as a power cut of the host may do it: nothing is decided on it, and
/// the source is there to go back to.
#[tokio::test(start_paused = true)]
async fn a_fence_that_was_lost_between_two_lives_is_no_fence() {
    let stage = Stage::new().await;
    let fenced = Point { name: "journal: Fenced".to_owned(), nth: 1 };
    stage.dies(&fenced, Fate::DiesAfter, "fenced").await;
    stage.world.admin_unfences(&stage.east, stage.id());
    let end = stage.live(Doing::Migrate, &Points::default()).await;
    assert!(matches!(end, End::Halted(Halt::Undecided { .. })), "{end:?}");
    assert!(!stage.decided().0, "decided on a fence that is not there");
    let end = stage.live(Doing::Abort, &Points::default()).await;
    assert!(matches!(end, End::Final(Phase::RolledBack)), "{end:?}");
    stage.assert_stayed().await;
}

/// A byte of the copy changes after it was acknowledged: with `--reread` it is noticed, and put right.
#[tokio::test(start_paused = true)]
async fn a_copy_that_differs_is_not_started() {
    let mut stage = Stage::new().await;
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
