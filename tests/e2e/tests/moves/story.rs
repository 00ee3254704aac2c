//! The story: one command moves a running guest, and nothing is lost.

use e2e::{Scene, SceneOptions, VM};
use lab::Scenario;

/// Less than the guest's disk has, after compression.
const CONTENT: u64 = 20 << 20;

#[test]
fn a_running_guest_moves_with_one_command_and_loses_nothing() {
    let scene = Scene::start(Scenario::Relay.builder(), &SceneOptions::default()).unwrap();
    let before = scene.operator_bytes().unwrap();
    let ran = scene.migrate(&[]).unwrap().must_exit(0);
    // There is no route between the sites: all data went over the operator's machine.
    let relayed = scene.operator_bytes().unwrap() - before;
    assert!(relayed > CONTENT, "{relayed} bytes: the counter does not count");
    assert!(ran.stdout.contains("web1 runs at west"), "{}", ran.stdout);
    assert!(ran.stdout.contains("tracker bpf"), "{}", ran.stdout);
    scene.ledger_is_whole(scene.at_west).unwrap();

    let status = scene.causeway(&["status"]).unwrap().must_exit(0);
    assert!(status.stdout.contains("fully migrated (proven)"), "{}", status.stdout);
    let alone = scene.causeway(&["status", "--from", "west"]).unwrap().must_exit(0);
    assert!(alone.stdout.contains("fully migrated (proven)"), "{}", alone.stdout);

    let receipt = scene.state.join(format!("receipts/{}.json", scene.id().unwrap()));
    let receipt = receipt.display().to_string();
    scene.causeway(&["receipt", "verify", &receipt]).unwrap().must_exit(0);
    let forged = std::fs::read_to_string(&receipt).unwrap().replace("\"rounds\":", "\"rounds\": 1");
    std::fs::write(&receipt, forged).unwrap();
    scene.causeway(&["receipt", "verify", &receipt]).unwrap().must_exit(3);

    // Whatever is left of it at east, it does not come up.
    let left = scene.east().virsh(&["list", "--all", "--name"]).unwrap();
    let moved = left.trim();
    assert!(moved.starts_with(&format!("{VM}-moved")), "{left}");
    assert!(scene.east().virsh(&["start", moved]).is_err(), "the fenced source started");
    assert!(!scene.east().is_running(moved).unwrap());
}
