//! At every point, whatever can go wrong there; and then it is resumed, or called off.

use std::collections::BTreeSet;

use engine::{Halt, Phase};

use crate::points::{Fate, Point, Points};
use crate::stage::{Doing, End, Ends, Stage};
use crate::verdicts::tells_the_truth;

/// A migration without a fault, and every point that it passed.
pub async fn clean() -> Vec<Point> {
    let stage = Stage::new().await;
    let points = Points::default();
    let end = stage.live(Doing::Migrate, &points).await;
    assert!(matches!(end, End::Final(Phase::Retired)), "{end:?}");
    stage.assert_moved().await;
    points.passed()
}

/// How it can die there. Writes of bytes tear.
pub fn deaths(point: &Point) -> impl Iterator<Item = Fate> {
    let tears = point.name.ends_with("write");
    let all = [Fate::DiesBefore, Fate::DiesWithin, Fate::DiesAfter];
    all.into_iter().filter(move |fate| tears || *fate != Fate::DiesWithin)
}

#[tokio::test(start_paused = true)]
async fn a_migration_without_a_fault_moves_the_vm() {
    let passed = clean().await;
    let names: BTreeSet<_> = passed.iter().map(|point| &point.name).collect();
    println!("{} points of {} names", passed.len(), names.len());
}

/// The machine of the coordinator loses its power each time as well, and with it what was not synced.
#[tokio::test(start_paused = true)]
async fn killed_anywhere_it_is_resumed_to_its_end() {
    let mut moved = 0;
    for point in clean().await {
        for fate in deaths(&point) {
            for power_fails in [false, true] {
                let at = format!("{point}, {fate:?}, power fails: {power_fails}");
                let stage = Stage::new().await;
                stage.dies(&point, fate, &at).await;
                if power_fails {
                    stage.kept.lose_power();
                }
                let end = stage.live(Doing::Migrate, &Points::default()).await;
                assert!(matches!(end, End::Final(Phase::Retired)), "{at}: {end:?}");
                stage.assert_moved().await;
                moved += 1;
            }
        }
    }
    println!("{moved} moved");
}

#[tokio::test(start_paused = true)]
async fn killed_anywhere_it_is_called_off_unless_it_is_decided() {
    let mut ends = Ends::default();
    for point in clean().await {
        for fate in deaths(&point) {
            let at = format!("{point}, {fate:?}");
            let stage = Stage::new().await;
            stage.dies(&point, fate, &at).await;
            let mut end = stage.live(Doing::Abort, &Points::default()).await;
            if let End::Refused(why) = &end {
                assert!(stage.decided().0, "{at}: {why}");
                end = stage.live(Doing::Migrate, &Points::default()).await;
                assert!(matches!(end, End::Final(Phase::Retired)), "{at}: {end:?}");
            } else {
                assert!(matches!(end, End::Final(Phase::RolledBack)), "{at}: {end:?}");
            }
            stage.assert_ended(&end, &at).await;
            ends.count(&end);
        }
    }
    println!("{ends:?}");
}

/// The last point before the decision, where there is most to take back.
pub fn halfway() -> Point {
    Point { name: "journal: Fenced".to_owned(), nth: 1 }
}

/// All that a taking back passes from there.
pub async fn taking_back() -> Vec<Point> {
    let stage = Stage::new().await;
    stage.dies(&halfway(), Fate::DiesAfter, "fenced").await;
    let points = Points::default();
    let end = stage.live(Doing::Abort, &points).await;
    assert!(matches!(end, End::Final(Phase::RolledBack)), "{end:?}");
    points.passed()
}

/// Killed while it is being called off, and told again.
#[tokio::test(start_paused = true)]
async fn killed_anywhere_while_it_is_called_off_it_is_called_off_again() {
    let mut stayed = 0;
    let halfway = halfway();
    for point in taking_back().await {
        for fate in deaths(&point) {
            let at = format!("{point}, {fate:?}");
            let stage = Stage::new().await;
            stage.dies(&halfway, Fate::DiesAfter, "fenced").await;
            let end = stage.live(Doing::Abort, &Points::with(point.clone(), fate)).await;
            assert!(matches!(end, End::Killed), "{at}: {end:?}");
            tells_the_truth(&stage, &at).await;
            let end = stage.live(Doing::Abort, &Points::default()).await;
            assert!(matches!(end, End::Final(Phase::RolledBack)), "{at}: {end:?}");
            stage.assert_stayed().await;
            stayed += 1;
        }
    }
    println!("{stayed} taken back");
}

/// The journal comes from a backup, or is lost: the ledgers are right, and what they do not allow is not
/// done.
#[tokio::test(start_paused = true)]
async fn with_an_old_journal_nothing_is_lost() {
    let (mut ends, mut recovered) = (Ends::default(), 0);
    for point in clean().await {
        for (part, helper_restarts) in (0..3).flat_map(|part| [(part, false), (part, true)]) {
            let stage = Stage::new().await;
            let at =
                format!("{point}, {part} of 3 of its journal, helper restarts: {helper_restarts}");
            stage.dies(&point, Fate::DiesAfter, &at).await;
            if helper_restarts && stage.world.loaded_at(stage.id()) != Some(stage.west.clone()) {
                stage.target.powers_off(&stage.world, stage.id());
            }
            let records = stage.kept.records().len();
            stage.kept.restore_journal(records * part / 3);
            let mut end = stage.live(Doing::Migrate, &Points::default()).await;
            if matches!(end, End::Halted(_) | End::Refused(_)) {
                end = stage.live(Doing::Abort, &Points::default()).await;
            }
            if !matches!(end, End::Final(_)) {
                // Decided for the destination, which the ledgers alone know: it is made anew from them.
                assert!(stage.decided().0, "{at}: {end:?}");
                assert!(stage.recover().await, "{at}");
                end = stage.live(Doing::Migrate, &Points::default()).await;
                assert!(matches!(end, End::Final(Phase::Retired)), "{at}: {end:?}");
                recovered += 1;
            }
            stage.assert_ended(&end, &at).await;
            ends.count(&end);
        }
    }
    println!("{ends:?}, {recovered} of them recovered from the ledgers");
}

/// A freeze does not hold everything: what is written past it is noticed, and the guest goes on at the
/// source until it can be moved whole.
#[tokio::test(start_paused = true)]
async fn a_guest_that_writes_past_its_freeze_is_not_torn() {
    let stage = Stage::new().await;
    stage.guest.write_raw(true);
    let end = stage.live(Doing::Migrate, &Points::default()).await;
    let End::Halted(Halt::Resumable { phase: Phase::Copying, cause }) = end else {
        panic!("{end:?}")
    };
    assert!(stage.guest.write(), "it does not run on: {cause}");
    stage.guest.write_raw(false);
    let end = stage.live(Doing::Migrate, &Points::default()).await;
    assert!(matches!(end, End::Final(Phase::Retired)), "{end:?}");
    stage.assert_moved().await;
}

/// Each call fails once, done or not, or is done twice; whoever ran it says so again until it ends.
#[tokio::test(start_paused = true)]
async fn whatever_fails_once_it_ends() {
    let (mut at_once, mut again) = (0, 0);
    for point in clean().await {
        for fate in [Fate::LosesRequest, Fate::LosesReply, Fate::Twice] {
            let at = format!("{point}, {fate:?}");
            let stage = Stage::new().await;
            let points = Points::with(point.clone(), fate);
            let mut end = stage.live(Doing::Migrate, &points).await;
            assert!(points.struck(), "{at}");
            let mut lives = 1;
            while matches!(end, End::Halted(_) | End::Refused(_)) && lives < 4 {
                end = stage.live(Doing::Migrate, &Points::default()).await;
                lives += 1;
            }
            assert!(matches!(end, End::Final(Phase::Retired)), "{at}: {end:?}");
            stage.assert_moved().await;
            if lives == 1 {
                at_once += 1;
            } else {
                again += 1;
            }
        }
    }
    println!("{at_once} moved at once, {again} when told again");
}
