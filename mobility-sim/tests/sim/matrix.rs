//! Every fault at every place that a migration without faults passes.
//!
//! `ONLY='KillAgent(East) at E asks: power'` runs those whose name holds that, with the agents' log by
//! `CAUSEWAY_LOG`; `EVERY=1` runs all of them, where otherwise one in some is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use model::Power;
use tokio::time::sleep;

use crate::fault::Fault;
use crate::judge::Operator;
use crate::run::{self, Asked, Case, log, run_all};
use crate::stage::Stage;
use crate::world::{Driven, Kind, Place, Who};

pub const BY_LIBVIRTD: Kind = Kind {
    driven: Driven::ByLibvirtd,
    persistent: true,
    moves_definition: false,
    suspended: false,
    near: false,
};
/// With an agent that sees the end of its VM's process.
const NEAR: Kind = Kind { near: true, ..BY_LIBVIRTD };

/// Places of a migration of this kind to which nothing happens, in order.
pub fn places(kind: Kind) -> Vec<String> {
    let case = Case { kind, plan: Vec::new(), operator: Operator::GoesOn };
    let done = case.run();
    assert!(done.violations.is_empty(), "{:?}", done.violations);
    assert!(done.outcome.moved && done.outcome.deeds.is_empty(), "{}", done.outcome);
    done.passed
}

/// Parts of a migration, by the place that each begins with.
const PARTS: [(&str, &str); 9] = [
    ("calls", "K: begins #1"),
    ("prepare", "K: prepares #1"),
    ("streams", "K: is prepared #1"),
    ("finish", "K: has performed #1"),
    ("confirm", "K: has heard of finish #1"),
    ("fence", "E asks: fence apply #1"),
    ("grant", "E asks: fence holds #2"),
    ("start", "W asks: resume #1"),
    ("retire", "wan 1, W's write 7 #1"),
];

#[test]
fn every_fault_at_every_place_ends_with_one_vm_and_the_truth() {
    play(BY_LIBVIRTD);
}

#[test]
fn and_so_it_does_where_the_agent_sees_the_source_end() {
    play(NEAR);
}

fn play(kind: Kind) {
    log();
    let places = places(kind);
    let asked = Asked::one_in(STEP);
    let mut cases = Vec::new();
    let mut part = "calls";
    let mut parts = Vec::new();
    for (no, place) in places.iter().enumerate() {
        part = PARTS.iter().find(|(_, begins)| begins == place).map_or(part, |(name, _)| name);
        for (number, fault) in Fault::ALL.into_iter().enumerate() {
            let name = format!("{fault:?} at {place}");
            if asked.is(&name, (no, number)) {
                let operator = if no % 2 == 0 { Operator::GoesOn } else { Operator::Ends };
                let plan = vec![(place.clone(), fault)];
                cases.push((name, Case { kind, plan, operator }));
                parts.push((fault, part));
            }
        }
    }
    let done = run_all(&cases);
    let mut table: BTreeMap<Fault, BTreeMap<&str, BTreeMap<String, u32>>> = BTreeMap::new();
    for ((fault, part), done) in parts.iter().zip(&done) {
        let cell = table.entry(*fault).or_default().entry(part).or_default();
        *cell.entry(done.outcome.to_string()).or_default() += 1;
    }
    println!("{} places, {} cases", places.len(), cases.len());
    for (fault, row) in table {
        println!("{fault:?}");
        for (part, _) in PARTS {
            let Some(cell) = row.get(part) else { continue };
            let counts: Vec<_> =
                cell.iter().map(|(what, count)| format!("{what} {count}")).collect();
            println!("  {part:8} {}", counts.join(", "));
        }
    }
}

/// Of all cases one in so many is run by default.
const STEP: usize = 3;

/// Its libvirt hears of no success, has it run again, and then its process ends: by that alone nothing is handed over.
#[test]
fn an_end_after_the_connection_broke_is_not_taken_for_a_handover() {
    log();
    let places = places(NEAR);
    let at = |place: &str| places.iter().position(|passed| passed == place).unwrap();
    let finish = at("K: has performed #1")..at("K: has heard of finish #1");
    let cases: Vec<_> = places[finish]
        .iter()
        .map(|place| {
            let ends = ("K: has confirmed #1".to_owned(), Fault::KillQemu(Place::East));
            let plan = vec![(place.clone(), Fault::BreakCalls), ends];
            (place.clone(), Case { kind: NEAR, plan, operator: Operator::Ends })
        })
        .collect();
    let done = run_all(&cases);
    let both = done.iter().filter(|done| done.struck.len() == 2).count();
    assert!(both > 20, "{both} of {}", cases.len());
}

/// Nothing could be granted by what it had said: it does not wait for the other agent with that.
#[test]
fn a_source_that_runs_on_may_be_started_again_before_the_destination_answers() {
    log();
    let at = || "E has done: fence apply #1".to_owned();
    let (east, west) = (Fault::KillAgent(Place::East), Fault::KillAgentForLong(Place::West));
    run::virtually(async {
        let mut stage = Stage::set(NEAR, vec![(at(), east), (at(), west)]).await;
        let world = Arc::clone(&stage.world);
        tokio::select! {
            () = stage.play() => panic!("it was over before the other agent was back"),
            () = sleep(Duration::from_secs(60)) => {}
        }
        assert_eq!(world.struck().len(), 2);
        assert!(world.alive(|no| Who::Agent(Place::West, no)).is_none(), "it is not away");
        assert_eq!(world.guest().power(Place::East), Power::Running);
        let domain = world.guest().domain(Place::East).cloned().unwrap();
        assert!(!domain.fenced, "it does not start any more");
    });
}

#[test]
fn it_runs_there_before_the_sources_libvirt_has_looked_whether_it_ended() {
    let places = places(NEAR);
    let at = |place: &str| places.iter().position(|passed| passed == place).unwrap();
    let order = [
        "E has done: fence apply #1",
        "K: has heard of finish #1",
        "K: has ended its QEMU #1",
        "W has done: resume #1",
        "K: looks whether it has gone #1",
    ];
    assert!(order.is_sorted_by_key(|place| at(place)), "{places:#?}");
}
