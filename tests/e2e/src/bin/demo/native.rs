//! `make demo-native`: a guest moves live, memory and disks, between hypervisors that cannot reach each other.

use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use e2e::{Agents, Guest, Scene, SceneOptions, VM};
use lab::{OPERATOR, Scenario};

use super::{clean_up, say, show};

pub fn run(guest: Guest, began: Instant) -> Result<()> {
    say("building the guest (Debian takes some minutes the first time) and starting two sites");
    let options = SceneOptions { guest, ..SceneOptions::default() };
    let scene = Scene::start(Scenario::Relay.builder(), &options)?;
    let agents = Agents::start(&scene)?;
    // Whoever moves a VM live has its network at both sites.
    agents.stretch_network()?;
    let east = scene.east().address();
    for (name, agent) in [("east", east), ("west", OPERATOR)] {
        let uri = scene.lab.operator().uri(scene.lab.site(name)?);
        let mobility = format!("qemu+tcp://{agent}:16510/system");
        let words = ["site", "add", name, "--uri", &uri, "--mobility", &mobility];
        show(&words, &scene.causeway(&words)?)?;
    }
    say(&format!(
        "{VM} runs at east, writes all the time, and tells a witness; a mobility agent runs at each site; {} s so far",
        began.elapsed().as_secs()
    ));
    scene.witness_hears(50)?;
    let boot = boot_id(&scene)?;
    let before = scene.witness.now_ms();

    say("causeway migrate web1 --from east --to west --max-downtime 2s");
    let words = ["migrate", VM, "--from", "east", "--to", "west", "--max-downtime", "2s", "--yes"];
    let mut command = scene.command(&words);
    command.stdout(Stdio::inherit()).stderr(Stdio::inherit());
    let moved = command.status().context("cannot run causeway")?.success();
    ensure!(moved, "the migration failed; what it printed is above\n{}", agents.logs());
    agents.route_to_west()?;

    say("proving it");
    agents.has_moved_whole()?;
    let outside = scene.witness.largest_gap(before..scene.witness.now_ms(), Some(VM));
    println!(
        "  witness    {} records heard, every one of them is in the ledgers at west",
        scene.witness.records()
    );
    println!("  downtime   {:.1} s, seen from outside", outside.as_secs_f64());
    let goes_on = boot_id(&scene)? == boot;
    println!(
        "  memory     {}",
        if goes_on {
            "the guest did not boot: it goes on where it was"
        } else {
            "an emulated guest that spins after its move was started anew from its disks, see above"
        }
    );
    let left = scene.east().virsh(&["list", "--all", "--name"])?;
    ensure!(left.trim().is_empty(), "left at east: {left}");
    println!("  source     virsh list --all at east: nothing");
    ensure!(scene.witness.alarms().is_empty(), "the witness saw two writers");
    show(&["status"], &scene.causeway(&["status"])?)?;
    drop(agents);
    clean_up(scene, began)
}

fn boot_id(scene: &Scene) -> Result<String> {
    scene.ssh(scene.at_east)?.run("cat /proc/sys/kernel/random/boot_id")
}
