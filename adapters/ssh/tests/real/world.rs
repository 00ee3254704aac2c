//! A guest to log in to: an SSH server in its own mount and pid namespaces, with its own users,
//! `/run` (noexec, as Debian mounts it) and `/dev/shm`.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use guest_ssh::{HostKeyPolicy, SshAuth, SshTarget, Timing, UserAgent};
use tempfile::TempDir;

#[derive(Clone, Copy, Debug)]
pub enum Kind {
    OpenSsh,
    Dropbear,
}

pub struct Server {
    pub dir: TempDir,
    pub port: u16,
    child: Child,
}

impl Server {
    pub fn start(kind: Kind) -> Self {
        Self::start_with(kind, "")
    }

    /// `set_up` is shell that runs as root in the namespaces before the server.
    pub fn start_with(kind: Kind, set_up: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        furnish(dir.path());
        // Someone else may take the port between asking and using it.
        for _ in 0..5 {
            let port = free_port();
            let mut child = launch(kind, dir.path(), port, set_up);
            if listens(kind, port, dir.path(), &mut child) {
                return Self { dir, port, child };
            }
            kill_namespace(&mut child);
        }
        panic!("{kind:?} does not start: {}", fs::read_to_string(dir.path().join("log")).unwrap());
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap()
    }

    /// The public line of a host key.
    pub fn host_key(&self, kind: &str) -> String {
        fs::read_to_string(self.path(&format!("host_{kind}.pub"))).unwrap()
    }

    pub fn pinned(&self) -> HostKeyPolicy {
        HostKeyPolicy::Pinned(vec![self.host_key("ed25519").parse().unwrap()])
    }

    pub fn target(&self, user: &str) -> SshTarget {
        SshTarget {
            port: self.port,
            auth: SshAuth {
                identity_files: vec![self.path("user_ed25519")],
                agent: UserAgent::Never,
            },
            timing: Timing { connect: Duration::from_secs(60), ..Timing::default() },
            ..SshTarget::new("127.0.0.1", user, self.pinned())
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        kill_namespace(&mut self.child);
    }
}

/// Kills the first process of the namespace and everything in it with that. `unshare`, its
/// parent, then ends by itself; killed first, it would leave a zombie to whoever comes next.
fn kill_namespace(unshare: &mut Child) {
    let id = unshare.id();
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
    let first = children.trim().parse().ok().and_then(rustix::process::Pid::from_raw);
    match first {
        Some(first) => drop(rustix::process::kill_process(first, rustix::process::Signal::KILL)),
        None => drop(unshare.kill()),
    }
    unshare.wait().ok();
}

/// Keys and files, readable for every user of the guest.
fn furnish(dir: &Path) {
    assert!(rustix::process::geteuid().is_root(), "these tests start SSH servers and need root");
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    keygen(dir, "host_ed25519", "ed25519", "");
    keygen(dir, "user_ed25519", "ed25519", "");
    rsa_host_key(dir);
    for user in ["root", "guest"] {
        let ssh = dir.join(user).join(".ssh");
        fs::create_dir_all(&ssh).unwrap();
        fs::copy(dir.join("user_ed25519.pub"), ssh.join("authorized_keys")).unwrap();
        fs::set_permissions(ssh.join("authorized_keys"), fs::Permissions::from_mode(0o644))
            .unwrap();
    }
    let home = dir.display();
    let users = format!(
        "root:x:0:0::{home}/root:/bin/sh\nguest:x:4242:4242::{home}/guest:/bin/sh\nsshd:x:100:65534::/:/bin/false\n"
    );
    fs::write(dir.join("passwd"), users).unwrap();
    fs::create_dir(dir.join("bin")).unwrap();
    fs::write(
        dir.join("sshd_config"),
        format!(
            "ListenAddress 127.0.0.1\nHostKey {home}/host_ed25519\nHostKey {home}/host_rsa\n\
             PidFile none\nUsePAM no\nStrictModes no\nPermitRootLogin yes\n\
             PasswordAuthentication no\nMaxStartups 5:100:5\nLogLevel VERBOSE\n\
             SetEnv PATH={home}/bin:/usr/bin:/bin\n"
        ),
    )
    .unwrap();
}

/// One for all servers of this run: making an RSA key takes longer than most tests.
fn rsa_host_key(dir: &Path) {
    static KEY: OnceLock<[Vec<u8>; 2]> = OnceLock::new();
    let path = dir.join("host_rsa");
    let public = path.with_extension("pub");
    let key = KEY.get_or_init(|| {
        keygen(dir, "host_rsa", "rsa", "");
        [&path, &public].map(|path| fs::read(path).unwrap())
    });
    fs::write(&path, &key[0]).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&public, &key[1]).unwrap();
}

pub fn keygen(dir: &Path, name: &str, kind: &str, passphrase: &str) -> PathBuf {
    let path = dir.join(name);
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", kind, "-C", "", "-N", passphrase, "-f"])
        .arg(&path)
        .status()
        .expect("ssh-keygen is there (openssh-client)");
    assert!(made.success());
    path
}

fn launch(kind: Kind, dir: &Path, port: u16, set_up: &str) -> Child {
    let server = match kind {
        Kind::OpenSsh => format!("exec /usr/sbin/sshd -D -e -p {port} -f \"$dir/sshd_config\""),
        Kind::Dropbear => format!(
            "dropbearconvert openssh dropbear \"$dir/host_ed25519\" \"$dir/host.dropbear\" 2>&1
             exec dropbear $options -F -E -s -p 127.0.0.1:{port} -P \"$dir/pid\" -r \"$dir/host.dropbear\""
        ),
    };
    let script = format!(
        "set -e
         dir=$1
         mount -t tmpfs -o nosuid,nodev,noexec,mode=755 tmpfs /run
         mount -t tmpfs -o nosuid,nodev,mode=1777 tmpfs /dev/shm
         mount --bind \"$dir/passwd\" /etc/passwd
         mkdir -p /run/sshd
         options=
         {set_up}
         {server}"
    );
    Command::new("unshare")
        .args([
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "sh",
            "-c",
            &script,
            "sh",
        ])
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(dir.join("log")).unwrap())
        .spawn()
        .expect("unshare is there (util-linux)")
}

/// By its own word: another test's listener may have got the port, and would answer as well.
fn listens(kind: Kind, port: u16, dir: &Path, child: &mut Child) -> bool {
    let word = match kind {
        Kind::OpenSsh => format!("Server listening on 127.0.0.1 port {port}."),
        Kind::Dropbear => "Not backgrounding".to_owned(),
    };
    for _ in 0..600 {
        if fs::read_to_string(dir.join("log")).is_ok_and(|log| log.contains(&word)) {
            return true;
        }
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    false
}

/// One that no other test of this run was given: it may not listen there yet.
pub fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        if GIVEN.lock().unwrap_or_else(PoisonError::into_inner).insert(port) {
            return port;
        }
    }
}
