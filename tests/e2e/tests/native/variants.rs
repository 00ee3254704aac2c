//! Other things that an operator may type, and what is refused in virsh's own words.

use std::time::Duration;

use e2e::{Agents, Scene, SceneOptions, VM, images};
use lab::guest::Content;
use lab::{Between, Format, HostAccess, Scenario, Site, SiteSpec, Wan};

const WHOLE: [&str; 2] = ["--p2p", "--copy-storage-all"];
const TO_PORTS: [&str; 4] =
    ["--migrateuri", "tcp://10.77.1.1:50000", "--disks-uri", "tcp://10.77.1.1:50001"];

/// What east's QEMU was told to send memory and disks to.
fn went_to(scene: &Scene, memory: &str, disks: &str) {
    let log = scene.east().libvirtd_log().unwrap();
    for words in [memory, disks] {
        assert!(log.contains(words), "{words}: {log}");
    }
}

/// Bytes, by a line of an agent's log.
fn counted(line: &str, what: &str) -> u64 {
    let (_, from) = line.split_once(&format!(" {what}=")).unwrap();
    from.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn two_disks_in_parallel_for_good_and_paused_are_equal_byte_by_byte() {
    let options = SceneOptions {
        data: vec![(24 << 20, Content::Ext4, Format::Qcow2)],
        overlays: true,
        ..SceneOptions::default()
    };
    let scene = Scene::start(Scenario::Relay.builder(), &options).unwrap();
    // What west's own VMs are made from; this one as well.
    let template = scene.dir().join("template.raw");
    std::fs::copy(&scene.disks[0].path, &template).unwrap();
    let arrivals = format!("networks = {{ br0 = \"default\" }}\ntemplates = [{template:?}]");
    let agents = Agents::start_with(&scene, &arrivals).unwrap();
    agents.until("it is read", || Ok(agents.west.log().contains("templates are read"))).unwrap();
    let base = images::base_of(&scene.disks[1].path).unwrap().unwrap();
    let at_east = scene.east().pool_dir().display().to_string();
    let xml = scene.east().virsh(&["dumpxml", VM]).unwrap();
    assert!(xml.contains("<backingStore type='file'") && xml.contains(base.to_str().unwrap()));
    assert!(xml.contains(&at_east), "{xml}");
    let more = ["--persistent", "--undefinesource", "--suspend", "--parallel"];
    let connections = ["--parallel-connections", "2", "--migrateuri", "tcp://east"];
    let took = agents.migrate(&[&WHOLE[..], &more, &connections].concat()).unwrap();
    println!("parallel, persistent, paused: {took:?}");
    let log = agents.east.log();
    assert!(log.contains("what the other site has is known"), "{log}");
    let ended = log.lines().find(|line| line.contains("data has ended")).unwrap();
    println!("{ended}");
    // Where the line is not the limit, a fifth of it; without templates three times as much.
    let [memory, disks, wire] = ["memory", "disks", "wire"].map(|what| counted(ended, what));
    assert!(wire * 3 < memory + disks, "{ended}");
    went_to(&scene, "uri=tcp:east:4915", "to host=east");
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
        assert_eq!(images::base_of(volume).unwrap(), None);
    }
    for view in [&["dumpxml", VM][..], &["dumpxml", "--inactive", VM]] {
        let xml = scene.west().virsh(view).unwrap();
        assert!(xml.contains("web1-vda-") && xml.contains("web1-vdb-"), "{xml}");
        assert!(!xml.contains("console/web1.log") && !xml.contains(&at_east), "{xml}");
        assert!(xml.contains("<source network='default'"), "{xml}");
        // Where it is now, and nothing that it was defined with.
        assert_eq!(xml.contains("bridge='br0'"), !view.contains(&"--inactive"), "{xml}");
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
    small_pool(scene.west());
    agents.restart_west_replacing("pool = \"default\"", "pool = \"small\"").unwrap();
    let refused = agents.refused(&["--p2p", "--copy-storage-all"]).unwrap();
    assert!(refused.contains("west: pool small has 8.0 MiB free"), "{refused}");
    scene.west_is_clean().unwrap();

    agents.restart_west_replacing("pool = \"small\"", "pool = \"default\"").unwrap();
    let neighbour = "qemu+unix:///system?socket=/run/mobility-east.sock";
    let took =
        agents.migrate(&[&[neighbour, "--copy-storage-all"], &TO_PORTS[..]].concat()).unwrap();
    println!("direct, over a unix socket, with named ports: {took:?}");
    agents.network_follows_to_west().unwrap();
    agents.has_moved_whole().unwrap();
    // Who leads it may die alone: only libvirt's own word counts.
    assert!(agents.east.log().contains("web1 is off at the source"), "{}", agents.logs());
}

/// One without room for the guest.
fn small_pool(west: &Site) {
    let script = "mkdir -p /run/small && mount -t tmpfs -o size=8m small /run/small";
    lab::run::run(west.command("sh").unwrap().args(["-c", script])).unwrap();
    west.virsh(&["pool-define-as", "small", "dir", "--target", "/run/small"]).unwrap();
    west.virsh(&["pool-start", "small"]).unwrap();
}

/// East's hosts come to its agent over SSH: with a key of their own, and they know whom they come to.
fn ssh_from(scene: &Scene, site: &Site) {
    let operator = scene.lab.operator();
    let [key, known] =
        [operator.ssh_key(), operator.known_hosts()].map(|p| p.display().to_string());
    let config = format!("IdentityFile {key}\nUserKnownHostsFile {known}\n");
    let script =
        "mount -t tmpfs ssh /etc/ssh/ssh_config.d && echo \"$0\" > /etc/ssh/ssh_config.d/lab.conf";
    lab::run::run(site.command("sh").unwrap().args(["-c", script, &config])).unwrap();
}

/// The guest never stops writing. With a copy that waits for the far disk's answer to each of QEMU's 16 requests
/// this one never ends.
#[test]
fn a_guest_that_writes_moves_over_a_line_with_a_round_trip_of_a_tenth_of_a_second() {
    let with_ssh = |name: &str| SiteSpec::named(name).host_access(HostAccess::Ssh);
    let lab = Scenario::Relay.builder_with(with_ssh);
    let data = vec![(24 << 20, Content::Ext4, Format::Raw)];
    let scene = Scene::start(lab, &SceneOptions { data, ..SceneOptions::default() }).unwrap();
    let arrivals = "networks = { br0 = \"bridge:br0\" }\nformat = \"qcow2\"";
    let agents = Agents::start_with(&scene, arrivals).unwrap();
    let (rate, delay) = (Some(100), Duration::from_millis(50));
    let far_away = Wan { rate, delay, ..Wan::default() };
    scene.lab.set_wan(Between::Operator("east"), far_away).unwrap();
    ssh_from(&scene, scene.east());
    let neighbour = "qemu+ssh://root@10.77.1.1/system?socket=/run/mobility-east.sock";
    let took = agents.migrate(&[&WHOLE[..], &[neighbour], &TO_PORTS].concat()).unwrap();
    println!("over SSH and a long line: {took:?}\n{}", agents.logs());
    agents.network_follows_to_west().unwrap();
    agents.has_moved_whole().unwrap();
    went_to(&scene, "uri=tcp://10.77.1.1:50000", "nbdURI=tcp://10.77.1.1:50001");
    let log = agents.east.log();
    assert!(log.contains("web1 is off at the source"), "it saw the end itself: {log}");
    // Both were raw. One is of a size that libvirt does not make in qcow2.
    let volumes = scene.volumes(scene.west()).unwrap();
    let xml = scene.west().virsh(&["dumpxml", VM]).unwrap();
    for (volume, format) in volumes.iter().zip(["raw", "qcow2"]) {
        assert_eq!(volume.extension().unwrap(), format);
        assert!(xml.contains(&format!("<driver name='qemu' type='{format}'")), "{xml}");
    }
}
