//! `make bench`: one disk copied by Causeway and by the tools that a user would take instead; and, as
//! `bench live`, a guest that moves by libvirt itself and through mobility agents.
//!
//! ```text
//!  order ──▶ ground ──▶ race: rounds × contenders ──▶ figures ──▶ table or JSON
//!            (lab)            │
//!                             └─ fresh target, counters, clock, copy, sync, counters, compare
//! ```
//!
//! What is compared, how, and what was measured is in the crate's `README.md`.

mod child;
mod cli;
mod contender;
mod counters;
mod disks;
mod figures;
mod ground;
mod live;
mod race;
mod table;
mod tools;

use anyhow::Result;
use clap::Parser as _;

use crate::cli::{Order, Other};
use crate::counters::Load;
use crate::disks::Disks;
use crate::figures::Report;
use crate::ground::Ground;

fn main() -> Result<()> {
    let order = Order::parse();
    if let Some(Other::Live(order)) = &order.other {
        return live::run(order);
    }
    let agent = tools::require(order.programs.as_deref())?;
    let load_before = Load::now()?;
    let original = order.source.clone().map_or_else(tools::debian_image, Ok)?;
    let ground = Ground::start(&agent)?;
    let disks = Disks::copy_of(&original, &ground.scratch)?;
    let mut sections = Vec::new();
    for section in order.sections() {
        let line = ground.line(section)?;
        sections.push(race::run(section, &line, &disks, order.rounds)?);
    }
    let report = Report {
        load_before,
        cpus: std::thread::available_parallelism()?.get(),
        rounds: order.rounds,
        source_bytes: disks.bytes,
        source_allocated_bytes: disks.allocated_bytes,
        congestion_control: ground.congestion_control,
        sections,
    };
    if order.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{}", table::render(&report));
    }
    Ok(())
}
