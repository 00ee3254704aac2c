//! kill -9 of the coordinator at chosen moments, then `abort`.

use e2e::killing::{Killing, recovered};
use e2e::{Scene, SceneOptions};
use lab::Scenario;

fn abort_after(scene: Scene, words: &str) -> Scene {
    let (scene, _gate, id) = Killing::begin_in(scene, words).kill(words);
    if words == "powering off" {
        recovered(&scene, "in handover");
    }
    let ran = scene.causeway(&["abort", &id, "--yes"]).unwrap().must_exit(0);
    for removed in ["placeholder web1", "volume web1-vda"] {
        assert!(ran.stdout.contains(removed), "{removed} is not named: {}", ran.stdout);
    }
    scene.ledger_is_whole(scene.at_east).unwrap();
    scene.west_is_clean().unwrap();
    scene.guest_is_clean(scene.at_east).unwrap();
    let status = scene.causeway(&["status", &id]).unwrap().must_exit(0);
    assert!(status.stdout.contains("lives at east"), "{}", status.stdout);
    scene
}

/// After each the guest writes on at the source, and nothing of it stands in the way of the next.
#[test]
fn killed_and_aborted_at_five_moments_it_leaves_the_source_writing() {
    let scene = Scene::start(Scenario::Relay.builder(), &SceneOptions::default()).unwrap();
    let moments =
        ["starting the helper", "round 0:", "phase: holding", "stands still", "powering off"];
    moments.into_iter().fold(scene, abort_after);
}
