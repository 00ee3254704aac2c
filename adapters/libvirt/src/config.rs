//! How a libvirt site is reached.

use std::path::PathBuf;
use std::time::Duration;

use model::SiteName;

/// One libvirt site, as the operator registered it.
#[derive(Clone, Debug)]
pub struct LibvirtConfig {
    pub name: SiteName,
    /// A connection URI: `qemu+ssh://root@east/system`, `qemu+tcp://10.0.0.1/system`.
    pub uri: String,
    /// Access to the hypervisor's host itself: makes fences stronger.
    pub host: Option<HostAccess>,
    /// A UEFI loader to name in definitions; `None` lets libvirt choose one.
    pub uefi: Option<UefiLoader>,
    pub acceleration: Acceleration,
    pub limits: Limits,
}

/// Which processor VMs made here run on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Acceleration {
    /// The host's own, by KVM, where libvirt offers it; an imitated one elsewhere.
    #[default]
    Offered,
    /// An imitated one: for hosts whose KVM is there and does not work.
    Never,
}

/// SSH to the hypervisor's host, by the machine's own `ssh`, never asking for anything.
#[derive(Clone, Debug)]
pub struct HostAccess {
    /// `user@host`. Any user but root needs `sudo` without a password.
    pub target: String,
    pub port: u16,
    pub identity: Option<PathBuf>,
    /// The host's key must be in here already; `None` is the user's own file.
    pub known_hosts: Option<PathBuf>,
}

/// Firmware files on the hypervisor's host.
#[derive(Clone, Debug)]
pub struct UefiLoader {
    pub code: String,
    pub vars_template: String,
}

/// How long libvirt may take before it counts as gone.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Looking.
    pub look: Duration,
    /// Changing: starting a VM may wait for a busy host's storage.
    pub change: Duration,
    /// Moving a file's bytes, or zeroing a volume.
    pub transfer: Duration,
}

impl Limits {
    pub const USUAL: Self = Self {
        // The first look at a host makes libvirt probe its QEMU: seconds, more when loaded.
        look: Duration::from_secs(30),
        change: Duration::from_secs(120),
        transfer: Duration::from_secs(3600),
    };
}

impl LibvirtConfig {
    pub const fn new(name: SiteName, uri: String) -> Self {
        Self {
            name,
            uri,
            host: None,
            uefi: None,
            acceleration: Acceleration::Offered,
            limits: Limits::USUAL,
        }
    }

    /// Whether it is the system's own libvirtd, on this machine, and nobody stands in between.
    pub(crate) fn is_local(&self) -> bool {
        self.uri == "qemu:///system"
    }

    /// The URI as it is opened: an `ssh` of libvirt's own must not ask on the terminal.
    pub(crate) fn uri_to_open(&self) -> String {
        let scheme = self.uri.split("://").next().unwrap_or_default();
        let by_ssh = scheme.ends_with("+ssh");
        if !by_ssh || self.uri.contains("no_tty=") {
            return self.uri.clone();
        }
        let separator = if self.uri.contains('?') { '&' } else { '?' };
        format!("{}{separator}no_tty=1", self.uri)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ssh_is_told_not_to_ask_and_other_transports_are_left_alone() {
        let open =
            |uri: &str| LibvirtConfig::new("east".parse().unwrap(), uri.to_owned()).uri_to_open();
        assert_eq!(open("qemu+ssh://a/system"), "qemu+ssh://a/system?no_tty=1");
        assert_eq!(open("qemu+ssh://a/system?port=1"), "qemu+ssh://a/system?port=1&no_tty=1");
        assert_eq!(open("qemu+ssh://a/system?no_tty=0"), "qemu+ssh://a/system?no_tty=0");
        assert_eq!(open("qemu+tcp://a/system"), "qemu+tcp://a/system");
    }
}
