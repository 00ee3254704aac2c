//! What only a whole Debian has: systemd's services, sudo, swap in use, LVM and XFS.

use e2e::{Guest, Scene, SceneOptions};
use lab::Scenario;

const SWAPS: &str = "tail -n +2 /proc/swaps | wc -l";

#[test]
fn a_debian_reached_by_sudo_is_put_back_when_called_off_and_moves_the_next_time() {
    let options = SceneOptions { guest: Guest::Debian, ..SceneOptions::default() };
    let scene = Scene::start(Scenario::Relay.builder(), &options).unwrap();
    let login = format!("ops@{}", scene.at_east);
    let migrate = |more: &[&str]| {
        let stop = ["--yes", "--stop-unit", "ledger.service"];
        let mut words = scene.ask("migrate", &[&stop, more].concat()).unwrap();
        let at = words.iter().position(|word| word == "--guest").expect("it is asked for");
        words[at + 1].clone_from(&login);
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        scene.causeway(&words).unwrap()
    };

    let ran = migrate(&["--gate", "false"]).must_exit(4);
    assert!(ran.stdout.contains("runs at east as before"), "{}", ran.stdout);
    scene.ledger_is_whole(scene.at_east).unwrap();
    scene.guest_is_clean(scene.at_east).unwrap();
    let ssh = scene.ssh(scene.at_east).unwrap();
    assert_eq!(ssh.run(SWAPS).unwrap().trim(), "1", "swap is off");

    migrate(&["--hook-before", "touch /root/hooked"]).must_exit(0);
    scene.ledger_is_whole(scene.at_west).unwrap();
    let ssh = scene.ssh(scene.at_west).unwrap();
    assert_eq!(ssh.run(SWAPS).unwrap().trim(), "1", "swap is off");
    ssh.run("test -e /root/hooked").unwrap();
    assert_eq!(ssh.run("systemctl is-system-running --wait; true").unwrap().trim(), "running");
}
