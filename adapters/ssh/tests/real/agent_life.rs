//! The agent's way into a guest's memory and out again, with a stand-in for it.

use guest_ssh::{
    AgentBinary, AgentDir, Exit, Guest, GuestReport, Privilege, Removed, SshError, Started,
    StreamError,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use units::MigrationId;

use super::login::SUDO;
use super::world::{Kind, Server};

/// Speaks the agent's command line; echoes over its socket.
const AGENT: &str = r#"#!/usr/bin/perl
use strict; use Socket; $| = 1;
my ($verb, undef, $dir) = @ARGV;
if ($verb eq '--version') { print "causeway-agent 0.0.1-standin\n"; exit 0 }
sub sock { socket(my $s, PF_UNIX, SOCK_STREAM, 0) or die; $s }
if ($verb eq 'serve') {
    my $s = sock(); bind($s, pack_sockaddr_un("$dir/agent.sock")) or die "bind: $!"; listen($s, 5);
    open(my $f, '>', "$dir/agent.pid"); print $f "$$\n"; close $f;
    print STDERR "serving\n";
    while (accept(my $c, $s)) {
        next if fork();
        while (sysread($c, my $b, 65536)) { syswrite($c, $b) }
        exit 0;
    }
}
if ($verb eq 'pipe') {
    my $s = sock(); connect($s, pack_sockaddr_un("$dir/agent.sock")) or die "no agent: $!\n";
    if (fork()) { while (sysread(STDIN, my $b, 65536)) { syswrite($s, $b) } shutdown($s, 1); wait }
    else { while (sysread($s, my $b, 65536)) { syswrite(STDOUT, $b) } }
    exit 0;
}
if ($verb eq 'remove') { exit 0 }
die "usage\n";
__END__
"#;

fn agent() -> AgentBinary {
    AgentBinary::new(AGENT).unwrap()
}

fn id() -> MigrationId {
    "web1".parse().unwrap()
}

fn dir() -> AgentDir {
    "/dev/shm/causeway-web1".parse().unwrap()
}

async fn sh(guest: &Guest, command: &str) -> String {
    let output = guest.exec(command, "").await.unwrap();
    assert_eq!(output.exit, Exit::Status(0), "{command}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

async fn report(guest: &Guest) -> GuestReport {
    guest.probe().await.unwrap()
}

#[tokio::test]
async fn a_probe_sees_what_is_there_and_leaves_nothing() {
    for kind in [Kind::OpenSsh, Kind::Dropbear] {
        let server = Server::start(kind);
        let guest = Guest::connect(&server.target("root")).await.unwrap();
        let seen = report(&guest).await;
        assert_eq!(seen.kernel, sh(&guest, "uname -r").await);
        assert_eq!(seen.machine, sh(&guest, "uname -m").await);
        assert_eq!(seen.boot_id, sh(&guest, "cat /proc/sys/kernel/random/boot_id").await);
        assert!(seen.os.contains_key("ID"), "{:?}", seen.os);
        assert_eq!(seen.missing_tools, Vec::<String>::new());
        let runs = |path| seen.places.iter().find(|p| p.path == path).unwrap().runs_programs;
        assert!(!runs("/run") && runs("/dev/shm"), "{:?}", seen.places);
        assert_eq!(seen.refusals(&guest, &id(), &agent()).len(), 0);
        let place = seen.agent_dir(&id(), &agent()).unwrap();
        assert_eq!(place, dir());
        assert_eq!(sh(&guest, "ls -A /dev/shm").await, "");
    }
}

#[tokio::test]
async fn everything_in_the_way_is_told_at_once() {
    let bare = "mount -o remount,noexec /dev/shm
        mount --bind /tmp /tmp; mount -o remount,bind,noexec /tmp
        for tool in tr ionice; do mount --bind /dev/null /usr/bin/$tool; done";
    let server = Server::start_with(Kind::OpenSsh, bare);
    let guest = Guest::connect(&server.target("guest")).await.unwrap();
    let seen = report(&guest).await;
    assert_eq!(seen.privilege, None);
    assert_eq!(seen.missing_tools, ["tr", "ionice"]);
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(64, 0);
    elf[18] = 243;
    let refusals = seen.refusals(&guest, &id(), &AgentBinary::new(elf).unwrap());
    let kinds: Vec<_> = refusals.iter().map(|refusal| format!("{refusal:?}")).collect();
    for expected in ["NotPrivileged", "MissingTools { tools: [\"tr\"] }", "WrongMachine", "NoPlace"]
    {
        assert!(kinds.iter().any(|kind| kind.starts_with(expected)), "{kinds:#?}");
    }
}

#[tokio::test]
async fn what_the_hint_says_makes_a_place() {
    let bare = "mount -o remount,noexec /dev/shm
        mount --bind /tmp /tmp; mount -o remount,bind,noexec /tmp";
    let server = Server::start_with(Kind::OpenSsh, bare);
    let guest = Guest::connect(&server.target("root")).await.unwrap();
    let refusals = report(&guest).await.refusals(&guest, &id(), &agent());
    let [refusal @ SshError::NoPlace { .. }] = &refusals[..] else { panic!("{refusals:?}") };
    let hint = refusal.hint().unwrap();
    sh(&guest, hint.split('`').nth(1).unwrap()).await;
    let place = report(&guest).await.agent_dir(&id(), &agent()).unwrap();
    assert_eq!(place.as_str(), "/run/causeway/web1");
    let installed = guest.install(&agent(), &place).await.unwrap();
    guest.start(&installed, &[]).await.unwrap();
    guest.remove(&place).await.unwrap();
}

#[tokio::test]
async fn an_agent_of_20_mb_arrives_whole_at_both_servers_and_by_sudo() {
    let mut noise: u64 = 1;
    let mut whole = AGENT.as_bytes().to_vec();
    while whole.len() < 20_000_000 {
        noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        whole.extend_from_slice(&noise.to_be_bytes());
    }
    let agent = AgentBinary::new(whole.clone()).unwrap();
    for (kind, user, set_up, privilege) in [
        (Kind::OpenSsh, "root", "", Privilege::Root),
        (Kind::Dropbear, "root", "", Privilege::Root),
        (Kind::OpenSsh, "guest", SUDO, Privilege::Sudo),
    ] {
        let server = Server::start_with(kind, set_up);
        let guest = Guest::connect(&server.target(user)).await.unwrap();
        assert_eq!(report(&guest).await.privilege, Some(privilege));
        let installed = guest.install(&agent, &dir()).await.unwrap();
        assert_eq!(installed.version, "causeway-agent 0.0.1-standin");
        assert!(!installed.was_there);

        let root = Guest::connect(&server.target("root")).await.unwrap();
        let mut there = root.open(&format!("cat {}", dir().program())).await.unwrap();
        let mut arrived = Vec::new();
        there.read_to_end(&mut arrived).await.unwrap();
        assert!(arrived == whole, "{kind:?}: {} bytes", arrived.len());
        let modes =
            sh(&root, "stat -c '%a %u' /dev/shm/causeway-web1 /dev/shm/causeway-web1/*").await;
        assert_eq!(modes, "700 0\n700 0", "{kind:?}");
        assert!(guest.install(&agent, &dir()).await.unwrap().was_there);
    }
}

/// A server whose guest lacks a tool.
fn without(tool: &str) -> String {
    format!(
        "mkdir /run/b; for t in /usr/bin/*; do case $t in *{tool}) ;; *) ln -s $t /run/b/; esac; done
        sed -i \"s#^SetEnv.*#SetEnv PATH=$dir/bin:/run/b#\" \"$dir/sshd_config\""
    )
}

#[tokio::test]
async fn without_sha256sum_the_copy_is_read_back_and_without_gzip_it_is_sent_as_it_is() {
    for tool in ["sha256sum", "gzip"] {
        let server = Server::start_with(Kind::OpenSsh, &without(tool));
        let guest = Guest::connect(&server.target("root")).await.unwrap();
        let found = guest.exec(&format!("command -v {tool}"), "").await.unwrap();
        assert_eq!(found.exit, Exit::Status(127));
        assert!(!guest.install(&agent(), &dir()).await.unwrap().was_there);
        assert!(guest.install(&agent(), &dir()).await.unwrap().was_there);
    }
}

/// A tool of the guest is replaced: `script` gets what the tool would, and may call it.
fn instead_of(tool: &str, script: &str) -> String {
    format!(
        "at=$dir/bin/{tool}; rm -f $at
        printf '%s\\n' '#!/bin/sh' '{script}' >$at; chmod 755 $at"
    )
}

#[tokio::test]
async fn with_a_gzip_that_works_the_agent_is_sent_packed() {
    let server = Server::start_with(Kind::OpenSsh, &instead_of("cat", "exit 1"));
    let guest = Guest::connect(&server.target("root")).await.unwrap();
    assert!(!guest.install(&agent(), &dir()).await.unwrap().was_there);
}

#[tokio::test]
async fn with_a_gzip_that_does_not_unpack_the_agent_is_sent_as_it_is() {
    for script in ["exit 1", "exit 0", "/usr/bin/gzip \"$@\" | tr x y"] {
        let server = Server::start_with(Kind::OpenSsh, &instead_of("gzip", script));
        let guest = Guest::connect(&server.target("root")).await.unwrap();
        assert!(!guest.install(&agent(), &dir()).await.unwrap().was_there, "{script}");
        assert!(guest.install(&agent(), &dir()).await.unwrap().was_there, "{script}");
    }
}

#[tokio::test]
async fn a_copy_that_arrives_damaged_is_not_put_in_place() {
    let set_up = without("gzip") + "\n" + &instead_of("cat", "/usr/bin/cat \"$@\" | tr x y");
    let server = Server::start_with(Kind::OpenSsh, &set_up);
    let guest = Guest::connect(&server.target("root")).await.unwrap();
    let error = guest.install(&agent(), &dir()).await.unwrap_err();
    assert!(matches!(error, SshError::Damaged { .. }), "{error}");
    assert_eq!(sh(&guest, &format!("ls -A {}", dir())).await, "");
}

#[tokio::test]
async fn a_login_shell_that_chats_is_understood() {
    let chats = "sed -i 's#/root:/bin/sh#/root:/bin/bash#' \"$dir/passwd\"
        umount /etc/passwd; mount --bind \"$dir/passwd\" /etc/passwd
        echo 'echo Welcome = home; echo 7' >\"$dir/root/.bashrc\"";
    let server = Server::start_with(Kind::OpenSsh, chats);
    let guest = Guest::connect(&server.target("root")).await.unwrap();
    assert!(sh(&guest, "true").await.starts_with("Welcome"));
    assert_eq!(guest.privilege().await.unwrap(), Privilege::Root);
    assert_eq!(report(&guest).await.refusals(&guest, &id(), &agent()).len(), 0);
    let installed = guest.install(&agent(), &dir()).await.unwrap();
    assert_eq!(installed.version, "causeway-agent 0.0.1-standin");
    assert!(guest.install(&agent(), &dir()).await.unwrap().was_there);
    let Started::Now { pid } = guest.start(&installed, &[]).await.unwrap() else { panic!() };
    assert_eq!(guest.remove(&dir()).await.unwrap().stopped, [pid]);
}

#[tokio::test]
async fn a_full_memory_leaves_no_half_an_agent_in_place() {
    let tight = "mount -o remount,size=1m /dev/shm
        mount --bind /tmp /tmp; mount -o remount,bind,noexec /tmp";
    let server = Server::start_with(Kind::OpenSsh, tight);
    let guest = Guest::connect(&server.target("root")).await.unwrap();
    let big = AgentBinary::new([AGENT.as_bytes(), &vec![7; 3_000_000]].concat()).unwrap();
    assert!(matches!(
        report(&guest).await.refusals(&guest, &id(), &big)[..],
        [SshError::NoPlace { .. }]
    ));
    let error = guest.install(&big, &dir()).await.unwrap_err();
    assert!(
        matches!(&error, SshError::Failed { stderr, .. } if stderr.contains("No space")),
        "{error}"
    );
    assert_eq!(
        guest.exec(&format!("test -e {}", dir().program()), "").await.unwrap().exit,
        Exit::Status(1)
    );
    guest.remove(&dir()).await.unwrap();
    assert_eq!(sh(&guest, "ls -A /dev/shm").await, "");
}

#[tokio::test]
async fn a_directory_that_someone_else_made_is_not_used_nor_removed() {
    for squat in ["mkdir -m 777 $d; chown 4242 $d", "ln -s /etc $d", "touch $d"] {
        let set_up = format!("d={}; {squat}", dir());
        let server = Server::start_with(Kind::OpenSsh, &set_up);
        let guest = Guest::connect(&server.target("root")).await.unwrap();
        let error = guest.install(&agent(), &dir()).await.unwrap_err();
        assert!(matches!(error, SshError::ForeignDir { .. }), "{squat}: {error}");
        let error = guest.remove(&dir()).await.unwrap_err();
        assert!(matches!(error, SshError::ForeignDir { .. }), "{squat}: {error}");
        sh(&guest, &format!("test -e {} && test -e /etc/hostname", dir())).await;
    }
}

#[tokio::test]
async fn an_agent_outlives_the_connection_that_started_it() {
    for (kind, user, set_up) in
        [(Kind::OpenSsh, "root", ""), (Kind::Dropbear, "root", ""), (Kind::OpenSsh, "guest", SUDO)]
    {
        let server = Server::start_with(kind, set_up);
        let guest = Guest::connect(&server.target(user)).await.unwrap();
        let installed = guest.install(&agent(), &dir()).await.unwrap();
        let Started::Now { pid } = guest.start(&installed, &["--opt", "a b"]).await.unwrap() else {
            panic!("ran before");
        };
        drop(guest);

        let guest = Guest::connect(&server.target(user)).await.unwrap();
        let line = sh(&guest, &format!("tr '\\000' '|' </proc/{pid}/cmdline")).await;
        assert!(line.ends_with("|serve|--dir|/dev/shm/causeway-web1|--opt|a b|"), "{line}");
        let nicer = sh(&guest, &format!("echo $(ps -o ni= -p {pid}) $(nice -n 10 nice)")).await;
        let nicer: Vec<_> = nicer.split(' ').collect();
        assert_eq!(nicer[0], nicer[1]);
        assert_eq!(guest.start(&installed, &[]).await.unwrap(), Started::Before { pid });

        let mut stream = guest.open_agent(&dir()).await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"hello");
        stream.finish().await.unwrap();

        let removed = guest.remove(&dir()).await.unwrap();
        assert_eq!(removed.stopped, [pid], "{kind:?}");
        let names = ["agent.log", "agent.pid", "agent.sock", "causeway-agent"];
        assert_eq!(removed.deleted, names.map(|name| format!("{}/{name}", dir())));
        assert_eq!(sh(&guest, "ls -A /dev/shm /run | grep -c causeway || true").await, "0");
        assert!(guest.exec(&format!("kill -0 {pid}"), "").await.unwrap().exit != Exit::Status(0));
        assert_eq!(guest.remove(&dir()).await.unwrap(), Removed::default(), "{kind:?}");
        let error = guest.open_agent(&dir()).await.unwrap().finish().await.unwrap_err();
        assert!(matches!(StreamError::of(&error), Some(StreamError::Ended { .. })), "{error}");
    }
}

#[tokio::test]
async fn a_hangup_does_not_end_the_agent_where_setsid_is_missing() {
    let bare = "for tool in setsid nice ionice; do mount --bind /dev/null /usr/bin/$tool; done";
    let server = Server::start_with(Kind::OpenSsh, bare);
    let guest = Guest::connect(&server.target("root")).await.unwrap();
    let installed = guest.install(&agent(), &dir()).await.unwrap();
    let Started::Now { pid } = guest.start(&installed, &[]).await.unwrap() else { panic!() };
    sh(&guest, &format!("kill -HUP {pid}; sleep 0.2")).await;
    assert_eq!(guest.start(&installed, &[]).await.unwrap(), Started::Before { pid });
}

#[tokio::test]
async fn an_agent_that_is_started_while_it_is_removed_does_not_stay() {
    let server = Server::start(Kind::OpenSsh);
    let guest = Guest::connect(&server.target("root")).await.unwrap();
    // While it puts the guest back, the start of somebody who was interrupted comes through.
    let start =
        "system(\"setsid $0 serve --dir $dir >/dev/null 2>&1 </dev/null &\"); sleep 1; exit 0";
    let slow = AGENT.replace("'remove') { exit 0", &format!("'remove') {{ {start}"));
    guest.install(&AgentBinary::new(slow).unwrap(), &dir()).await.unwrap();
    let removed = guest.remove(&dir()).await.unwrap();
    assert_eq!(removed.stopped.len(), 1, "it was not started in between");
    assert_eq!(sh(&guest, "pgrep -f 'serve --di[r]' || true").await, "");
    assert_eq!(sh(&guest, "ls -A /dev/shm").await, "");
}

#[tokio::test]
async fn an_agent_that_does_not_start_says_why() {
    let server = Server::start(Kind::OpenSsh);
    let guest = Guest::connect(&server.target("root")).await.unwrap();
    let broken =
        AGENT.replace("my $s = sock(); bind", "die \"cannot track vda\\n\"; my $s = sock(); bind");
    let installed = guest.install(&AgentBinary::new(broken).unwrap(), &dir()).await.unwrap();
    let error = guest.start(&installed, &[]).await.unwrap_err();
    assert!(
        matches!(&error, SshError::AgentNotStarted { log } if log.ends_with("cannot track vda")),
        "{error}"
    );
}

#[tokio::test]
async fn a_program_that_cannot_run_there_is_not_an_agent() {
    let server = Server::start(Kind::OpenSsh);
    let guest = Guest::connect(&server.target("root")).await.unwrap();
    let elf = AgentBinary::new(&b"\x7fELF\x02\x01\x01 and nothing else"[..]).unwrap();
    let error = guest.install(&elf, &dir()).await.unwrap_err();
    assert!(matches!(error, SshError::Failed { .. }), "{error}");
}

#[tokio::test]
async fn a_stubborn_agent_is_removed_and_an_innocent_process_is_not() {
    let server = Server::start(Kind::OpenSsh);
    let guest = Guest::connect(&server.target("root")).await.unwrap();
    let stubborn =
        AGENT.replace("if ($verb eq 'serve') {", "if ($verb eq 'serve') { $SIG{TERM} = 'IGNORE';");
    let installed = guest.install(&AgentBinary::new(stubborn).unwrap(), &dir()).await.unwrap();
    let Started::Now { pid } = guest.start(&installed, &[]).await.unwrap() else { panic!() };
    // Its pid file now names someone else, as after a pid was used again.
    let mut other = guest.open("echo $$; exec sleep 1000").await.unwrap();
    let mut innocent = vec![0; 20];
    let n = other.read(&mut innocent).await.unwrap();
    let innocent = String::from_utf8(innocent[..n].to_vec()).unwrap();
    sh(&guest, &format!("echo {} >{}/agent.pid", innocent.trim(), dir())).await;

    assert_eq!(guest.start(&installed, &[]).await.unwrap(), Started::Before { pid });
    assert_eq!(guest.remove(&dir()).await.unwrap().stopped, [pid]);
    sh(&guest, &format!("kill -0 {innocent}")).await;
}

#[tokio::test]
async fn an_agent_whose_directory_is_gone_is_still_stopped() {
    let server = Server::start(Kind::OpenSsh);
    let guest = Guest::connect(&server.target("root")).await.unwrap();
    let installed = guest.install(&agent(), &dir()).await.unwrap();
    let Started::Now { pid } = guest.start(&installed, &[]).await.unwrap() else { panic!() };
    // Another migration's agent, whose directory's name only begins alike.
    let longer: AgentDir = format!("{}0", dir()).parse().unwrap();
    let other = guest.install(&agent(), &longer).await.unwrap();
    let Started::Now { pid: other } = guest.start(&other, &[]).await.unwrap() else { panic!() };
    sh(&guest, &format!("rm -rf {}", dir())).await;
    let removed = guest.remove(&dir()).await.unwrap();
    assert_eq!(removed, Removed { stopped: vec![pid], deleted: Vec::new() });
    sh(&guest, &format!("kill -0 {other}")).await;
}
