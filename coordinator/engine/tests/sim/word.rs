//! What an operator answers for, where a site cannot be asked.

use engine::custody::CustodyError;
use engine::{Halt, Phase, State, StepError, Vouched};
use handover::{Attestation, Next, VerdictKind};
use model::Power;

use crate::crash::{clean, halfway};
use crate::points::{Fate, Points};
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
            End::Halted(Halt::Resumable { phase: Phase::RollingBack, .. }) => {}
            other => panic!("{at}: {other:?}"),
        }
        assert_eq!(stage.world.power(&stage.east, stage.id()), Power::Running, "{at}");
        stage.world.set_reachable(&stage.west, true);
        no_lies(&stage, &at).await;
        let end = stage.live(Doing::Migrate, &Points::default()).await;
        assert!(matches!(end, End::Final(Phase::RolledBack)), "{at}: {end:?}");
        stage.assert_stayed().await;
        tidied += 1;
    }
    println!("{tidied} tidied up, {decided} decided");
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
        let mut records = stage.world.records(&stage.west);
        let key = format!("vm/{}/revoking-1", stage.id());
        records.insert(key.parse().unwrap(), b"revoking".to_vec());
        stage.world.set_records(&stage.west, records);

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

        let sure = Vouched::NotReleased(word());
        let end = stage.live_by(Doing::Migrate, &Points::default(), sure).await;
        assert!(matches!(end, End::Halted(Halt::Unfinished { .. })), "{at}: {end:?}");
        assert_eq!(stage.world.loaded_at(stage.id()), Some(stage.west.clone()), "{at}");
        let vouched = State::replay(&stage.kept.records()).unwrap().vouched;
        assert_eq!(vouched.map(|(by, _)| by).as_deref(), Some("ann"), "{at}");
        stage.world.set_reachable(&stage.east, true);
        let end = stage.live(Doing::Migrate, &Points::default()).await;
        assert!(matches!(end, End::Final(Phase::Retired)), "{at}: {end:?}");
        stage.assert_moved().await;
    }
}
