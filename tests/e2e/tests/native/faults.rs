//! Lines that break and agents that die: never two, never none, and nothing is left.

use std::process::Child;
use std::sync::atomic::AtomicBool;
use std::thread::sleep;
use std::time::{Duration, Instant};

use e2e::{Agents, Scene, SceneOptions, VM, both_run, never_two};
use lab::{Between, Builder, Scenario, SiteSpec, Wan};

const WHOLE: [&str; 2] = ["--p2p", "--copy-storage-all"];
/// Mbit/s at which a copy takes long enough to be hit in its middle.
pub const SLOW: Wan = Wan { rate: Some(40), delay: Duration::ZERO, loss: 0.0, seed: 0 };

fn start() -> Scene {
    Scene::start(Scenario::Relay.builder(), &SceneOptions::default()).unwrap()
}

/// One that is in the middle of its copy.
pub fn halfway(agents: &Agents<'_>) -> Child {
    let begun = agents.east.log().matches("a hypervisor connects").count();
    let migrating = agents.spawn(&WHOLE).unwrap();
    let more = |at: &str| agents.east.log().matches(at).count() > begun;
    agents.until("the copy begins", || Ok(more("a hypervisor connects"))).unwrap();
    sleep(Duration::from_secs(1));
    migrating
}

/// Whatever happened, the source's operator has an answer within this: silence is noticed after 20
/// s.
const ANSWERED_WITHIN: Duration = Duration::from_secs(60);

/// It fails, and says why.
pub fn fails(mut migrating: Child) -> (Duration, String) {
    let began = Instant::now();
    while migrating.try_wait().unwrap().is_none() {
        if began.elapsed() > ANSWERED_WITHIN {
            migrating.kill().unwrap();
            panic!("virsh hangs: {:?}", migrating.wait_with_output());
        }
        sleep(Duration::from_millis(10));
    }
    let took = began.elapsed();
    let output = migrating.wait_with_output().unwrap();
    assert!(!output.status.success(), "it was migrated");
    (took, String::from_utf8_lossy(&output.stderr).into_owned())
}

pub fn nothing_is_left(agents: &Agents<'_>, scene: &Scene) -> Duration {
    agents.until("nothing is left at west", || Ok(scene.west_is_clean().is_ok())).unwrap()
}

#[test]
fn whatever_dies_in_the_middle_of_the_copy_the_source_runs_on_and_the_next_try_arrives() {
    let scene = start();
    let mut agents = Agents::start(&scene).unwrap();
    let east = Between::Operator("east");
    scene.lab.set_wan(east, SLOW).unwrap();

    let migrating = halfway(&agents);
    agents.east.kill().unwrap();
    let (took, said) = fails(migrating);
    println!("source's agent killed: {took:?}: {said}");
    agents.until_state(scene.east(), "running").unwrap();
    // West hears of it, since the line ends in due form; nobody needs to come back for that.
    println!("nothing is left after {:?}", nothing_is_left(&agents, &scene));
    agents.start_east().unwrap();
    may_stand_still_as_before(&scene);

    let migrating = halfway(&agents);
    agents.west.kill().unwrap();
    let (took, said) = fails(migrating);
    println!("destination's agent killed: {took:?}: {said}");
    assert!(said.contains("line to west broke"), "{said}");
    agents.until_state(scene.east(), "running").unwrap();
    agents.start_west().unwrap();
    println!("nothing is left after {:?}", nothing_is_left(&agents, &scene));
    may_stand_still_as_before(&scene);

    let migrating = halfway(&agents);
    scene.lab.cut(east).unwrap();
    let (took, said) = fails(migrating);
    println!("WAN cut: {took:?}: {said}");
    assert!(said.contains("line to west broke"), "{said}");
    agents.until_state(scene.east(), "running").unwrap();
    scene.lab.heal(east).unwrap();
    println!("nothing is left after {:?}", nothing_is_left(&agents, &scene));
    may_stand_still_as_before(&scene);

    let migrating = halfway(&agents);
    scene.east().virsh(&["domjobabort", VM]).unwrap();
    let (took, said) = fails(migrating);
    println!("cancelled by its operator: {took:?}: {said}");
    agents.until_state(scene.east(), "running").unwrap();
    nothing_is_left(&agents, &scene);
    may_stand_still_as_before(&scene);

    scene.lab.set_wan(east, Wan::default()).unwrap();
    agents.migrate(&WHOLE).unwrap();
    agents.network_follows_to_west().unwrap();
    agents.has_moved_whole().unwrap();
}

/// By QEMU's default: while it is on its way it may for less, since the handover is part of it.
fn may_stand_still_as_before(scene: &Scene) {
    let allowed = scene.east().virsh(&["migrate-getmaxdowntime", VM]).unwrap();
    assert_eq!(allowed.trim(), "300");
}

#[test]
fn a_finish_whose_reply_is_lost_with_the_agent_never_makes_two() {
    let scene = start();
    let mut agents = Agents::start(&scene).unwrap();
    let migrating = spawn_whole(&agents);
    lose_replies(&scene, "-A");
    agents.until("it is offered", || Ok(agents.east.log().contains("stands still"))).unwrap();
    agents.east.kill().unwrap();
    assert_eq!(agents.state(scene.west()).unwrap(), "paused", "it was started without a word");
    agents.start_east().unwrap();
    let west = agents.state(scene.west()).unwrap();
    assert_ne!(west, "running", "it was started without a word");
    // It is given up where the source runs on already, and nowhere else.
    assert!(west == "paused" || agents.state(scene.east()).unwrap() == "running", "{west}");

    let (took, said) = fails(migrating);
    println!("reply lost: {took:?}: {said}");
    println!("source runs after {:?}", agents.until_state(scene.east(), "running").unwrap());
    println!("nothing is left after {:?}", nothing_is_left(&agents, &scene));
    lose_replies(&scene, "-D");
    println!("{}", agents.logs());
    agents.until("it stays", || Ok(agents.east.log().contains("web1 stays here"))).unwrap();
    scene.ledger_is_whole(scene.at_east).unwrap();
}

/// The control: with the hold before start taken out, as in libvirt's own order, the same makes two, and whatever would
/// see that elsewhere sees it.
#[test]
fn without_the_hold_before_start_a_finish_whose_reply_is_lost_makes_two() {
    let scene = start();
    let mut agents = Agents::start(&scene).unwrap();
    agents.stretch_network().unwrap();
    let migrating = spawn_whole(&agents);
    lose_replies(&scene, "-A");
    agents.until("it is offered", || Ok(agents.east.log().contains("stands still"))).unwrap();
    // What is held is so by its agent's connection.
    agents.west.kill().unwrap();
    let resume = || Ok(scene.west().virsh(&["resume", VM]).is_ok());
    agents.until("it is resumed at west", resume).unwrap();
    agents.east.kill().unwrap();
    let (took, said) = fails(migrating);
    println!("reply lost: {took:?}: {said}");
    lose_replies(&scene, "-D");
    println!("source runs after {:?}", agents.until_state(scene.east(), "running").unwrap());

    assert!(both_run(&scene).unwrap(), "one runs");
    let seen = never_two(&scene, &AtomicBool::new(false)).unwrap_err();
    assert_eq!(seen.to_string(), "it ran at both");
    // Both have the guest's address: whoever is found by it is heard at length, first the one and then the other.
    scene.witness_hears(50).unwrap();
    agents.route_to_west().unwrap();
    let is_heard = || Ok(!scene.witness.alarms().is_empty());
    println!("heard after {:?}", agents.until("the witness hears of two", is_heard).unwrap());
    let seen = scene.ledger_is_whole(scene.at_east).unwrap_err();
    assert!(seen.to_string().contains("the witness saw two writers"), "{seen:#}");
    for site in [scene.east(), scene.west()] {
        site.virsh(&["destroy", VM]).unwrap();
    }
}

pub fn spawn_whole(agents: &Agents<'_>) -> Child {
    let begun = agents.east.log().matches("a hypervisor connects").count();
    let migrating = agents.spawn(&[&WHOLE[..], &["--persistent"]].concat()).unwrap();
    let more = |at: &str| agents.east.log().matches(at).count() > begun;
    agents.until("it begins", || Ok(more("a hypervisor connects"))).unwrap();
    migrating
}

#[test]
fn agents_that_die_at_the_handover_settle_it_when_they_are_back() {
    let scene = start();
    let mut agents = Agents::start(&scene).unwrap();
    let migrating = agents.spawn(&WHOLE).unwrap();
    agents.until("it is offered", || Ok(agents.east.log().contains("stands still"))).unwrap();
    // Both, as by a power cut of everything but the hypervisors.
    agents.east.kill().unwrap();
    agents.west.kill().unwrap();
    let output = migrating.wait_with_output().unwrap();
    let (east, west) = (agents.state(scene.east()).unwrap(), agents.state(scene.west()).unwrap());
    println!("virsh: {}; east {east:?}, west {west:?}", output.status);
    agents.start_west().unwrap();
    sleep(Duration::from_secs(2));
    assert!(!both_run(&scene).unwrap());
    agents.start_east().unwrap();
    let settled =
        || Ok(agents.east.log().contains("has moved") || agents.east.log().contains("stays here"));
    println!("settled after {:?}", agents.until("it is settled", settled).unwrap());
    println!("{}", agents.logs());
    if agents.east.log().contains("has moved") {
        agents.network_follows_to_west().unwrap();
        agents.has_moved_whole().unwrap();
    } else {
        assert_eq!(agents.state(scene.east()).unwrap(), "running");
        nothing_is_left(&agents, &scene);
        scene.ledger_is_whole(scene.at_east).unwrap();
    }
}

#[test]
fn hypervisors_and_libvirts_that_die_in_the_copy_leave_one_vm_or_what_a_crash_leaves() {
    let scene = start();
    let agents = Agents::start(&scene).unwrap();
    let east = Between::Operator("east");
    scene.lab.set_wan(east, SLOW).unwrap();

    let migrating = halfway(&agents);
    scene.west().kill_vm(VM).unwrap();
    let (took, said) = fails(migrating);
    println!("destination's QEMU killed: {took:?}: {said}");
    agents.until_state(scene.east(), "running").unwrap();
    println!("nothing is left after {:?}", nothing_is_left(&agents, &scene));

    let migrating = halfway(&agents);
    scene.west().kill_libvirtd().unwrap();
    let (took, said) = fails(migrating);
    println!("destination's libvirtd killed: {took:?}: {said}");
    agents.until_state(scene.east(), "running").unwrap();
    scene.west().start_libvirtd().unwrap();
    println!("nothing is left after {:?}", nothing_is_left(&agents, &scene));

    let migrating = halfway(&agents);
    scene.east().kill_libvirtd().unwrap();
    let (took, said) = fails(migrating);
    println!("source's libvirtd killed: {took:?}: {said}");
    scene.east().start_libvirtd().unwrap();
    agents.until_state(scene.east(), "running").unwrap();
    println!("nothing is left after {:?}", nothing_is_left(&agents, &scene));
    scene.ledger_is_whole(scene.at_east).unwrap();

    // As any host's crash: the VM is started again where it was, and its copy never is.
    let migrating = halfway(&agents);
    scene.east().kill_vm(VM).unwrap();
    let (took, said) = fails(migrating);
    println!("source's QEMU killed: {took:?}: {said}");
    println!("nothing is left after {:?}", nothing_is_left(&agents, &scene));
    scene.east().virsh(&["start", VM]).unwrap();
    scene.ledger_is_whole(scene.at_east).unwrap();
}

#[test]
fn while_the_source_has_not_ended_it_and_while_nobody_can_tell_it_runs_nowhere_else() {
    let scene = Scene::start(patient(), &SceneOptions::default()).unwrap();
    let agents = Agents::start(&scene).unwrap();
    let migrating = spawn_whole(&agents);
    lose_replies(&scene, "-A");
    agents.until("it is offered", || Ok(agents.east.log().contains("stands still"))).unwrap();
    // The source's libvirt does not know yet.
    sleep(Duration::from_secs(7));
    assert_eq!(agents.state(scene.east()).unwrap(), "paused");
    assert_eq!(agents.state(scene.west()).unwrap(), "paused");
    let told = scene.causeway(&["status", VM]).unwrap().must_exit(5).stdout;
    assert!(told.contains("in handover"), "{told}");
    // Now it does, and nobody can tell the destination.
    scene.lab.cut(Between::Operator("east")).unwrap();
    lose_replies(&scene, "-D");
    let output = migrating.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    sleep(Duration::from_secs(7));
    assert_eq!(agents.state(scene.east()).unwrap(), "shut off");
    assert_eq!(agents.state(scene.west()).unwrap(), "paused", "it was started without a word");
    scene.lab.heal(Between::Operator("east")).unwrap();
    println!("it runs after {:?}", agents.until_state(scene.west(), "running").unwrap());
    agents.network_follows_to_west().unwrap();
    agents.has_moved_whole().unwrap();
}

/// Sites whose libvirt waits two minutes for an answer, and not half of one: what a test does meanwhile is done by then.
pub fn patient() -> Builder {
    let with_patience = |name: &str| SiteSpec {
        qemu_conf: "keepalive_count = 24".to_owned(),
        ..SiteSpec::named(name)
    };
    Scenario::Relay.builder_with(with_patience)
}

/// What the source's agent answers to its libvirtd at some length is lost from now on: success is,
/// and what only says that somebody is there is not.
pub fn lose_replies(scene: &Scene, how: &str) {
    let long = ["-m", "length", "--length", "300:65535"];
    let rule = [&[how, "OUTPUT", "-p", "tcp", "--sport", "16510"], &long[..], &["-j", "DROP"]];
    let rule = rule.concat();
    lab::run::run(scene.east().command("iptables").unwrap().args(rule)).unwrap();
}
