//! What a large disk costs in memory, at the guest and at the operator's machine.

use std::time::Duration;

use e2e::{Scene, SceneOptions};
use lab::guest::Content;
use lab::{Format, Scenario};

const LIMIT_KIB: u64 = 128 << 10;
const DISK: u64 = 64 << 30;

/// The most that any of these processes ever had in memory, from their `/proc/PID/status`.
fn peak_kib(status: &str) -> Option<u64> {
    let lines = status.lines().filter(|line| line.starts_with("VmHWM:"));
    lines.filter_map(|line| line.split_whitespace().nth(1)?.parse().ok()).max()
}

#[test]
fn a_sparse_disk_of_64_gib_costs_agent_and_coordinator_less_than_128_mib() {
    let options =
        SceneOptions { data: vec![(DISK, Content::Blank, Format::Raw)], ..SceneOptions::default() };
    let scene = Scene::start(Scenario::Relay.builder(), &options).unwrap();
    let mut copying = scene.migrate_until("phase: copying", &[]).unwrap();
    let (mut coordinator, mut agent) = (0, 0);
    while copying.child().try_wait().unwrap().is_none() {
        let status = std::fs::read_to_string(format!("/proc/{}/status", copying.child().id()));
        coordinator = coordinator.max(status.ok().and_then(|text| peak_kib(&text)).unwrap_or(0));
        let ask = "for f in $(grep -l ^causeway /proc/[0-9]*/comm); do cat ${f%comm}status; done";
        let inside = scene.ssh(scene.at_east).unwrap().run(ask);
        agent = agent.max(inside.ok().and_then(|text| peak_kib(&text)).unwrap_or(0));
        std::thread::sleep(Duration::from_millis(500));
    }
    copying.finish().unwrap().must_exit(0);
    println!("coordinator {coordinator} KiB, agent in the guest {agent} KiB");
    assert!(coordinator > 0 && agent > 0, "not measured: {coordinator}, {agent}");
    assert!(coordinator < LIMIT_KIB, "the coordinator took {coordinator} KiB");
    assert!(agent < LIMIT_KIB, "the agent took {agent} KiB");
    scene.ledger_is_whole(scene.at_west).unwrap();
}
