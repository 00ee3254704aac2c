//! Live migrations by mobility agents, each with one thing broken at one step: `make soak-real`.
//!
//! Every step that somebody outside can see, times everything that can break: who answers what to whom is in
//! `steps.rs`, what breaks in `blow.rs`, what has to be true whatever happened in `case.rs`. The line between
//! the agents is long and slow, so that a step lasts. `CASE=words` runs those whose name has the words.

#![expect(clippy::unwrap_used, reason = "a test ends where a helper of it fails")]

mod blow;
mod case;
mod steps;

use std::collections::BTreeMap;
use std::env;

use blow::{BLOWS, Blow};
use case::{Ended, Place};
use steps::{STEPS, Step};

/// Two guests at once, as `THREADS` has it.
#[test]
fn whatever_breaks_at_whichever_step_there_is_one_vm_and_it_is_known_where_first_half() {
    run(0);
}

#[test]
fn whatever_breaks_at_whichever_step_there_is_one_vm_and_it_is_known_where_second_half() {
    run(1);
}

fn cases() -> Vec<(Step, Blow)> {
    let wanted = env::var("CASE").unwrap_or_default();
    let all = STEPS.into_iter().flat_map(|step| BLOWS.map(|blow| (step, blow)));
    let is_wanted = |(step, blow): &(Step, Blow)| {
        blow.is_of_use_at(*step) && format!("{step:?} {blow:?}").contains(&wanted)
    };
    all.filter(is_wanted).collect()
}

fn run(half: usize) {
    let (mut place, mut wrong) = (None, Vec::new());
    let mut counted: BTreeMap<(Blow, Ended), usize> = BTreeMap::new();
    let cases: Vec<_> = cases().into_iter().skip(half).step_by(2).collect();
    for (number, (step, blow)) in cases.iter().copied().enumerate() {
        let here = place.take().unwrap_or_else(|| Place::new().unwrap());
        let (answer, after) = here.run(step, blow, number % 2 == 0);
        place = after;
        match answer {
            Ok(told) => {
                println!("{step:?} {blow:?}: {told}");
                *counted.entry((blow, told.ended)).or_default() += 1;
            }
            Err(error) => {
                println!("WRONG {step:?} {blow:?}: {error:#}");
                wrong.push(format!("{step:?} {blow:?}"));
            }
        }
    }
    println!("{} cases; {counted:?}", cases.len());
    assert!(wrong.is_empty(), "{wrong:?}");
}
