//! A migration that is killed with -9 at a chosen moment.
#![expect(clippy::unwrap_used, reason = "a test helper that fails fails its test")]

use lab::Scenario;

use crate::{Gate, Halfway, Scene, SceneOptions, VM};

/// What is printed when a moment has come.
pub const BEFORE_THE_SWITCHOVER: [&str; 6] = [
    "installing the agent",
    "creating",
    "starting the helper",
    "phase: copying",
    "round 0:",
    "phase: holding",
];
pub const IN_THE_SWITCHOVER: [&str; 5] =
    ["stands still", "phase: fencing", "powering off", "phase: deciding", AFTER_THE_GATE];
pub const AFTER_THE_GATE: &str = "phase: starting";

/// Moments after which nothing is left of the coordinator: while it copies, and between the fence and
/// the decision.
const LOST: [&str; 2] = ["phase: holding", "phase: deciding"];

/// When the coordinator's state is backed up, and when it is put back: its journal then tells of an
/// earlier connection than its agents have had since.
const BACKED_UP: &str = "phase: copying";
const PUT_BACK: &str = "round 0:";

pub struct Killing {
    scene: Scene,
    gate: Gate,
    going_on: Halfway,
}

impl Killing {
    /// A migration that is about to reach the moment that `words` tell of.
    pub fn begin(words: &str) -> Self {
        let scene = Scene::start(Scenario::Relay.builder(), &SceneOptions::default()).unwrap();
        Self::begin_in(scene, words)
    }

    pub fn begin_in(scene: Scene, words: &str) -> Self {
        let gate = Gate::new(scene.dir()).unwrap();
        let command = gate.command();
        let mut more = vec!["--gate", &command];
        // So that it lasts until the first figures are shown.
        if BEFORE_THE_SWITCHOVER.contains(&words) {
            more.extend(["--limit-rate", "3M"]);
        }
        if words == AFTER_THE_GATE {
            gate.open().unwrap();
        }
        let going_on = scene.migrate_until(words, &more).unwrap();
        Self { scene, gate, going_on }
    }

    /// Kills it, and hears what `status` says of it.
    pub fn kill(self, words: &str) -> (Scene, Gate, String) {
        let Self { scene, gate, going_on } = self;
        going_on.kill().unwrap();
        let id = scene.ids().unwrap().pop().unwrap();
        let ran = scene.causeway(&["status", &id]).unwrap();
        let status = ran.stdout.clone();
        // Where it does not run somebody is wanted.
        ran.must_exit(if status.contains("lives at") { 0 } else { 5 });
        let truths: &[&str] = match words {
            // The fence's intent is recorded about now.
            "phase: fencing" | "powering off" => {
                &["belongs to east", "lives at east", "in handover"]
            }
            "phase: deciding" => &["in handover"],
            AFTER_THE_GATE => &["belongs to west", "lives at west"],
            // In the drain it may stand.
            _ => &["lives at east", "belongs to east"],
        };
        assert!(truths.iter().any(|truth| status.contains(truth)), "after {words:?}: {status}");
        (scene, gate, id)
    }

    /// Kills it, takes it up again, and waits for the next moment.
    pub fn kill_and_resume_until(self, words: &str, next: &str) -> Self {
        let (scene, gate, id) = self.kill(words);
        if next == AFTER_THE_GATE {
            scene.disks_are_equal().unwrap();
            gate.open().unwrap();
        }
        match words {
            BACKED_UP => scene.back_up().unwrap(),
            PUT_BACK => scene.put_back().unwrap(),
            _ => {}
        }
        let again = if LOST.contains(&words) {
            recovered(&scene, how_lost(words));
            ["recover", VM, "--settle", "--yes"].map(str::to_owned).to_vec()
        } else {
            ["resume", &id, "--yes"].map(str::to_owned).to_vec()
        };
        let going_on = scene.until(next, &again).unwrap();
        Self { scene, gate, going_on }
    }

    /// The last kill; then it is resumed to its end.
    pub fn end(self, words: &str) {
        let (scene, gate, id) = self.kill(words);
        if LOST.contains(&words) {
            recovered(&scene, how_lost(words));
        }
        let mut going_on = scene.command(&["resume", &id, "--yes"]).spawn().unwrap();
        if words != AFTER_THE_GATE {
            assert!(gate.is_reached(&mut going_on).unwrap(), "{:?}", Scene::finish(going_on));
            scene.disks_are_equal().unwrap();
            gate.open().unwrap();
        }
        Scene::finish(going_on).unwrap().must_exit(0);
        scene.ledger_is_whole(scene.at_west).unwrap();
        assert!(!scene.east().is_running(VM).unwrap(), "the source runs as well");
    }
}

/// What the sites say of a migration whose coordinator was lost then.
fn how_lost(words: &str) -> &'static str {
    if words == "phase: deciding" { "in handover" } else { "lives at east" }
}

/// Another machine is told by the sites how it stands.
pub fn recovered(scene: &Scene, truth: &str) {
    scene.on_another_machine().unwrap();
    let ran = scene.causeway(&["status"]).unwrap().must_exit(0);
    assert!(ran.stdout.contains("causeway recover"), "{}", ran.stdout);
    let ran = scene.causeway(&["recover"]).unwrap();
    assert!(ran.stdout.contains(truth), "{}", ran.stdout);
    ran.must_exit(if truth == "in handover" { 5 } else { 0 });
}
