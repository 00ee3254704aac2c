//! The coordinator's machine is lost, or what it kept: the sites know enough to go on.

use std::collections::BTreeMap;
use std::sync::Arc;

use engine::custody::CustodyError;
use engine::{Halt, Phase, StepError};
use handover::Refusal;
use site_memory::Call;

use crate::agents::Mutexed;
use crate::crash::{clean, deaths, halfway, taking_back};
use crate::points::{At, Fate, Point, Points};
use crate::stage::{Doing, End, Ends, Stage};
use crate::verdicts::{no_lies, tells_the_truth};

/// Everything is gone: ledgers, journal, what undoes the fence. Whoever takes its place comes to the
/// same end, or where nobody can know any more what was drained, to the other one.
#[tokio::test(start_paused = true)]
async fn a_coordinator_that_lost_everything_is_made_anew_from_the_sites() {
    for doing in [Doing::Migrate, Doing::Abort] {
        let (mut ends, mut unknown) = (Ends::default(), 0);
        for point in clean().await {
            for fate in deaths(&point) {
                let at = format!("{point}, {fate:?}, then {doing:?}");
                let stage = Stage::new().await;
                stage.dies(&point, fate, &at).await;
                stage.kept.lose_everything();
                tells_the_truth(&stage, &at).await;
                if !stage.recover().await {
                    // Killed before the first record: nothing was begun.
                    stage.assert_stayed().await;
                    unknown += 1;
                    continue;
                }
                tells_the_truth(&stage, &at).await;
                let mut end = stage.live(doing, &Points::default()).await;
                if let End::Refused(why) = &end {
                    assert!(doing == Doing::Abort && stage.decided().0, "{at}: {why}");
                    end = stage.live(Doing::Migrate, &Points::default()).await;
                }
                stage.assert_ended(&end, &at).await;
                ends.count(&end);
            }
        }
        println!("{doing:?}: {ends:?}, {unknown} where nothing was begun");
    }
}

/// A site does not answer either: what is said without it is true, what is done without it is no harm,
/// and when it is back all comes to its end.
#[tokio::test(start_paused = true)]
async fn a_coordinator_that_lost_everything_and_a_site_waits_for_it() {
    let (mut ends, mut without) = (Ends::default(), 0);
    for point in clean().await {
        for source_is_gone in [true, false] {
            let at = format!("{point}, source is gone: {source_is_gone}");
            let stage = Stage::new().await;
            stage.dies(&point, Fate::DiesAfter, &at).await;
            stage.kept.lose_everything();
            let gone = if source_is_gone { &stage.east } else { &stage.west };
            stage.world.set_reachable(gone, false);
            let known = stage.recover().await;
            no_lies(&stage, &at).await;
            stage.world.set_reachable(gone, false);
            if known {
                let end = stage.live(Doing::Migrate, &Points::default()).await;
                without +=
                    usize::from(stage.world.loaded_at(stage.id()) == Some(stage.west.clone()));
                assert!(!matches!(end, End::Final(Phase::RolledBack)), "{at}: {end:?}");
                no_lies(&stage, &at).await;
            }
            stage.world.set_reachable(gone, true);
            if !stage.recover().await {
                stage.assert_stayed().await;
                continue;
            }
            let end = stage.live(Doing::Migrate, &Points::default()).await;
            stage.assert_ended(&end, &at).await;
            ends.count(&end);
        }
    }
    println!("{ends:?}, {without} came up at the destination before that");
}

/// The same while it is being taken back: its source is not said to run before it was let go on, and what
/// undoes its fence is there for as long as it takes.
#[tokio::test(start_paused = true)]
async fn taken_back_without_its_source_it_waits_for_it() {
    let halfway = halfway();
    let mut waited = 0;
    for point in taking_back().await {
        let at = point.to_string();
        let stage = Stage::new().await;
        stage.dies(&halfway, Fate::DiesAfter, &at).await;
        let end = stage.live(Doing::Abort, &Points::with(point, Fate::DiesAfter)).await;
        assert!(matches!(end, End::Killed), "{at}: {end:?}");
        stage.kept.lose_everything();
        for doing in [Doing::Migrate, Doing::Abort] {
            stage.world.set_reachable(&stage.east, false);
            if stage.recover().await {
                let end = stage.live(doing, &Points::default()).await;
                let is_over = matches!(end, End::Final(_));
                assert!(!is_over, "{at}: {end:?}, and nobody has asked its source");
                waited += 1;
            }
            no_lies(&stage, &at).await;
        }
        stage.world.set_reachable(&stage.east, true);
        // Unless all was done, and nothing is left that tells of it.
        if stage.recover().await {
            let end = stage.live(Doing::Abort, &Points::default()).await;
            assert!(matches!(end, End::Final(Phase::RolledBack)), "{at}: {end:?}");
        }
        stage.assert_stayed().await;
    }
    println!("waited {waited} times");
}

/// Nothing remembers that its source is fenced: it is not taken for untouched, and the copy is kept.
#[tokio::test(start_paused = true)]
async fn a_source_whose_ledger_is_lost_is_not_taken_for_untouched() {
    let stage = Stage::new().await;
    stage.dies(&halfway(), Fate::DiesAfter, "fenced").await;
    stage.kept.restore_ledger(&stage.east, Vec::new());
    stage.world.set_records(&stage.east, BTreeMap::new());
    let end = stage.live(Doing::Abort, &Points::default()).await;
    assert!(matches!(end, End::Halted(_)), "{end:?}");
    stage.assert_whole_where_it_is("its source's ledger is lost").await;
}

/// A destination's ledger that is lost here and at its site gets its decision back from the mark.
#[tokio::test(start_paused = true)]
async fn a_decision_whose_ledger_is_lost_stands_on_the_placeholder() {
    let clean = clean().await;
    let marked = clean.iter().position(|point| point.name == "west: write_mark").unwrap();
    for point in &clean[marked..] {
        let at = point.to_string();
        let stage = Stage::new().await;
        stage.dies(point, Fate::DiesAfter, &at).await;
        stage.kept.restore_ledger(&stage.west, Vec::new());
        stage.world.set_records(&stage.west, BTreeMap::new());
        let end = stage.live(Doing::Migrate, &Points::default()).await;
        assert!(matches!(end, End::Final(Phase::Retired)), "{at}: {end:?}");
        stage.assert_moved().await;
    }
}

/// What one site's ledger here has forgotten its copy there has not.
#[tokio::test(start_paused = true)]
async fn ledgers_of_an_earlier_day_get_back_what_they_forgot() {
    let points = clean().await;
    let mut moved = 0;
    for (nth, point) in points.iter().enumerate() {
        for earlier in [nth / 2, nth.saturating_sub(4)] {
            for old in [[true, false], [false, true], [true, true]] {
                let at = format!("{point}, ledgers as of passage {earlier}: {old:?}");
                let stage = Stage::new().await;
                let sites = [stage.east.clone(), stage.west.clone()];
                let (kept, copied) = (stage.kept.clone(), Mutexed::default());
                let (copies, names) = (Arc::clone(&copied), sites.clone());
                let points = Points::beside(At::Nth(earlier), move |_: &str| {
                    let bytes = names.map(|site| kept.disk(site.as_str()).bytes());
                    *copies.lock().unwrap() = bytes.to_vec();
                });
                points.arm(point.clone(), Fate::DiesAfter);
                let end = stage.live(Doing::Migrate, &points).await;
                assert!(matches!(end, End::Killed), "{at}: {end:?}");
                let copies: Vec<Vec<u8>> = copied.lock().unwrap().clone();
                for ((site, bytes), _) in sites.iter().zip(copies).zip(old).filter(|(_, old)| *old)
                {
                    stage.kept.restore_ledger(site, bytes);
                }
                tells_the_truth(&stage, &at).await;
                let end = stage.live(Doing::Migrate, &Points::default()).await;
                assert!(matches!(end, End::Final(Phase::Retired)), "{at}: {end:?}");
                stage.assert_moved().await;
                moved += 1;
            }
        }
    }
    println!("{moved} moved");
}

/// Somebody empties what the sites keep: the ledgers here bring it back.
#[tokio::test(start_paused = true)]
async fn sites_that_lost_what_they_kept_get_it_again() {
    let mut moved = 0;
    for point in clean().await {
        let at = point.to_string();
        let stage = Stage::new().await;
        stage.dies(&point, Fate::DiesAfter, &at).await;
        for site in [&stage.east, &stage.west] {
            stage.world.set_records(site, BTreeMap::new());
        }
        no_lies(&stage, &at).await;
        let end = stage.live(Doing::Migrate, &Points::default()).await;
        assert!(matches!(end, End::Final(Phase::Retired)), "{at}: {end:?}");
        stage.assert_moved().await;
        moved += 1;
    }
    println!("{moved} moved");
}

/// ... and then the machine that had brought it back is lost.
#[tokio::test(start_paused = true)]
async fn what_sites_get_again_is_enough_for_the_next_machine() {
    for reached in ["journal: Fenced", "journal: Decided", "journal: Prepared"] {
        let stage = Stage::new().await;
        let point = |name: &str| Point { name: name.to_owned(), nth: 1 };
        stage.dies(&point(reached), Fate::DiesAfter, reached).await;
        for site in [&stage.east, &stage.west] {
            stage.world.set_records(site, BTreeMap::new());
        }
        stage.dies(&point("west: start_from_own_disk"), Fate::DiesBefore, reached).await;
        stage.kept.lose_everything();
        assert!(stage.recover().await, "{reached}");
        let end = stage.live(Doing::Migrate, &Points::default()).await;
        assert!(matches!(end, End::Final(Phase::Retired)), "{reached}: {end:?}");
        stage.assert_moved().await;
    }
}

/// On its own machine?
fn is_own(name: &str) -> bool {
    name.contains("ledger: ") || name.contains("keep what undoes")
}

/// What is written on its own machine a coordinator does in one go; elsewhere it can be overtaken.
async fn where_it_can_stand_still() -> impl Iterator<Item = (Point, Doing)> {
    let points = clean().await.into_iter().filter(|point| !is_own(&point.name));
    points.flat_map(|point| [(point.clone(), Doing::Migrate), (point, Doing::Abort)])
}

/// One coordinator stands still somewhere and is taken for lost. The other, which takes its place, comes
/// as far as it is let, and then the first goes on. `None`: nothing was begun yet.
async fn overtaken(
    stage: &Stage,
    point: &Point,
    doing: Doing,
    second_passes: &Points,
) -> Option<(Stage, End, End)> {
    let points = Points::held(point.clone());
    let mut first = Box::pin(stage.live(Doing::Migrate, &points));
    tokio::select! {
        end = &mut first => panic!("{point}: {end:?}"),
        () = points.stands() => {}
    }
    let second = stage.elsewhere();
    if !second.recover().await {
        return None;
    }
    let end = second.live(doing, second_passes).await;
    points.go_on();
    Some((second, first.await, end))
}

/// Nothing is lost and no two run; which of them ends it is all the same.
#[tokio::test(start_paused = true)]
async fn two_coordinators_that_do_not_know_of_one_another_do_no_harm() {
    let (mut ends, mut stood_aside) = (Ends::default(), 0);
    for (point, doing) in where_it_can_stand_still().await {
        let at = format!("the first stands before {point}, the second: {doing:?}");
        let stage = Stage::new().await;
        let whole = Points::default();
        let overtaken = overtaken(&stage, &point, doing, &whole).await;
        let Some((second, first, mut end)) = overtaken else { continue };
        no_lies(&second, &at).await;
        if !matches!(first, End::Final(_)) {
            stood_aside += 1;
            // What it made since, without knowing better, it takes back when it is told to.
            let told = stage.live(Doing::Abort, &Points::default()).await;
            match &told {
                End::Final(Phase::RolledBack) | End::Refused(_) => {}
                // It had begun to take back what the second then brought to its end.
                End::Halted(_) if stage.decided().0 => {
                    assert!(stage.recover().await, "{at}");
                    let end = stage.live(Doing::Migrate, &Points::default()).await;
                    assert!(matches!(end, End::Final(Phase::Retired)), "{at}: {end:?}");
                }
                _ => panic!("{at}: {first:?}, then {told:?}"),
            }
        }
        for _ in 0..4 {
            let doing = second.operator_obeys().await;
            if matches!(end, End::Final(_)) {
                break;
            }
            end = second.live(doing, &Points::default()).await;
        }
        second.assert_ended(&end, &format!("{at}: {first:?}")).await;
        ends.count(&end);
    }
    println!("{ends:?}, the first stood aside {stood_aside} times");
}

/// Another coordinator brings it to its end, and then the first one's machine is found again: what it
/// knows is old, and it is told so before it touches anything.
#[tokio::test(start_paused = true)]
async fn a_coordinator_that_comes_back_when_all_is_over_is_told_so() {
    let mut told = 0;
    for (point, doing) in where_it_can_stand_still().await {
        let at = format!("{point}, another one: {doing:?}");
        let stage = Stage::new().await;
        stage.dies(&point, Fate::DiesAfter, &at).await;
        let second = stage.elsewhere();
        if !second.recover().await {
            continue;
        }
        let other = second.live(doing, &Points::default()).await;
        let calls = stage.world.calls().len();
        let mut end = stage.live(Doing::Migrate, &Points::default()).await;
        if let End::Halted(Halt::Undecided { cause, .. }) = &end {
            let granted = CustodyError::Refused(Refusal::AlreadyGranted);
            assert_eq!(cause.to_string(), granted.to_string(), "{at}: {other:?}");
            let changed = |call: &Call| call.method.changes();
            let calls = stage.world.calls().split_off(calls);
            assert!(!calls.iter().any(changed), "{at}: {calls:?}");
            told += 1;
            assert!(stage.recover().await, "{at}");
            end = stage.live(Doing::Migrate, &Points::default()).await;
        }
        stage.assert_ended(&end, &format!("{at}: {other:?}")).await;
    }
    println!("told {told} times");
    assert!(told > 0, "the case did not come up");
}

/// Where a site cannot compare and replace a record in one step, the first overwrites what the second
/// wrote. Then a person may be needed; but no two run, and all that was written is there.
#[tokio::test(start_paused = true)]
async fn nor_do_they_where_one_overwrites_what_the_other_wrote() {
    let mut nowhere = 0;
    for (point, doing) in where_it_can_stand_still().await {
        let mut stage = Stage::new().await;
        stage.compares_and_replaces = false;
        let whole = Points::default();
        let Some((second, ..)) = overtaken(&stage, &point, doing, &whole).await else { continue };
        for which in [&stage, &second, &stage] {
            which.live(Doing::Migrate, &Points::default()).await;
        }
        stage.assert_whole_where_it_is(&format!("{point}, {doing:?}")).await;
        nowhere += usize::from(stage.world.loaded_at(stage.id()).is_none());
    }
    println!("it runs nowhere {nowhere} times");
}

/// There, the first decides for the destination over a revocation that the second was about to carry out:
/// whoever acts on its own word looks for the other's first. Both stand still once more in between: the
/// second before each thing that it does, the first before it starts the VM, or not.
#[tokio::test(start_paused = true)]
async fn nor_where_one_decides_over_what_the_other_is_carrying_out() {
    let clean = clean().await;
    let marks = clean.iter().position(|point| point.name == "west: write_mark").unwrap();
    let decides = clean[..marks].iter().rfind(|point| point.name == "west: keep").unwrap();
    let starts = Point { name: "west: start_from_own_disk".to_owned(), nth: 1 };
    let overwriting = || async {
        let mut stage = Stage::new().await;
        stage.compares_and_replaces = false;
        stage
    };
    let points = Points::default();
    overtaken(&overwriting().await, decides, Doing::Abort, &points).await.unwrap();
    let (mut pairs, mut stood_aside) = (0, 0);
    let ways = [(false, false), (false, true), (true, false), (true, true)];
    for point in points.passed().into_iter().filter(|point| !is_own(&point.name)) {
        for (stands_again, source_is_silent) in ways {
            let stage = overwriting().await;
            // To the first; the second hears it.
            let source_answers =
                |it: bool| stage.world.set_reachable(&stage.east, it || !source_is_silent);
            let (at_first, at_second) =
                (Points::held(decides.clone()), Points::held(point.clone()));
            let mut first = Box::pin(stage.live(Doing::Migrate, &at_first));
            tokio::select! {
                end = &mut first => panic!("{end:?}"),
                () = at_first.stands() => {}
            }
            let second = stage.elsewhere();
            assert!(second.recover().await);
            let mut taking_back = Box::pin(second.live(Doing::Abort, &at_second));
            tokio::select! {
                end = &mut taking_back => panic!("{point}: {end:?}"),
                () = at_second.stands() => {}
            }
            if stands_again {
                at_first.hold(starts.clone());
            }
            source_answers(false);
            at_first.go_on();
            let (stands, halt) = tokio::select! {
                end = &mut first => (false, Some(end)),
                () = at_first.stands() => (true, None),
            };
            stood_aside += usize::from(matches!(
                halt,
                Some(End::Halted(Halt::Undecided {
                    cause: StepError::Custody(CustodyError::MayBeReleased { .. }),
                    ..
                }))
            ));
            source_answers(true);
            at_second.go_on();
            taking_back.await;
            source_answers(false);
            if stands {
                at_first.go_on();
                first.await;
            }
            source_answers(true);
            let at = format!("{point}, again: {stands_again}, silent: {source_is_silent}");
            stage.assert_whole_where_it_is(&at).await;
            pairs += 1;
        }
    }
    println!("{pairs} pairs, {stood_aside} times nobody knew whether the source was let go on");
    assert!(stood_aside > 0, "the case did not come up");
}
