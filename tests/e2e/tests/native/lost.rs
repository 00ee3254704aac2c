//! What nobody settles by itself any more.

use std::thread::sleep;
use std::time::Duration;

use e2e::{Agents, Scene, SceneOptions, VM};
use lab::{Between, Scenario};

use crate::faults::{lose_replies, spawn_whole};

/// It is off at east and waits at west, and nobody could tell west.
fn ended_and_not_told() -> Scene {
    Scene::start(Scenario::Relay.builder(), &SceneOptions::default()).unwrap()
}

fn end_it(scene: &Scene, agents: &Agents<'_>) {
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

fn show(scene: &Scene, words: &[&str]) {
    let ran = scene.causeway(words).unwrap();
    println!("$ causeway {} -> {}\n{}{}", words.join(" "), ran.code, ran.stdout, ran.stderr);
}

fn virsh(scene: &Scene, at: &str, words: &[&str]) {
    let site = if at == "east" { scene.east() } else { scene.west() };
    println!("{at}$ virsh {} -> {:?}", words.join(" "), site.virsh(words));
}

fn all(scene: &Scene) {
    show(scene, &["status", VM]);
    show(scene, &["status", VM, "--from", "east"]);
    show(scene, &["status", VM, "--from", "west"]);
    show(scene, &["recover"]);
}

#[test]
fn a() {
    let scene = ended_and_not_told();
    let mut agents = Agents::start(&scene).unwrap();
    end_it(&scene, &agents);
    scene.lab.heal(Between::Operator("east")).unwrap();
    agents.west_is_made_anew().unwrap();
    sleep(Duration::from_secs(8));
    all(&scene);
    show(&scene, &["recover", VM, "--settle", "--yes"]);
    virsh(&scene, "west", &["resume", VM]);
    all(&scene);
    sleep(Duration::from_secs(3));
    println!("{}", agents.logs());
    virsh(&scene, "west", &["list", "--all"]);
    virsh(&scene, "east", &["list", "--all"]);
    virsh(&scene, "east", &["start", VM]);
}

#[test]
fn b() {
    let scene = ended_and_not_told();
    let mut agents = Agents::start(&scene).unwrap();
    end_it(&scene, &agents);
    agents.east.kill().unwrap();
    scene.lab.heal(Between::Operator("east")).unwrap();
    agents.east_is_made_anew().unwrap();
    sleep(Duration::from_secs(8));
    all(&scene);
    show(&scene, &["recover", VM, "--settle", "--yes"]);
    virsh(&scene, "west", &["resume", VM]);
    virsh(&scene, "west", &["destroy", VM]);
    virsh(&scene, "east", &["start", VM]);
    all(&scene);
    sleep(Duration::from_secs(3));
    println!("{}", agents.logs());
}

#[test]
fn c() {
    let scene = ended_and_not_told();
    let mut agents = Agents::start(&scene).unwrap();
    end_it(&scene, &agents);
    agents.west.kill().unwrap();
    scene.west().kill_vm(VM).unwrap();
    scene.west().kill_libvirtd().unwrap();
    scene.lab.heal(Between::Operator("east")).unwrap();
    sleep(Duration::from_secs(8));
    show(&scene, &["status", VM]);
    show(&scene, &["status", VM, "--from", "east"]);
    show(&scene, &["recover", VM, "--settle", "--yes"]);
    show(
        &scene,
        &["recover", VM, "--settle", "--yes", "--attest", "fenced=west", "--reason", "burnt"],
    );
    virsh(&scene, "east", &["start", VM]);
    virsh(&scene, "east", &["dumpxml", "--inactive", VM]);
    println!("{}", agents.logs());
}
