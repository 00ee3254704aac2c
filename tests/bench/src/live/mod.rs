//! `bench live`: one guest that works, moved between two libvirtds with memory and disk, in turns.
//!
//! ```text
//!           ┌── the path between the sites: libvirt by itself ──┐
//!  east ────┤                                                   ├──── west
//!           └── the path to the operator: agents ── operator ───┘
//! ```
//!
//! Both paths are shaped alike. A prober on each site's bridge asks the guest all the time, and notes
//! when it answers.

mod agents;
mod figures;
mod goals;
mod ground;
mod guest;
mod prober;
mod table;
mod ways;

use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::cli::{Live, Pace};
use crate::counters::Load;
use crate::race::in_turn;
use figures::{Report, Run, Section};
use ground::{At, Ground};
use guest::Guest;
use ways::WAYS;
pub use ways::Way;

/// The guest works for so long before anything is measured, and then before it moves.
const REST: Duration = Duration::from_secs(5);

pub fn run(order: &Live) -> Result<()> {
    let programs = crate::tools::programs(order.programs.as_deref());
    let load_before = Load::now()?;
    let ground = Ground::start(&programs.join("causeway-mobility"))?;
    let mut guest = Guest::start(&ground, order)?;
    let mut sections = Vec::new();
    for mbit in order.lines() {
        ground.shape(mbit)?;
        for pace in order.paces() {
            sections.push(turns(order, &ground, &mut guest, mbit, pace)?);
        }
    }
    let report = Report {
        load_before,
        cpus: std::thread::available_parallelism()?.get(),
        rounds: order.rounds,
        memory_mib: order.memory,
        disk_allocated_bytes: guest.disk_allocated_bytes()?,
        congestion_control: ground.congestion_control()?,
        goals: goals::judge(&sections),
        sections,
    };
    if order.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{}", table::render(&report));
    }
    Ok(())
}

fn turns(
    order: &Live,
    ground: &Ground,
    guest: &mut Guest<'_>,
    mbit: Option<u32>,
    pace: Pace,
) -> Result<Section> {
    let rate = order.rate(pace);
    let load_before = Load::now()?;
    let is_asked = |way: &Way| order.way.is_empty() || order.way.contains(way);
    let ways: Vec<_> = WAYS.into_iter().filter(is_asked).collect();
    let mut runs = Vec::new();
    for round in 1..=order.rounds {
        for way in in_turn(&ways, round) {
            let run = measure(ground, guest, *way, round, rate)
                .with_context(|| format!("{} failed in round {round}", way.name()))?;
            eprintln!("{mbit:?} Mbit/s, {pace:?}, {round}/{} {run}", order.rounds);
            runs.push(run);
        }
    }
    Ok(Section::new(mbit, pace, rate, load_before, runs))
}

fn measure(ground: &Ground, guest: &mut Guest<'_>, way: Way, round: u32, rate: f64) -> Result<Run> {
    guest.anew(rate)?;
    std::thread::sleep(REST);
    let load = Load::now()?;
    let changes_mib_s = guest.changes()?;
    let quiet = guest.prober.now();
    std::thread::sleep(REST);
    let noise = guest.prober.largest_gap(quiet..guest.prober.now());
    let mut moving = way.ready(ground, guest)?;
    let before = ground.carried()?;
    let began = guest.prober.now();
    moving.go()?;
    let wall = guest.prober.now() - began;
    guest.runs_at(At::West)?;
    let carried = ground.carried()? - before;
    guest.has_arrived()?;
    let gap = guest.prober.largest_gap(began..guest.prober.now());
    let job = guest.job()?;
    drop(moving);
    Ok(Run {
        way,
        round,
        load,
        changes_mib_s,
        wall_s: wall.as_secs_f64(),
        out_bytes: carried.towards(At::West),
        back_bytes: carried.towards(At::East),
        downtime_ms: gap.as_secs_f64() * 1e3,
        noise_ms: noise.as_secs_f64() * 1e3,
        qemu_downtime_ms: job.downtime_ms,
        memory_bytes: job.memory_bytes,
        rounds_of_memory: job.rounds,
    })
}
