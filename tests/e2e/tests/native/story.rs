//! What an operator types, and what comes of it.

use e2e::{Agents, Scene, SceneOptions, VM};
use lab::{Scenario, Site};

#[test]
fn a_guest_moves_live_and_loses_nothing() {
    let scene = Scene::start(Scenario::Relay.builder(), &SceneOptions::default()).unwrap();
    // What is a bridge here is a network there.
    let agents = Agents::start_with(&scene, "networks = { br0 = \"default\" }").unwrap();
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
    cannot_be_started_at_east(&agents, &scene);
    scene.east().kill_libvirtd().unwrap();
    scene.east().start_libvirtd().unwrap();
    cannot_be_started_at_east(&agents, &scene);
    agents.has_moved_whole().unwrap();
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

    for view in [&["dumpxml", VM][..], &["dumpxml", "--inactive", VM]] {
        let xml = scene.west().virsh(view).unwrap();
        assert!(xml.contains("web1-vda-") && xml.contains("<source network='default'"), "{xml}");
    }
    each_hypervisor_knows_its_own_neighbour_only(&scene);
}

fn cannot_be_started_at_east(agents: &Agents<'_>, scene: &Scene) {
    let refused = scene.east().virsh(&["start", VM]).unwrap_err();
    assert!(format!("{refused:#}").contains("/FENCED/by-causeway/"), "{refused:#}");
    assert_eq!(agents.state(scene.east()).unwrap(), "shut off");
}

/// In what libvirtd and QEMU were told at both sites.
fn each_hypervisor_knows_its_own_neighbour_only(scene: &Scene) {
    let (east, west) = (scene.east(), scene.west());
    let pool = |site: &Site| site.pool_dir().display().to_string();
    let (east_pool, west_pool) = (pool(east), pool(west));
    let cases = [
        (
            east,
            ["tcp:10.77.1.1:", "<hostname>neighbour-of-east</hostname>"],
            ["10.77.2.1", "10.99.0.1", "<hostname>west<", west.host_uuid(), &west_pool],
        ),
        (
            west,
            ["<hostname>neighbour-of-west</hostname>", "6a0f1c52-6f2d-4b0e-9d4e-0d5d1f6e3c02"],
            ["10.77.1.1", "neighbour-of-east", "<hostname>east<", east.host_uuid(), &east_pool],
        ),
    ];
    for (site, neighbour, stranger) in cases {
        let qemu = std::fs::read_to_string(site.log_dir().join(format!("qemu/{VM}.log"))).unwrap();
        let log = site.libvirtd_log().unwrap() + &qemu;
        for words in neighbour {
            assert!(log.contains(words), "{} is not told of {words}: {log}", site.name());
        }
        for words in stranger {
            let line = log.lines().find(|line| line.contains(words));
            assert_eq!(line, None, "{} knows {words}", site.name());
        }
    }
}
