//! The coordinator's machine is lost, or what it kept: the sites know enough to go on.

use std::collections::BTreeMap;
use std::sync::Arc;

use engine::Phase;

use crate::agents::Mutexed;
use crate::crash::{clean, deaths};
use crate::points::{At, Fate, Points};
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

/// The one that was taken for lost stands still somewhere and goes on later, beside the one that took
/// its place. Nothing is lost and no two run; which of them ends it is all the same.
#[tokio::test(start_paused = true)]
async fn two_coordinators_that_do_not_know_of_one_another_do_no_harm() {
    let (mut ends, mut stood_aside) = (Ends::default(), 0);
    // What is written on its own machine it does in one go.
    let own = |name: &str| name.contains("ledger: ") || name.contains("keep what undoes");
    for point in clean().await.into_iter().filter(|point| !own(&point.name)) {
        for doing in [Doing::Migrate, Doing::Abort] {
            let at = format!("the first stands before {point}, the second: {doing:?}");
            let stage = Stage::new().await;
            let points = Points::held(point.clone());
            let mut first = Box::pin(stage.live(Doing::Migrate, &points));
            tokio::select! {
                end = &mut first => panic!("{at}: {end:?}"),
                () = points.stands() => {}
            }
            let second = stage.elsewhere();
            if !second.recover().await {
                continue;
            }
            let mut end = second.live(doing, &Points::default()).await;
            points.go_on();
            let ended = first.await;
            no_lies(&second, &at).await;
            if !matches!(ended, End::Final(_)) {
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
                    _ => panic!("{at}: {ended:?}, then {told:?}"),
                }
            }
            for _ in 0..4 {
                let doing = second.operator_obeys().await;
                if matches!(end, End::Final(_)) {
                    break;
                }
                end = second.live(doing, &Points::default()).await;
            }
            let at = format!("{at}: {ended:?}");
            second.assert_ended(&end, &at).await;
            ends.count(&end);
        }
    }
    println!("{ends:?}, the first stood aside {stood_aside} times");
}
