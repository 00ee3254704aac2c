//! The story: one command moves a running guest, and nothing is lost.

use e2e::{Scene, SceneOptions, VM};
use lab::Scenario;

#[test]
fn a_running_guest_moves_with_one_command_and_loses_nothing() {
    let scene = Scene::start(Scenario::Relay.builder(), &SceneOptions::default()).unwrap();
    let ran = scene.migrate(&[]).unwrap().must_exit(0);
    eprintln!("{}\n{}", ran.stderr, ran.stdout);
    scene.ledger_is_whole(scene.at_west).unwrap();
    assert!(!scene.east().is_running(VM).unwrap(), "the source runs as well");
}
