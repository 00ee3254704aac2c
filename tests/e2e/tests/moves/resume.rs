//! kill -9 of the coordinator at chosen moments, then `resume`; and the same, then `abort`.

use e2e::{Gate, Scene, SceneOptions, VM};
use lab::Scenario;

/// The migration was killed when it had said `words`; the gate is part of its plan.
fn killed_at(words: &str) -> (Scene, String, Gate) {
    let scene = Scene::start(Scenario::Relay.builder(), &SceneOptions::default()).unwrap();
    let gate = Gate::new(scene.dir()).unwrap();
    let command = gate.command();
    let mut more = vec!["--gate", &command];
    // So that it lasts until the first figures are shown.
    if words == "round 0:" {
        more.extend(["--limit-rate", "3M"]);
    }
    if AFTER_THE_GATE.contains(&words) {
        gate.open().unwrap();
    }
    scene.migrate_until(words, &more).unwrap().kill().unwrap();
    let id = scene.id().unwrap();
    (scene, id, gate)
}

const AFTER_THE_GATE: [&str; 1] = ["phase: starting"];

fn resumes_after(words: &str) {
    let (scene, id, gate) = killed_at(words);
    let status = scene.causeway(&["status", &id]).unwrap().must_exit(0).stdout;
    let truths: &[&str] = match words {
        // The fence's intent is recorded about now.
        "phase: fencing" | "powering off" => &["lives at east", "in handover"],
        "phase: deciding" => &["in handover"],
        "phase: starting" => &["lives at west"],
        _ => &["lives at east"],
    };
    assert!(truths.iter().any(|truth| status.contains(truth)), "after {words:?}: {status}");
    let mut going_on = scene.command(&["resume", &id]).spawn().unwrap();
    if !AFTER_THE_GATE.contains(&words) {
        assert!(gate.is_reached(&mut going_on).unwrap(), "{:?}", Scene::finish(going_on));
        scene.disks_are_equal().unwrap();
        gate.open().unwrap();
    }
    Scene::finish(going_on).unwrap().must_exit(0);
    scene.ledger_is_whole(scene.at_west).unwrap();
    assert!(!scene.east().is_running(VM).unwrap(), "the source runs as well");
}

fn aborts_after(words: &str) {
    let (scene, id, _gate) = killed_at(words);
    let ran = scene.causeway(&["abort", &id, "--yes"]).unwrap().must_exit(0);
    for removed in ["placeholder web1", "volume web1-vda"] {
        assert!(ran.stdout.contains(removed), "{removed} is not named: {}", ran.stdout);
    }
    scene.ledger_is_whole(scene.at_east).unwrap();
    scene.west_is_clean().unwrap();
    scene.guest_is_clean(scene.at_east).unwrap();
    let status = scene.causeway(&["status", &id]).unwrap().must_exit(0);
    assert!(status.stdout.contains("lives at east"), "{}", status.stdout);
}

macro_rules! at {
    ($act:ident: $($name:ident $words:literal)*) => {
        $(#[test] fn $name() { $act($words); })*
    };
}

at! { resumes_after:
    a_kill_while_installing_the_agent_is_resumed "installing the agent"
    a_kill_while_creating_volumes_is_resumed "creating"
    a_kill_while_the_helper_starts_is_resumed "starting the helper"
    a_kill_before_the_first_round_is_resumed "phase: copying"
    a_kill_in_the_first_round_is_resumed "round 0:"
    a_kill_when_converged_is_resumed "phase: holding"
    a_kill_while_the_guest_is_frozen_is_resumed "stands still"
    a_kill_while_fencing_is_resumed "phase: fencing"
    a_kill_at_power_off_is_resumed "powering off"
    a_kill_at_the_decision_is_resumed "phase: deciding"
    a_kill_while_the_destination_boots_is_resumed "phase: starting"
}

at! { aborts_after:
    an_abort_while_preparing_leaves_the_source_writing "starting the helper"
    an_abort_in_the_first_round_leaves_the_source_writing "round 0:"
    an_abort_when_converged_leaves_the_source_writing "phase: holding"
    an_abort_while_the_guest_is_frozen_leaves_the_source_writing "stands still"
    an_abort_at_power_off_brings_the_source_back "powering off"
}
