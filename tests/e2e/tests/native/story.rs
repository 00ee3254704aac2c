//! What an operator types, and what comes of it.

use e2e::{Agents, Scene, SceneOptions, VM};
use lab::Scenario;

#[test]
fn a_guest_moves_live_and_loses_nothing() {
    let scene = Scene::start(Scenario::Relay.builder(), &SceneOptions::default()).unwrap();
    let agents = Agents::start(&scene).unwrap();
    let took = agents.migrate(&["--p2p", "--copy-storage-all"]).unwrap();
    println!("plain: {took:?}");
    println!("{}", agents.logs());
    agents.until_state(scene.west(), "running").unwrap();
    assert_ne!(agents.state(scene.east()), "running");
    agents.network_follows_to_west().unwrap();
    scene.ledger_is_whole(scene.at_east).unwrap();
    let xml = scene.west().virsh(&["dumpxml", VM]).unwrap();
    assert!(xml.contains("web1-vda-"), "{xml}");
}
