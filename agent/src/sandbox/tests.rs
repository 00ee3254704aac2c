//! Each thing that a confined process must not do is tried twice: confined, where it has to fail,
//! and not, where it has to work. The trying is done by this test binary, started once more for
//! each: what is taken from a process is not given back.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::*;

/// What the inner process is to try: `confined` or `free`, a folder, and a port that listens.
const INNER: &str = "CAUSEWAY_TEST_SANDBOX";
const DIR: &str = "CAUSEWAY_TEST_SANDBOX_DIR";
const PORT: &str = "CAUSEWAY_TEST_SANDBOX_PORT";

/// Name of what was tried, and whether it worked; the errors of refused ones are looked at.
type Tried = (&'static str, io::Result<()>);

/// Runs `test` of this binary by itself, with what it has to know, and returns what it printed.
fn inner(test: &str, how: &str, dir: &Path, port: u16) -> String {
    let ran = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", &format!("sandbox::tests::{test}")])
        .env(INNER, how)
        .env(DIR, dir)
        .env(PORT, port.to_string())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert!(ran.status.success(), "{how}: {said}{}", String::from_utf8_lossy(&ran.stderr));
    said
}

fn world() -> (tempfile::TempDir, TcpListener, u16) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("there"), "content").unwrap();
    fs::create_dir(dir.path().join("devices")).unwrap();
    fs::write(dir.path().join("devices/disk"), "sectors").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (dir, listener, port)
}

fn told() -> Option<(String, PathBuf, u16)> {
    let how = std::env::var(INNER).ok()?;
    let dir = std::env::var_os(DIR).unwrap().into();
    Some((how, dir, std::env::var(PORT).unwrap().parse().unwrap()))
}

/// Says the level as far as it decides what can be asked for, and each result.
fn say(level: Option<&Level>, tried: Vec<Tried>) {
    if let Some(level) = level {
        let landlock = level.landlock.as_ref().map_or(0, |landlock| landlock.0);
        println!("\nlandlock={landlock} seccomp={}", level.seccomp.is_ok());
    }
    for (what, result) in tried {
        match result {
            Ok(()) => println!("\n{what}: works"),
            Err(error) => println!("\n{what}: {}", error.raw_os_error().unwrap_or(-1)),
        }
    }
}

fn result_of<'a>(said: &'a str, what: &str) -> &'a str {
    let line = said.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(": "));
    line.unwrap_or_else(|| panic!("{what} was not tried:\n{said}"))
}

fn is_refusal(result: &str) -> bool {
    [libc::EPERM, libc::EACCES].iter().any(|errno| result == errno.to_string())
}

/// The version of Landlock that confined it. A kernel without says so loudly: what only Landlock
/// can refuse is not tried there, and nobody shall believe that it was.
fn landlock_in(said: &str) -> i32 {
    let line = said.lines().find_map(|line| line.strip_prefix("landlock="));
    let abi = line.unwrap().split(' ').next().unwrap().parse().unwrap();
    if abi < files::ABI_OF_ALL {
        eprintln!("NOT TESTED: this kernel has Landlock {abi} of {}", files::ABI_OF_ALL);
    }
    abi
}

/// Calls that are refused by their number alone. With arguments of zero they do nothing.
const CALLS: [(&str, i64); 13] = [
    ("process_vm_readv", libc::SYS_process_vm_readv),
    ("kexec_load", libc::SYS_kexec_load),
    ("init_module", libc::SYS_init_module),
    ("bpf", libc::SYS_bpf),
    ("perf_event_open", libc::SYS_perf_event_open),
    ("userfaultfd", libc::SYS_userfaultfd),
    ("io_uring_setup", libc::SYS_io_uring_setup),
    ("keyctl", libc::SYS_keyctl),
    ("open_by_handle_at", libc::SYS_open_by_handle_at),
    ("mount", libc::SYS_mount),
    ("pivot_root", libc::SYS_pivot_root),
    ("setns", libc::SYS_setns),
    ("unshare", libc::SYS_unshare),
];

const PTRACE_ATTACH: i64 = 16;
/// Its number in the other interface of x86-64, whose numbers have a bit of their own.
const X32_PTRACE: i64 = 0x4000_0000 | 521;

/// All that a process may try. What it has open was opened before.
fn try_all(dir: &Path, port: u16, open: &mut Open) -> Vec<Tried> {
    let socket = || TcpListener::bind("127.0.0.1:0").map(drop);
    let mut tried: Vec<Tried> = vec![
        ("read a file", fs::read(dir.join("there")).map(drop)),
        ("list a folder", fs::read_dir(dir).map(drop)),
        ("write a file", File::options().append(true).open(dir.join("there")).map(drop)),
        ("make a file", fs::write(dir.join("new"), "x")),
        ("make a folder", fs::create_dir(dir.join("folder"))),
        ("remove a file", fs::remove_file(dir.join("new"))),
        ("run a program", Command::new("/bin/true").status().map(drop)),
        ("connect", TcpStream::connect(("127.0.0.1", port)).map(drop)),
        ("listen", socket()),
        ("signal another process", signal_parent()),
        ("read below /sys", fs::read_dir("/sys").map(drop)),
        ("use what is open", open.used()),
        ("start a thread", std::thread::Builder::new().spawn(|| {}).map(|it| it.join().unwrap())),
        ("map memory", map(false)),
        ("map code", map(true)),
        ("open a device", File::options().write(true).open(dir.join("devices/disk")).map(drop)),
    ];
    tried.extend(CALLS.map(|(name, number)| (name, sys::call(number, 0))));
    // Attaching, to nobody: with zero it would ask to be traced itself.
    tried.push(("ptrace", sys::call(libc::SYS_ptrace, PTRACE_ATTACH)));
    tried.push(("ptrace by x32", sys::call(X32_PTRACE, PTRACE_ATTACH)));
    tried
}

struct Open {
    file: File,
    pair: (UnixStream, UnixStream),
}

impl Open {
    fn new(dir: &Path) -> Self {
        let file = File::options().read(true).append(true).open(dir.join("there")).unwrap();
        Self { file, pair: UnixStream::pair().unwrap() }
    }

    /// Read, written, joined with a runtime: what the agent does with disks and sockets.
    fn used(&mut self) -> io::Result<()> {
        self.file.write_all(b".")?;
        rustix::fs::fdatasync(self.file.as_fd())?;
        let mut byte = [0];
        let here = self.pair.0.try_clone()?;
        here.set_nonblocking(true)?;
        let runtime = crate::runtime()?;
        runtime.block_on(async {
            let mut here = tokio::net::UnixStream::from_std(here)?;
            tokio::io::AsyncWriteExt::write_all(&mut here, b".").await
        })?;
        self.pair.1.read_exact(&mut byte)
    }
}

fn signal_parent() -> io::Result<()> {
    let parent = rustix::process::getppid().unwrap();
    Ok(rustix::process::test_kill_process(parent)?)
}

fn map(executable: bool) -> io::Result<()> {
    use rustix::mm::{MapFlags, ProtFlags};
    let mut protection = ProtFlags::READ | ProtFlags::WRITE;
    protection.set(ProtFlags::EXEC, executable);
    sys::map_and_forget(4096, protection, MapFlags::PRIVATE)
}

/// As the carrier is confined.
#[test]
fn a_carrier_uses_what_it_has_open_and_nothing_else() {
    if let Some((how, dir, port)) = told() {
        let mut open = Open::new(&dir);
        let needs = Needs { read: &[Path::new("/sys")], ..Needs::NONE };
        let level = (how == "confined").then(|| confine(&needs));
        say(level.as_ref(), try_all(&dir, port, &mut open));
        return;
    }
    let (dir, _listener, port) = world();
    let name = "a_carrier_uses_what_it_has_open_and_nothing_else";
    let free = inner(name, "free", dir.path(), port);
    fs::remove_dir(dir.path().join("folder")).unwrap();
    let confined = inner(name, "confined", dir.path(), port);
    assert!(confined.contains("seccomp=true"), "{confined}");

    let works = ["use what is open", "start a thread", "map memory", "read below /sys"];
    let refused = [
        "write a file",
        "make a file",
        "make a folder",
        "remove a file",
        "run a program",
        "connect",
        "listen",
        "signal another process",
        "map code",
        "open a device",
    ];
    for what in works.iter().chain(&refused) {
        assert_eq!(result_of(&free, what), "works", "control: {what}\n{free}");
    }
    for what in works {
        assert_eq!(result_of(&confined, what), "works", "{what}\n{confined}");
    }
    for what in refused {
        assert!(is_refusal(result_of(&confined, what)), "{what}\n{confined}");
    }
    let forbidden = libc::EPERM.to_string();
    for what in CALLS.iter().map(|(what, _)| *what).chain(["ptrace", "ptrace by x32"]) {
        assert_eq!(result_of(&confined, what), forbidden, "{what}\n{confined}");
        if rustix::process::geteuid().is_root() {
            assert_ne!(result_of(&free, what), forbidden, "control: {what}\n{free}");
        }
    }
    if landlock_in(&confined) > 0 {
        for what in ["read a file", "list a folder"] {
            assert_eq!(result_of(&free, what), "works", "control: {what}");
            assert!(is_refusal(result_of(&confined, what)), "{what}\n{confined}");
        }
    }
}

/// As the helper's receiver is: it opens devices, and listens on one port.
#[test]
fn a_receiver_opens_devices_and_listens_on_its_port_alone() {
    if let Some((how, dir, port)) = told() {
        let devices = dir.join("devices");
        let own = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let needs = Needs {
            read: &[Path::new("/sys"), Path::new("/proc")],
            devices: &[&devices],
            sockets: Sockets::Own { listen: Some(own) },
            capabilities: CapabilitySet::empty(),
        };
        let mut open = Open::new(&dir);
        let level = (how == "confined").then(|| confine(&needs));
        let mut tried = vec![
            ("listen on its port", TcpListener::bind(("127.0.0.1", own)).map(drop)),
            ("read below /proc", fs::read("/proc/self/mountinfo").map(drop)),
            ("an UDP socket", std::net::UdpSocket::bind("127.0.0.1:0").map(drop)),
        ];
        tried.extend(try_all(&dir, port, &mut open));
        say(level.as_ref(), tried);
        return;
    }
    let (dir, _listener, port) = world();
    let name = "a_receiver_opens_devices_and_listens_on_its_port_alone";
    // It opens a file itself, which Landlock would refuse it: without, that is part of what works.
    let free = inner(name, "free", dir.path(), port);
    assert_eq!(result_of(&free, "connect"), "works", "control");
    assert_eq!(result_of(&free, "write a file"), "works", "control");
    let _ = fs::remove_dir(dir.path().join("folder"));
    let confined = inner(name, "confined", dir.path(), port);
    let abi = landlock_in(&confined);
    for what in ["listen on its port", "read below /proc", "an UDP socket", "open a device"] {
        assert_eq!(result_of(&confined, what), "works", "{what}\n{confined}");
    }
    for what in ["run a program", "make a folder", "remove a file", "map code", "bpf", "mount"] {
        assert!(is_refusal(result_of(&confined, what)), "{what}\n{confined}");
    }
    if abi > 0 {
        for what in ["read a file", "write a file", "make a file"] {
            assert!(is_refusal(result_of(&confined, what)), "{what}\n{confined}");
        }
    }
    if abi >= files::ABI_OF_TCP {
        for what in ["connect", "listen"] {
            assert!(is_refusal(result_of(&confined, what)), "{what}\n{confined}");
        }
    }
}

#[test]
fn a_level_says_what_is_missing_and_why() {
    let whole = Level { landlock: Ok(Landlock(7)), seccomp: Ok(()), capabilities: Ok(()) };
    assert!(whole.is_whole());
    assert_eq!(
        whole.to_string(),
        "Landlock 7 (files, TCP and signals), seccomp, no capabilities beyond its needs"
    );
    let old = Level {
        landlock: Err("not in this kernel".to_owned()),
        seccomp: Err("no".to_owned()),
        ..whole.clone()
    };
    assert!(!old.is_whole());
    assert!(old.to_string().starts_with("no Landlock (not in this kernel), no seccomp (no)"));
    assert!(!Level { landlock: Ok(Landlock(2)), ..whole }.is_whole());
}
