//! A copy that waits for the source's word is started by nobody else.

use std::process::Child;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use e2e::{Agents, Scene, SceneOptions, VM};
use lab::Scenario;

use crate::faults::{lose_replies, patient, spawn_whole};

#[test]
fn a_copy_that_waits_is_not_resumed_by_hand_also_when_libvirtd_is_restarted() {
    let scene = Scene::start(Scenario::Relay.builder(), &SceneOptions::default()).unwrap();
    let agents = Agents::start(&scene).unwrap();
    let migrating = offered(&scene, &agents);
    let by_hand = || scene.west().virsh_command(&["resume", VM]).unwrap().spawn().unwrap();
    let mut first = by_hand();
    sleep(Duration::from_secs(2));
    stand_still(&scene, &agents);
    scene.west().kill_libvirtd().unwrap();
    assert!(!first.wait().unwrap().success());
    scene.west().start_libvirtd().unwrap();
    agents.until("it is held anew", || Ok(is_held(&scene).unwrap_or(false))).unwrap();
    stand_still(&scene, &agents);

    // The source gives up after half a minute, and runs on.
    let mut second = by_hand();
    let is_over = || {
        let states = (agents.state(scene.east())?, agents.state(scene.west())?);
        assert_ne!(states.1, "running");
        Ok(states == ("running".to_owned(), String::new()))
    };
    println!("given up after {:?}", agents.until("it runs at east alone", is_over).unwrap());
    assert!(!second.wait().unwrap().success());
    assert!(!migrating.wait_with_output().unwrap().status.success());
    agents.until("nothing is left", || Ok(scene.west_is_clean().is_ok())).unwrap();
    scene.ledger_is_whole(scene.at_east).unwrap();
}

#[test]
fn a_copy_that_was_resumed_while_nobody_held_it_is_suspended_again() {
    let scene = Scene::start(patient(), &SceneOptions::default()).unwrap();
    let mut agents = Agents::start(&scene).unwrap();
    let migrating = offered(&scene, &agents);
    agents.west.kill().unwrap();
    agents.until("it is not held", || Ok(!is_held(&scene)?)).unwrap();
    scene.west().virsh(&["resume", VM]).unwrap();
    assert_eq!(agents.state(scene.west()).unwrap(), "running", "the control");
    agents.start_west().unwrap();
    println!("suspended after {:?}", agents.until_state(scene.west(), "paused").unwrap());
    agents.until("it is held", || is_held(&scene)).unwrap();
    let told = "somebody resumed web1 here while it waited";
    agents.until("it is told", || Ok(agents.west.log().contains(told))).unwrap();
    stand_still(&scene, &agents);

    // Now it is its turn.
    lose_replies(&scene, "-D");
    let output = migrating.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    agents.until_state(scene.west(), "running").unwrap();
    agents.network_follows_to_west().unwrap();
    agents.has_moved_whole().unwrap();
}

/// One whose source does not hear that it may be ended.
fn offered(scene: &Scene, agents: &Agents<'_>) -> Child {
    let migrating = spawn_whole(agents);
    lose_replies(scene, "-A");
    agents.until("it is offered", || Ok(agents.east.log().contains("stands still"))).unwrap();
    migrating
}

fn is_held(scene: &Scene) -> Result<bool> {
    Ok(scene.west().virsh(&["domjobinfo", VM])?.contains("Outgoing migration"))
}

fn stand_still(scene: &Scene, agents: &Agents<'_>) {
    for site in [scene.east(), scene.west()] {
        assert_eq!(agents.state(site).unwrap(), "paused");
    }
}
