//! Lines that break.

use e2e::{Scene, SceneOptions, VM};
use lab::guest::Content;
use lab::{Between, Format, Scenario};

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
