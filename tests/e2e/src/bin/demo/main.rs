//! `make demo`: the whole story on one machine, with a real Debian guest that writes all the time.
//!
//! Two libvirt sites without a route between them, a witness outside the guest, one command; then
//! the proof: every record that the witness saw acknowledged is at the destination, the disks are
//! what the source had at the fence, the source does not start again.

mod native;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{Guest, Ran, Scene, SceneOptions, VM, images};
use lab::Scenario;

fn main() -> Result<ExitCode> {
    let began = Instant::now();
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    if words.iter().any(|word| !["--small", "--native"].contains(word)) {
        eprintln!(
            "usage: demo [--small] [--native]\n  --small   with a busybox guest, in a minute\n  --native  live, by mobility agents"
        );
        return Ok(ExitCode::from(2));
    }
    let guest = if words.contains(&"--small") { Guest::Small } else { Guest::Debian };
    let shown = match words.contains(&"--native") {
        true => native::run(guest, began),
        false => by_guest(guest, began),
    };
    shown.map(|()| ExitCode::SUCCESS)
}

fn by_guest(guest: Guest, began: Instant) -> Result<()> {
    say("building the guest (Debian takes some minutes the first time) and starting two sites");
    let options = SceneOptions { guest, ..SceneOptions::default() };
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
    println!(
        "  downtime   {:.1} s, seen from outside; {:.1} s of it this demo copied the disks for its proof",
        outside.as_secs_f64(),
        gate_took(&scene)?.as_secs_f64()
    );
    disks_arrived(&scene)?;

    let id = scene.id()?;
    let receipt = scene.state.join(format!("receipts/{id}.json")).display().to_string();
    show(&["receipt", "verify"], &scene.causeway(&["receipt", "verify", &receipt])?)?;
    source_stays_down(&scene)?;
    show(&["status"], &scene.causeway(&["status"])?)?;
    clean_up(scene, began)
}

fn clean_up(scene: Scene, began: Instant) -> Result<()> {
    say(&format!("done in {} s; cleaning up", began.elapsed().as_secs()));
    let (dir, lab) = (scene.dir().to_owned(), scene.lab.dir().to_owned());
    drop(scene);
    for dir in [&dir, &lab] {
        ensure!(!dir.exists(), "{} is left behind", dir.display());
    }
    let processes = lab::state::processes(&lab)?;
    ensure!(processes == 0, "{processes} processes are left behind");
    println!("  nothing is left: no process, and with them no namespace, mount or network device");
    Ok(())
}

/// Runs it with its own progress on this terminal.
fn migrate(scene: &Scene) -> Result<bool> {
    // For the proof: the targets as they are before the destination writes to them.
    let pool = scene.west().pool_dir();
    let (pool, kept) = (pool.display(), kept(scene)?);
    let clock = scene.dir().join("gate");
    let (kept, clock) = (kept.display(), clock.display());
    let gate = format!(
        "date +%s%3N > {clock}; cp --sparse=always {pool}/{VM}-vd* {kept}; date +%s%3N >> {clock}"
    );
    let words = scene.ask("migrate", &["--yes", "--gate", &gate])?;
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let mut command = scene.command(&words);
    command.stdout(std::process::Stdio::inherit()).stderr(std::process::Stdio::inherit());
    Ok(command.status().context("cannot run causeway")?.success())
}

/// How long the gate held the destination back.
fn gate_took(scene: &Scene) -> Result<Duration> {
    let clock = std::fs::read_to_string(scene.dir().join("gate"))?;
    let times: Vec<u64> = clock.lines().map(str::parse).collect::<Result<_, _>>()?;
    let [began, ended] = times[..] else { anyhow::bail!("the gate did not end: {clock}") };
    Ok(Duration::from_millis(ended - began))
}

fn kept(scene: &Scene) -> Result<PathBuf> {
    let dir = scene.dir().join("kept");
    std::fs::create_dir_all(&dir)?;
    Ok(dir)
}

fn disks_arrived(scene: &Scene) -> Result<()> {
    let sources: Vec<_> = scene.disks.iter().map(|disk| disk.path.clone()).collect();
    let files = std::fs::read_dir(kept(scene)?)?.collect::<Result<Vec<_>, _>>()?;
    let mut targets: Vec<_> = files.into_iter().map(|file| file.path()).collect();
    targets.sort();
    images::are_equal(&sources, &targets)?;
    println!(
        "  disks      {} of {}: what the destination had before it started is, byte by byte, what \
         the source had at the fence",
        targets.len(),
        sources.len()
    );
    Ok(())
}

fn source_stays_down(scene: &Scene) -> Result<()> {
    let left = scene.east().virsh(&["list", "--all", "--name"])?;
    let moved = left.trim().to_owned();
    let started = scene.east().virsh(&["start", &moved]);
    let Err(error) = started else { anyhow::bail!("the fenced source {moved} started") };
    ensure!(!scene.east().is_running(&moved)?, "the fenced source runs");
    let why = error.to_string();
    let why: Vec<_> = why.lines().filter_map(|line| line.strip_prefix("error: ")).collect();
    println!("  source     virsh start {moved}: {}", why.join(": "));
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
