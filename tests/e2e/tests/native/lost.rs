//! What an agent, or a site, has lost for good while a VM is off at its source and waits at its destination.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use e2e::{Agents, Scene, SceneOptions, VM};
use lab::{Between, Scenario};

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
    assert!(told.contains("web1 runs at west, without a decision that is known"), "{told}");
    agents.west_is_made_anew().unwrap();
    moves_after_all(&scene, &agents);
    assert!(agents.west.log().contains("somebody resumed web1 here while it waited"));
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
    assert!(ran.stderr.contains("nobody's word settles a live migration"), "{}", ran.stderr);
    scene.east().virsh(&["start", VM]).unwrap_err();

    let fenced = scene.east().virsh(&["dumpxml", "--inactive", VM]).unwrap();
    let anew = scene.dir().join("web1.xml");
    fs::write(&anew, unfenced(&fenced, &scene)).unwrap();
    scene.east().virsh(&["undefine", VM]).unwrap();
    scene.east().virsh(&["define", &anew.display().to_string()]).unwrap();
    // Its agent has nothing to do with that one.
    agents.east.kill().unwrap();
    agents.start_east().unwrap();
    sleep(Duration::from_secs(5));
    scene.east().virsh(&["start", VM]).unwrap();
    scene.ledger_is_whole(scene.at_east).unwrap();
}

/// Without its identity and its fence, with the disks that the fence lists.
fn unfenced(fenced: &str, scene: &Scene) -> String {
    let without = |text: &str, from: &str, to: &str| -> Result<String> {
        let (before, rest) = text.split_once(from).ok_or_else(|| anyhow::anyhow!("no {from}"))?;
        let (_, after) = rest.split_once(to).ok_or_else(|| anyhow::anyhow!("no {to}"))?;
        Ok(format!("{before}{after}"))
    };
    let disk = scene.disks[0].path.display().to_string();
    assert!(fenced.contains(&format!("path=\"{disk}\"")), "{fenced}");
    let mut text = without(fenced, "<uuid>", "</uuid>").unwrap();
    for element in ["title", "description", "metadata"] {
        text = without(&text, &format!("<{element}>"), &format!("</{element}>")).unwrap();
    }
    let source = "<source file='";
    let (before, rest) = text.split_once(source).unwrap();
    let (_, after) = rest.split_once('\'').unwrap();
    format!("{before}{source}{disk}'{after}")
}
