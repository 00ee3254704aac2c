//! The story: a saved plan is run, a running guest moves, and nothing is lost.

use std::process::Command;

use e2e::{Ran, Scene, SceneOptions, Secrets, VM};
use lab::Scenario;
use lab::guest::Keys;

/// All that `causeway` can be brought to say.
const EVERYTHING: &str = "trace";

/// What the agent has in the guest besides its program, and what everybody there may see of its
/// processes.
const IN_THE_GUEST: &str = "cat /run/causeway/*/agent.log*; \
                            cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null; true";

/// Less than the guest's disk has, after compression.
const CONTENT: u64 = 16 << 20;

#[test]
fn a_running_guest_moves_by_a_saved_plan_and_loses_nothing_and_no_secret_is_shown() {
    let mut scene = Scene::start(Scenario::Relay.builder(), &SceneOptions::default()).unwrap();
    let saved = scene.dir().join("plan.toml").display().to_string();
    let words = scene.ask("plan", &["--output", &saved, "--hold"]).unwrap();
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    scene.log = Some(EVERYTHING);
    let planned = scene.causeway(&words).unwrap().must_exit(0);
    // At a terminal the log would run through the question.
    scene.log = None;
    let other = scene.dir().join("other-state");
    let copied = Command::new("cp").arg("-r").args([&scene.state, &other]).status().unwrap();
    assert!(copied.success());

    let login = words.iter().position(|word| *word == "--guest").expect("it is asked for");
    let run = [&["run", &saved], &words[login..login + 6]].concat();
    // A power cut at the question leaves an agent behind, which works for the next try.
    let mut asking = scene.at_the_question(&run).unwrap();
    let coordinator = Scene::who_asks(&asking).unwrap();
    Command::new("kill").args(["-9", &coordinator]).status().unwrap();
    asking.wait().unwrap();
    scene.log = Some(EVERYTHING);
    let run = [&run[..], &["--yes"]].concat();
    let words: Vec<_> = run.iter().map(|word| (*word).to_owned()).collect();
    let mut held = scene.until("phase: copying", &words).unwrap();
    let before = scene.operator_bytes().unwrap();
    held.wait_for("holding: `causeway switchover").unwrap();
    // There is no route between the sites: all data went over the operator's machine.
    let relayed = scene.operator_bytes().unwrap() - before;
    assert!(relayed > CONTENT, "{relayed} bytes: the counter does not count");

    // Not those that pass a stream on: they come and go.
    let serving = "for pid in $(pidof causeway-agent); do \
                   grep -q serve /proc/$pid/cmdline && echo $pid; done; true";
    let agent = || scene.ssh(scene.at_east).unwrap().run(serving).unwrap();
    let working = agent();
    assert!(!working.trim().is_empty());
    // Somebody else runs the same plan: the agent that works for the first one is left alone.
    let somebody = scene.command(&run).env("CAUSEWAY_STATE", other).output().unwrap();
    let somebody = Ran::of(&somebody).must_exit(3);
    assert!(somebody.stderr.contains("another coordinator"), "{}", somebody.stderr);
    assert_eq!(agent(), working);
    let in_the_guest = scene.ssh(scene.at_east).unwrap().run(IN_THE_GUEST).unwrap();
    assert!(in_the_guest.contains("confined"), "{in_the_guest}");

    let switched = scene.causeway(&["switchover", &scene.id().unwrap()]).unwrap().must_exit(0);
    let ran = held.finish().unwrap().must_exit(0);
    let again = scene.causeway(&run).unwrap().must_exit(3);
    assert!(again.stderr.contains("was begun already"), "{}", again.stderr);
    assert!(ran.stdout.contains("web1 runs at west"), "{}", ran.stdout);
    assert!(ran.stdout.contains("tracker bpf"), "{}", ran.stdout);
    scene.ledger_is_whole(scene.at_west).unwrap();

    let status = scene.causeway(&["status"]).unwrap().must_exit(0);
    assert!(status.stdout.contains("fully migrated (proven)"), "{}", status.stdout);
    let listed = scene.causeway(&["status", "--json"]).unwrap().must_exit(0);
    let alone = scene.causeway(&["status", "--from", "west"]).unwrap().must_exit(0);
    assert!(alone.stdout.contains("fully migrated (proven)"), "{}", alone.stdout);

    let receipt = scene.state.join(format!("receipts/{}.json", scene.id().unwrap()));
    let receipt = receipt.display().to_string();
    scene.causeway(&["receipt", "verify", &receipt]).unwrap().must_exit(0);
    let forged = std::fs::read_to_string(&receipt).unwrap().replace("\"rounds\":", "\"rounds\": 1");
    std::fs::write(&receipt, forged).unwrap();
    scene.causeway(&["receipt", "verify", &receipt]).unwrap().must_exit(3);

    // Whoever reads what was printed, logged and kept learns no private key.
    let secrets = Secrets::of(&scene.state, &Keys::get().unwrap().private()).unwrap();
    let names: Vec<_> = secrets.names().collect();
    for kind in ["id_ed25519", "install.key", "move-", "site-east", "site-west"] {
        assert!(names.iter().any(|name| name.contains(kind)), "no secret of {kind}: {names:?}");
    }
    for ran in [&planned, &ran, &somebody, &again, &switched, &status, &listed, &alone] {
        for (what, printed) in [("standard output", &ran.stdout), ("the log", &ran.stderr)] {
            secrets.are_not_in(what, printed.as_bytes()).unwrap();
        }
    }
    assert!(ran.stderr.contains("TRACE"), "it was not at its most verbose");
    secrets.are_not_in("the guest", in_the_guest.as_bytes()).unwrap();
    secrets.are_not_in("the plan", &std::fs::read(&saved).unwrap()).unwrap();
    assert!(secrets.are_not_stored_in(&scene.state).unwrap() > 4);

    // Whatever is left of it at east, it does not come up.
    let left = scene.east().virsh(&["list", "--all", "--name"]).unwrap();
    let moved = left.trim();
    assert!(moved.starts_with(&format!("{VM}-moved")), "{left}");
    assert!(scene.east().virsh(&["start", moved]).is_err(), "the fenced source started");
    assert!(!scene.east().is_running(moved).unwrap());
}
