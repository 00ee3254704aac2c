//! Whatever breaks in the first round, the copy goes on where it was.

use std::sync::LazyLock;
use std::time::Duration;

use e2e::breaks::{Break, cut_the_line, kill_the_agent, kill_the_coordinator, kill_the_helper};
use e2e::{Gate, Halfway, Scene, SceneOptions};
use lab::Scenario;

/// Bytes that have gone over the operator's machine when it breaks.
const MIDDLE: u64 = 12 << 20;
/// ... and between two breaks; all of them fit into the 30 MiB that are copied, with what goes over
/// while a break is made (logging in to a busy guest takes seconds).
const APART: u64 = 4 << 20;
/// Slow, so that the copy lasts.
const RATE: &str = "2M";
/// Greetings, tables of hashes, and what the guest wrote in the time that the break cost.
const ELSE: u64 = 1 << 20;
/// What a helper has received and not yet acknowledged dies with it: what came since its last sync
/// began, and its syncs are 300 ms apart and take their time under emulation.
const UNSYNCED: u64 = 1 << 20;

/// A migration that waits before its decision.
struct Copied {
    scene: Scene,
    gate: Gate,
    copying: Halfway,
    /// What the operator's machine relayed from the first round on.
    bytes: u64,
}

/// Copies with `breaks` one after the other, `apart` from one another.
fn copy(breaks: &[Break], apart: u64) -> Copied {
    let options = SceneOptions { write_rate: 0, records: 1, ..SceneOptions::default() };
    let scene = Scene::start(Scenario::Relay.builder(), &options).unwrap();
    let gate = Gate::new(scene.dir()).unwrap();
    let command = gate.command();
    // What is sent as it is can be counted.
    let mut more = vec!["--gate", &command, "--compress", "0"];
    if !breaks.is_empty() {
        more.extend(["--limit-rate", RATE]);
    }
    let mut copying = scene.migrate_until("phase: copying", &more).unwrap();
    let before = scene.operator_bytes().unwrap();
    // The first of many late enough that all of it again is more than what is allowed for all.
    let mut due = if breaks.len() > 1 { before + apart } else { before };
    for broken in breaks {
        due += apart;
        while scene.operator_bytes().unwrap() < due {
            if copying.child().try_wait().unwrap().is_some() {
                panic!("it ended before: {:?}", copying.finish());
            }
            assert!(!gate.was_reached(), "the copy ended before all was broken");
            std::thread::sleep(Duration::from_millis(50));
        }
        copying = broken(&scene, copying);
    }
    if !gate.is_reached(copying.child()).unwrap() {
        panic!("{:?}", copying.finish());
    }
    let bytes = scene.operator_bytes().unwrap() - before;
    Copied { scene, gate, copying, bytes }
}

/// The bytes of a copy in which nothing breaks.
static WHOLE: LazyLock<u64> = LazyLock::new(|| {
    let Copied { scene: _scene, gate, copying, bytes } = copy(&[], 0);
    copying.kill().unwrap();
    gate.open().unwrap();
    bytes
});

/// `lost`: what is known to be on its way and to be lost with what breaks.
fn next_to_nothing_is_sent_again_after(breaks: &[Break], apart: u64, lost: u64) {
    let whole = *WHOLE;
    let Copied { scene, gate, copying, bytes } = copy(breaks, apart);
    scene.disks_are_equal().unwrap();
    gate.open().unwrap();
    copying.finish().unwrap().must_exit(0);
    scene.ledger_is_whole(scene.at_west).unwrap();
    println!("{whole} bytes in one go, {bytes} with {} breaks", breaks.len());
    let times = u64::try_from(breaks.len()).unwrap();
    let allowed = whole + times * (whole / 100 + ELSE) + lost;
    assert!(bytes <= allowed, "{whole} bytes became {bytes}, of {allowed} allowed");
}

#[test]
fn a_copy_in_which_everything_breaks_once_sends_next_to_nothing_again() {
    let breaks: [Break; 4] = [kill_the_coordinator, kill_the_agent, kill_the_helper, cut_the_line];
    next_to_nothing_is_sent_again_after(&breaks, APART, UNSYNCED);
}

#[test]
#[ignore = "2 to 3 emulated minutes each; all four in one copy run in `make rest`, this in `make more`"]
fn a_killed_coordinator_is_resumed_and_sends_next_to_nothing_again() {
    next_to_nothing_is_sent_again_after(&[kill_the_coordinator], MIDDLE, 0);
}

#[test]
#[ignore = "2 to 3 emulated minutes each; all four in one copy run in `make rest`, this in `make more`"]
fn a_killed_agent_is_installed_anew_and_sends_next_to_nothing_again() {
    next_to_nothing_is_sent_again_after(&[kill_the_agent], MIDDLE, 0);
}

#[test]
#[ignore = "2 to 3 emulated minutes each; all four in one copy run in `make rest`, this in `make more`"]
fn a_killed_helper_is_started_anew_and_gets_next_to_nothing_again() {
    next_to_nothing_is_sent_again_after(&[kill_the_helper], MIDDLE, UNSYNCED);
}

#[test]
#[ignore = "2 to 3 emulated minutes each; all four in one copy run in `make rest`, this in `make more`"]
fn a_line_that_was_cut_carries_next_to_nothing_again() {
    next_to_nothing_is_sent_again_after(&[cut_the_line], MIDDLE, 0);
}
