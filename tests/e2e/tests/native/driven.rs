//! `causeway migrate --method native`: the same, begun and followed by causeway.

use std::process::Command;

use e2e::{Agents, Halfway, Scene, SceneOptions, VM};
use lab::Scenario;

use crate::faults::nothing_is_left;

const ROUTE: [&str; 4] = ["--from", "east", "--to", "west"];
const NEIGHBOUR: &str = "qemu+tcp://10.77.1.1:16510/system";

fn register(scene: &Scene, name: &str, mobility: &str) {
    let uri = scene.lab.operator().uri(scene.lab.site(name).unwrap());
    let words = ["site", "add", name, "--uri", &uri, "--mobility", mobility];
    scene.causeway(&words).unwrap().must_exit(0);
}

fn native<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["migrate", VM, "--method", "native", "--yes"], &ROUTE[..], more].concat()
}

fn interrupt(going_on: &mut Halfway) {
    let pid = going_on.child().id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
}

/// How long east's QEMU may let the guest stand still.
fn allowed_ms(scene: &Scene) -> String {
    scene.east().virsh(&["migrate-getmaxdowntime", VM]).unwrap().trim().to_owned()
}

/// What east's QEMU may send, by libvirt.
fn limit_mib_s(scene: &Scene) -> String {
    scene.east().virsh(&["migrate-getspeed", VM]).unwrap().trim().to_owned()
}

/// Slow enough to be hit in the middle.
fn in_the_copy(scene: &Scene) -> Halfway {
    let words = native(&["--limit-rate", "2M", "--max-downtime", "3s"]);
    let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
    scene.until("disks: ", &words).unwrap()
}

#[test]
fn one_command_moves_a_guest_live_is_called_off_and_refused_like_any_other() {
    let scene = Scene::start(Scenario::Relay.builder(), &SceneOptions::default()).unwrap();

    // Which way it goes, and why.
    let ran = scene.causeway(&native(&[])).unwrap().must_exit(3);
    assert!(ran.stderr.contains("no mobility agent is registered for east"), "{}", ran.stderr);
    register(&scene, "east", NEIGHBOUR);
    let auto = [&["plan", VM, "--method", "auto"], &ROUTE[..]].concat();
    let ran = scene.causeway(&auto).unwrap().must_exit(3);
    assert!(ran.stderr.contains("guest, since no mobility agent is registered for west"));
    register(&scene, "west", "qemu+tcp://10.77.9.9:16510/system");
    let unpaired = "no mobility agent of east has said there that west is its neighbour";
    let ran = scene.causeway(&auto).unwrap().must_exit(3);
    assert!(ran.stderr.contains(&format!("guest, since {unpaired}")), "{}", ran.stderr);
    let ran = scene.causeway(&native(&[])).unwrap().must_exit(3);
    for words in [unpaired, "causeway-mobility serve"] {
        assert!(ran.stderr.contains(words), "{}", ran.stderr);
    }
    let mut agents = Agents::start_with(&scene, "networks = {}").unwrap();
    let are_paired = || {
        let told = scene.causeway(&auto)?.stdout;
        Ok(told.contains("native: both sites have a mobility agent, paired with the other's"))
    };
    agents.until("they tell that they are paired", are_paired).unwrap();
    let ran = scene.causeway(&native(&["--pool", "default"])).unwrap().must_exit(2);
    assert!(ran.stderr.contains("--pool is of --method guest alone"), "{}", ran.stderr);

    // What the agents refuse is said in their words, and nothing is touched.
    let ran = scene.causeway(&native(&[])).unwrap().must_exit(3);
    for words in ["br0, which is mapped to no network", "was not moved; it runs at east as before"]
    {
        assert!(ran.stderr.contains(words), "{}", ran.stderr);
    }
    scene.west_is_clean().unwrap();
    agents.restart_west_with_networks().unwrap();

    // Called off before it begins, or as it does.
    let words: Vec<_> = native(&[]).iter().map(|word| (*word).to_owned()).collect();
    let mut at_once = scene.until("  after     web1", &words).unwrap();
    interrupt(&mut at_once);
    let ran = at_once.finish().unwrap();
    assert!([3, 4].contains(&ran.code), "{}: {}{}", ran.code, ran.stdout, ran.stderr);
    let job = scene.east().virsh(&["domjobinfo", VM]).unwrap();
    assert!(job.contains("None"), "it goes on: {job}");
    assert_eq!(agents.state(scene.east()).unwrap(), "running");

    // Called off.
    assert_eq!(allowed_ms(&scene), "300");
    let unlimited = limit_mib_s(&scene);
    let mut going_on = in_the_copy(&scene);
    // The handover takes some of what was allowed, and as long as memory does not go round most of the rest is kept back.
    agents.until("it is told", || Ok(allowed_ms(&scene) == "480")).unwrap();
    let is_limited = || {
        let copy = scene.east().virsh(&["blockjob", VM, "vda", "--raw"])?;
        Ok(copy.contains(" bandwidth=2\n"))
    };
    agents.until("the copy is limited", is_limited).unwrap();
    assert_eq!(limit_mib_s(&scene), "2");
    interrupt(&mut going_on);
    let ran = going_on.finish().unwrap().must_exit(4);
    assert!(ran.stdout.contains("web1 lives at east   rolled back"), "{}", ran.stdout);
    assert_eq!(allowed_ms(&scene), "300");
    assert_eq!(limit_mib_s(&scene), unlimited);
    assert_eq!(agents.state(scene.east()).unwrap(), "running");
    scene.west_is_clean().unwrap();

    // Its machine dies: libvirt goes on without it, and another one is not begun.
    in_the_copy(&scene).kill().unwrap();
    let ran = scene.causeway(&native(&[])).unwrap().must_exit(3);
    assert!(ran.stderr.contains("west has a VM of this id, which is paused"), "{}", ran.stderr);
    // How that gets on anybody is told, with what goes over the line.
    let is_told = || {
        let told = scene.causeway(&["status", VM])?.stdout;
        let progress = told.lines().find(|line| line.starts_with("  progress  disks: "));
        Ok(progress.is_some_and(|line| line.contains("line: ") && line.contains("(1 : ")))
    };
    agents.until("how far it is is told", is_told).unwrap();
    scene.east().virsh(&["domjobabort", VM]).unwrap();
    let rolled_back = || {
        let ran = scene.causeway(&["status", VM])?;
        Ok(ran.code == 0 && ran.stdout.contains("web1 lives at east   rolled back"))
    };
    agents.until("it is rolled back", rolled_back).unwrap();
    println!("nothing is left after {:?}", nothing_is_left(&agents, &scene));

    agents.stretch_network().unwrap();
    let ran = scene.causeway(&native(&["--max-downtime", "3s"])).unwrap().must_exit(0);
    println!("{}{}", ran.stderr, ran.stdout);
    for words in
        ["web1 lives at west   fully migrated (proven)", "it stood still for ", "  line      "]
    {
        assert!(ran.stdout.contains(words), "{}", ran.stdout);
    }
    agents.route_to_west().unwrap();
    agents.has_moved_whole().unwrap();
    let left = scene.east().virsh(&["list", "--all", "--name"]).unwrap();
    assert!(left.trim().is_empty(), "{left}");
    scene.causeway(&native(&[])).unwrap().must_exit(3);
}

/// Through the guest there, live back: the one is told of as the past of the other, whoever made that.
#[test]
fn what_went_through_the_guest_comes_back_live() {
    let scene = Scene::start(Scenario::Relay.builder(), &SceneOptions::default()).unwrap();
    let agents = Agents::start(&scene).unwrap();
    scene.migrate(&[]).unwrap().must_exit(0);
    let id = scene.id().unwrap();
    register(&scene, "east", NEIGHBOUR);
    register(&scene, "west", "qemu+tcp://10.99.0.1:16510/system");
    let back = ["migrate", VM, "--from", "west", "--to", "east", "--yes"];
    // What is kept of it stands in the way, and how it goes is said.
    let ran = scene.causeway(&back).unwrap().must_exit(3);
    assert!(ran.stderr.contains(&format!("causeway discard {id}")), "{}", ran.stderr);
    scene.causeway(&["discard", &id, "--yes"]).unwrap().must_exit(0);
    let ran = scene.causeway(&[&back[..], &["--max-downtime", "3s"]].concat()).unwrap();
    assert_eq!(ran.code, 0, "{}{}\n{}", ran.stdout, ran.stderr, agents.logs());
    assert!(ran.stdout.contains("web1 lives at east   fully migrated (proven)"), "{}", ran.stdout);
    agents.until_state(scene.east(), "running").unwrap();
    for asked in [&["status", &*id][..], &["status"]] {
        let told = scene.causeway(asked).unwrap().must_exit(0).stdout;
        assert!(told.contains(&format!("{id}   web1   superseded by a later migration")), "{told}");
    }
}
