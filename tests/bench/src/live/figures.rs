//! From runs to figures: medians, and what the agents cost in relation to each peer.

use std::fmt;

use serde::Serialize;

use super::goals::Goal;
use super::ways::{WAYS, Way};
use crate::cli::Pace;
use crate::counters::Load;
use crate::figures::median;

#[derive(Debug, Serialize)]
pub struct Report {
    /// Before anything was started.
    pub load_before: Load,
    pub cpus: usize,
    pub rounds: u32,
    pub memory_mib: u32,
    /// What the guest's disk takes.
    pub disk_allocated_bytes: u64,
    pub congestion_control: String,
    pub sections: Vec<Section>,
    pub goals: Vec<Goal>,
}

/// One line and one pace of the guest.
#[derive(Debug, Serialize)]
pub struct Section {
    /// Nothing: no limit.
    pub mbit: Option<u32>,
    pub pace: Pace,
    /// MiB a second that the guest is asked to change.
    pub rate: f64,
    pub load_before: Load,
    pub ways: Vec<Summary>,
    pub ratios: Vec<Ratio>,
    pub runs: Vec<Run>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Run {
    pub way: Way,
    pub round: u32,
    /// Just before it.
    pub load: Load,
    /// MiB of memory a second that are changed at least once, just before it.
    pub changes_mib_s: f64,
    /// Until virsh returned.
    pub wall_s: f64,
    /// On the shaped paths, headers included: to west, and back.
    pub out_bytes: u64,
    pub back_bytes: u64,
    /// The longest time in which the guest answered nobody; none if it did not go on after its move.
    pub downtime_ms: f64,
    /// The same, for the seconds before it moved.
    pub noise_ms: f64,
    /// What QEMU says of itself, by libvirt.
    pub qemu_downtime_ms: Option<u64>,
    /// Of the memory's stream, before an agent has it.
    pub memory_bytes: Option<u64>,
    pub rounds_of_memory: Option<u64>,
}

/// Medians.
#[derive(Debug, Serialize)]
pub struct Summary {
    pub way: Way,
    pub changes_mib_s: f64,
    pub wall_s: f64,
    pub out_bytes: f64,
    pub back_bytes: f64,
    pub downtime_ms: f64,
    pub noise_ms: f64,
    pub qemu_downtime_ms: f64,
    pub rounds_of_memory: f64,
}

/// Of the agents to a peer: the medians of the ratios within each round. Below 1: they cost less.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Ratio {
    pub peer: Way,
    pub wall: f64,
    /// Both directions.
    pub bytes: f64,
    pub downtime: f64,
}

impl Run {
    fn bytes(&self) -> f64 {
        (self.out_bytes + self.back_bytes) as f64
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<15}{:>7.1} s, {:>7.1} MB, unheard for {:.0} ms ({:.0} before), QEMU {:?} ms, {:?} rounds, {:.1} MiB/s changed",
            self.way.name(),
            self.wall_s,
            self.bytes() / 1e6,
            self.downtime_ms,
            self.noise_ms,
            self.qemu_downtime_ms,
            self.rounds_of_memory,
            self.changes_mib_s,
        )
    }
}

impl Section {
    pub fn new(
        mbit: Option<u32>,
        pace: Pace,
        rate: f64,
        load_before: Load,
        runs: Vec<Run>,
    ) -> Self {
        let ways = WAYS.map(|way| Summary::of(way, &runs)).into();
        let peers = WAYS.into_iter().filter(|way| *way != Way::Agents);
        let ratios = peers.map(|peer| Ratio::of(peer, &runs)).collect();
        Self { mbit, pace, rate, load_before, ways, ratios, runs }
    }

    pub fn line(&self) -> String {
        self.mbit.map_or_else(|| "no limit".to_owned(), |mbit| format!("{mbit} Mbit/s"))
    }
}

fn of(way: Way, runs: &[Run]) -> impl Iterator<Item = &Run> {
    runs.iter().filter(move |run| run.way == way)
}

impl Summary {
    fn of(way: Way, runs: &[Run]) -> Self {
        let middle =
            |field: fn(&Run) -> Option<f64>| median(of(way, runs).filter_map(field).collect());
        Self {
            way,
            changes_mib_s: middle(|run| Some(run.changes_mib_s)),
            wall_s: middle(|run| Some(run.wall_s)),
            out_bytes: middle(|run| Some(run.out_bytes as f64)),
            back_bytes: middle(|run| Some(run.back_bytes as f64)),
            downtime_ms: middle(|run| Some(run.downtime_ms)),
            noise_ms: middle(|run| Some(run.noise_ms)),
            qemu_downtime_ms: middle(|run| run.qemu_downtime_ms.map(|ms| ms as f64)),
            rounds_of_memory: middle(|run| run.rounds_of_memory.map(|rounds| rounds as f64)),
        }
    }
}

impl Ratio {
    fn of(peer: Way, runs: &[Run]) -> Self {
        // Each has one run a round, in the order of rounds.
        let rounds = || of(Way::Agents, runs).zip(of(peer, runs));
        let middle = |field: fn(&Run) -> Option<f64>| {
            median(
                rounds().filter_map(|(ours, peers)| Some(field(ours)? / field(peers)?)).collect(),
            )
        };
        Self {
            peer,
            wall: middle(|run| Some(run.wall_s)),
            bytes: middle(|run| Some(run.bytes())),
            downtime: middle(|run| Some(run.downtime_ms)),
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn section(mbit: Option<u32>) -> Section {
        let run = |way, round, wall_s, out_bytes, downtime_ms| Run {
            way,
            round,
            load: Load([1.0; 3]),
            changes_mib_s: 1.0,
            wall_s,
            out_bytes,
            back_bytes: 100,
            downtime_ms,
            noise_ms: 12.0,
            qemu_downtime_ms: Some(80),
            memory_bytes: Some(1),
            rounds_of_memory: Some(3),
        };
        let runs = vec![
            run(Way::Plain, 1, 8.0, 900, 100.0),
            run(Way::Xbzrle, 1, 10.0, 900, 100.0),
            run(Way::MultifdZstd, 1, 8.0, 700, 100.0),
            run(Way::Agents, 1, 4.0, 300, 90.0),
            run(Way::Plain, 2, 20.0, 900, 200.0),
            run(Way::Xbzrle, 2, 10.0, 900, 100.0),
            run(Way::MultifdZstd, 2, 16.0, 700, 100.0),
            run(Way::Agents, 2, 15.0, 500, 180.0),
        ];
        Section::new(mbit, Pace::Low, 1.0, Load([1.0, 2.0, 3.0]), runs)
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        let section = section(Some(200));
        let plain = Ratio { peer: Way::Plain, wall: 0.625, bytes: 0.5, downtime: 0.9 };
        assert_eq!(section.ratios[0], plain);
        assert_eq!((section.ways[0].wall_s, section.ways[0].downtime_ms), (14.0, 150.0));
    }
}
