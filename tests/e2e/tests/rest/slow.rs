//! A slow line: 100 Mbit/s, 50 ms each way, one packet in a thousand lost.

use e2e::{Scene, SceneOptions};
use lab::Scenario;

#[test]
fn over_a_slow_line_that_loses_packets_it_arrives_all_the_same() {
    let scene = Scene::start(Scenario::Wan.builder(), &SceneOptions::default()).unwrap();
    scene.migrate_comparing(&[]).unwrap().must_exit(0);
    scene.ledger_is_whole(scene.at_west).unwrap();
}
