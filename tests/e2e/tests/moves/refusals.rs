//! Every reason to refuse is found before anything is touched.

use std::io::Write as _;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use e2e::{Ran, Scene, SceneOptions, VM};
use lab::{Boot, Scenario, VmSpec};

#[test]
fn each_obstacle_is_named_with_its_remedy_and_nothing_is_touched() {
    let scene = Scene::start(Scenario::Relay.builder(), &SceneOptions::default()).unwrap();
    let plan = |change: &dyn Fn(&mut Vec<String>)| -> Ran {
        let mut words = scene.ask("plan", &[]).unwrap();
        change(&mut words);
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        scene.causeway(&words).unwrap()
    };
    let replace = |words: &mut Vec<String>, flag: &str, value: &str| {
        let at = words.iter().position(|word| word == flag).expect("it is asked for");
        words[at + 1] = value.to_owned();
    };
    let refused = |ran: Ran, codes: &[&str]| {
        let ran = ran.must_exit(3);
        for code in codes {
            assert!(ran.stderr.contains(code), "{code} is not named:\n{}", ran.stderr);
        }
        let remedies = ran.stderr.matches("hint: ").count();
        assert!(remedies >= codes.len(), "one has no remedy:\n{}", ran.stderr);
    };

    plan(&|_| ()).must_exit(0);
    scene.guest_is_clean(scene.at_east).unwrap();
    let unmapped = |words: &mut Vec<String>| {
        replace(words, "--network", "other=default");
        replace(words, "--pool", "nowhere");
        words.extend(["--direct", "br9=dhcp"].map(Into::into));
    };
    refused(plan(&unmapped), &["network-unmapped", "pool-missing", "direct-network"]);
    refused(plan(&|words| words[1] = "nobody".to_owned()), &["not-found"]);
    refused(plan(&|words| replace(words, "--to", "mars")), &["no site mars"]);
    refused(plan(&|words| replace(words, "--known-hosts", "/dev/null")), &["host key"]);
    refused(plan(&|words| replace(words, "--guest", "root@10.77.1.9")), &["cannot reach"]);

    let nowhere = ["site", "add", "north", "--uri", "qemu+tcp://10.77.9.9/system"];
    scene.causeway(&nowhere).unwrap().must_exit(0);
    refused(plan(&|words| replace(words, "--to", "north")), &["unreachable"]);

    let ops = format!("ops@{}", scene.at_east);
    refused(plan(&|words| replace(words, "--guest", &ops)), &["is not root"]);
    let other = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGxvY2FsaG9zdCBrZXkgb2Ygbm9ib2R5IGF0IGFsbCEh";
    let pinned = |words: &mut Vec<String>| {
        let at = words.iter().position(|word| word == "--known-hosts").expect("it is asked for");
        words.splice(at..at + 2, ["--host-key".to_owned(), other.to_owned()]);
    };
    refused(plan(&pinned), &["host-key"]);

    let mut twin = VmSpec::new(VM, Boot::Disk);
    twin.nics.clear();
    scene.west().define(&twin).unwrap();
    let uuid = scene.east().virsh(&["domuuid", VM]).unwrap();
    scene.west().define_xml(&bare("older", uuid.trim(), "")).unwrap();
    let mut words = scene.ask("plan", &[]).unwrap();
    replace(&mut words, "--network", "br0=nowhere");
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let mut without = scene.command(&words);
    let without = without.env("CAUSEWAY_APPLIANCE", scene.dir()).output().unwrap();
    refused(Ran::of(&without), &["name-taken", "uuid-taken", "helper", "network-missing"]);
    scene.west().virsh(&["undefine", VM]).unwrap();
    scene.west().virsh(&["undefine", "older"]).unwrap();

    who_does_not_agree_finds_the_guest_as_it_was(&scene);

    all_obstacles_of_a_vm_are_told_at_once(&scene);

    assert!(scene.causeway(&["status"]).unwrap().stdout.contains("no migrations"));
    a_name_that_is_mistyped_is_told(&scene);
    scene.ledger_is_whole(scene.at_east).unwrap();
}

/// As if all were well nobody would notice.
fn a_name_that_is_mistyped_is_told(scene: &Scene) {
    let vouch =
        |site: &'static str| ["recover", "--settle", "--yes", "--attest", site, "--reason", "seen"];
    let missing = ["migrate", VM, "--from", "east", "--to", "west", "--guest", "root@guest"];
    let missing = [&missing[..], &["--identity", "/nowhere/key"]].concat();
    let cases: &[(&[&str], i32, &str)] = &[
        (&["status", "--from", "wset"], 2, "no site is called wset"),
        (&["status", "wbe1"], 3, "no migration wbe1"),
        (&["abort", "wbe1"], 3, "no migration wbe1"),
        // A site does not answer.
        (&["recover", "wbe1"], 5, "neither a migration wbe1"),
        (&vouch("fenced=wset"), 2, "no site is called wset"),
        (&vouch("fenced=west"), 5, "no migration to west that has not ended"),
        (&missing, 2, "/nowhere/key"),
    ];
    for (words, code, said) in cases {
        let ran = scene.causeway(words).unwrap().must_exit(*code);
        assert!(ran.stderr.contains(said), "{words:?}: {}", ran.stderr);
    }
}

fn who_does_not_agree_finds_the_guest_as_it_was(scene: &Scene) {
    const CTRL_C: &[u8] = b"\x03";
    for (typed, said) in [(&b"n\n"[..], "not agreed to"), (CTRL_C, "interrupted")] {
        let words = scene.ask("migrate", &[]).unwrap();
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let mut asking = scene.at_the_question(&words).unwrap();
        let there = scene.guest_is_clean(scene.at_east).unwrap_err().to_string();
        assert!(there.contains("left in the guest"), "no agent waits for the answer: {there}");
        // Not closed before it has ended: that is an answer, too.
        let mut terminal = asking.stdin.take().unwrap();
        terminal.write_all(typed).unwrap();
        let ran = Scene::finish(asking).unwrap().must_exit(3);
        assert!(ran.stdout.contains(said), "{}", ran.stdout);
        if let Err(left) = scene.guest_is_clean(scene.at_east) {
            panic!("{left}\n{}", ran.stdout);
        }
        scene.west_is_clean().unwrap();
    }

    // The terminal is closed.
    let words = scene.ask("migrate", &[]).unwrap();
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let mut asking = scene.at_the_question(&words).unwrap();
    let coordinator = Scene::who_asks(&asking).unwrap();
    asking.kill().unwrap();
    asking.wait().unwrap();
    let coordinator = Path::new("/proc").join(coordinator);
    // Far more than a busy machine needs to take the agent out of the guest.
    let patience = Instant::now() + Duration::from_secs(600);
    while coordinator.exists() {
        assert!(Instant::now() < patience, "it waits for an answer that cannot come");
        sleep(Duration::from_millis(50));
    }
    scene.guest_is_clean(scene.at_east).unwrap();
}

fn bare(name: &str, uuid: &str, more: &str) -> String {
    format!(
        "<domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid><memory>65536</memory>\
         <os><type arch='x86_64' machine='q35'>hvm</type></os>{more}</domain>"
    )
}

/// A VM with everything that cannot move, against the real inventory of the destination.
fn all_obstacles_of_a_vm_are_told_at_once(scene: &Scene) {
    let huge = scene.dir().join("huge.raw");
    std::fs::File::create(&huge).unwrap().set_len(8 << 40).unwrap();
    let loader = scene.dir().join("OVMF_CODE.fd");
    std::fs::write(&loader, [0; 4096]).unwrap();
    let xml = format!(
        "<domain type='qemu'><name>odd</name><memory>65536</memory><vcpu>1</vcpu>\
         <os><type arch='x86_64' machine='q35'>hvm</type>\
         <loader readonly='yes' type='pflash'>{loader}</loader></os><features><acpi/></features>\
         <cpu mode='custom' match='exact' check='none'><model fallback='forbid'>Alpha21264</model></cpu>\
         <devices>\
         <disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{huge}'/><target dev='vda' bus='virtio'/></disk>\
         <disk type='network' device='disk'><driver name='qemu' type='raw'/><source protocol='nbd' name='x'><host name='10.0.0.1' port='10809'/></source><target dev='vdb' bus='virtio'/></disk>\
         <hostdev mode='subsystem' type='pci' managed='yes'><source><address domain='0' bus='3' slot='0' function='0'/></source></hostdev>\
         </devices></domain>",
        loader = loader.display(),
        huge = huge.display(),
    );
    scene.east().define_xml(&xml).unwrap();
    let mut words = scene.ask("plan", &[]).unwrap();
    words[1] = "odd".to_owned();
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let ran = scene.causeway(&words).unwrap().must_exit(3);
    // The host has firmware by UEFI; one that has none is tried by the plan's own tests.
    for code in ["not-running", "no-space", "cpu-missing", "disk-kind", "device"] {
        assert!(ran.stderr.contains(code), "{code} is not named:\n{}", ran.stderr);
    }
    scene.east().virsh(&["undefine", "--nvram", "odd"]).unwrap();
}
