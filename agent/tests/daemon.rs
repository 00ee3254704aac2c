//! The built program as a daemon. No disk of this machine is tracked, so nothing can be frozen.
#![expect(clippy::unwrap_used, reason = "what fails in a helper of a test fails the test")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_causeway-agent");

/// A folder with an agent that ends with the test.
struct Guest {
    _keeps: TempDir,
    dir: PathBuf,
}

impl Guest {
    fn new() -> Self {
        let keeps = tempfile::tempdir().unwrap();
        let dir = keeps.path().join("causeway");
        Self { _keeps: keeps, dir }
    }

    fn serving() -> Self {
        let guest = Self::new();
        let served = guest.run(&["serve"]);
        assert!(served.status.success(), "{served:?}");
        guest
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(PROGRAM).args(arguments).arg("--dir").arg(&self.dir).output().unwrap()
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("agent.sock")
    }

    fn pid(&self) -> i32 {
        fs::read_to_string(self.dir.join("agent.pid")).unwrap().trim().parse().unwrap()
    }

    fn is_alive(pid: i32) -> bool {
        fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let removed = self.run(&["remove"]);
        if !thread::panicking() {
            assert!(removed.status.success(), "{removed:?}");
        }
    }
}

/// A conversation by `ask`.
struct Talk {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Talk {
    fn with(socket: &Path) -> Self {
        let mut child = Command::new(PROGRAM)
            .arg("ask")
            .arg(socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    fn ask(&mut self, request: &Value) -> Value {
        writeln!(self.child.stdin.as_mut().unwrap(), "{request}").unwrap();
        self.hear()
    }

    fn hear(&mut self) -> Value {
        let line = self.lines.next().unwrap().unwrap();
        serde_json::from_str::<Value>(&line).unwrap()["reply"]["result"].clone()
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ended = self.child.wait();
    }
}

#[test]
fn an_agent_serves_answers_and_is_removed_without_a_trace() {
    let guest = Guest::serving();
    let pid = guest.pid();
    let mode = fs::metadata(guest.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut talk = Talk::with(&guest.socket());
    assert_eq!(talk.hear()["Ok"]["hello"]["role"], "source");
    let status = talk.ask(&json!("status"))["Ok"]["status"].clone();
    assert_eq!((&status["frozen"], &status["tracking"]), (&json!(false), &Value::Null));
    drop(talk);
    let removed = guest.run(&["remove"]);
    assert!(removed.status.success(), "{removed:?}");
    assert!(!Guest::is_alive(pid));
    assert!(!guest.dir.exists());
}

#[test]
fn removing_what_is_not_there_is_success() {
    let guest = Guest::new();
    let removed = guest.run(&["remove"]);
    assert!(removed.status.success() && removed.stdout.is_empty(), "{removed:?}");
}

#[test]
fn serving_twice_leaves_one_agent() {
    let guest = Guest::serving();
    let pid = guest.pid();
    let again = guest.run(&["serve"]);
    assert!(again.status.success(), "{again:?}");
    assert!(String::from_utf8_lossy(&again.stderr).contains("already runs"), "{again:?}");
    assert_eq!(guest.pid(), pid);
}

#[test]
fn a_new_agent_takes_the_place_of_one_that_was_killed() {
    let guest = Guest::serving();
    let pid = guest.pid();
    let killed = Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
    assert!(killed.success());
    while Guest::is_alive(pid) {
        thread::sleep(Duration::from_millis(10));
    }
    let again = guest.run(&["serve"]);
    assert!(again.status.success(), "{again:?}");
    assert_ne!(guest.pid(), pid);
    assert_eq!(Talk::with(&guest.socket()).hear()["Ok"]["hello"]["role"], "source");
}

#[test]
fn a_pipe_without_an_agent_says_so_by_its_exit_code() {
    let guest = Guest::new();
    let piped = guest.run(&["pipe"]);
    assert_eq!(piped.status.code(), Some(10), "{piped:?}");
    assert!(String::from_utf8_lossy(&piped.stderr).contains("no agent runs"), "{piped:?}");
}

#[test]
fn an_agent_is_reached_through_a_pipe() {
    let guest = Guest::serving();
    let bridge = guest.dir.parent().unwrap().join("bridge");
    let listener = UnixListener::bind(&bridge).unwrap();
    let dir = guest.dir.clone();
    let pipe = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut pipe = Command::new(PROGRAM);
        pipe.args(["pipe", "--dir"]).arg(dir);
        pipe.stdin(OwnedFd::from(stream.try_clone().unwrap()));
        pipe.stdout(OwnedFd::from(stream));
        pipe.status().unwrap()
    });
    let mut talk = Talk::with(&bridge);
    assert_eq!(talk.hear()["Ok"]["hello"]["role"], "source");
    assert_eq!(talk.ask(&json!("shutdown"))["Ok"], "done");
    drop(talk);
    assert!(pipe.join().unwrap().success());
}

#[test]
fn what_needs_a_tracked_disk_is_refused_without_one() {
    let guest = Guest::serving();
    let mut talk = Talk::with(&guest.socket());
    talk.hear();
    let quiesce = json!({ "quiesce": { "units": [], "hooks": [], "thaw_after_ms": 1000 } });
    for request in [quiesce, json!({ "seal": { "thaw_after_ms": 1 } })] {
        assert_eq!(talk.ask(&request)["Err"]["code"], "wrong_state", "{request}");
    }
    let disk =
        |name: &str| json!([{ "no": 0, "size": 512, "block_size": 262_144, "device": name }]);
    for name in ["no-such-disk", "../null", ""] {
        let track = json!({ "track": { "disks": disk(name), "wish": "rescan" } });
        assert_eq!(talk.ask(&track)["Err"]["code"], "disk", "{name}");
    }
    assert_eq!(talk.ask(&json!({ "attach": { "disks": [] } }))["Err"]["code"], "wrong_state");
    assert_eq!(talk.ask(&json!({ "thaw": { "units": [], "hooks": [] } }))["Ok"], "done");
}

#[test]
fn an_agent_without_a_coordinator_removes_itself() {
    let guest = Guest::new();
    let served = guest.run(&["serve", "--idle-max-s", "0"]);
    assert!(served.status.success(), "{served:?}");
    while guest.dir.exists() {
        thread::sleep(Duration::from_millis(20));
    }
}
