//! The files that make a site's libvirtd, DHCP server and SSH server its own.

use std::fmt::Write as _;

use super::{QemuUser, SiteSpec};

/// Its log tells what went wrong and, of live migrations, all that it was told.
pub(super) fn libvirtd_conf(host_uuid: &str) -> String {
    format!(
        "listen_tls = 0\n\
         listen_tcp = 1\n\
         listen_addr = \"0.0.0.0\"\n\
         auth_tcp = \"none\"\n\
         auth_unix_rw = \"none\"\n\
         unix_sock_group = \"root\"\n\
         host_uuid = \"{host_uuid}\"\n\
         log_filters = \"1:qemu.qemu_migration\"\n\
         log_outputs = \"1:file:/var/log/libvirt/libvirtd.log\"\n"
    )
}

pub(super) fn qemu_conf(spec: &SiteSpec) -> String {
    let owner = match spec.qemu_user {
        QemuUser::Root => "user = \"root\"\ngroup = \"root\"\ndynamic_ownership = 0\n",
        QemuUser::LibvirtQemu => {
            "user = \"libvirt-qemu\"\ngroup = \"libvirt-qemu\"\ndynamic_ownership = 1\n"
        }
    };
    format!(
        "{owner}\
         remember_owner = 0\n\
         security_driver = \"none\"\n\
         cgroup_controllers = []\n\
         namespaces = []\n\
         stdio_handler = \"file\"\n\
         {}",
        spec.qemu_conf
    )
}

/// A pool named `default` on `/srv/vm`.
pub(super) const POOL_XML: &str = "<pool type='dir'>\n  <name>default</name>\n  \
    <uuid>0d5d1f6e-3c1b-4d0e-9a53-6b1f0c2e7a01</uuid>\n  \
    <target><path>/srv/vm</path></target>\n</pool>\n";

/// A network named `default` that is the site's bridge.
pub(super) const NETWORK_XML: &str = "<network>\n  <name>default</name>\n  \
    <uuid>0d5d1f6e-3c1b-4d0e-9a53-6b1f0c2e7a02</uuid>\n  \
    <forward mode='bridge'/>\n  <bridge name='br0'/>\n</network>\n";

/// Guests get the address reserved for their MAC (see `Site::reserve`), others one from .128 up.
pub(super) fn dnsmasq_conf(dir: &str, subnet: &str) -> String {
    format!(
        "user=root\n\
         port=0\n\
         interface=br0\n\
         except-interface=lo\n\
         bind-interfaces\n\
         dhcp-authoritative\n\
         dhcp-no-override\n\
         no-ping\n\
         dhcp-range={subnet}.128,{subnet}.250,255.255.255.0,12h\n\
         dhcp-option=option:router,{subnet}.1\n\
         dhcp-hostsdir={dir}/dhcp\n\
         dhcp-leasefile={dir}/leases\n\
         pid-file=/run/dnsmasq.pid\n\
         log-facility={dir}/log/dnsmasq.log\n"
    )
}

pub(super) fn sshd_config(dir: &str, address: &str) -> String {
    format!(
        "ListenAddress {address}:22\n\
         HostKey {dir}/ssh/host_ed25519\n\
         AuthorizedKeysFile {dir}/ssh/authorized_keys\n\
         PidFile /run/sshd.pid\n\
         PermitRootLogin prohibit-password\n\
         PasswordAuthentication no\n\
         KbdInteractiveAuthentication no\n\
         StrictModes no\n\
         UsePAM no\n\
         UseDNS no\n\
         Subsystem sftp internal-sftp\n"
    )
}

pub(super) fn hosts(sites: &[String], operator: &str) -> String {
    let mut text = format!("127.0.0.1 localhost\n{operator} operator\n");
    for (at, name) in sites.iter().enumerate() {
        let _ = writeln!(text, "{} {name}", super::address(at));
    }
    text
}
