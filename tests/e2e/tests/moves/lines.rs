//! Lines that break, slow lines, guests that write too fast.

use e2e::{Scene, SceneOptions, VM};
use lab::guest::Content;
use lab::{Between, Format, Scenario};

#[test]
fn over_a_slow_line_that_loses_packets_it_arrives_all_the_same() {
    let scene = Scene::start(Scenario::Wan.builder(), &SceneOptions::default()).unwrap();
    scene.migrate_comparing(&[]).unwrap().must_exit(0);
    scene.ledger_is_whole(scene.at_west).unwrap();
}

#[test]
#[ignore = "not in the 25 minutes of `make test`; runs in `make rest`, and in CI"]
fn a_guest_that_writes_faster_than_the_line_ends_in_a_verdict_and_runs_on() {
    let options = SceneOptions { write_rate: 4 << 20, ..SceneOptions::default() };
    let scene = Scene::start(Scenario::Relay.builder(), &options).unwrap();
    // It writes all over 4 MiB, all the time; the second that is left for them carries a quarter.
    let (limit, budget) = (["--limit-rate", "1M"], ["--max-downtime", "8s", "--boot-time", "3s"]);
    let more = [&limit[..], &budget, &["--rounds-max", "2"]].concat();
    let ran = scene.migrate(&more).unwrap().must_exit(6);
    assert!(ran.stderr.contains("the guest writes"), "no figures: {}", ran.stderr);
    assert!(ran.stderr.contains("--max-downtime"), "no remedy: {}", ran.stderr);
    scene.ledger_is_whole(scene.at_east).unwrap();
}

#[test]
#[ignore = "2 emulated minutes for one more way to the verdict of the test above; runs in `make more`"]
fn a_hold_that_is_released_into_too_much_writing_ends_in_a_verdict_as_well() {
    let scene = Scene::start(Scenario::Relay.builder(), &SceneOptions::default()).unwrap();
    // Held while it fits; then it writes far more than the line carries.
    let more = ["--hold", "--limit-rate", "1M", "--max-downtime", "12s", "--boot-time", "3s"];
    let more = [&more[..], &["--rounds-max", "3"]].concat();
    let mut held = scene.migrate_until("holding: `causeway switchover", &more).unwrap();
    let writer = "(while true; do dd if=/dev/urandom of=/root/busy bs=1M count=48 conv=notrunc; \
                  done) >/dev/null 2>&1 </dev/null &";
    scene.ssh(scene.at_east).unwrap().run(writer).unwrap();
    held.wait_for(" done, ").unwrap();
    scene.causeway(&["switchover", &scene.id().unwrap()]).unwrap().must_exit(0);
    let ran = held.finish().unwrap().must_exit(6);
    assert!(ran.stderr.contains("the guest writes"), "no figures: {}", ran.stderr);
    scene.ledger_is_whole(scene.at_east).unwrap();
}

#[test]
fn three_disks_of_odd_sizes_are_equal_byte_by_byte_when_the_line_breaks_before_the_decision() {
    let options = SceneOptions {
        data: vec![
            ((24 << 20) + 37 * 512, Content::Ext4, Format::Raw),
            ((16 << 20) + 512, Content::Ext4, Format::Raw),
        ],
        write_rate: 1 << 20,
        ..SceneOptions::default()
    };
    let scene = Scene::start(Scenario::Relay.builder(), &options).unwrap();
    // From raw to qcow2: the fence replaces the source's headers, without which a qcow2 there could
    // not be read any more.
    let halfway = scene.migrate_until("phase: fencing", &["--format", "qcow2"]).unwrap();
    scene.lab.cut(Between::Operator("west")).unwrap();
    let ran = halfway.finish().unwrap().must_exit(5);
    assert!(ran.stderr.contains("causeway resume"), "{}", ran.stderr);
    assert!(!scene.east().is_running(VM).unwrap());
    scene.disks_are_equal().unwrap();

    scene.lab.heal(Between::Operator("west")).unwrap();
    let id = scene.id().unwrap();
    scene.causeway(&["resume", &id]).unwrap().must_exit(0);
    scene.ledger_is_whole(scene.at_west).unwrap();
}
