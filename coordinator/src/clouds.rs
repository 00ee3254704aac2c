//! The only place that names concrete clouds.

use std::sync::Arc;

use site::Site;
use site_libvirt::{HostAccess, LibvirtConfig, LibvirtSite};
use store::SiteConfig;

use crate::failure::{Failure, Kind};
use crate::guest::parse_login;

/// Can a libvirt connect to a mobility agent by this URI?
pub fn neighbour(uri: &str) -> Result<(), Failure> {
    let known = [
        "qemu+tcp://",
        "qemu+tls://",
        "qemu+ssh://",
        "qemu+unix://",
        "qemu+libssh://",
        "qemu+libssh2://",
    ];
    if known.iter().any(|scheme| uri.starts_with(scheme)) {
        return Ok(());
    }
    Err(Failure::new(Kind::Usage, format!("no mobility agent is reached by this URI: {uri}"))
        .hint("it looks like qemu+tcp://AGENT/system"))
}

/// Opens a site by its URI. Does not connect.
pub fn open(config: &SiteConfig) -> Result<Arc<dyn Site>, Failure> {
    let scheme = config.uri.split("://").next().unwrap_or_default();
    let known =
        ["qemu", "qemu+ssh", "qemu+tcp", "qemu+tls", "qemu+unix", "qemu+libssh2", "qemu+libssh"];
    if !known.contains(&scheme) {
        return Err(Failure::new(
            Kind::Usage,
            format!("no cloud is reached by this URI: {}", config.uri),
        )
        .hint("libvirt sites look like qemu+ssh://root@host/system"));
    }
    let host = match &config.host {
        None => None,
        Some(host) => {
            let login = parse_login(&host.login)?;
            Some(HostAccess {
                target: format!("{}@{}", login.user, login.host),
                port: login.port,
                identity: host.identity.clone(),
                known_hosts: host.known_hosts.clone(),
            })
        }
    };
    let mut libvirt = LibvirtConfig::new(config.name.clone(), config.uri.clone());
    libvirt.host = host;
    Ok(Arc::new(LibvirtSite::new(libvirt)))
}
