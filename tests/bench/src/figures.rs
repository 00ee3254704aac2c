//! From runs to figures: medians, and what we cost in relation to a peer.

use std::time::Duration;

use serde::Serialize;

use crate::cli::Section;
use crate::counters::{Counters, Load};

#[derive(Debug, Serialize)]
pub struct Report {
    /// Before anything was built or started.
    pub load_before: Load,
    pub cpus: usize,
    pub rounds: u32,
    pub source_bytes: u64,
    pub source_allocated_bytes: u64,
    pub congestion_control: String,
    pub sections: Vec<SectionReport>,
}

#[derive(Debug, Serialize)]
pub struct SectionReport {
    pub section: Section,
    pub load_before: Load,
    pub contenders: Vec<Summary>,
    pub ratios: Vec<Ratio>,
    pub runs: Vec<Run>,
}

/// Who took part.
#[derive(Debug, Serialize)]
pub struct Entrant {
    pub name: &'static str,
    pub is_ours: bool,
    pub cipher: String,
}

#[derive(Debug, Serialize)]
pub struct Run {
    pub contender: &'static str,
    pub round: u32,
    /// Just before it.
    pub load: Load,
    #[serde(flatten)]
    pub cost: Cost,
}

/// Of one run, the median of several, or in relation to another's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Cost {
    pub wall_s: f64,
    pub cpu_s: f64,
    pub wire_bytes: f64,
}

#[derive(Debug, Serialize)]
pub struct Summary {
    #[serde(flatten)]
    pub entrant: Entrant,
    #[serde(flatten)]
    pub median: Cost,
}

/// Below 1: we cost less.
#[derive(Debug, Serialize)]
pub struct Ratio {
    pub ours: &'static str,
    pub peer: &'static str,
    /// The median of the ratios within each round, whose runs saw a similar load.
    pub wall: f64,
    pub cpu: f64,
    pub wire: f64,
    /// The lowest and the highest of a round.
    pub wall_range: [f64; 2],
}

impl Run {
    pub fn new(
        contender: &'static str,
        round: u32,
        load: Load,
        wall: Duration,
        counted: Counters,
    ) -> Self {
        let cost = Cost {
            wall_s: wall.as_secs_f64(),
            cpu_s: counted.cpu.as_secs_f64(),
            wire_bytes: counted.wire_bytes as f64,
        };
        Self { contender, round, load, cost }
    }
}

impl SectionReport {
    pub fn new(
        section: Section,
        load_before: Load,
        entrants: Vec<Entrant>,
        runs: Vec<Run>,
    ) -> Self {
        let mut ratios = Vec::new();
        for ours in entrants.iter().filter(|entrant| entrant.is_ours) {
            for peer in entrants.iter().filter(|entrant| !entrant.is_ours) {
                ratios.push(Ratio::of(ours.name, peer.name, &runs));
            }
        }
        let contenders = entrants.into_iter().map(|entrant| {
            let costs: Vec<_> = costs_of(entrant.name, &runs).collect();
            Summary { median: Cost::median(&costs), entrant }
        });
        Self { section, load_before, contenders: contenders.collect(), ratios, runs }
    }
}

impl Ratio {
    fn of(ours: &'static str, peer: &'static str, runs: &[Run]) -> Self {
        // Each has one run a round, in the order of rounds.
        let rounds = costs_of(ours, runs).zip(costs_of(peer, runs));
        let costs: Vec<_> = rounds.map(|(ours, peer)| ours.relative_to(peer)).collect();
        let Cost { wall_s: wall, cpu_s: cpu, wire_bytes: wire } = Cost::median(&costs);
        let walls = || costs.iter().map(|cost| cost.wall_s);
        let wall_range =
            [walls().fold(f64::INFINITY, f64::min), walls().fold(f64::NEG_INFINITY, f64::max)];
        Self { ours, peer, wall, cpu, wire, wall_range }
    }
}

impl Cost {
    fn relative_to(self, other: Self) -> Self {
        Self {
            wall_s: self.wall_s / other.wall_s,
            cpu_s: self.cpu_s / other.cpu_s,
            wire_bytes: self.wire_bytes / other.wire_bytes,
        }
    }

    fn median(costs: &[Self]) -> Self {
        let of = |field: fn(&Self) -> f64| median(costs.iter().map(field).collect());
        Self {
            wall_s: of(|cost| cost.wall_s),
            cpu_s: of(|cost| cost.cpu_s),
            wire_bytes: of(|cost| cost.wire_bytes),
        }
    }
}

fn costs_of(contender: &str, runs: &[Run]) -> impl Iterator<Item = Cost> {
    runs.iter().filter(move |run| run.contender == contender).map(|run| run.cost)
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        even if even % 2 == 0 => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn section() -> SectionReport {
        let entrant = |name, is_ours| Entrant { name, is_ours, cipher: "none".to_owned() };
        let entrants = vec![entrant("causeway-0", true), entrant("nbdcopy", false)];
        let run = |contender, round, wall| {
            let counted = Counters { cpu: Duration::from_millis(wall / 2), wire_bytes: 1_500_000 };
            Run::new(contender, round, Load([1.0; 3]), Duration::from_millis(wall), counted)
        };
        let runs = vec![
            run("causeway-0", 1, 1000),
            run("nbdcopy", 1, 2000),
            run("nbdcopy", 2, 10_000),
            run("causeway-0", 2, 9000),
            run("causeway-0", 3, 1100),
            run("nbdcopy", 3, 1000),
        ];
        SectionReport::new(Section::Loopback, Load([1.0, 2.0, 3.0]), entrants, runs)
    }

    #[test]
    fn ratios_compare_runs_of_the_same_round() {
        let section = section();
        let [ratio] = &section.ratios[..] else { panic!("one pair: {section:?}") };
        assert_eq!((ratio.ours, ratio.peer), ("causeway-0", "nbdcopy"));
        assert_eq!((ratio.wall, ratio.wall_range), (0.9, [0.5, 1.1]));
        assert_eq!(section.contenders[0].median.wall_s, 1.1);
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_two() {
        assert_eq!(median(vec![4.0, 1.0, 2.0, 100.0]), 3.0);
        assert_eq!(median(vec![7.0]), 7.0);
    }
}
