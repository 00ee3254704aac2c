//! Every fault at every place that a migration without faults passes.
//!
//! `ONLY='KillAgent(East) at E asks: power'` runs those whose name holds that, with the agents' log by
//! `CAUSEWAY_LOG`; `EVERY=1` runs all of them, where otherwise one in some is.

use std::collections::BTreeMap;

use crate::fault::Fault;
use crate::judge::Operator;
use crate::run::{Asked, Case, log, run_all};
use crate::world::{Driven, Kind};

pub const BY_LIBVIRTD: Kind = Kind {
    driven: Driven::ByLibvirtd,
    persistent: true,
    moves_definition: false,
    suspended: false,
    near: false,
    unheld: false,
};
/// With an agent that sees the end of its VM's process.
pub const NEAR: Kind = Kind { near: true, ..BY_LIBVIRTD };

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
