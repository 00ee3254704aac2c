//! Random histories: migrations of any kind, with several faults where they may strike one another's repair.
//!
//! `SEEDS=100000` plays so many, `SEED=17` that one.

use std::collections::BTreeMap;

use crate::fault::Fault;
use crate::judge::Operator;
use crate::matrix::places;
use crate::run::{self, Case, log, run_all};
use crate::world::{Driven, Kind};

/// splitmix64
pub struct Random(u64);

impl Random {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let bound = u64::try_from(bound).unwrap();
        usize::try_from(z % bound).unwrap()
    }

    pub fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

const fn kind(driven: Driven, persistent: bool, moves_definition: bool, suspended: bool) -> Kind {
    Kind { driven, persistent, moves_definition, suspended, near: false, unheld: false }
}

const fn near(kind: Kind) -> Kind {
    Kind { near: true, ..kind }
}

const KINDS: [Kind; 10] = [
    kind(Driven::ByLibvirtd, true, false, false),
    kind(Driven::ByLibvirtd, true, true, false),
    kind(Driven::ByLibvirtd, false, false, false),
    kind(Driven::ByLibvirtd, true, false, true),
    kind(Driven::ByVirsh, true, false, false),
    kind(Driven::ByVirsh, false, false, false),
    near(kind(Driven::ByLibvirtd, true, false, false)),
    near(kind(Driven::ByLibvirtd, true, true, false)),
    near(kind(Driven::ByLibvirtd, false, false, false)),
    near(kind(Driven::ByVirsh, true, false, false)),
];

/// Faults of one history.
const FAULTS_MAX: usize = 4;
/// Played by default.
const SEEDS: u64 = 300;

#[test]
fn whatever_goes_wrong_there_is_one_vm_and_the_truth() {
    log();
    let places: Vec<_> = KINDS.iter().map(|kind| places(*kind)).collect();
    let cases: Vec<_> = run::seeds(SEEDS)
        .map(|seed| {
            let mut random = Random::new(seed);
            let no = random.below(KINDS.len());
            let faults: Vec<_> = Fault::ALL.into_iter().chain([Fault::KillClient]).collect();
            let plan = (0..=random.below(FAULTS_MAX)).map(|_| {
                let place = random.of(&places[no]).clone();
                // Further on than a migration without faults comes to it.
                let later = random.below(3) == 0;
                let place = match place.rsplit_once('#') {
                    Some((name, count)) if later => {
                        let count: usize = count.parse().unwrap();
                        format!("{name}#{}", count + random.below(6))
                    }
                    _ => place,
                };
                (place, *random.of(&faults))
            });
            let plan = plan.collect();
            let operator = *random.of(&[Operator::GoesOn, Operator::Ends]);
            (format!("seed {seed}"), Case { kind: KINDS[no], plan, operator })
        })
        .collect();
    let done = run_all(&cases);
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    let struck: usize = done.iter().map(|done| done.struck.len()).sum();
    for done in &done {
        *counts.entry(done.outcome.to_string()).or_default() += 1;
    }
    println!("{} histories, {struck} faults", cases.len());
    counts.iter().for_each(|(what, count)| println!("  {count:5} {what}"));
}
