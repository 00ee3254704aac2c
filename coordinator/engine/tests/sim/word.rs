//! What an operator answers for, where a site cannot be asked.

use std::collections::BTreeMap;

use engine::custody::CustodyError;
use engine::{Halt, Phase, State, StepError, Vouched};
use handover::{Attestation, DestinationEntry, Entry, Next, Record, Strength, VerdictKind};
use model::Power;

use crate::crash::{clean, halfway, taking_back};
use crate::points::{Fate, Point, Points};
use crate::stage::{Ask, Doing, End, Stage};
use crate::verdicts::no_lies;

fn word() -> Attestation {
    Attestation { by: "ann".into(), reason: "its hall is on fire".into() }
}

/// Called off by that word the source runs at once; what was made at the destination is removed as soon as
/// that answers again, and not held for gone.
#[tokio::test(start_paused = true)]
async fn a_destination_that_is_away_is_tidied_up_when_it_comes_back() {
    let (mut tidied, mut decided) = (0, 0);
    for point in clean().await {
        let at = point.to_string();
        let stage = Stage::new().await;
        stage.dies(&point, Fate::DiesAfter, &at).await;
        // There the word would be wrong.
        if stage.decided().0 {
            decided += 1;
            continue;
        }
        stage.world.set_reachable(&stage.west, false);
        let end = stage.live_by(Doing::Abort, &Points::default(), Vouched::NeverRan(word())).await;
        match &end {
            End::Halted(Halt::LetGo { .. }) => {}
            other => panic!("{at}: {other:?}"),
        }
        is_tidied_up_when_back(&stage, &at).await;
        tidied += 1;
    }
    println!("{tidied} tidied up, {decided} decided");
}

/// Its VM runs meanwhile.
async fn is_tidied_up_when_back(stage: &Stage, at: &str) {
    assert_eq!(stage.world.power(&stage.east, stage.id()), Power::Running, "{at}");
    stage.world.set_reachable(&stage.west, true);
    no_lies(stage, at).await;
    let end = stage.live(Doing::Migrate, &Points::default()).await;
    assert!(matches!(end, End::Final(Phase::RolledBack)), "{at}: {end:?}");
    stage.assert_stayed().await;
}

/// The same where it was being taken back already, and the destination may have recorded that: what both
/// tell is one story. And the word is remembered by whoever goes on.
#[tokio::test(start_paused = true)]
async fn a_destination_that_had_revoked_by_itself_tells_no_other_story() {
    let (mut tidied, mut ended, mut told_again) = (0, 0, 0);
    for point in taking_back().await {
        for dies in [false, true] {
            let at = format!("{point}, and dies again: {dies}");
            let stage = Stage::new().await;
            stage.dies(&halfway(), Fate::DiesAfter, &at).await;
            let end = stage.live(Doing::Abort, &Points::with(point.clone(), Fate::DiesAfter)).await;
            assert!(matches!(end, End::Killed), "{at}: {end:?}");
            if State::replay(&stage.kept.records()).unwrap().phase.is_final() {
                ended += 1;
                continue;
            }
            stage.world.set_reachable(&stage.west, false);
            let sure = || Vouched::NeverRan(word());
            if dies {
                // Between the word and the source's release: it goes on without being told again.
                let undoing = Point { name: "east: fence_undo".to_owned(), nth: 1 };
                let undoing = Points::with(undoing, Fate::DiesBefore);
                stage.live_by(Doing::Abort, &undoing, sure()).await;
                stage.live(Doing::Migrate, &Points::default()).await;
                if stage.world.power(&stage.east, stage.id()) != Power::Running {
                    assert!(!is_recorded(&stage), "{at}: the word is not remembered");
                    told_again += 1;
                    stage.live_by(Doing::Abort, &Points::default(), sure()).await;
                }
            } else {
                stage.live_by(Doing::Abort, &Points::default(), sure()).await;
            }
            is_tidied_up_when_back(&stage, &at).await;
            tidied += 1;
        }
    }
    println!("{tidied} tidied up, {ended} had ended, {told_again} times the word was given twice");
    assert!(told_again < tidied / 2, "the case hardly came up");
}

/// It is not, where it had been revoked without one.
fn is_recorded(stage: &Stage) -> bool {
    let by_word = |record: &Record| {
        matches!(record.entry, Entry::Destination(DestinationEntry::Revoked { attested: Some(_) }))
    };
    stage.ledgers().of(&stage.west).unwrap_or_default().iter().any(by_word)
}

/// A journal from before it began, and a destination that is away: what the source's ledger knows of its
/// fence is not passed over.
#[tokio::test(start_paused = true)]
async fn an_old_journal_and_a_destination_that_is_away_do_not_hide_a_fence() {
    for gone in [false, true] {
        let stage = Stage::new().await;
        stage.dies(&halfway(), Fate::DiesAfter, "fenced").await;
        stage.kept.replace_journal(Vec::new());
        stage.kept.restore_ledger(&stage.west, Vec::new());
        stage.world.set_reachable(&stage.west, false);
        let sure = if gone { Vouched::DestinationGone(word()) } else { Vouched::NeverRan(word()) };
        let end = stage.live_by(Doing::Abort, &Points::default(), sure).await;
        let is_right = match &end {
            End::Halted(Halt::LetGo { power: Some(Power::Running), .. }) => !gone,
            End::Final(Phase::RolledBack) => gone,
            _ => false,
        };
        assert!(is_right, "{end:?}");
        assert_eq!(stage.world.power(&stage.east, stage.id()), Power::Running, "{end:?}");
    }
}

/// One that is gone for good holds up nothing: it ends, and says what may be left there.
#[tokio::test(start_paused = true)]
async fn a_destination_that_is_gone_holds_up_nothing() {
    let stage = Stage::new().await;
    stage.dies(&halfway(), Fate::DiesAfter, "fenced").await;
    stage.world.set_reachable(&stage.west, false);
    let gone = Vouched::DestinationGone(word());
    let end = stage.live_by(Doing::Abort, &Points::default(), gone).await;
    assert!(matches!(end, End::Final(Phase::RolledBack)), "{end:?}");
    assert_eq!(stage.world.power(&stage.east, stage.id()), Power::Running);
    let left = State::replay(&stage.kept.records()).unwrap().left;
    let placeholder = format!("west: placeholder {}", stage.vm.name);
    assert_eq!((left.len(), &left[0]), (3, &placeholder), "{left:?}");
}

/// Somebody has begun to call it off, and the source has lost its copy of what it knows: that it answers
/// is not enough.
#[tokio::test(start_paused = true)]
async fn a_source_that_forgot_is_no_better_than_one_that_is_silent() {
    let stage = Stage::new().await;
    let marked = Point { name: "west: write_mark".to_owned(), nth: 1 };
    stage.dies(&marked, Fate::DiesAfter, "marked").await;
    say_that_it_is_called_off(&stage);
    stage.world.set_records(&stage.east, BTreeMap::new());
    for with_journal in [true, false] {
        let verdict = stage.verdict(Ask::Both, with_journal).await;
        assert_eq!(verdict.next, Next::AskSource, "{verdict:?}");
    }
    // Nor the second time, when it might have got its copy again.
    for _ in 0..2 {
        let end = stage.live(Doing::Migrate, &Points::default()).await;
        assert!(matches!(end, End::Halted(Halt::Undecided { .. })), "{end:?}");
        assert_eq!(stage.world.loaded_at(stage.id()), None);
        let verdict = stage.verdict(Ask::Both, true).await;
        assert_eq!(verdict.next, Next::AskSource, "{verdict:?}");
    }
}

fn say_that_it_is_called_off(stage: &Stage) {
    let mut records = stage.world.records(&stage.west);
    let key = format!("vm/{}/revoking-1", stage.id());
    records.insert(key.parse().unwrap(), b"revoking".to_vec());
    stage.world.set_records(&stage.west, records);
}

/// Decided, but somebody has begun to call it off and the source does not answer: nothing is started, it
/// is not said to have moved, and by the operator's word it goes on.
#[tokio::test(start_paused = true)]
async fn what_may_have_been_released_is_started_by_word_alone() {
    let clean = clean().await;
    let marked = clean.iter().position(|point| point.name == "west: write_mark").unwrap();
    let started = clean.iter().position(|point| point.name == "west: start_from_own_disk").unwrap();
    assert!(started > marked);
    for point in &clean[marked..started] {
        let at = point.to_string();
        let stage = Stage::new().await;
        stage.dies(point, Fate::DiesAfter, &at).await;
        say_that_it_is_called_off(&stage);
        let verdict = stage.verdict(Ask::DestinationAnswers, true).await;
        let expected = (VerdictKind::NeedsOperator, Next::AskSource);
        assert_eq!((verdict.verdict, verdict.next), expected, "{at}: {verdict:?}");
        stage.world.set_reachable(&stage.east, false);
        match stage.live(Doing::Migrate, &Points::default()).await {
            End::Halted(Halt::Undecided {
                cause: StepError::Custody(CustodyError::MayBeReleased { .. }),
                ..
            }) => {}
            other => panic!("{at}: {other:?}"),
        }
        assert_eq!(stage.world.loaded_at(stage.id()), None, "{at}");

        // It dies before it has started it, and goes on by the same word.
        let starting = Point { name: "west: start_from_own_disk".to_owned(), nth: 1 };
        let starting = Points::with(starting, Fate::DiesBefore);
        let sure = Vouched::NotReleased(word());
        let end = stage.live_by(Doing::Migrate, &starting, sure).await;
        assert!(matches!(end, End::Killed), "{at}: {end:?}");
        let end = stage.live(Doing::Migrate, &Points::default()).await;
        assert!(matches!(end, End::Halted(Halt::Unfinished { .. })), "{at}: {end:?}");
        let verdict = stage.verdict(Ask::DestinationAnswers, true).await;
        assert_eq!(verdict.strength, Strength::Observed, "{at}: {verdict:?}");
        assert_eq!(stage.world.loaded_at(stage.id()), Some(stage.west.clone()), "{at}");
        let vouched = State::replay(&stage.kept.records()).unwrap().vouched;
        assert_eq!(vouched.map(|(by, _)| by).as_deref(), Some("ann"), "{at}");
        stage.world.set_reachable(&stage.east, true);
        let end = stage.live(Doing::Migrate, &Points::default()).await;
        assert!(matches!(end, End::Final(Phase::Retired)), "{at}: {end:?}");
        stage.assert_moved().await;
    }
}
