//! A libvirtd of the test's own, as a site.

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;

pub use lab::daemon::Network;
use lab::daemon::{self, DaemonSpec};
use site_libvirt::{HostAccess, LibvirtConfig, LibvirtSite};

/// In its own network it has a libvirt network `default`, in the machine's an SSH server.
pub struct Daemon {
    inner: daemon::Daemon,
    ssh_port: Option<u16>,
}

impl Daemon {
    pub fn start(network: Network) -> Self {
        let dir = daemon::directory("cwlv-");
        for below in ["images", "other"] {
            fs::create_dir(dir.path().join(below)).expect("a directory for images");
        }
        let ssh_port = (network == Network::Shared).then(|| prepare_sshd(dir.path()));
        let first = ssh_port.map(|_| "/usr/sbin/sshd -f \"$D/sshd.conf\" -E \"$D/sshd.log\"");
        let name = dir.path().file_name().expect("a name").to_string_lossy().to_lowercase();
        let spec = DaemonSpec {
            network,
            hostname: name.chars().filter(char::is_ascii_alphanumeric).collect(),
            libvirtd_conf: "",
            qemu_conf: "",
            first: first.unwrap_or_default().to_owned(),
            cache: &Path::new(env!("CARGO_TARGET_TMPDIR")).join("libvirt-cache-tcg"),
        };
        let daemon = Self { inner: daemon::Daemon::start(dir, &spec), ssh_port };
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
        self.path("images")
    }

    /// A directory that no pool knows.
    pub fn other(&self) -> PathBuf {
        self.path("other")
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
            identity: Some(self.path("user_key")),
            known_hosts: Some(self.path("known_hosts")),
        };
        LibvirtSite::new(LibvirtConfig { host: Some(host), ..self.config() })
    }

    /// Mounts a file system of so many bytes where libvirtd keeps that. It ends with the daemon.
    pub fn give_little_room(&self, at: &str, size: u32) {
        let status = Command::new("nsenter")
            .args(["--target", &self.first_process(), "--mount", "mount", "-t", "tmpfs", "-o"])
            .args([&format!("size={size},mode=700"), "tmpfs", at])
            .status();
        assert!(status.expect("nsenter").success());
    }
}

impl Deref for Daemon {
    type Target = daemon::Daemon;

    fn deref(&self) -> &Self::Target {
        &self.inner
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
