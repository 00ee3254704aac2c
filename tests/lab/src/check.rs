//! What the lab needs of the machine, and which Debian package has it.

use std::env;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::run::{run, run_with_input};

/// Programs and the packages of Debian 12 that bring them.
const PROGRAMS: &[(&str, &str)] = &[
    ("apt-get", "apt"),
    ("busybox", "busybox-static"),
    ("chattr", "e2fsprogs"),
    ("dnsmasq", "dnsmasq-base"),
    ("dpkg-deb", "dpkg"),
    ("ip", "iproute2"),
    ("libvirtd", "libvirt-daemon-system"),
    ("nsenter", "util-linux"),
    ("qemu-img", "qemu-utils"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("ssh-keygen", "openssh-client"),
    ("sshd", "openssh-server"),
    ("tc", "iproute2"),
    ("unshare", "util-linux"),
    ("virsh", "libvirt-clients"),
];

/// One thing that is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    pub what: String,
    pub remedy: String,
}

/// Everything that is missing; nothing is kept or changed by looking.
pub fn missing() -> Vec<Missing> {
    let mut missing: Vec<_> = PROGRAMS
        .iter()
        .filter(|(program, _)| !is_installed(program))
        .map(|(program, package)| Missing {
            what: format!("program {program}"),
            remedy: format!("apt-get install {package}"),
        })
        .collect();
    if !rustix::process::geteuid().is_root() {
        missing.push(Missing {
            what: "the right to make namespaces".to_owned(),
            remedy: "run as root".to_owned(),
        });
        return missing;
    }
    if !Path::new("/dev/net/tun").exists() {
        missing.push(Missing {
            what: "/dev/net/tun".to_owned(),
            remedy: "modprobe tun, or allow the device to the container".to_owned(),
        });
    }
    if is_installed("unshare") && is_installed("ip") && is_installed("tc") {
        missing.extend(missing_of_kernel());
    }
    missing
}

/// An error that names everything missing, if anything is.
pub(crate) fn require() -> Result<()> {
    // Programs and rights only: what the kernel lacks fails by itself, and asking takes a while.
    let uninstalled: Vec<_> = PROGRAMS
        .iter()
        .filter(|(program, _)| !is_installed(program))
        .map(|(program, package)| format!("{program} (package {package})"))
        .collect();
    if !uninstalled.is_empty() {
        bail!("the lab needs {}", uninstalled.join(", "));
    }
    if !rustix::process::geteuid().is_root() {
        bail!("the lab needs root: it makes namespaces and runs libvirtd in them");
    }
    Ok(())
}

fn missing_of_kernel() -> Option<Missing> {
    let namespaces = ["--mount", "--net", "--uts", "--ipc", "--pid", "--fork"];
    if let Err(cause) = run(Command::new("unshare").args(namespaces).arg("true")) {
        return Some(Missing {
            what: format!("namespaces: {cause}"),
            remedy: "run on a machine, or in a container with CAP_SYS_ADMIN".to_owned(),
        });
    }
    const NETWORK: &str =
        "ip -batch - && tc qdisc add dev veth0 root tbf rate 1mbit burst 64k latency 50ms";
    const LINKS: &str = "link add br0 type bridge\nlink add veth0 type veth peer name veth1\nlink set veth0 master br0\n";
    let tried = run_with_input(Command::new("unshare").args(["--net", "sh", "-c", NETWORK]), LINKS);
    tried.err().map(|cause| Missing {
        what: format!("network devices: {cause}"),
        remedy: "a kernel with bridge, veth and sch_tbf".to_owned(),
    })
}

fn is_installed(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|dir| dir.join(program).is_file())
}
