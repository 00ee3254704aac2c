//! What only a whole Debian has: systemd's services, sudo, swap in use, LVM and XFS.

use e2e::{Guest, Scene, SceneOptions};
use lab::Scenario;

const SWAPS: &str = "tail -n +2 /proc/swaps | wc -l";

#[test]
fn a_debian_reached_by_sudo_is_put_back_when_called_off_and_moves_the_next_time() {
    let options = SceneOptions { guest: Guest::Debian, ..SceneOptions::default() };
    let scene = Scene::start(Scenario::Relay.builder(), &options).unwrap();
    let login = format!("ops@{}", scene.at_east);
    let ask = |more: &[&str]| {
        let stop = ["--yes", "--stop-unit", "ledger.service"];
        let mut words = scene.ask("migrate", &[&stop, more].concat()).unwrap();
        let at = words.iter().position(|word| word == "--guest").expect("it is asked for");
        words[at + 1].clone_from(&login);
        words
    };

    let words = ask(&["--gate", "false"]);
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let ran = scene.causeway(&words).unwrap().must_exit(4);
    assert!(ran.stdout.contains("runs at east as before"), "{}", ran.stdout);
    scene.ledger_is_whole(scene.at_east).unwrap();
    scene.guest_is_clean(scene.at_east).unwrap();
    let ssh = scene.ssh(scene.at_east).unwrap();
    assert_eq!(ssh.run(SWAPS).unwrap().trim(), "1", "swap is off");

    // Logging in, and finding the agent, must not need a disk of a guest that stands still.
    let words = ask(&["--hook-before", "touch /root/hooked"]);
    let mut frozen = scene.until("stands still", &words).unwrap();
    frozen.child().kill().unwrap();
    frozen.finish().unwrap();
    let id = scene.ids().unwrap().pop().expect("it is listed");
    scene.causeway(&["resume", &id]).unwrap().must_exit(0);
    scene.ledger_is_whole(scene.at_west).unwrap();
    let ssh = scene.ssh(scene.at_west).unwrap();
    assert_eq!(ssh.run(SWAPS).unwrap().trim(), "1", "swap is off");
    ssh.run("test -e /root/hooked").unwrap();
    assert_eq!(ssh.run("systemctl is-system-running --wait; true").unwrap().trim(), "running");
}
