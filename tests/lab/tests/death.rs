//! Nothing is left of a lab, however it ends.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use lab::{Lab, state};

/// Long enough for a loaded machine; nothing is asserted about it.
const PATIENCE: Duration = Duration::from_secs(60);

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "still not so: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Pids of processes whose environment names `dir` as their lab.
fn marked(dir: &Path) -> Vec<u32> {
    let mark = format!("{}={}", state::MARK, dir.display());
    processes()
        .filter(|pid| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|&byte| byte == 0).any(|variable| variable == mark.as_bytes())
        })
        .collect()
}

fn processes() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// A process, told from later ones with its number by when it started.
type Process = (u32, String);

/// Processes in the network namespaces of those in `among`, except our own.
fn members(among: &[u32]) -> Vec<Process> {
    let net = |pid: u32| Some(fs::metadata(format!("/proc/{pid}/ns/net")).ok()?.ino());
    let ours = net(std::process::id());
    let nets: BTreeSet<_> =
        among.iter().map(|pid| net(*pid)).filter(|net| *net != ours && net.is_some()).collect();
    assert!(nets.len() >= 4, "the operator's, two sites', and between: {nets:?}");
    let inside = processes().filter(|pid| nets.contains(&net(*pid)));
    inside.filter_map(|pid| Some((pid, start_time(pid)?))).collect()
}

/// Absent for zombies: they run no more.
fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    fields.nth(18).filter(|_| state != "Z").map(str::to_owned)
}

fn links() -> String {
    let shown = Command::new("ip").args(["-oneline", "link"]).output().unwrap();
    let names = String::from_utf8(shown.stdout).unwrap();
    names.lines().map(|line| line.split(": ").nth(1).unwrap_or("")).collect::<Vec<_>>().join(" ")
}

/// The program `lab`, up, with a VM at one site and a process on the operator's machine.
struct Running {
    child: Child,
    dir: PathBuf,
}

const PROGRAM: &str = "
cat > $LAB_DIR/vm.xml << END
<domain type='qemu'><name>idle</name><memory unit='MiB'>16</memory>
<os><type arch='x86_64'>hvm</type></os></domain>
END
virsh -q -c $LAB_EAST_URI create $LAB_DIR/vm.xml > /dev/null
echo $LAB_DIR
exec sleep 1000";

fn up(root: &Path) -> Running {
    let mut child = Command::new(env!("CARGO_BIN_EXE_lab"))
        .args(["up", "--scenario", "wan", "--ssh", "--dir"])
        .arg(root)
        .args(["--", "sh", "-ec", PROGRAM])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("causeway-lab-"), "{line}");
    Running { child, dir: PathBuf::from(line.trim()) }
}

#[test]
fn killing_the_owner_leaves_no_process_mount_namespace_device_or_file() {
    let root = tempfile::tempdir().unwrap();
    let links_before = links();
    let mut lab = up(root.path());
    let inside = members(&marked(&lab.dir));
    let commands: Vec<_> = inside.iter().map(|(pid, _)| command_line(*pid)).collect();
    for program in ["libvirtd", "qemu-system", "dnsmasq", "sshd", "sleep 1000"] {
        assert!(commands.iter().any(|line| line.contains(program)), "{program}: {commands:?}");
    }
    assert_eq!(links(), links_before, "the machine's own network while a lab is up");

    lab.child.kill().unwrap();
    lab.child.wait().unwrap();

    eventually("its processes are gone", || marked(&lab.dir).is_empty());
    eventually("its directory is gone", || !lab.dir.exists());
    eventually("unmarked ones are gone too", || {
        inside.iter().all(|(pid, since)| start_time(*pid).as_ref() != Some(since))
    });
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains("causeway-lab-"), "{mounts}");
    assert_eq!(links(), links_before);
}

#[test]
fn the_reaper_ends_what_is_left_when_the_warden_was_killed_too() {
    let root = tempfile::tempdir().unwrap();
    let living =
        Lab::builder().site(lab::SiteSpec::named("east")).dir(root.path()).start().unwrap();
    let mut dead = up(root.path());
    make_immutable_file(&dead.dir);
    let warden = warden_of(&dead.dir);
    kill(warden);
    eventually("the warden is dead", || !marked(&dead.dir).contains(&warden));
    kill(dead.child.id());
    dead.child.wait().unwrap();
    eventually("only the operator's process is left", || {
        let left = marked(&dead.dir);
        left.len() == 1 && command_line(left[0]).starts_with("sleep")
    });
    assert!(dead.dir.exists());

    let reaped = state::reap(root.path()).unwrap();

    assert_eq!(reaped.len(), 1);
    assert_eq!(reaped[0].dir, dead.dir);
    assert_eq!(reaped[0].processes, 1);
    assert_eq!(marked(&dead.dir), Vec::<u32>::new());
    assert!(!dead.dir.exists());
    assert!(living.site("east").unwrap().virsh(&["uri"]).is_ok(), "the living lab is untouched");
}

/// A shell's long work, once it has begun: a namespace that ends before would end it otherwise.
fn at_work(shell: &mut Command) -> Child {
    let work = shell.args(["-c", "echo begun; exec sleep 1000"]).stdout(Stdio::piped());
    let mut child = work.spawn().unwrap();
    let mut said = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    child
}

#[test]
fn dropping_a_lab_ends_its_processes_and_removes_its_directory() {
    let root = tempfile::tempdir().unwrap();
    let lab = Lab::builder().site(lab::SiteSpec::named("east")).dir(root.path()).start().unwrap();
    let dir = lab.dir().to_owned();
    // One that only its namespace gives away, one that only its mark does.
    let mut unmarked = at_work(lab.operator().command("env").args(["-i", "sh"]));
    let mut elsewhere = at_work(&mut lab.site("east").unwrap().command("sh").unwrap());
    drop(lab);
    assert_eq!(marked(&dir), Vec::<u32>::new());
    assert!(!dir.exists());
    let ended = [unmarked.try_wait().unwrap(), elsewhere.try_wait().unwrap()];
    let killed = |status: &ExitStatus| status.signal() == Some(9);
    assert!(ended.iter().all(|status| status.as_ref().is_some_and(killed)), "{ended:?}");
}

/// As a fence does to the disks of a VM that must not start.
fn make_immutable_file(lab: &Path) {
    let image = lab.join("east/vm/fenced.raw");
    fs::write(&image, "disk").unwrap();
    assert!(Command::new("chattr").arg("+i").arg(&image).status().unwrap().success());
}

#[test]
fn immutable_files_do_not_outlive_their_lab() {
    let lab = Lab::relay().unwrap();
    let dir = lab.dir().to_owned();
    make_immutable_file(&dir);
    drop(lab);
    assert!(!dir.exists());
}

#[test]
fn a_lab_that_cannot_start_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let mut broken = lab::SiteSpec::named("east");
    broken.qemu_conf = "this is not a setting\n".to_owned();
    let refused = Lab::builder().site(broken).dir(root.path()).start().unwrap_err();
    assert!(format!("{refused:#}").contains("qemu.conf"), "{refused:#}");
    let left: Vec<_> =
        fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_lab_that_is_to_be_kept_leaves_its_files_and_nothing_else() {
    let root = tempfile::tempdir().unwrap();
    let lab = Command::new(env!("CARGO_BIN_EXE_lab"))
        .args(["up", "--dir"])
        .arg(root.path())
        .args(["--", "sh", "-c", "echo $LAB_DIR; exit 7"])
        .env("LAB_KEEP", "1")
        .output()
        .unwrap();
    assert_eq!(lab.status.code(), Some(7), "as the command exits");
    let dir = PathBuf::from(str::from_utf8(&lab.stdout).unwrap().trim());
    assert!(dir.join("east/log/libvirtd.log").exists());
    assert_eq!(marked(&dir), Vec::<u32>::new());
    assert_eq!(state::reap(root.path()).unwrap().len(), 0);
    assert!(dir.exists(), "a reaper leaves it alone");
}

#[test]
fn an_interrupt_ends_the_lab_in_order() {
    let root = tempfile::tempdir().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_lab"))
        .args(["up", "--json", "--dir"])
        .arg(root.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut text = String::new();
    while !text.ends_with("\n}\n") {
        assert_ne!(stdout.read_line(&mut text).unwrap(), 0, "{text}");
    }
    let described: serde_json::Value = serde_json::from_str(&text).unwrap();
    let dir = PathBuf::from(described["dir"].as_str().unwrap());
    assert_eq!(described["sites"][1]["uri"], "qemu+tcp://10.77.2.1/system");
    assert!(dir.join("east").is_dir());

    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();

    assert!(child.wait().unwrap().success());
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
    assert!(!dir.exists());
    assert_eq!(marked(&dir), Vec::<u32>::new());
}

fn warden_of(dir: &Path) -> u32 {
    let script = dir.join("operator.sh");
    let script = script.to_str().unwrap();
    marked(dir).into_iter().find(|pid| command_line(*pid).contains(script)).unwrap()
}

fn command_line(pid: u32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).replace('\0', " ")
}

fn kill(pid: u32) {
    assert!(Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap().success());
}
