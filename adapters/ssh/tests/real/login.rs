//! Who may log in, and to whom we talk.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use guest_ssh::{
    ExecLimits, Exit, Guest, HostKeyPolicy, IdentityProblem, Privilege, SshAuth, SshError,
    SshTarget, UserAgent,
};
use site::Remedy;

use super::path;
use super::world::{Kind, Server, keygen};

const KINDS: [Kind; 2] = [Kind::OpenSsh, Kind::Dropbear];

#[tokio::test]
async fn a_command_runs_and_tells_how_it_ended() {
    for kind in KINDS {
        let server = Server::start(kind);
        let guest = Guest::connect(&server.target("root")).await.unwrap();
        let output = guest.exec("cat; echo err >&2; exit 3", "in").await.unwrap();
        assert_eq!(output.exit, Exit::Status(3), "{kind:?}");
        assert_eq!((&output.stdout[..], &output.stderr[..]), (&b"in"[..], &b"err\n"[..]));
        let output = guest.exec("kill -TERM $$", "").await.unwrap();
        assert_eq!(output.exit, Exit::Signal("TERM".to_owned()), "{kind:?}");
    }
}

#[tokio::test]
async fn a_command_that_prints_without_end_is_stopped() {
    let server = Server::start(Kind::OpenSsh);
    let guest = Guest::connect(&server.target("root")).await.unwrap();
    let error = guest.exec("cat /dev/zero", "").await.unwrap_err();
    assert!(matches!(error, SshError::TooMuchOutput { .. }), "{error}");
    let limits = ExecLimits { time: Duration::from_millis(500), ..ExecLimits::default() };
    let error = guest.exec_within(limits, "while echo; do sleep 0.1; done", "").await.unwrap_err();
    assert!(matches!(error, SshError::TimedOut { .. }), "{error}");
    // The connection is none the worse, and nothing goes on printing.
    while guest.exec("pidof cat sleep", "").await.unwrap().exit == Exit::Status(0) {}
}

#[tokio::test]
async fn a_changed_host_key_ends_the_connection_before_login() {
    for kind in KINDS {
        let server = Server::start(kind);
        let other = keygen(server.dir.path(), "other", "ed25519", "");
        let other = fs::read_to_string(other.with_extension("pub")).unwrap();
        let known_hosts = server.path("known_hosts");
        fs::write(&known_hosts, format!("[127.0.0.1]:{} {other}", server.port)).unwrap();
        for policy in [
            HostKeyPolicy::Pinned(vec![other.parse().unwrap()]),
            HostKeyPolicy::KnownHosts(vec![known_hosts.clone()]),
        ] {
            let target = SshTarget { host_key: policy, ..server.target("root") };
            let error = Guest::connect(&target).await.unwrap_err();
            let SshError::ChangedHostKey { seen_fingerprints, expected, .. } = &error else {
                panic!("{error}");
            };
            assert_eq!(*seen_fingerprints, [fingerprint(&server.path("host_ed25519"))]);
            assert_eq!(*expected, [fingerprint(&server.path("other"))]);
            assert_eq!(error.remedy(), Remedy::GiveUp);
            assert!(error.hint().unwrap().contains("ssh-keygen -R"), "{error}");
        }
        assert!(!server.log().contains("Accepted"), "{}", server.log());
        assert_eq!(fs::read_to_string(&known_hosts).unwrap().lines().count(), 1);
    }
}

#[tokio::test]
async fn an_unknown_host_key_ends_the_connection_and_the_hint_pins_it() {
    let server = Server::start(Kind::OpenSsh);
    let known_hosts = server.path("known_hosts");
    let policy = HostKeyPolicy::KnownHosts(vec![known_hosts.clone()]);
    let target = SshTarget { host_key: policy, ..server.target("root") };
    let error = Guest::connect(&target).await.unwrap_err();
    let SshError::UnknownHostKey { seen, .. } = &error else { panic!("{error}") };
    assert_eq!(seen.fingerprint, fingerprint(&server.path("host_ed25519")));
    assert!(!known_hosts.exists(), "nothing is learnt");
    assert!(!server.log().contains("Accepted"), "{}", server.log());

    let hint = error.hint().unwrap();
    assert!(hint.contains(&format!("--host-key {}", seen.fingerprint)), "{hint}");
    let echo = hint.split('`').find(|part| part.starts_with("echo")).unwrap();
    assert!(Command::new("sh").args(["-c", echo]).status().unwrap().success());
    Guest::connect(&target).await.unwrap();
}

#[tokio::test]
async fn a_fingerprint_of_any_of_the_servers_keys_is_found() {
    let server = Server::start(Kind::OpenSsh);
    for kind in ["ed25519", "rsa"] {
        let pin = fingerprint(&server.path(&format!("host_{kind}")));
        for pin in [pin, server.host_key(kind)] {
            let policy = HostKeyPolicy::Pinned(vec![pin.parse().unwrap()]);
            let target = SshTarget { host_key: policy, ..server.target("root") };
            Guest::connect(&target).await.unwrap();
        }
    }
    let nobody = format!("SHA256:{}", "A".repeat(43));
    let policy = HostKeyPolicy::Pinned(vec![nobody.parse().unwrap()]);
    let target = SshTarget { host_key: policy, ..server.target("root") };
    let error = Guest::connect(&target).await.unwrap_err();
    let SshError::ChangedHostKey { seen_fingerprints, .. } = &error else { panic!("{error}") };
    assert_eq!(
        *seen_fingerprints,
        ["ed25519", "rsa"].map(|kind| fingerprint(&server.path(&format!("host_{kind}"))))
    );
}

#[tokio::test]
async fn a_key_that_the_guest_does_not_know_is_refused_with_its_name() {
    for kind in KINDS {
        let server = Server::start(kind);
        let path = keygen(server.dir.path(), "stranger", "ed25519", "");
        let error = Guest::connect(&with_identity(&server, &path)).await.unwrap_err();
        let SshError::LoginRefused { tried, accepts, .. } = &error else { panic!("{error}") };
        assert_eq!(*tried, [format!("{} ({})", fingerprint(&path), path.display())]);
        assert!(accepts.contains(&"publickey".to_owned()), "{accepts:?}");
        assert!(error.hint().unwrap().contains("authorized_keys"));
    }
}

#[tokio::test]
async fn an_identity_file_of_no_use_says_why() {
    let server = Server::start(Kind::OpenSsh);
    let dir = server.dir.path();
    let locked = keygen(dir, "locked", "ed25519", "secret");
    let exposed = keygen(dir, "exposed", "ed25519", "");
    fs::set_permissions(&exposed, fs::Permissions::from_mode(0o644)).unwrap();
    let garbage = dir.join("garbage");
    fs::write(&garbage, "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n").unwrap();
    fs::set_permissions(&garbage, fs::Permissions::from_mode(0o600)).unwrap();
    let absent = dir.join("absent");
    for (path, expected, hint) in [
        (&locked, "Passphrase", "ssh-add"),
        (&exposed, "Exposed", "chmod 600"),
        (&garbage, "Malformed", "ssh-keygen -p"),
        (&absent, "Unreadable", "exists"),
    ] {
        let error = Guest::connect(&with_identity(&server, path)).await.unwrap_err();
        let SshError::Identity { problem, .. } = &error else { panic!("{error}") };
        assert!(format!("{problem:?}").starts_with(expected), "{problem:?}");
        assert!(error.hint().unwrap().contains(hint), "{:?}", error.hint());
    }
}

#[tokio::test]
async fn an_rsa_identity_logs_in_to_both_servers() {
    for kind in KINDS {
        let server = Server::start(kind);
        let path = keygen(server.dir.path(), "user_rsa", "rsa", "");
        fs::copy(path.with_extension("pub"), server.path("root/.ssh/authorized_keys")).unwrap();
        Guest::connect(&with_identity(&server, &path)).await.unwrap();
    }
}

#[tokio::test]
async fn the_users_agent_stands_in_for_a_file_with_a_passphrase() {
    let server = Server::start(Kind::OpenSsh);
    let agent = UsersAgent::start(server.dir.path());
    // More keys than a server lets anyone try; the named one must come first.
    for n in 0..7 {
        agent.add(&keygen(server.dir.path(), &format!("spare{n}"), "ed25519", ""));
    }
    agent.add(&server.path("user_ed25519"));
    let locked = Command::new("ssh-keygen")
        .args(["-q", "-p", "-P", "", "-N", "secret", "-f"])
        .arg(server.path("user_ed25519"))
        .stdout(Stdio::null())
        .status();
    assert!(locked.unwrap().success());

    let mut target = server.target("root");
    let error = Guest::connect(&target).await.unwrap_err();
    let SshError::Identity { problem, .. } = error else { panic!("{error}") };
    assert!(matches!(problem, IdentityProblem::Passphrase));
    target.auth.agent = UserAgent::Socket(agent.socket.clone());
    Guest::connect(&target).await.unwrap();
}

#[tokio::test]
async fn an_agent_that_is_not_there_is_named() {
    let server = Server::start(Kind::OpenSsh);
    let auth =
        SshAuth { identity_files: Vec::new(), agent: UserAgent::Socket(server.path("nowhere")) };
    let error = Guest::connect(&SshTarget { auth, ..server.target("root") }).await.unwrap_err();
    assert!(matches!(error, SshError::UserAgent { .. }), "{error}");
    let auth = SshAuth { identity_files: Vec::new(), agent: UserAgent::Never };
    let error = Guest::connect(&SshTarget { auth, ..server.target("root") }).await.unwrap_err();
    assert!(matches!(error, SshError::NoIdentity { .. }), "{error}");
}

#[tokio::test]
async fn nothing_listening_is_unreachable() {
    let server = Server::start(Kind::OpenSsh);
    let target = SshTarget { port: super::world::free_port(), ..server.target("root") };
    let error = Guest::connect(&target).await.unwrap_err();
    assert!(matches!(error, SshError::Unreachable { .. }), "{error}");
    assert!(matches!(error.remedy(), Remedy::RetryAfter(_)));
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up() {
    let server = Server::start(Kind::OpenSsh);
    let path = path::Path::to(server.port).await;
    path.cut();
    let mut target = path.target(server.target("root"));
    target.timing.connect = std::time::Duration::from_millis(300);
    let error = Guest::connect(&target).await.unwrap_err();
    assert!(matches!(error, SshError::Unanswered { .. }), "{error}");
}

#[tokio::test]
async fn root_is_told_from_a_user_with_sudo_and_one_without() {
    let server = Server::start(Kind::OpenSsh);
    let guest = Guest::connect(&server.target("root")).await.unwrap();
    assert_eq!(guest.privilege().await.unwrap(), Privilege::Root);

    let user = Guest::connect(&server.target("guest")).await.unwrap();
    let error = user.privilege().await.unwrap_err();
    assert!(matches!(error, SshError::NotPrivileged { .. }), "{error}");
    assert!(error.hint().unwrap().contains("NOPASSWD"));

    let server = Server::start_with(Kind::OpenSsh, SUDO);
    let user = Guest::connect(&server.target("guest")).await.unwrap();
    assert_eq!(user.privilege().await.unwrap(), Privilege::Sudo);

    // A sudo that asks for a password is none.
    let asks = "printf '#!/bin/sh\\necho a password is required >&2\\nexit 1\\n' >\"$dir/bin/sudo\"
        chmod 755 \"$dir/bin/sudo\"";
    let server = Server::start_with(Kind::OpenSsh, asks);
    let user = Guest::connect(&server.target("guest")).await.unwrap();
    let SshError::NotPrivileged { said, .. } = user.privilege().await.unwrap_err() else {
        panic!("privileged");
    };
    assert_eq!(said, "a password is required");
}

#[tokio::test]
async fn a_guest_is_reached_through_another() {
    let (jump, server) = (Server::start(Kind::OpenSsh), Server::start(Kind::Dropbear));
    let through = Some(Box::new(jump.target("guest")));
    let target = SshTarget { jump: through, ..server.target("root") };
    let guest = Guest::connect(&target).await.unwrap();
    assert_eq!(guest.exec("id -u", "").await.unwrap().stdout, b"0\n");
    // The guest's own key is still looked at.
    let wrong = SshTarget { host_key: jump.pinned(), ..target };
    let error = Guest::connect(&wrong).await.unwrap_err();
    assert!(matches!(error, SshError::ChangedHostKey { .. }), "{error}");
}

/// A stand-in for sudo without a password: it takes `-n` and runs the rest as root.
pub const SUDO: &str = r#"
    mount -t tmpfs -o mode=755 tmpfs "$dir/bin"
    cp /usr/bin/setpriv "$dir/bin/become"
    chmod 4755 "$dir/bin/become"
    printf '#!/bin/sh\n[ "$1" = -n ] || exit 9\nshift\nexec %s --reuid 0 --regid 0 --clear-groups -- "$@"\n' "$dir/bin/become" >"$dir/bin/sudo"
    chmod 755 "$dir/bin/sudo"
"#;

fn with_identity(server: &Server, path: &Path) -> SshTarget {
    let auth = SshAuth { identity_files: vec![path.to_owned()], agent: UserAgent::Never };
    SshTarget { auth, ..server.target("root") }
}

/// As `ssh-keygen` prints it.
fn fingerprint(key: &Path) -> String {
    let output = Command::new("ssh-keygen").arg("-lf").arg(key).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split(' ').nth(1).unwrap().to_owned()
}

struct UsersAgent {
    child: Child,
    socket: std::path::PathBuf,
}

impl UsersAgent {
    fn start(dir: &Path) -> Self {
        let socket = dir.join("agent");
        let child = Command::new("ssh-agent")
            .args(["-D", "-a"])
            .arg(&socket)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        while !socket.exists() {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        Self { child, socket }
    }

    fn add(&self, key: &Path) {
        let added = Command::new("ssh-add")
            .arg("-q")
            .arg(key)
            .env("SSH_AUTH_SOCK", &self.socket)
            .status()
            .unwrap();
        assert!(added.success());
    }
}

impl Drop for UsersAgent {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
