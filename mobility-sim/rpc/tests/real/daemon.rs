//! A libvirtd of the test's own, in namespaces but for the network: a source that reaches servers
//! of the test. It lives in a temporary directory and dies with the test.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use tempfile::TempDir;

/// Short, because the path of a socket may have 108 bytes.
const PREFIX: &str = "cwrpc-";

/// Dropping it kills everything in it.
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
mkdir "$D/dev"
mount -t tmpfs -o mode=755 dev "$D/dev"
mkdir "$D/dev/pts" "$D/dev/shm"
for node in null zero full random urandom tty; do cp -a "/dev/$node" "$D/dev/$node"; done
mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts "$D/dev/pts"
ln -s pts/ptmx "$D/dev/ptmx"
mount --rbind "$D/dev" /dev
mkdir -p /run/lock /etc/libvirt/qemu
hostname source
cat > /etc/libvirt/libvirtd.conf <<EOF
auth_unix_rw = "none"
host_uuid = "5d1f6e3c-1b4d-4e9a-836b-1f0c2e7a0101"
EOF
# Silence is noticed after two seconds, where it would be thirty.
cat > /etc/libvirt/qemu.conf <<EOF
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
keepalive_interval = 1
keepalive_count = 1
EOF
libvirtd >>"$D/libvirtd.log" 2>&1 &
daemon=$!
until [ -S /run/libvirt/libvirt-sock ] && virsh -q version >/dev/null 2>&1; do
    kill -0 $daemon || exit 1
    sleep 0.05
done
echo ready
wait $daemon
"#;

/// A VM that needs nothing and does nothing.
const VM: &str = "<domain type='qemu'><name>web1</name>\
    <uuid>0d5d1f6e-3c1b-4d0e-9a53-6b1f0c2e7a01</uuid><memory unit='MiB'>16</memory>\
    <os><type machine='pc'>hvm</type></os>\
    <devices><controller type='usb' model='none'/><memballoon model='none'/></devices></domain>";

impl Daemon {
    pub fn start() -> Self {
        reap();
        let prefix = format!("{PREFIX}{}-", std::process::id());
        let dir = tempfile::Builder::new().prefix(&prefix).tempdir_in("/tmp").expect("a directory");
        // What QEMU can do is found out once and not in every test.
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("libvirt-cache-tcg");
        fs::create_dir_all(&cache).expect("a directory for the cache");
        // The child dies with this thread, and with it everything in its PID namespace.
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare", "--mount", "--uts", "--ipc", "--pid"])
            .args(["--fork", "--kill-child=KILL", "--mount-proc", "sh", "-c", INIT])
            .env("D", dir.path())
            .env("CACHE", &cache)
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

    /// With the VM `web1`, which runs.
    pub fn with_vm() -> Self {
        let daemon = Self::start();
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(VM.as_bytes()).expect("the file takes it");
        let path = file.path().to_str().expect("its name is text");
        daemon.virsh(&["create", path]).expect("it is created");
        daemon
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("root/run/libvirt/libvirt-sock")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("libvirtd.log")).unwrap_or_default()
    }

    /// Runs virsh as an administrator would; `Err` is what it said.
    pub fn virsh(&self, args: &[&str]) -> Result<String, String> {
        let uri = format!("qemu+unix:///system?socket={}", self.socket().display());
        virsh(&uri, args)
    }

    pub fn state(&self) -> String {
        self.virsh(&["domstate", "web1"]).map(|said| said.trim().to_owned()).unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Removes directories of test runs that were killed: their names hold the process's id.
fn reap() {
    for entry in fs::read_dir("/tmp").expect("/tmp").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Runs virsh with any connection; `Err` is what it said.
pub fn virsh(uri: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new("timeout")
        .args(["30", "virsh", "-q", "-c", uri])
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
