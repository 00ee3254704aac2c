//! Whatever breaks in the first round, the copy goes on where it was.

use std::process::Child;
use std::sync::LazyLock;
use std::time::Duration;

use e2e::{Gate, Halfway, Scene, SceneOptions, VM};
use lab::{Between, Scenario};

/// Bytes that have gone over the operator's machine when it breaks.
const MIDDLE: u64 = 16 << 20;
/// Greetings, tables of hashes, and what the guest wrote in the time that the break cost.
const ELSE: u64 = 1 << 20;
/// What waits in the line's buffers and libvirt's, for two streams, dies with a helper.
const ON_ITS_WAY: u64 = 4 << 20;
/// Longer than what waits in the kernels' buffers takes at the rate that the copy is limited to.
const CUT: Duration = Duration::from_secs(15);

/// Breaks something and answers with what goes on.
type Break = fn(&Scene, Halfway) -> Child;

/// Bytes that the operator's machine relays from the first round until the decision.
fn bytes_of_a_copy(broken: Option<Break>) -> u64 {
    let options = SceneOptions { write_rate: 0, records: 1, ..SceneOptions::default() };
    let scene = Scene::start(Scenario::Relay.builder(), &options).unwrap();
    let gate = Gate::new(scene.dir()).unwrap();
    let command = gate.command();
    // What is sent as it is can be counted; slowly, so that it lasts.
    let more = ["--gate", &command, "--compress", "0", "--limit-rate", "4M"];
    let mut copying = scene.migrate_until("phase: copying", &more).unwrap();
    let before = scene.operator_bytes().unwrap();
    let mut going_on = match broken {
        None => copying.into_child(),
        Some(broken) => {
            while scene.operator_bytes().unwrap() - before < MIDDLE {
                assert!(copying.child().try_wait().unwrap().is_none(), "it ended before");
                std::thread::sleep(Duration::from_millis(50));
            }
            broken(&scene, copying)
        }
    };
    assert!(gate.is_reached(&mut going_on).unwrap(), "{:?}", Scene::finish(going_on));
    let bytes = scene.operator_bytes().unwrap() - before;
    scene.disks_are_equal().unwrap();
    gate.open().unwrap();
    Scene::finish(going_on).unwrap().must_exit(0);
    scene.ledger_is_whole(scene.at_west).unwrap();
    bytes
}

static WHOLE: LazyLock<u64> = LazyLock::new(|| bytes_of_a_copy(None));

fn next_to_nothing_is_sent_again_after(broken: Break, lost: u64) {
    let (whole, bytes) = (*WHOLE, bytes_of_a_copy(Some(broken)));
    println!("{whole} bytes in one go, {bytes} with a break");
    assert!(bytes <= whole + whole / 100 + ELSE + lost, "{whole} bytes became {bytes}");
}

#[test]
fn a_killed_coordinator_is_resumed_and_sends_next_to_nothing_again() {
    next_to_nothing_is_sent_again_after(
        |scene, copying| {
            copying.kill().unwrap();
            scene.command(&["resume", &scene.id().unwrap()]).spawn().unwrap()
        },
        0,
    );
}

#[test]
fn a_killed_agent_is_installed_anew_and_sends_next_to_nothing_again() {
    next_to_nothing_is_sent_again_after(
        |scene, copying| {
            let all = "for f in /proc/[0-9]*/comm; do case $(cat $f) in \
                   causeway*) p=${f#/proc/}; kill -9 ${p%/comm};; esac; done";
            scene.ssh(scene.at_east).unwrap().run(all).unwrap();
            copying.into_child()
        },
        0,
    );
}

#[test]
fn a_killed_helper_is_started_anew_and_gets_next_to_nothing_again() {
    next_to_nothing_is_sent_again_after(
        |scene, copying| {
            scene.west().kill_vm(VM).unwrap();
            copying.into_child()
        },
        ON_ITS_WAY,
    );
}

#[test]
fn a_line_that_was_cut_carries_next_to_nothing_again() {
    next_to_nothing_is_sent_again_after(
        |scene, copying| {
            for site in ["west", "east"] {
                scene.lab.cut(Between::Operator(site)).unwrap();
                std::thread::sleep(CUT);
                scene.lab.heal(Between::Operator(site)).unwrap();
            }
            copying.into_child()
        },
        0,
    );
}
