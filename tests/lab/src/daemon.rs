//! One libvirtd alone, on a socket in a temporary directory: for tests of a crate that need a real one and
//! no sites. It dies with the thread that started it, and with it everything in its namespaces.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Which network the daemon lives in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// Its own, empty.
    Private,
    /// The machine's: for a test that reaches it, or that it reaches.
    Shared,
}

/// What it is like.
#[derive(Clone, Debug)]
pub struct DaemonSpec<'a> {
    pub network: Network,
    /// Its host calls itself so.
    pub hostname: String,
    /// Lines of `libvirtd.conf` and of `qemu.conf` besides those that let it run here.
    pub libvirtd_conf: &'a str,
    pub qemu_conf: &'a str,
    /// Shell that its first process runs before it.
    pub first: String,
    /// What QEMU can do is found out once, and kept here.
    pub cache: &'a Path,
}

/// A running libvirtd. Dropping it kills everything in it.
pub struct Daemon {
    dir: TempDir,
    child: Child,
    /// Kept open: its first process would die of a closed pipe.
    _stdout: BufReader<ChildStdout>,
}

/// What the first process of the namespace does. `$D` is the daemon's directory.
const INIT: &str = r#"
set -eu
mount --make-rprivate /
for at in /etc/libvirt /var/lib/libvirt /var/log/libvirt /run; do
    mkdir -p "$D/root$at"; mount --bind "$D/root$at" "$at"
done
mount --bind "$CACHE" /var/cache/libvirt
# Devices without KVM: a machine's may be missing, or be there and not work.
mkdir "$D/dev"
mount -t tmpfs -o mode=755 dev "$D/dev"
mkdir "$D/dev/net" "$D/dev/pts" "$D/dev/shm"
for node in null zero full random urandom tty net/tun; do
    if [ -e "/dev/$node" ]; then cp -a "/dev/$node" "$D/dev/$node"; fi
done
mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts "$D/dev/pts"
ln -s pts/ptmx "$D/dev/ptmx"
mount --rbind "$D/dev" /dev
mkdir -p /run/sshd /run/lock /etc/libvirt/qemu
hostname "$NAME"
ip link set lo up 2>/dev/null || true
cat > /etc/libvirt/libvirtd.conf <<EOF
auth_unix_rw = "none"
$LIBVIRTD
EOF
cat > /etc/libvirt/qemu.conf <<EOF
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
$QEMU
EOF
eval "$FIRST"
while :; do
    libvirtd >>"$D/libvirtd.log" 2>&1 &
    daemon=$!
    until [ -S /run/libvirt/libvirt-sock ] && virsh -q version >/dev/null 2>&1; do
        kill -0 $daemon || exit 1
        sleep 0.05
    done
    echo ready
    until [ -e "$D/restart" ]; do
        if [ -e "$D/signal" ]; then kill -"$(cat "$D/signal")" $daemon; rm "$D/signal"; fi
        sleep 0.1
    done
    # A test may have killed it already.
    kill $daemon 2>/dev/null || true
    wait $daemon || true
    # As after a reboot of the host: what is to start by itself has not yet.
    rm -f /run/libvirt/qemu/autostarted /run/libvirt/libvirt-sock "$D/restart"
done
"#;

/// A directory for one, named after `prefix` and this process; those of test runs that were killed are
/// removed first. The prefix is short, because the path of a socket may have 108 bytes.
///
/// # Panics
/// Where there is no room for it.
pub fn directory(prefix: &str) -> TempDir {
    for entry in fs::read_dir("/tmp").expect("/tmp").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(prefix).and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            make_removable(&entry.path());
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let prefix = format!("{prefix}{}-", std::process::id());
    tempfile::Builder::new().prefix(&prefix).tempdir_in("/tmp").expect("a directory")
}

/// A test that failed may leave images that nobody may remove.
fn make_removable(dir: &Path) {
    let _ = Command::new("chattr").args(["-R", "-f", "-i"]).arg(dir).status();
}

impl Daemon {
    /// # Panics
    /// With its log, where it does not start.
    pub fn start(dir: TempDir, spec: &DaemonSpec<'_>) -> Self {
        fs::create_dir_all(spec.cache).expect("a directory for the cache");
        // The child dies with this thread.
        let mut unshare = Command::new("setpriv");
        unshare.args(["--pdeathsig", "KILL", "unshare", "--mount", "--uts", "--ipc", "--pid"]);
        if spec.network == Network::Private {
            unshare.arg("--net");
        }
        unshare.args(["--fork", "--kill-child=KILL", "--mount-proc", "sh", "-c", INIT]);
        let mut child = unshare
            .env("D", dir.path())
            .env("CACHE", spec.cache)
            .env("NAME", &spec.hostname)
            .env("LIBVIRTD", spec.libvirtd_conf)
            .env("QEMU", spec.qemu_conf)
            .env("FIRST", &spec.first)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare needs root and util-linux");
        let mut said = String::new();
        let mut stdout = BufReader::new(child.stdout.take().expect("stdout was piped"));
        stdout.read_line(&mut said).expect("a line");
        let daemon = Self { dir, child, _stdout: stdout };
        assert_eq!(said.trim(), "ready", "libvirtd did not start:\n{}", daemon.log());
        daemon
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("root/run/libvirt/libvirt-sock")
    }

    pub fn uri(&self) -> String {
        format!("qemu+unix:///system?socket={}", self.socket().display())
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("libvirtd.log")).unwrap_or_default()
    }

    /// Runs virsh as an administrator would; `Err` is what it said.
    pub fn virsh(&self, args: &[&str]) -> Result<String, String> {
        virsh(&self.uri(), args)
    }

    /// Any of virsh's commands that take a file with XML.
    pub fn try_define(&self, command: &str, xml: &str) -> Result<String, String> {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), xml).expect("the file takes it");
        self.virsh(&[command, file.path().to_str().expect("its name is text")])
    }

    /// # Panics
    /// Where libvirt does not take it.
    pub fn define(&self, command: &str, xml: &str) {
        self.try_define(command, xml).unwrap_or_else(|said| panic!("{command}: {said}\n{xml}"));
    }

    /// Sends libvirtd a signal by its name.
    pub fn signal(&self, name: &str) {
        let (unfinished, signal) = (self.path("signal.new"), self.path("signal"));
        fs::write(&unfinished, name).expect("the file takes it");
        fs::rename(unfinished, &signal).expect("it is renamed");
        self.until("the signal is sent", || {
            if signal.exists() { Err("not taken up".to_owned()) } else { Ok(()) }
        });
    }

    /// libvirtd ends and begins again, as at a reboot of the host; VMs go on.
    pub fn restart(&self) {
        let restart = self.path("restart");
        fs::write(&restart, "").expect("the file takes it");
        self.until("libvirtd answers again", || {
            if restart.exists() {
                return Err("not taken up".to_owned());
            }
            self.virsh(&["version"]).map(drop)
        });
    }

    fn until(&self, what: &str, holds: impl Fn() -> Result<(), String>) {
        let began = Instant::now();
        while let Err(why) = holds() {
            let is_over = self.first_process().is_empty() || began.elapsed() > PATIENCE;
            assert!(!is_over, "never: {what}: {why}\n{}", self.log());
            sleep(Duration::from_millis(20));
        }
    }

    /// The first process of its namespaces, by its number outside; empty where it has ended.
    ///
    /// # Panics
    /// Where that cannot be looked at.
    pub fn first_process(&self) -> String {
        let unshare = self.child.id();
        let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children"));
        children.expect("a list of children").trim().to_owned()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        make_removable(self.dir.path());
    }
}

/// More than a loaded machine takes for anything here.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs virsh with any connection; `Err` is what it said. One that hangs is ended.
///
/// # Panics
/// Where there is none.
pub fn virsh(uri: &str, args: &[&str]) -> Result<String, String> {
    virsh_within(PATIENCE, uri, args)
}

/// As [`virsh`], ended after so long.
///
/// # Panics
/// Where there is none.
pub fn virsh_within(bound: Duration, uri: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new("timeout")
        .args([&bound.as_secs().to_string(), "virsh", "-q", "-c", uri])
        .args(args)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .expect("virsh");
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}
