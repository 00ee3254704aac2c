//! Long random histories, each brought to its end by the product's own order of steps.

use handover::{Intent, Outcome, Step, next_step};
use proptest::prelude::*;

use crate::exhaustive::{
    at_most_one_runs, granted_was_fenced, newest_exists, nothing_is_lost, released_was_revoked,
    running, verdict_is_true,
};
use crate::pure::{
    self, AnyReceipt, AsDestination, AsSource, Basis, Call, MOVES, Move, destination_role,
    source_role,
};
use crate::world::{Ask, Happens, Restorable, Rules, World};

/// More steps than any attempt needs: one that does not end is caught in a circle.
const ENOUGH: usize = 60;

fn assert_good(world: &World, rules: &Rules, after: &str) {
    assert!(at_most_one_runs(world), "two run {after}: {world:?}");
    assert!(nothing_is_lost(world), "a write is missing {after}: {world:?}");
    assert!(newest_exists(world), "the newest data is gone {after}: {world:?}");
    assert!(verdict_is_true(world), "the verdict is wrong {after}: {world:?}");
    if rules.restorable == Restorable::None {
        assert!(granted_was_fenced(world), "granted and never fenced {after}: {world:?}");
        assert!(released_was_revoked(world), "released, not revoked {after}: {world:?}");
    }
}

/// Asks twice, as a coordinator does that lost the answer.
fn ask(world: &mut World, ask: Ask, rules: &Rules) {
    for _ in 0..2 {
        let done = world.answer(ask, rules).len();
        if let Some(after) = world.after(&Happens::Asked { ask, done }, rules) {
            *world = after;
            assert_good(world, rules, &format!("after {ask:?}"));
        }
    }
}

fn happen(world: &mut World, happens: &Happens, rules: &Rules) {
    if let Some(after) = world.after(happens, rules) {
        *world = after;
    }
    assert_good(world, rules, &format!("after {happens:?}"));
}

/// What is still open, oldest first: what a side is in the middle of, then the newest attempt.
fn open_moves(world: &World) -> Vec<Move> {
    let leaving = |m: &Move| {
        matches!(
            pure::as_source(m.source(), world.sites[m.source()].ledger, *m),
            AsSource::Fencing
                | AsSource::Fenced(_)
                | AsSource::Released { settled: false }
                | AsSource::Retired { settled: false }
        )
    };
    let arriving = |m: &Move| {
        matches!(
            pure::as_destination(m.destination(), world.sites[m.destination()].ledger, *m),
            AsDestination::Known
                | AsDestination::Placed
                | AsDestination::Synced
                | AsDestination::Granted
        )
    };
    let heard = |m: &Move| {
        let (s, d) = (m.source(), m.destination());
        pure::as_source(s, world.sites[s].ledger, *m) != AsSource::Unknown
            || pure::as_destination(d, world.sites[d].ledger, *m) != AsDestination::Unknown
    };
    let mut moves: Vec<Move> = MOVES.into_iter().filter(|m| leaving(m) || arriving(m)).collect();
    moves.extend(MOVES.into_iter().rev().find(heard));
    moves.dedup();
    moves
}

/// Goes on until nothing is open, by `next_step` alone.
fn settle(world: &mut World, intent: Intent, rules: &Rules) -> Option<(Move, Outcome)> {
    for site in 0..2 {
        ask(world, Ask::Heal(site), rules);
    }
    let moves = open_moves(world);
    let mut outcome = None;
    for (i, m) in moves.iter().enumerate() {
        let intent = if i + 1 < moves.len() { Intent::Abort } else { intent };
        outcome = Some((*m, settle_one(world, *m, intent, rules)));
    }
    outcome
}

fn settle_one(world: &mut World, m: Move, mut intent: Intent, rules: &Rules) -> Outcome {
    let (s, d) = (m.source(), m.destination());
    let mut history = vec![];
    for _ in 0..ENOUGH {
        let source = source_role(s, world.sites[s].ledger, world.sites[s].live).state(m.epoch());
        let destination = destination_role(d, world.sites[d].ledger).state(m.epoch());
        let step = next_step(Some(&source), Some(&destination), intent);
        history.push(step.clone());
        match step {
            Step::Done(outcome) => return outcome,
            Step::OpenSource => {
                let before = world.clone();
                ask(world, Ask::OpenSource(m), rules);
                if *world == before {
                    intent = Intent::Abort;
                }
            }
            Step::OpenDestination => {
                ask(world, Ask::OpenDestination(m), rules);
                // Too late for it: a later epoch is known there.
                if pure::as_destination(d, world.sites[d].ledger, m) == AsDestination::Unknown {
                    let call = Call::Decline(m, world.mark(d));
                    let declined = pure::call(d, world.sites[d].ledger, false, call);
                    let [pure::Act::Send(receipt)] = declined[..] else {
                        // A higher epoch is known to the source alone, or the VM is not there.
                        intent = Intent::Abort;
                        continue;
                    };
                    ask(world, Ask::Release(m, receipt), rules);
                    ask(world, Ask::CarryOnAsSource(s), rules);
                    ask(world, Ask::Settled(m), rules);
                    return Outcome::RolledBack;
                }
            }
            Step::Place => {
                happen(world, &Happens::Place(m), rules);
                ask(world, Ask::Placeholder(m), rules);
            }
            Step::CopyAndSync => {
                happen(world, &Happens::Copy(m), rules);
                ask(world, Ask::Synced(m), rules);
            }
            Step::Fence => {
                ask(world, Ask::Fence(m), rules);
                ask(world, Ask::CarryOnAsSource(s), rules);
                ask(world, Ask::FenceHolds(m, Basis::Drained), rules);
                ask(world, Ask::FenceHolds(m, Basis::ReadWhileOff), rules);
            }
            Step::Grant(fence) => {
                ask(world, Ask::Grant(m, pure::keep(AnyReceipt::Fence(fence))), rules);
            }
            Step::WriteMark => {
                ask(world, Ask::CarryOnAsDestination(d), rules);
                ask(world, Ask::MarkWritten(m), rules);
            }
            Step::Start => {
                ask(world, Ask::Start(m), rules);
                ask(world, Ask::Started(m), rules);
            }
            Step::AwaitHealth => ask(world, Ask::Healthy(m), rules),
            Step::Retire(grant) => {
                ask(world, Ask::Retire(m, pure::keep(AnyReceipt::Grant(grant))), rules);
            }
            Step::Revoke => ask(world, Ask::Revoke(m), rules),
            Step::Release(revoke) => {
                ask(world, Ask::Release(m, pure::keep(AnyReceipt::Revoke(revoke))), rules);
            }
            Step::Settle => {
                ask(world, Ask::CarryOnAsSource(s), rules);
                ask(world, Ask::Settled(m), rules);
            }
            Step::Stop(why) => panic!("{why:?} after {history:?}: {world:?}"),
            Step::WaitFor(side) => panic!("both sides answer, and it waits for {side:?}"),
        }
    }
    panic!("{m:?} does not end: {:?}\n{world:?}", &history[ENOUGH - 6..]);
}

fn wander(rules: &Rules, choices: &[prop::sample::Index]) -> World {
    let mut world = World::new();
    for choice in choices {
        let mut possible = world.happenings(rules);
        possible.retain(|happens| world.after(happens, rules).is_some());
        if possible.is_empty() {
            break;
        }
        happen(&mut world, &possible[choice.index(possible.len())], rules);
    }
    world
}

fn brought_to_its_end(rules: &Rules, choices: &[prop::sample::Index], commit: bool) {
    let mut world = wander(rules, choices);
    let intent = if commit { Intent::Commit } else { Intent::Abort };
    let lives_at = match settle(&mut world, intent, rules) {
        None => 0,
        Some((m, Outcome::Completed)) => m.destination(),
        Some((m, Outcome::RolledBack)) => m.source(),
    };
    assert_eq!(running(&world), vec![lives_at], "{world:?}");
    assert_good(&world, rules, "at the end");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_history_of_crashes_and_repetitions_comes_to_one_running_vm(
        choices in prop::collection::vec(any::<prop::sample::Index>(), 0..70), commit: bool,
    ) {
        let rules = Rules { writes: 4, moves: MOVES.to_vec(), ..Rules::default() };
        brought_to_its_end(&rules, &choices, commit);
    }

    #[test]
    fn so_does_one_with_a_destinations_ledger_restored_old(
        choices in prop::collection::vec(any::<prop::sample::Index>(), 0..70), commit: bool,
    ) {
        let rules = Rules {
            writes: 4,
            moves: vec![Move::First],
            restores: 2,
            restorable: Restorable::Granted,
            mutant: None,
        };
        brought_to_its_end(&rules, &choices, commit);
    }
}
