//! A libvirtd of the test's own: in namespaces, on a socket in a temporary directory.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use site_libvirt::{HostAccess, LibvirtConfig, LibvirtSite};
use tempfile::TempDir;

/// Short, because the path of a socket may have 108 bytes.
const PREFIX: &str = "cwlv-";

/// Which network the daemon lives in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// Its own, empty but for a libvirt network `default`.
    Private,
    /// The machine's: for a test that reaches it by SSH.
    Shared,
}

/// A running libvirtd. Dropping it kills everything in it.
pub struct Daemon {
    dir: TempDir,
    child: Child,
    /// Kept open: its PID 1 would die of a closed pipe.
    _stdout: BufReader<ChildStdout>,
    ssh_port: Option<u16>,
}

/// What PID 1 of the namespace does. `$D` is the daemon's directory, `$SSH` a port or nothing.
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
hostname "$(basename "$D" | tr A-Z a-z | tr -cd a-z0-9)"
ip link set lo up 2>/dev/null || true
cat > /etc/libvirt/libvirtd.conf <<EOF
auth_unix_rw = "none"
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
EOF
if [ -n "$SSH" ]; then
    /usr/sbin/sshd -f "$D/sshd.conf" -E "$D/sshd.log"
fi
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

impl Daemon {
    pub fn start(network: Network) -> Self {
        reap();
        let prefix = format!("{PREFIX}{}-", std::process::id());
        let dir = tempfile::Builder::new().prefix(&prefix).tempdir_in("/tmp").expect("a directory");
        for below in ["images", "other"] {
            fs::create_dir(dir.path().join(below)).expect("a directory for images");
        }
        // What QEMU can do is found out once and not in every test.
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("libvirt-cache-tcg");
        fs::create_dir_all(&cache).expect("a directory for the cache");
        let ssh_port = (network == Network::Shared).then(|| prepare_sshd(dir.path()));

        // The child dies with this thread, and with it everything in its PID namespace.
        let mut unshare = Command::new("setpriv");
        unshare.args(["--pdeathsig", "KILL", "unshare", "--mount", "--uts", "--ipc", "--pid"]);
        if network == Network::Private {
            unshare.arg("--net");
        }
        unshare.args(["--fork", "--kill-child=KILL", "--mount-proc", "sh", "-c", INIT]);
        let mut child = unshare
            .env("D", dir.path())
            .env("CACHE", &cache)
            .env("SSH", ssh_port.map(|port| port.to_string()).unwrap_or_default())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare needs root and util-linux");
        let mut said = String::new();
        let mut stdout = BufReader::new(child.stdout.take().expect("stdout was piped"));
        stdout.read_line(&mut said).expect("a line");
        let daemon = Self { dir, child, _stdout: stdout, ssh_port };
        let log = fs::read_to_string(daemon.dir.path().join("libvirtd.log")).unwrap_or_default();
        assert_eq!(said.trim(), "ready", "libvirtd did not start:\n{log}");

        let images = daemon.images();
        let pool = format!(
            "<pool type='dir'><name>images</name><target><path>{}</path></target></pool>",
            images.display()
        );
        daemon.define("pool-define", &pool);
        daemon.virsh(&["pool-start", "images"]).expect("the pool starts");
        if network == Network::Private {
            daemon.define(
                "net-define",
                "<network><name>default</name><bridge name='virbr0'/></network>",
            );
            daemon.virsh(&["net-start", "default"]).expect("the network starts");
        }
        daemon
    }

    /// A directory that the pool `images` holds.
    pub fn images(&self) -> PathBuf {
        self.dir.path().join("images")
    }

    /// A directory that no pool knows.
    pub fn other(&self) -> PathBuf {
        self.dir.path().join("other")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn uri(&self) -> String {
        let socket = self.dir.path().join("root/run/libvirt/libvirt-sock");
        format!("qemu+unix:///system?socket={}", socket.display())
    }

    pub fn config(&self) -> LibvirtConfig {
        LibvirtConfig::new("east".parse().expect("a name"), self.uri())
    }

    pub fn site(&self) -> LibvirtSite {
        LibvirtSite::new(self.config())
    }

    /// The site with access to its host by SSH.
    pub fn site_with_host(&self) -> LibvirtSite {
        let host = HostAccess {
            target: "root@127.0.0.1".to_owned(),
            port: self.ssh_port.expect("the daemon was started in the machine's network"),
            identity: Some(self.dir.path().join("user_key")),
            known_hosts: Some(self.dir.path().join("known_hosts")),
        };
        LibvirtSite::new(LibvirtConfig { host: Some(host), ..self.config() })
    }

    /// Runs virsh as an administrator would; `Err` is what it said.
    pub fn virsh(&self, args: &[&str]) -> Result<String, String> {
        let output = Command::new("virsh")
            .args(["-q", "-c", &self.uri()])
            .args(args)
            .output()
            .expect("virsh");
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// Any of virsh's commands that take a file with XML.
    pub fn try_define(&self, command: &str, xml: &str) -> Result<String, String> {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), xml).expect("the file takes it");
        self.virsh(&[command, file.path().to_str().expect("its name is text")])
    }

    pub fn define(&self, command: &str, xml: &str) {
        self.try_define(command, xml).unwrap_or_else(|said| panic!("{command}: {said}\n{xml}"));
    }

    /// Sends libvirtd a signal by its name.
    pub fn signal(&self, name: &str) {
        let (unfinished, signal) = (self.path("signal.new"), self.path("signal"));
        fs::write(&unfinished, name).expect("the file takes it");
        fs::rename(unfinished, &signal).expect("it is renamed");
        while signal.exists() {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// Mounts a file system of so many bytes where libvirtd keeps that. It ends with the daemon.
    pub fn give_little_room(&self, at: &str, size: u32) {
        // The child of `unshare` is the first process of the namespace.
        let pid = self.child.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let first = children.expect("a list of children").trim().to_owned();
        let status = Command::new("nsenter")
            .args(["--target", &first, "--mount", "mount", "-t", "tmpfs", "-o"])
            .args([&format!("size={size},mode=700"), "tmpfs", at])
            .status();
        assert!(status.expect("nsenter").success());
    }

    /// libvirtd ends and begins again, as at a reboot of the host; VMs go on.
    pub fn restart(&self) {
        let restart = self.dir.path().join("restart");
        fs::write(&restart, "").expect("the file takes it");
        while restart.exists() || self.virsh(&["version"]).is_err() {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // A test that failed may leave images that nobody may remove.
        let _ = Command::new("chattr").args(["-R", "-f", "-i"]).arg(self.images()).status();
    }
}

/// Removes directories of test runs that were killed: their names hold the process's id.
fn reap() {
    for entry in fs::read_dir("/tmp").expect("/tmp").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = Command::new("chattr").args(["-R", "-f", "-i"]).arg(entry.path()).status();
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Keys and a configuration; returns the port.
fn prepare_sshd(dir: &Path) -> u16 {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = free.local_addr().expect("its address").port();
    for key in ["host_key", "user_key"] {
        let status = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(dir.join(key))
            .status();
        assert!(status.expect("ssh-keygen").success());
    }
    let host_key = fs::read_to_string(dir.join("host_key.pub")).expect("the key");
    fs::write(dir.join("known_hosts"), format!("[127.0.0.1]:{port} {host_key}")).expect("written");
    let config = format!(
        "ListenAddress 127.0.0.1\nPort {port}\nHostKey {dir}/host_key\nPidFile none\n\
         AuthorizedKeysFile {dir}/user_key.pub\nStrictModes no\nUsePAM no\n\
         PasswordAuthentication no\nPermitRootLogin yes\n",
        dir = dir.display()
    );
    fs::write(dir.join("sshd.conf"), config).expect("written");
    port
}
