//! A source that reaches servers of the test, with a VM that does nothing.

use std::ops::Deref;
use std::path::Path;

use lab::daemon::{self, DaemonSpec, Network};

pub struct Daemon(daemon::Daemon);

/// A VM that needs nothing and does nothing.
const VM: &str = "<domain type='qemu'><name>web1</name>\
    <uuid>0d5d1f6e-3c1b-4d0e-9a53-6b1f0c2e7a01</uuid><memory unit='MiB'>16</memory>\
    <os><type machine='pc'>hvm</type></os>\
    <devices><controller type='usb' model='none'/><memballoon model='none'/></devices></domain>";

impl Daemon {
    pub fn start() -> Self {
        let spec = DaemonSpec {
            network: Network::Shared,
            hostname: "source".to_owned(),
            libvirtd_conf: "host_uuid = \"5d1f6e3c-1b4d-4e9a-836b-1f0c2e7a0101\"",
            // Silence is noticed after two seconds, where it would be thirty.
            qemu_conf: "keepalive_interval = 1\nkeepalive_count = 1",
            first: String::new(),
            cache: &Path::new(env!("CARGO_TARGET_TMPDIR")).join("libvirt-cache-tcg"),
        };
        Self(daemon::Daemon::start(daemon::directory("cwrpc-"), &spec))
    }

    /// With the VM `web1`, which runs.
    pub fn with_vm() -> Self {
        let daemon = Self::start();
        daemon.define("create", VM);
        daemon
    }

    pub fn state(&self) -> String {
        self.virsh(&["domstate", "web1"]).map(|said| said.trim().to_owned()).unwrap_or_default()
    }
}

impl Deref for Daemon {
    type Target = daemon::Daemon;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}
