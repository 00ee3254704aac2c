//! Other things that an operator may type, and what is refused in virsh's own words.

use std::time::Duration;

use e2e::{Agents, Scene, SceneOptions, VM, images};
use lab::guest::Content;
use lab::{Between, Format, Scenario, Wan};

const WHOLE: [&str; 2] = ["--p2p", "--copy-storage-all"];

#[test]
fn two_disks_in_parallel_for_good_and_paused_are_equal_byte_by_byte() {
    let options = SceneOptions {
        data: vec![(24 << 20, Content::Ext4, Format::Qcow2)],
        ..SceneOptions::default()
    };
    let scene = Scene::start(Scenario::Relay.builder(), &options).unwrap();
    // What west's own VMs are made from; this one as well.
    let template = scene.dir().join("template.raw");
    std::fs::copy(&scene.disks[0].path, &template).unwrap();
    let arrivals = format!("networks = {{ br0 = \"bridge:br0\" }}\ntemplates = [{template:?}]");
    let agents = Agents::start_with(&scene, &arrivals).unwrap();
    agents.until("it is read", || Ok(agents.west.log().contains("templates are read"))).unwrap();
    let more = ["--persistent", "--undefinesource", "--suspend", "--parallel"];
    let connections = ["--parallel-connections", "2"];
    let took = agents.migrate(&[&WHOLE[..], &more, &connections].concat()).unwrap();
    println!("parallel, persistent, paused: {took:?}");
    let log = agents.east.log();
    assert!(log.contains("what the other site has is known"), "{log}");
    let ended = log.lines().find(|line| line.contains("data has ended")).unwrap();
    println!("{ended}");
    agents.until_state(scene.west(), "paused").unwrap();
    agents.until("it stays so", || Ok(agents.west.log().contains("stays paused"))).unwrap();
    assert!(agents.east.log().matches("leads_to=memory").count() > 2, "{}", agents.logs());

    let left = scene.east().virsh(&["list", "--all", "--name"]).unwrap();
    assert!(left.trim().is_empty(), "{left}");
    let volumes = scene.volumes(scene.west()).unwrap();
    let sources: Vec<_> = scene.disks.iter().map(|disk| disk.path.clone()).collect();
    images::are_equal(&sources, &volumes).unwrap();
    for (volume, format) in volumes.iter().zip(["raw", "qcow2"]) {
        assert_eq!(volume.extension().unwrap(), format);
    }
    for view in [&["dumpxml", VM][..], &["dumpxml", "--inactive", VM]] {
        let xml = scene.west().virsh(view).unwrap();
        assert!(xml.contains("web1-vda-") && xml.contains("web1-vdb-"), "{xml}");
        assert!(!xml.contains("console/web1.log"), "{xml}");
    }
    agents.network_follows_to_west().unwrap();
    scene.west().virsh(&["resume", VM]).unwrap();
    agents.has_moved_whole().unwrap();
}

#[test]
fn what_cannot_be_is_refused_in_virshs_words_and_a_direct_one_to_named_ports_arrives() {
    let scene = Scene::start(Scenario::Relay.builder(), &SceneOptions::default()).unwrap();
    let mut agents = Agents::start_with(&scene, "networks = {}").unwrap();
    let unmapped = ["west: devices/interface", "is on br0, which is mapped to no network"];
    let cases: &[(&[&str], &[&str])] = &[
        (&["--p2p", "--copy-storage-all"], &unmapped),
        (&["--p2p", "--unsafe"], &["add --copy-storage-all"]),
        (&["--p2p", "--copy-storage-all", "--postcopy"], &["--postcopy: leave that out"]),
        (&["--p2p", "--tunnelled", "--unsafe"], &["tunnelled"]),
        (&["--p2p", "--copy-storage-inc"], &["--copy-storage-inc: leave that out"]),
        (
            &["--p2p", "--copy-storage-all", "--disks-uri", "unix:///run/x"],
            &["only tcp://HOST:PORT is"],
        ),
        (
            &["--p2p", "--copy-storage-all", "--migrateuri", "tcp://10.77.1.1:16509"],
            &["port 16509"],
        ),
    ];
    for (options, words) in cases {
        let refused = agents.refused(options).unwrap();
        println!("{options:?}: {refused}");
        for said in *words {
            assert!(refused.contains(said), "{refused} does not say {said:?}");
        }
        assert_eq!(agents.state(scene.east()).unwrap(), "running");
    }
    scene.west_is_clean().unwrap();

    agents.restart_west_with_networks().unwrap();
    let uris = ["--migrateuri", "tcp://10.77.1.1:50000", "--disks-uri", "tcp://10.77.1.1:50001"];
    let neighbour = "qemu+unix:///system?socket=/run/mobility-east.sock";
    let took = agents.migrate(&[&[neighbour, "--copy-storage-all"], &uris[..]].concat()).unwrap();
    println!("direct, over a unix socket, with named ports: {took:?}");
    agents.network_follows_to_west().unwrap();
    agents.has_moved_whole().unwrap();
    // Who leads it may die alone: only libvirt's own word counts.
    assert!(agents.east.log().contains("web1 is off at the source"), "{}", agents.logs());
}

/// The guest never stops writing. With a copy that waits for the far disk's answer to each of QEMU's 16 requests
/// this one never ends.
#[test]
fn a_guest_that_writes_moves_over_a_line_with_a_round_trip_of_a_tenth_of_a_second() {
    let scene = Scene::start(Scenario::Relay.builder(), &SceneOptions::default()).unwrap();
    let agents = Agents::start(&scene).unwrap();
    let (rate, delay) = (Some(100), Duration::from_millis(50));
    let far_away = Wan { rate, delay, ..Wan::default() };
    scene.lab.set_wan(Between::Operator("east"), far_away).unwrap();
    let took = agents.migrate(&WHOLE).unwrap();
    println!("over a long line: {took:?}\n{}", agents.logs());
    agents.network_follows_to_west().unwrap();
    agents.has_moved_whole().unwrap();
}
