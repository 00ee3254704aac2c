//! The agent in real guests: as the helper's init, and in a guest that is brought to rest.
//!
//! Nothing is ever frozen on this machine: the agent that freezes runs inside the guest.
#![expect(clippy::unwrap_used, reason = "what fails in a helper of a test fails the test")]

#[path = "agent/helper.rs"]
mod helper;
#[path = "agent/source.rs"]
mod source;
#[path = "agent/talk.rs"]
mod talk;

use std::fs;

use anyhow::Result;
use helper::Helper;
use lab::guest::Content;
use serde_json::{Value, json};
use source::Source;
use talk::Talk;

const BLOCK: u64 = 256 << 10;

/// What is asked of both agents' disks; `fresh` matters at the destination only.
fn disks(names: &[String], sizes: &[u64]) -> Value {
    let disk = |(number, (name, size)): (usize, (&String, &u64))| json!({ "no": number, "size": size, "block_size": BLOCK, "device": name, "fresh": true });
    names.iter().zip(sizes).enumerate().map(disk).collect()
}

#[test]
fn the_helper_answers_over_its_port_again_and_again_and_powers_off() {
    let helper = Helper::boot(&[64 << 20]).unwrap();
    let mut first = Talk::over_socket(&helper.control()).unwrap();
    let hello = first.hello().unwrap();
    assert_eq!(hello["role"], "destination");
    // Cut in the middle of everything; the next one finds its way, and is not the owner.
    first.kill().unwrap();
    let mut stranger = Talk::over_socket(&helper.control()).unwrap();
    let refused = stranger.hello().unwrap_err().to_string();
    assert!(refused.contains("foreign"), "{refused}");
    helper.cut().unwrap();

    let helper = Helper::boot(&[64 << 20]).unwrap();
    let mut talk = Talk::over_socket(&helper.control()).unwrap();
    talk.hello().unwrap();
    let wrong =
        talk.ask(&json!({ "attach": { "disks": disks(&["causeway-7".to_owned()], &[1 << 20]) } }));
    assert!(format!("{:#}", wrong.unwrap_err()).contains("disk"));
    let targets = disks(&["causeway-0".to_owned()], &[64 << 20]);
    assert_eq!(talk.ask(&json!({ "attach": { "disks": targets } })).unwrap(), "done");
    let boot = talk.ask(&json!("inspect_boot")).unwrap();
    assert_eq!(boot["boot"]["findings"][0]["severity"], "warning", "{boot}");
    assert_eq!(talk.ask(&json!("shutdown")).unwrap(), "done");
    helper.wait_off().unwrap();
}

#[test]
fn disks_are_equal_at_the_seal_with_bpf() {
    migrate_by_hand("bpf").unwrap();
}

#[test]
fn disks_are_equal_at_the_seal_with_rescan() {
    migrate_by_hand("rescan").unwrap();
}

/// Everything a coordinator asks for, over a direct connection, while the guest writes; then both
/// images are compared byte by byte.
fn migrate_by_hand(tracker: &str) -> Result<()> {
    let source = Source::boot(&[(48 << 20) + 11 * 512], Content::Ext4)?;
    let sizes = source.sizes();
    let helper = Helper::boot(&sizes)?;
    let mut at_source = source.agent()?;
    let mut at_helper = Talk::over_socket(&helper.control())?;
    let source_key = at_source.hello()?["key"].clone();
    let helper_key = at_helper.hello()?["key"].clone();

    let names: Vec<String> = source.device_names();
    let report = at_source.ask(&json!("inspect"))?["guest"].clone();
    let found: Vec<&str> = report["devices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|disk| disk["name"].as_str().unwrap())
        .collect();
    assert_eq!(found, names, "{report:#}");
    assert!(report["file_systems"].to_string().contains("/data1"), "{report:#}");

    let targets: Vec<String> = (0..sizes.len()).map(|n| format!("causeway-{n}")).collect();
    at_helper.ask(&json!({ "attach": { "disks": disks(&targets, &sizes) } }))?;
    let track = json!({ "track": { "disks": disks(&names, &sizes), "wish": tracker } });
    let tracking = at_source.ask(&track)?;
    assert_eq!(tracking["tracking"]["choice"], tracker);
    assert_eq!(at_source.ask(&track)?, tracking, "asked again");

    let expect = json!({ "expect": { "generation": 1, "streams": 3, "peer_key": source_key, "listen": true } });
    let listening = at_helper.ask(&expect)?;
    assert!(
        listening["listening"]["addresses"][0].as_str().unwrap().ends_with(":7447"),
        "{listening}"
    );
    let endpoint = json!({ "direct": { "addresses": ["10.0.2.9:1", format!("10.0.2.2:{}", helper.direct_port())] } });
    let connect = json!({ "connect": { "generation": 1, "streams": 3, "peer_key": helper_key, "endpoint": endpoint } });
    at_source.ask(&connect)?;

    let ended = at_source.round(0)?;
    assert_eq!(ended["failure"], Value::Null, "{ended:#}");
    for number in 1..3 {
        source.write_a_little(number)?;
        let ended = at_source.round(number)?;
        assert_eq!(ended["failure"], Value::Null, "{ended:#}");
        assert_eq!(ended["doubts"], json!([]), "{ended:#}");
    }

    let unsealed = at_source.ask(&json!({ "seal": { "thaw_after_ms": 600_000 } })).unwrap_err();
    assert!(format!("{unsealed:#}").contains("wrong_state"), "{unsealed}");
    source.write_in_background()?;
    let quiesce = json!({ "quiesce": { "units": [], "hooks": [], "thaw_after_ms": 600_000, "thaw_hooks": [] } });
    at_source.ask(&quiesce)?;
    let unsealed = at_source.ask(&json!({ "seal": { "thaw_after_ms": 600_000 } })).unwrap_err();
    assert!(format!("{unsealed:#}").contains("not_clean"), "{unsealed}");
    let drained = at_source.round(3)?;
    assert_eq!(drained["remaining"], 0, "{drained:#}");
    let sealed = at_source.ask(&json!({ "seal": { "thaw_after_ms": 600_000 } }))?["sealed"].clone();
    let digests = at_helper.ask(&json!("digests"))?["digests"]["disks"].clone();
    assert_eq!(sealed["digests"], digests, "{sealed:#}");
    assert_eq!(at_helper.ask(&json!("reread"))?["digests"]["disks"], digests);

    // Frozen until the cord is pulled: what lies on its disks now is what was sealed.
    let (_dir, images) = source.cut()?;
    at_helper.ask(&json!("shutdown"))?;
    let (_copied, copies) = helper.wait_off()?;
    for (image, copy) in images.iter().zip(&copies) {
        let (original, copy) = (fs::read(image)?, fs::read(copy)?);
        assert!(original.len() <= copy.len());
        let differs = original.iter().zip(&copy).position(|(a, b)| a != b);
        assert_eq!(differs, None, "of {}", image.display());
    }
    Ok(())
}

/// One boot for all of it: a boot costs more than everything else here.
#[test]
fn a_frozen_guest_always_thaws() {
    let source = Source::boot(&[32 << 20], Content::Xfs).unwrap();
    let quiesce = |thaw_after_ms: u64| {
        json!({ "quiesce": {
            "units": [],
            "hooks": ["echo rest >> /run/hooks"],
            "thaw_after_ms": thaw_after_ms,
            "thaw_hooks": ["echo work >> /run/hooks"],
        } })
    };
    let hooks = |source: &Source| source.ssh("cat /run/hooks").unwrap();
    let mut talk = tracking(&source);

    // A program that writes past file systems is in the way, and is named; the guest works on.
    let raw = "sh -c 'echo $$ >/run/raw; exec sleep 1000 3<>/dev/vda2' >/dev/null 2>&1 &";
    source.ssh(raw).unwrap();
    source.wait_until("grep -q sleep /proc/$(cat /run/raw)/comm").unwrap();
    let refused = format!("{:#}", talk.ask(&quiesce(600_000)).unwrap_err());
    assert!(refused.contains("sleep") && refused.contains("vda2"), "{refused}");
    source.ssh("kill $(cat /run/raw)").unwrap();
    source.wait_until_it_writes().expect("put back after a refusal");
    assert!(source.swap_is_on());
    assert_eq!(hooks(&source), "rest\nwork\n");

    // Asked to: and the agent answered all the while, with the root frozen below it.
    talk.ask(&quiesce(600_000)).unwrap();
    assert!(!source.writes(), "not frozen");
    assert!(!source.swap_is_on());
    let status = talk.ask(&json!("status")).unwrap();
    assert_eq!(status["status"]["frozen"], true, "{status}");
    talk.ask(&json!({ "thaw": { "units": [], "hooks": [] } })).unwrap();
    source.wait_until_it_writes().expect("still frozen");
    assert!(source.swap_is_on());

    // At the deadline.
    talk.ask(&quiesce(4_000)).unwrap();
    talk.wait_for_event("thawed").unwrap();
    source.wait_until_it_writes().expect("still frozen after the deadline");
    assert!(source.swap_is_on());
    assert_eq!(talk.ask(&json!("status")).unwrap()["status"]["frozen"], false);
    assert_eq!(hooks(&source), "rest\nwork\n".repeat(3));

    // When the warden is killed.
    talk.ask(&quiesce(600_000)).unwrap();
    source.ssh("for p in $(grep -l causeway-warde /proc/[0-9]*/comm | cut -d / -f 3); do kill -9 $p && found=1; done; test -n \"$found\"").unwrap();
    talk.wait_for_event("thawed").unwrap();
    source.wait_until_it_writes().expect("still frozen without its warden");

    // When the agent is killed.
    talk.ask(&quiesce(600_000)).unwrap();
    assert!(!source.writes(), "not frozen");
    source.ssh("kill -9 $(cat /run/causeway/test/agent.pid)").unwrap();
    source.wait_until_it_writes().unwrap();
    source.wait_until("grep -q vda2 /proc/swaps").unwrap();
    source.wait_until("test $(wc -l < /run/hooks) = 10").unwrap();
    source.wait_until("! grep -q causeway-warde /proc/[0-9]*/comm").unwrap();

    // When the process that carries the disks is killed: the agent does not go on without.
    let mut talk = tracking(&source);
    talk.ask(&quiesce(600_000)).unwrap();
    assert!(!source.writes(), "not frozen");
    source.ssh("for p in $(grep -l causeway-carrie /proc/[0-9]*/comm | cut -d / -f 3); do kill -9 $p && found=1; done; test -n \"$found\"").unwrap();
    source.wait_until_it_writes().expect("still frozen without its carrier");
    source.wait_until("test $(wc -l < /run/hooks) = 12").unwrap();
    source.wait_until("! grep -q causeway-warde /proc/[0-9]*/comm").unwrap();

    // And when it is removed; nothing is left.
    let mut talk = tracking(&source);
    talk.ask(&quiesce(600_000)).unwrap();
    source
        .ssh("cp /run/causeway/test/causeway-agent /run/a; /run/a remove --dir /run/causeway/test")
        .unwrap();
    source.wait_until_it_writes().expect("still frozen after the removal");
    // But for those that ask for this test, which end with it.
    let left = "ls -A /run/causeway/test 2>/dev/null; for p in /proc/[0-9]*; do \
                grep -q causeway $p/comm && ! grep -q ask $p/cmdline && echo $p; done; true";
    assert_eq!(source.ssh(left).unwrap(), "");
    assert_eq!(source.ssh("/run/a remove --dir /run/causeway/test").unwrap(), "", "again");
}

fn tracking(source: &Source) -> Talk {
    let mut talk = source.agent().unwrap();
    talk.hello().unwrap();
    let track = disks(&source.device_names(), &source.sizes());
    talk.ask(&json!({ "track": { "disks": track, "wish": "auto" } })).unwrap();
    talk
}
