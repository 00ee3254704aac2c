//! What an agent, or a site, has lost for good while a VM is off at its source and waits at its destination.

use std::fs;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use e2e::{Agents, Scene, SceneOptions, VM};
use lab::{Between, Scenario};
use serde_json::Value;

use crate::faults::{lose_replies, spawn_whole};

fn start() -> Scene {
    Scene::start(Scenario::Relay.builder(), &SceneOptions::default()).unwrap()
}

/// It is off at east, and start-proof; it waits at west, and nobody could tell west.
fn ended_and_not_told(scene: &Scene, agents: &Agents<'_>) {
    let migrating = spawn_whole(agents);
    lose_replies(scene, "-A");
    agents.until("it is offered", || Ok(agents.east.log().contains("stands still"))).unwrap();
    scene.lab.cut(Between::Operator("east")).unwrap();
    lose_replies(scene, "-D");
    let output = migrating.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    agents.until_state(scene.east(), "shut off").unwrap();
    assert_eq!(agents.state(scene.west()).unwrap(), "paused");
}

fn moves_after_all(scene: &Scene, agents: &Agents<'_>) {
    println!("it runs after {:?}", agents.until_state(scene.west(), "running").unwrap());
    agents.network_follows_to_west().unwrap();
    agents.has_moved_whole().unwrap();
    let told = scene.causeway(&["status", VM]).unwrap().must_exit(0).stdout;
    assert!(told.contains("web1 lives at west   fully migrated (proven)"), "{told}");
}

#[test]
fn a_destinations_agent_that_has_lost_its_state_goes_on_from_what_its_site_keeps() {
    let scene = start();
    let mut agents = Agents::start(&scene).unwrap();
    ended_and_not_told(&scene, &agents);
    agents.west.kill().unwrap();
    agents.east.kill().unwrap();
    scene.lab.heal(Between::Operator("east")).unwrap();
    // Somebody who cannot wait.
    scene.west().virsh(&["resume", VM]).unwrap();
    let told = scene.causeway(&["status", VM]).unwrap().must_exit(5).stdout;
    assert!(told.contains("web1 runs at west, and whose it is is not known"), "{told}");
    agents.west_is_made_anew().unwrap();
    // Until then it may run because somebody resumed it.
    let has_moved = || Ok(agents.east.log().contains("web1 has moved to west"));
    agents.until("it has moved", has_moved).unwrap();
    moves_after_all(&scene, &agents);
    let log = agents.west.log();
    assert!(log.contains("somebody resumed web1 here while it waited"), "{log}");
}

#[test]
fn a_sources_agent_that_has_lost_its_state_goes_on_from_what_its_site_keeps() {
    let scene = start();
    let mut agents = Agents::start(&scene).unwrap();
    ended_and_not_told(&scene, &agents);
    agents.east.kill().unwrap();
    scene.lab.heal(Between::Operator("east")).unwrap();
    agents.east_is_made_anew().unwrap();
    moves_after_all(&scene, &agents);
}

/// As LIVE.md has it.
#[test]
fn where_the_destination_is_gone_for_good_the_source_is_defined_anew_by_hand() {
    let scene = start();
    let mut agents = Agents::start(&scene).unwrap();
    ended_and_not_told(&scene, &agents);
    let is_fenced = || Ok(agents.east.log().contains("its fence is on record"));
    agents.until("it is fenced", is_fenced).unwrap();
    agents.west.kill().unwrap();
    scene.west().kill_vm(VM).unwrap();
    scene.west().kill_libvirtd().unwrap();
    scene.lab.heal(Between::Operator("east")).unwrap();

    let told = scene.causeway(&["status", VM, "--from", "east"]).unwrap().must_exit(5).stdout;
    for words in ["needs an operator (unknown)", "source's ledger: fenced", "gone for good"] {
        assert!(told.contains(words), "{told}");
    }
    let word = ["--attest", "fenced=west", "--reason", "it burnt down"];
    let ran = scene.causeway(&[&["recover", VM, "--settle", "--yes"], &word[..]].concat());
    let ran = ran.unwrap().must_exit(3);
    assert!(
        ran.stderr.contains("no word that is given here settles a live migration"),
        "{}",
        ran.stderr
    );
    scene.east().virsh(&["start", VM]).unwrap_err();

    let anew = scene.dir().join("web1.xml");
    fs::write(&anew, as_it_was(&scene)).unwrap();
    scene.east().virsh(&["undefine", VM]).unwrap();
    scene.east().virsh(&["define", &anew.display().to_string()]).unwrap();
    // Its agent has nothing to do with that one.
    agents.east.kill().unwrap();
    agents.start_east().unwrap();
    sleep(Duration::from_secs(5));
    scene.east().virsh(&["start", VM]).unwrap();
    scene.ledger_is_whole(scene.at_east).unwrap();
}

/// Its definition, from what undoes its fence, without its identity.
fn as_it_was(scene: &Scene) -> String {
    let vms = scene.dir().join("agent-east/custody/east");
    let vm = fs::read_dir(vms).unwrap().next().unwrap().unwrap().path();
    let files = fs::read_dir(vm).unwrap().map(|file| file.unwrap().path());
    let is_it = |path: &PathBuf| {
        path.file_name().unwrap().to_str().unwrap().starts_with("unfence-1-definition-")
    };
    let record = fs::read_to_string(files.filter(is_it).last().unwrap()).unwrap();
    let record: Value = serde_json::from_str(&record).unwrap();
    let body: Value = serde_json::from_str(record["body"].as_str().unwrap()).unwrap();
    let xml = body["stage"]["definition"]["xml"].as_str().unwrap_or_else(|| panic!("{body:#}"));
    let (before, rest) = xml.split_once("<uuid>").unwrap();
    let (_, after) = rest.split_once("</uuid>").unwrap();
    format!("{before}{after}")
}
