//! Rounds: in each one every contender copies once, and each round another one begins.

use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::cli::Section;
use crate::contender::{self, Contender};
use crate::counters::{Counters, Load};
use crate::disks::Disks;
use crate::figures::{Entrant, Run, SectionReport};
use crate::ground::Line;

pub fn run(section: Section, line: &Line<'_>, disks: &Disks, rounds: u32) -> Result<SectionReport> {
    let contenders = contender::of(section);
    let mut entrants = Vec::new();
    for contender in contenders {
        let cipher = contender.cipher(line, disks)?;
        entrants.push(Entrant { name: contender.name, is_ours: contender.is_ours(), cipher });
    }
    let load_before = Load::now()?;
    let mut runs = Vec::new();
    for round in 1..=rounds {
        for contender in in_turn(contenders, round) {
            let run = measure(contender, round, line, disks).with_context(|| {
                format!("{} failed in round {round} of {}", contender.name, section.name())
            })?;
            eprintln!(
                "{} {round}/{rounds} {:<16} {:>7.2} s, CPU {:>6.2} s, {:>6.1} MB",
                section.name(),
                run.contender,
                run.cost.wall_s,
                run.cost.cpu_s,
                run.cost.wire_bytes / 1e6
            );
            runs.push(run);
        }
    }
    Ok(SectionReport::new(section, load_before, entrants, runs))
}

/// Whatever gets slower or faster with time does so for all of them.
pub fn in_turn<T>(contenders: &[T], round: u32) -> impl Iterator<Item = &T> {
    let first = (round as usize - 1) % contenders.len();
    contenders.iter().cycle().skip(first).take(contenders.len())
}

fn measure(contender: &Contender, round: u32, line: &Line<'_>, disks: &Disks) -> Result<Run> {
    disks.make_ready(contender.wants())?;
    let load = Load::now()?;
    let before = Counters::read(line)?;
    let server = contender.serve(line, disks)?;
    let began = Instant::now();
    contender.copy(line, disks)?;
    disks.sync_target()?;
    let wall = began.elapsed();
    server.map_or(Ok(()), crate::child::Running::end)?;
    line.await_sessions_end()?;
    let cost = Counters::read(line)? - before;
    disks.compare()?;
    Ok(Run::new(contender.name, round, load, wall, cost))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_round_has_all_and_begins_with_another() {
        let order = |round| in_turn(&["a", "b", "c"], round).copied().collect::<String>();
        assert_eq!([1, 2, 3, 4].map(order), ["abc", "bca", "cab", "abc"]);
    }
}
