//! A VM that its libvirt has left paused, as whoever led the migration is gone: the source's agent ends it where it
//! is whole at the destination, and resumes it where it is not. Every fault at every place of that.
//!
//! `ONLY` and `EVERY` as in `matrix.rs`.

use crate::fault::Fault;
use crate::judge::{Help, Operator, Outcome};
use crate::matrix::BY_LIBVIRTD;
use crate::run::{Asked, Case, Done, log, run_all, seeds};
use crate::seeds::Random;
use crate::world::{Deed, Driven, Kind, Place};

const BY_VIRSH: Kind = Kind { driven: Driven::ByVirsh, ..BY_LIBVIRTD };
/// Nothing was offered yet: it stays.
const EARLY: &str = "K: has performed #1";
/// It waits at the destination, whole: it moves.
const LATE: &str = "K: has heard of finish #1";

/// Who led it, and is gone.
const LED: [(Kind, Fault); 2] =
    [(BY_VIRSH, Fault::KillClient), (BY_LIBVIRTD, Fault::KillLibvirtd(Place::East))];

fn case((kind, gone): (Kind, Fault), at: &str, more: &[(&str, Fault)]) -> Case {
    let plan = [(at, gone)].into_iter().chain(more.iter().copied());
    let plan = plan.map(|(place, fault)| (place.to_owned(), fault)).collect();
    Case { kind, plan, operator: Operator::GoesOn }
}

/// What such a history passes from there on.
fn places(led: (Kind, Fault), at: &str) -> Vec<String> {
    let mut passed = case(led, at, &[]).run().passed;
    let since = passed.iter().position(|place| place == at).unwrap() + 1;
    passed.split_off(since)
}

#[test]
fn the_agent_ends_or_resumes_what_was_left_paused() {
    log();
    for led in LED {
        for (at, moves) in [(EARLY, false), (LATE, true)] {
            let Done { outcome, violations, .. } = case(led, at, &[]).run();
            assert_eq!(violations, [""; 0], "{led:?} at {at}");
            assert!(outcome.deeds.is_empty(), "{led:?} at {at}: {outcome}");
            assert_eq!(outcome.moved, moves, "{led:?} at {at}");
        }
    }
}

/// What became of it meanwhile nobody knows who was away, or who saw it run. To resume it then could make two.
#[test]
fn what_may_have_been_paused_by_somebody_else_is_left_to_its_operator() {
    log();
    let was_away = [(EARLY, Fault::KillAgent(Place::East))];
    let ran = [
        (EARLY, Fault::SilenceWan),
        ("E asks: power #6", Fault::Operator(Deed::Resume)),
        ("E asks: power #12", Fault::Operator(Deed::MoveInVain)),
    ];
    for more in [&was_away[..], &ran] {
        let Done { outcome, violations, struck, .. } = case(LED[0], EARLY, more).run();
        assert_eq!(violations, [""; 0], "{more:?}");
        assert_eq!(struck.len(), more.len() + 1, "{struck:?}");
        let expected = Outcome { moved: false, deeds: vec![Help::Resumed] };
        assert_eq!(outcome, expected, "{more:?}");
    }
}

/// Its libvirtd forgets that it is held, and somebody resumes it, just before it is ended. It is lost by that, as by a crash;
/// what it has written is not: its copy is older.
#[test]
fn one_that_was_resumed_just_before_it_was_ended_is_not_handed_over() {
    log();
    let more = [
        ("E asks: power off #1", Fault::BlinkLibvirtd(Place::East)),
        ("libvirtd E is back #1", Fault::Operator(Deed::Resume)),
    ];
    let Done { outcome, violations, struck, .. } = case(LED[0], LATE, &more).run();
    assert_eq!(struck.len(), more.len() + 1, "{struck:?}");
    assert_eq!(violations, ["the last copy of memory is ended at East"]);
    assert_eq!(outcome, Outcome { moved: false, deeds: vec![Help::Started] });
}

#[test]
fn every_fault_at_every_place_of_that_ends_with_one_vm_and_the_truth() {
    log();
    let asked = Asked::one_in(STEP);
    let mut cases = Vec::new();
    for led in LED {
        for at in [EARLY, LATE] {
            for (no, place) in places(led, at).iter().enumerate() {
                for (number, fault) in Fault::ALL.into_iter().enumerate() {
                    let name = format!("{:?} at {at}, {fault:?} at {place}", led.1);
                    if asked.is(&name, (no, number)) {
                        cases.push((name, case(led, at, &[(place, fault)])));
                    }
                }
            }
        }
    }
    println!("{} cases", cases.len());
    run_all(&cases);
}

/// Of all cases one in so many is run by default.
const STEP: usize = 5;

/// Its libvirtd forgets what it held, for one, and somebody resumes it then.
#[test]
fn whatever_else_goes_wrong_meanwhile_there_is_one_vm_and_the_truth() {
    log();
    let histories = LED.map(|led| [EARLY, LATE].map(|at| (led, at, places(led, at))));
    let histories = histories.concat();
    let cases: Vec<_> = seeds(SEEDS)
        .map(|seed| {
            let mut random = Random::new(seed);
            let (led, at, places) = random.of(&histories);
            let more = [(); 2].map(|()| (random.of(places).as_str(), *random.of(&Fault::ALL)));
            (format!("seed {seed}"), case(*led, at, &more))
        })
        .collect();
    run_all(&cases);
}

const SEEDS: u64 = 200;
