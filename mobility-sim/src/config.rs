//! The configuration file of an agent: what it is at its site, and the one agent it talks to.
//!
//! ```toml
//! [site]
//! name = "east"
//! state-dir = "/var/lib/causeway-mobility"
//! uri = "qemu:///system"
//! socket = "unix:/run/libvirt/libvirt-sock"
//!
//! [listen]
//! libvirt = ["10.77.1.1:16510"]
//! tls = { at = ["10.77.1.1:16514"], cert = "/etc/pki/causeway/cert.pem", key = "/etc/pki/causeway/key.pem", ca = "/etc/pki/CA/cacert.pem" }
//! wan = "10.77.1.1:7443"
//!
//! [host]
//! hostname = "neighbour-of-east"
//! uuid = "6a0f1c52-6f2d-4b0e-9d4e-0d5d1f6e3c1b"
//! data-address = "10.77.1.1"
//! ports = "49152-49215"
//!
//! [neighbour]
//! name = "west"
//! address = "203.0.113.7:7443"
//! key = "302a300506032b6570032100d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
//!
//! [arrivals]
//! pool = "default"
//! networks = { br0 = "default", br1 = "bridge:br-lan" }
//! loaders = { "/usr/share/edk2/ovmf/OVMF_CODE.fd" = "/usr/share/OVMF/OVMF_CODE_4M.fd" }
//! nvram-dir = "/var/lib/libvirt/qemu/nvram"
//! listen = "10.77.1.1"
//! templates = ["/srv/templates/debian-12.raw"]
//!
//! [relay]
//! memory-mib = 4096
//! ```

mod mistakes;
pub(crate) mod sections;
pub(crate) mod values;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use model::{NetworkRef, SiteName};
use serde::Deserialize;
use thiserror::Error;
use transfer::secure::PublicKey;
use uuid::Uuid;

use crate::domain::cookie;
use crate::libvirt::Endpoint;
use crate::ports::PortRange;
use sections::Sections;

#[derive(Debug, Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// No TOML: with the line, and what is wrong in it.
    #[error("the configuration {} is not right: {}", path.display(), source.to_string().trim_end())]
    Text { path: PathBuf, source: Box<toml::de::Error> },
    #[error("the configuration {} is not right:\n{}", path.display(), listed(.mistakes))]
    Mistakes { path: PathBuf, mistakes: Vec<String> },
}

/// Each with a mark; its further lines stand under the first.
fn listed(mistakes: &[String]) -> String {
    let one = |one: &String| format!("  - {}", one.trim_end().replace('\n', "\n    "));
    mistakes.iter().map(one).collect::<Vec<_>>().join("\n")
}

#[derive(Clone, Debug)]
pub struct Config {
    pub site: Site,
    pub listen: Listen,
    pub host: Host,
    pub neighbour: Neighbour,
    pub arrivals: Arrivals,
    pub relay: Relay,
}

/// What goes over the line, and what is kept to send less of it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Relay {
    /// All migrations keep at most so much together of what went, 1 GiB each. One that finds none left
    /// keeps nothing. The smaller of both agents' counts.
    #[serde(default = "memory_mib", deserialize_with = "values::mib")]
    pub memory_mib: u32,
}

impl Default for Relay {
    fn default() -> Self {
        Self { memory_mib: memory_mib() }
    }
}

/// The site that this agent is at.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Site {
    pub name: SiteName,
    pub state_dir: PathBuf,
    /// Of its libvirt, as `virsh -c` takes it: volumes are made and power is looked at through it.
    pub uri: String,
    /// Of the same libvirt: VMs arrive through it.
    #[serde(deserialize_with = "values::parsed")]
    pub socket: Endpoint,
}

/// Where this agent is reached.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    /// By libvirtds and virsh of the site, `qemu+tcp://`.
    #[serde(default, deserialize_with = "values::addresses")]
    pub libvirt: Vec<SocketAddr>,
    /// ... `qemu+tls://`: those that show a certificate.
    pub tls: Option<Tls>,
    /// By those that come over SSH, `qemu+ssh://…?socket=`.
    pub unix: Option<PathBuf>,
    /// By the other agent.
    #[serde(deserialize_with = "values::address")]
    pub wan: SocketAddr,
}

/// Where hosts come that show a certificate, and what they are shown. Files in PEM, as libvirt's own are.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    #[serde(deserialize_with = "values::addresses")]
    pub at: Vec<SocketAddr>,
    /// This agent's, with whatever leads to the authority; in it the address or name by which hosts
    /// connect.
    pub cert: PathBuf,
    pub key: PathBuf,
    /// The authority whose certificates are taken, every one of them.
    pub ca: PathBuf,
}

/// The host that this agent plays to its site's hosts.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Host {
    pub hostname: String,
    #[serde(deserialize_with = "values::uuid")]
    pub uuid: Uuid,
    /// To which the source's hosts send memory and disks.
    #[serde(deserialize_with = "values::ip")]
    pub data_address: IpAddr,
    #[serde(default, deserialize_with = "values::parsed")]
    pub ports: PortRange,
}

impl Host {
    /// As this site's hosts see it in a cookie.
    pub fn in_cookies(&self) -> cookie::Neighbour {
        cookie::Neighbour { hostname: self.hostname.clone(), host_uuid: self.uuid.to_string() }
    }
}

/// The other agent.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Neighbour {
    pub name: SiteName,
    #[serde(deserialize_with = "values::address")]
    pub address: SocketAddr,
    #[serde(deserialize_with = "values::key")]
    pub key: PublicKey,
}

/// What becomes of VMs that arrive here.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Arrivals {
    /// Where their disks are made.
    pub pool: String,
    /// Of all disks; each keeps its own where nothing is said.
    pub format: Option<Format>,
    /// By what the source calls a network or a bridge.
    #[serde(default)]
    networks: BTreeMap<String, String>,
    /// UEFI code, by its path at the source; of the same size. Libvirt has to know which variables belong to
    /// it, as it does where `/usr/share/qemu/firmware` describes it.
    #[serde(default)]
    pub loaders: BTreeMap<String, String>,
    /// Folder on the hypervisor's host for the variables of their firmware; it has to be there.
    pub nvram_dir: Option<PathBuf>,
    /// Where consoles listen.
    #[serde(default = "loopback", deserialize_with = "values::ip")]
    pub listen: IpAddr,
    /// Raw images on this agent's machine that VMs are made from: what a VM has of them need not come. A new one takes
    /// the old one's name (`mv`): one that is written into meanwhile ends migrations that need it. 2 GiB of content are
    /// known at most, zeros left out.
    #[serde(default, deserialize_with = "values::paths")]
    pub templates: Vec<PathBuf>,
    /// The hosts of both sites have the same processor.
    #[serde(default)]
    pub same_processor: bool,
    /// The host's processor is not used even where it offers itself.
    #[serde(default)]
    pub emulate: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    Raw,
    Qcow2,
}

impl Arrivals {
    pub fn networks(&self) -> BTreeMap<String, NetworkRef> {
        let to = |name: &String| match name.strip_prefix("bridge:") {
            Some(bridge) => NetworkRef::Bridge(bridge.to_owned()),
            None => NetworkRef::Network(name.clone()),
        };
        self.networks.iter().map(|(from, name)| (from.clone(), to(name))).collect()
    }
}

impl Config {
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let config = Self::read(path)?;
        let mistakes = config.mistakes();
        config.unless(mistakes, path)
    }

    /// Looks also at the files that it names.
    pub fn check(path: &Path) -> Result<Self, ConfigError> {
        let config = Self::read(path)?;
        let mistakes = [config.mistakes(), config.files()].concat();
        config.unless(mistakes, path)
    }

    fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = text(path)?;
        let mut sections = Sections::of(&text, path)?;
        let site = sections.take("site", "give it `name`, `state-dir`, `uri` and `socket`");
        let listen = sections.take("listen", "give it `wan`, and `libvirt`, `tls` or `unix`");
        let host = sections.take("host", "give it `hostname`, `uuid` and `data-address`");
        let neighbour = sections
            .take("neighbour", "take what `causeway-mobility introduce` prints at the other agent");
        let arrivals = sections.take("arrivals", "give it `pool`, a storage pool of this site");
        let relay = sections.take_if_there("relay");
        let mistakes = sections.rest();
        match (site, listen, host, neighbour, arrivals, mistakes.is_empty()) {
            (Some(site), Some(listen), Some(host), Some(neighbour), Some(arrivals), true) => {
                let relay = relay.unwrap_or_default();
                Ok(Self { site, listen, host, neighbour, arrivals, relay })
            }
            _ => Err(ConfigError::Mistakes { path: path.to_owned(), mistakes }),
        }
    }

    fn unless(self, mistakes: Vec<String>, path: &Path) -> Result<Self, ConfigError> {
        if mistakes.is_empty() {
            return Ok(self);
        }
        Err(ConfigError::Mistakes { path: path.to_owned(), mistakes })
    }
}

pub(crate) const STATE_DIR_RELATIVE: &str =
    "site.state-dir: give the whole path of a folder of this agent's own";

pub(crate) fn text(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })
}

const fn memory_mib() -> u32 {
    4096
}

const fn loopback() -> IpAddr {
    IpAddr::V4(Ipv4Addr::LOCALHOST)
}

#[cfg(test)]
mod tests;
