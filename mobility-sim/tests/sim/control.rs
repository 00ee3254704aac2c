//! The control: with the hold before start taken out, a finish whose answer is lost makes two, and the judge sees them.

use crate::fault::Fault;
use crate::judge::Operator;
use crate::matrix::{BY_LIBVIRTD, places};
use crate::run::{Case, Done, log, run_all, run_each};
use crate::world::{Kind, Place};

const UNHELD: Kind = Kind { unheld: true, ..BY_LIBVIRTD };

/// What keeps success from whoever asked for it, and has it resume its own. Where its libvirtd dies the agent does that,
/// which has the copy ended before.
const FAULTS: [Fault; 2] = [Fault::BreakCalls, Fault::KillAgent(Place::East)];

fn cases(kind: Kind, places: &[String]) -> Vec<(String, Case)> {
    let case = |place: &String, fault| {
        let plan = vec![(place.clone(), fault)];
        (format!("{fault:?} at {place}"), Case { kind, plan, operator: Operator::GoesOn })
    };
    places.iter().flat_map(|place| FAULTS.map(|fault| case(place, fault))).collect()
}

fn two_run(done: &Done) -> bool {
    done.violations.iter().any(|violation| violation.starts_with("two run"))
}

#[test]
fn without_the_hold_before_start_a_finish_whose_answer_is_lost_makes_two() {
    log();
    // Where nothing breaks, libvirt's own order is as good as any.
    let places = places(UNHELD);
    let at = |place: &str| places.iter().position(|passed| passed == place).unwrap();
    let finish = &places[at("K: has performed #1")..=at("K: has heard of finish #1")];
    let unheld = cases(UNHELD, finish);
    let done = run_each(&unheld);
    let two = done.iter().filter(|done| two_run(done)).count();
    println!("two run in {two} of {} cases", unheld.len());

    // From when it runs at the destination until the source's libvirt is told.
    let told = at("K: has heard of finish #1");
    let runs = &places[at("libvirtd W has done: Finish3Params #1")..told];
    assert!(runs.len() > 20, "{runs:?}");
    for ((name, case), done) in unheld.iter().zip(&done) {
        if runs.contains(&case.plan[0].0) {
            assert!(two_run(done), "{name}: {}, {:?}", done.outcome, done.violations);
        }
    }
    run_all(&cases(BY_LIBVIRTD, finish));
}
