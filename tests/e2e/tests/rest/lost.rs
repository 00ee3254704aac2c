//! The operator's machine is lost, and a site with it.

use e2e::killing::{AFTER_THE_GATE, Killing};
use e2e::{Scene, SceneOptions, VM};
use lab::Scenario;

/// What the destination keeps is enough to start the VM there and to say that it lives there.
#[test]
fn from_the_destination_alone_a_decided_migration_is_brought_to_its_end() {
    let (scene, _gate, id) = Killing::begin(AFTER_THE_GATE).kill(AFTER_THE_GATE);
    scene.east().stop_libvirtd().unwrap();
    scene.on_another_machine().unwrap();
    let ran = scene.causeway(&["recover", "--settle", "--yes"]).unwrap().must_exit(5);
    assert!(ran.stderr.contains("moved to the destination"), "{}", ran.stderr);
    assert!(ran.stderr.contains(&format!("causeway resume {id}")), "{}", ran.stderr);
    scene.ledger_is_whole(scene.at_west).unwrap();
    let status = scene.causeway(&["status", "--from", "west"]).unwrap().must_exit(0).stdout;
    assert!(status.contains("fully migrated (proven)"), "{status}");

    scene.east().start_libvirtd().unwrap();
    // Its plan, with whatever runs on this machine, came from a site: nothing is done unseen.
    let unseen = scene.causeway(&["resume", &id]).unwrap().must_exit(3);
    for shown in ["  gate      `", "  login     ", "not agreed to"] {
        assert!(unseen.stderr.contains(shown), "{shown} is not shown: {}", unseen.stderr);
    }
    scene.causeway(&["resume", &id, "--yes"]).unwrap().must_exit(0);
    assert!(!scene.east().is_running(VM).unwrap(), "the source runs as well");
}

/// Nobody can know whether a destination that is gone runs the VM: without its operator's word nothing
/// starts, and with it the source goes on.
#[test]
fn a_destination_that_is_gone_is_vouched_for_by_its_operator() {
    // West's ledger is older than what is vouched for.
    let scene = Scene::start(Scenario::Relay.builder(), &SceneOptions::default()).unwrap();
    scene.migrate_until("creating", &[]).unwrap().kill().unwrap();
    scene.causeway(&["abort", VM, "--yes"]).unwrap().must_exit(0);
    let (scene, _gate, id) = Killing::begin_in(scene, "phase: deciding").kill("phase: deciding");
    scene.west().stop_libvirtd().unwrap();
    scene.on_another_machine().unwrap();
    for arguments in [&["recover"][..], &["recover", "--settle", "--yes"]] {
        let ran = scene.causeway(arguments).unwrap().must_exit(5);
        assert!(ran.stdout.contains("needs an operator (unknown)"), "{}", ran.stdout);
        assert!(!scene.east().is_running(VM).unwrap(), "the source was started on a guess");
    }
    let word = ["--attest", "fenced=west", "--reason", "it burnt down"];
    let settle = [&["recover", VM, "--settle", "--yes"], &word[..]].concat();
    // What was made there is named, and nobody waits for it.
    let ran = scene.causeway(&settle).unwrap().must_exit(0);
    assert!(ran.stderr.contains("west is another one from now on"), "{}", ran.stderr);
    for left in ["may be left  west: placeholder web1", "may be left  west: volume web1-vda"] {
        assert!(ran.stdout.contains(left), "{left} is not named: {}", ran.stdout);
    }
    scene.ledger_is_whole(scene.at_east).unwrap();
    let status = scene.causeway(&["status", &id]).unwrap().stdout;
    assert!(status.contains("lives at east"), "{status}");

    // It was not gone for good: what it left can be removed now.
    let next = format!("causeway abort {id}");
    assert!(status.contains(&next), "{status}");
    let ran = scene.causeway(&["abort", VM, "--yes"]).unwrap().must_exit(6);
    assert!(ran.stderr.contains(&next), "{}", ran.stderr);
    scene.west().start_libvirtd().unwrap();
    let ran = scene.causeway(&["abort", VM, "--yes"]).unwrap().must_exit(0);
    assert!(ran.stdout.contains("removed   west: placeholder web1"), "{}", ran.stdout);
    scene.west_is_clean().unwrap();
    let status = scene.causeway(&["status", &id]).unwrap().must_exit(0).stdout;
    assert!(!status.contains("may be left"), "{status}");
    assert!(status.contains("it burnt down"), "whose word it was is not shown: {status}");
    // Nothing of its former key is believed, and nothing is sent there.
    let ran = scene.migrate(&[]).unwrap().must_exit(3);
    assert!(ran.stderr.contains("west has another key"), "{}", ran.stderr);
    scene.ledger_is_whole(scene.at_east).unwrap();
}

/// Only away: the VM runs on at its source by the operator's word, and what was made is removed when the
/// destination is back.
#[test]
fn a_destination_that_is_away_does_not_hold_the_vm() {
    let (scene, _gate, id) = Killing::begin("phase: deciding").kill("phase: deciding");
    // Nobody's word is taken for what can be asked, and none that rests on nothing.
    let needless = ["abort", &id, "--yes", "--attest", "I know it"];
    let ran = scene.causeway(&needless).unwrap().must_exit(3);
    assert!(ran.stderr.contains("nobody has to vouch for it"), "{}", ran.stderr);
    scene.causeway(&["abort", &id, "--yes", "--attest", " "]).unwrap().must_exit(2);

    scene.west().stop_libvirtd().unwrap();
    let ran = scene.causeway(&["abort", &id, "--yes"]).unwrap();
    assert!(ran.stderr.contains("--attest \"WHY\" lets web1 go on at east"), "{}", ran.stderr);
    assert!(ran.code != 0, "it was given up without a word: {}", ran.stdout);
    assert!(!scene.east().is_running(VM).unwrap(), "the source was started on a guess");
    let word = ["abort", &id, "--yes", "--attest", "its power is off, and I hold the plug"];
    let ran = scene.causeway(&word).unwrap().must_exit(6);
    assert!(ran.stderr.contains("the source runs as before"), "{}", ran.stderr);
    scene.ledger_is_whole(scene.at_east).unwrap();

    // What it is now is said, whatever it was let go on to be.
    scene.east().kill_vm(VM).unwrap();
    let ran = scene.causeway(&["resume", &id]).unwrap().must_exit(5);
    for words in ["the source was let go on, and is off now", "virsh start web1, there"] {
        assert!(ran.stderr.contains(words), "{}", ran.stderr);
    }
    scene.east().virsh(&["start", VM]).unwrap();

    scene.west().start_libvirtd().unwrap();
    let ran = scene.causeway(&["resume", &id]).unwrap().must_exit(4);
    assert!(ran.stdout.contains("west: placeholder web1"), "{}", ran.stdout);
    let elsewhere = scene.west().virsh(&["list", "--all", "--name"]).unwrap();
    assert!(elsewhere.trim().is_empty(), "left elsewhere: {elsewhere}");
    scene.ledger_is_whole(scene.at_east).unwrap();
}
