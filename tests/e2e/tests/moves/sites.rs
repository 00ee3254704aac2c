//! What dies at the sites: libvirtd, QEMU, whole hosts, in every part of one migration.

use e2e::breaks::{kill_libvirtd, reboot};
use e2e::{Gate, Scene, SceneOptions, VM};
use lab::Scenario;

/// As the fenced source has to be, whatever its host does.
fn source_stays_down(scene: &Scene) {
    let running = scene.east().virsh(&["list", "--name", "--state-running"]).unwrap();
    assert!(running.trim().is_empty(), "running at east: {running}");
}

#[test]
fn whatever_dies_at_either_site_the_guest_arrives_and_its_source_stays_down() {
    let scene = Scene::start(Scenario::Relay.builder(), &SceneOptions::default()).unwrap();
    scene.east().virsh(&["autostart", VM]).unwrap();
    let gate = Gate::new(scene.dir()).unwrap();
    let more = ["--gate", &gate.command(), "--limit-rate", "3M"];
    let mut going_on = scene.migrate_until("round 0:", &more).unwrap();
    let id = scene.id().unwrap();
    let resume = ["resume".to_owned(), id.clone()];

    // The helper's channels end at its libvirtd, and with a helper's host it begins anew.
    kill_libvirtd(scene.east());
    kill_libvirtd(scene.west());
    reboot(&scene, "west");
    assert!(gate.is_reached(going_on.child()).unwrap(), "{:?}", going_on.finish());
    scene.disks_are_equal().unwrap();

    // Fenced and not decided: an own host that boots does not bring it back, autostart or not.
    scene.west().kill_vm(VM).unwrap();
    reboot(&scene, "east");
    kill_libvirtd(scene.east());
    kill_libvirtd(scene.west());
    source_stays_down(&scene);
    let status = scene.causeway(&["status", &id]).unwrap().must_exit(5).stdout;
    assert!(status.contains("in handover"), "{status}");
    gate.open().unwrap();
    going_on.wait_for("starting web1").unwrap();

    // It dies as it boots, and is not given up for that: what is there is started again.
    let ran = loop {
        if scene.west().is_running(VM).unwrap() && scene.west().kill_vm(VM).is_ok() {
            break going_on.finish().unwrap();
        }
    };
    assert!(ran.code != 0, "it answered when it was dead: {}", ran.stdout);
    assert!(ran.stderr.contains("stopped before it answered"), "{}", ran.stderr);
    let status = scene.causeway(&["status", &id]).unwrap().must_exit(5).stdout;
    assert!(status.contains("belongs to west"), "{status}");
    assert!(status.contains("outage    at west the VM is there and is off"), "{status}");
    source_stays_down(&scene);

    // Nothing of the source is needed for the destination to live.
    let going_on = scene.until("answers", &resume).unwrap();
    kill_libvirtd(scene.east());
    let mut ran = going_on.finish().unwrap();
    if ran.code != 0 {
        ran = scene.causeway(&["resume", &id]).unwrap();
    }
    ran.must_exit(0);
    scene.ledger_is_whole(scene.at_west).unwrap();

    // Hosts boot some day: it comes up where it lives, and nowhere else.
    reboot(&scene, "east");
    reboot(&scene, "west");
    scene.ledger_is_whole(scene.at_west).unwrap();
    source_stays_down(&scene);
    let status = scene.causeway(&["status", &id]).unwrap().must_exit(0).stdout;
    assert!(status.contains("fully migrated (proven)"), "{status}");
}
