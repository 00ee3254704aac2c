//! What an operator types, and what comes of it.

use e2e::{Agents, Scene, SceneOptions, VM};
use lab::Scenario;

#[test]
fn a_guest_moves_live_and_loses_nothing() {
    let scene = Scene::start(Scenario::Relay.builder(), &SceneOptions::default()).unwrap();
    let agents = Agents::start(&scene).unwrap();
    // The two hypervisors do not reach each other, by any way.
    let reaches = |address: &str| {
        let mut ping = scene.east().command("busybox").unwrap();
        let ping = ping.args(["ping", "-c", "1", "-W", "1", address]).output().unwrap();
        ping.status.success()
    };
    assert!(reaches("10.77.1.1") && !reaches("10.77.2.1"), "the control, or no wall between");

    scene.east().virsh(&["autostart", VM]).unwrap();
    agents.stretch_network().unwrap();
    let began = scene.witness.now_ms();
    let took = agents.migrate(&["--p2p", "--copy-storage-all"]).unwrap();
    agents.route_to_west().unwrap();
    agents.has_moved_whole().unwrap();
    // The agent is on its machine, and did not wait until libvirt said so.
    assert!(agents.east.log().contains("web1 has ended at the source"), "{}", agents.logs());
    let left = scene.east().virsh(&["dumpxml", "--inactive", VM]).unwrap();
    assert!(left.contains("/FENCED/by-causeway/"), "it could be started: {left}");
    let alone =
        || Ok(!scene.east().virsh(&["list", "--all", "--autostart", "--name"])?.contains(VM));
    agents.until("it is not started by itself", alone).unwrap();
    // Whoever asks the sites learns it in the words of any other migration.
    for asked in [&["status", VM][..], &["status", "--from", "west"], &["recover", VM]] {
        let told = scene.causeway(asked).unwrap().must_exit(0).stdout;
        for words in ["web1 lives at west   fully migrated (proven)", "live migration"] {
            assert!(told.contains(words), "{asked:?}: {told}");
        }
    }
    let gap = scene.witness.largest_gap(began..scene.witness.now_ms(), Some(VM));
    println!("virsh returned after {took:?}; the witness heard nothing for {gap:?}");
    println!("{}", scene.west().virsh(&["domjobinfo", "--completed", VM]).unwrap());
    println!("{}", agents.logs());

    let xml = scene.west().virsh(&["dumpxml", VM]).unwrap();
    assert!(xml.contains("web1-vda-") && xml.contains("<source bridge='br0'/>"), "{xml}");
    // Each hypervisor knows its own neighbour only.
    for (site, stranger) in [(scene.east(), "10.77.2.1"), (scene.west(), "10.77.1.1:")] {
        let log = std::fs::read_to_string(site.log_dir().join("libvirtd.log")).unwrap();
        let qemu = std::fs::read_to_string(site.log_dir().join(format!("qemu/{VM}.log"))).unwrap();
        assert!(!log.contains(stranger) && !qemu.contains(stranger), "{log}{qemu}");
    }
}
