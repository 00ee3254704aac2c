//! What the operator may say about a switchover, and the way the data takes.

use e2e::{Gate, Scene, SceneOptions, VM};
use lab::Scenario;

#[test]
fn a_gate_that_says_no_brings_the_fenced_source_back_which_then_moves_without_a_tracker() {
    let scene = Scene::start(Scenario::Relay.builder(), &SceneOptions::default()).unwrap();
    let ran = scene.migrate(&["--gate", "echo not today >&2; false"]).unwrap().must_exit(4);
    assert!(ran.stdout.contains("not today"), "{}", ran.stdout);
    scene.ledger_is_whole(scene.at_east).unwrap();
    scene.west_is_clean().unwrap();
    let status = scene.causeway(&["status"]).unwrap().must_exit(0);
    assert!(status.stdout.contains("rolled back (proven)"), "{}", status.stdout);

    // Nothing of it stands in the way of the next, which compares in every round.
    let ran = scene.migrate_comparing(&["--tracker", "rescan"]).unwrap().must_exit(0);
    assert!(ran.stdout.contains("tracker rescan"), "{}", ran.stdout);
    scene.ledger_is_whole(scene.at_west).unwrap();
}

/// Bytes over the operator's machine while the disks are copied. Before the decision somebody starts
/// the source by hand.
fn relayed(scene: &Scene, more: &[&str]) -> u64 {
    let saved = scene.dir().join("saved.xml");
    std::fs::write(&saved, scene.east().virsh(&["dumpxml", VM]).unwrap()).unwrap();
    let gate = Gate::new(scene.dir()).unwrap();
    let command = gate.command();
    let more = [more, &["--gate", &command]].concat();
    let mut copying = scene.migrate_until("phase: copying", &more).unwrap();
    let before = scene.operator_bytes().unwrap();
    assert!(gate.is_reached(copying.child()).unwrap(), "it ended before its decision");
    let after = scene.operator_bytes().unwrap();
    scene.disks_are_equal().unwrap();

    scene.east().virsh(&["create", &saved.display().to_string()]).unwrap();
    gate.open().unwrap();
    let ran = copying.finish().unwrap().must_exit(5);
    for words in ["`causeway abort` keeps it", "virsh destroy"] {
        assert!(ran.stderr.contains(words), "{}", ran.stderr);
    }
    let status = scene.causeway(&["status"]).unwrap().must_exit(5);
    for words in ["lives at east", "needs an operator (observed)", "take back: causeway abort"] {
        assert!(status.stdout.contains(words), "{}", status.stdout);
    }
    scene.east().virsh(&["destroy", VM]).unwrap();
    scene.causeway(&["resume", &scene.id().unwrap()]).unwrap().must_exit(0);
    scene.ledger_is_whole(scene.at_west).unwrap();
    after - before
}

#[test]
fn where_the_sites_reach_each_other_the_data_goes_straight() {
    const CONTROL: u64 = 4 << 20;
    let scene = Scene::start(Scenario::Direct.builder(), &SceneOptions::default()).unwrap();
    // The control is the story: relayed, all of it is counted there.
    let direct = relayed(&scene, &["--direct", "default=10.77.2.200/24,10.77.2.1"]);
    assert!(direct < CONTROL, "{direct} bytes went over the operator's machine");
}
