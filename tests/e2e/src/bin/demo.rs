//! `make demo`: the whole story on one machine, with a real Debian guest that writes all the time.
//!
//! Two libvirt sites without a route between them, a witness outside the guest, one command; then
//! the proof: every record that the witness saw acknowledged is at the destination, the disks are
//! what the source had at the fence, the source does not start again.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{Guest, Ran, Scene, SceneOptions, VM};
use lab::Scenario;

fn main() -> Result<ExitCode> {
    let began = Instant::now();
    say("building the Debian guest (the first time takes some minutes) and starting two sites");
    let options = SceneOptions { guest: Guest::Debian, ..SceneOptions::default() };
    let scene = Scene::start(Scenario::Relay.builder(), &options)?;
    say(&format!(
        "{VM} runs at east ({}), writes to / and /srv, and tells a witness; {} s so far",
        scene.at_east,
        began.elapsed().as_secs()
    ));
    show(&["site", "check"], &scene.causeway(&["site", "check"])?)?;

    scene.witness_hears(50)?;
    let before = scene.witness.now_ms();
    say("causeway migrate web1 --from east --to west");
    let moved = migrate(&scene)?;
    ensure!(moved, "the migration failed; what it printed is above");
    say("proving it");
    scene.ledger_is_whole(scene.at_west)?;
    let after = scene.witness.now_ms();
    let outside = scene.witness.largest_gap(before..after, Some(VM));
    println!(
        "  witness    {} records heard, every one of them is in the ledgers at west",
        scene.witness.records()
    );
    println!("  downtime   {:.1} s, seen from outside", outside.as_secs_f64());

    let id = scene.id()?;
    let receipt = scene.state.join(format!("receipts/{id}.json")).display().to_string();
    show(&["receipt", "verify"], &scene.causeway(&["receipt", "verify", &receipt])?)?;
    source_stays_down(&scene)?;
    show(&["status"], &scene.causeway(&["status"])?)?;
    say(&format!("done in {} s; cleaning up", began.elapsed().as_secs()));
    Ok(ExitCode::SUCCESS)
}

/// Runs it with its own progress on this terminal.
fn migrate(scene: &Scene) -> Result<bool> {
    let words = scene.ask("migrate", &["--yes"])?;
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let mut command = scene.command(&words);
    command.stdout(std::process::Stdio::inherit()).stderr(std::process::Stdio::inherit());
    Ok(command.status().context("cannot run causeway")?.success())
}

fn source_stays_down(scene: &Scene) -> Result<()> {
    let left = scene.east().virsh(&["list", "--all", "--name"])?;
    let moved = left.trim().to_owned();
    let started = scene.east().virsh(&["start", &moved]);
    let Err(error) = started else { anyhow::bail!("the fenced source {moved} started") };
    ensure!(!scene.east().is_running(&moved)?, "the fenced source runs");
    let why = error.to_string();
    let why = why.lines().find(|line| line.contains("error")).unwrap_or(&why).to_owned();
    println!("  source     virsh start {moved}: {why}");
    std::thread::sleep(Duration::from_secs(1));
    ensure!(scene.witness.alarms().is_empty(), "the witness saw two writers");
    Ok(())
}

fn say(text: &str) {
    println!("\n== {text}");
}

fn show(words: &[&str], ran: &Ran) -> Result<()> {
    println!("$ causeway {}\n{}", words.join(" "), ran.stdout);
    ensure!(ran.code == 0, "{}", ran.stderr);
    Ok(())
}
