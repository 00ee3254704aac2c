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

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use model::{NetworkRef, SiteName};
use serde::{Deserialize, Deserializer};
use thiserror::Error;
use transfer::secure::PublicKey;
use uuid::Uuid;

use crate::domain::cookie;
use crate::libvirt::Endpoint;
use crate::ports::PortRange;

#[derive(Debug, Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// With the line, and what is wrong in it.
    #[error("the configuration {} is not right: {}", path.display(), source.to_string().trim_end())]
    Text { path: PathBuf, source: Box<toml::de::Error> },
    #[error("the configuration {} is not right:\n{}", path.display(), listed(.mistakes))]
    Mistakes { path: PathBuf, mistakes: Vec<String> },
}

fn listed(mistakes: &[String]) -> String {
    mistakes.iter().map(|one| format!("  - {one}")).collect::<Vec<_>>().join("\n")
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub site: Site,
    pub listen: Listen,
    pub host: Host,
    pub neighbour: Neighbour,
    pub arrivals: Arrivals,
    #[serde(default)]
    pub relay: Relay,
}

/// What goes over the line, and what is kept to send less of it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Relay {
    /// All migrations keep at most so much together of what went, 1 GiB each. One that finds none left
    /// keeps nothing. The smaller of both agents' counts.
    #[serde(default = "memory_mib")]
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
    #[serde(deserialize_with = "parsed")]
    pub socket: Endpoint,
}

/// Where this agent is reached.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    /// By libvirtds and virsh of the site, `qemu+tcp://`.
    #[serde(default)]
    pub libvirt: Vec<SocketAddr>,
    /// ... `qemu+tls://`: those that show a certificate.
    pub tls: Option<Tls>,
    /// By those that come over SSH, `qemu+ssh://…?socket=`.
    pub unix: Option<PathBuf>,
    /// By the other agent.
    pub wan: SocketAddr,
}

/// Where hosts come that show a certificate, and what they are shown. Files in PEM, as libvirt's own are.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
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
    pub uuid: Uuid,
    /// To which the source's hosts send memory and disks.
    pub data_address: IpAddr,
    #[serde(default, deserialize_with = "parsed")]
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
    pub address: SocketAddr,
    #[serde(deserialize_with = "parsed")]
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
    #[serde(default = "loopback")]
    pub listen: IpAddr,
    /// Raw images on this agent's machine that VMs are made from: what a VM has of them need not come. A new one takes
    /// the old one's name (`mv`): one that is written into meanwhile ends migrations that need it. 2 GiB of content are
    /// known at most, zeros left out.
    #[serde(default)]
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
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let config: Self = toml::from_str(&text).map_err(|source| ConfigError::Text {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        let mistakes = config.mistakes();
        if mistakes.is_empty() {
            return Ok(config);
        }
        Err(ConfigError::Mistakes { path: path.to_owned(), mistakes })
    }

    /// What each value alone does not show.
    fn mistakes(&self) -> Vec<String> {
        let Self { site, listen, host, neighbour, arrivals, relay: _ } = self;
        let wrong = [
            (
                listen.libvirt.is_empty() && listen.unix.is_none() && listen.tls.is_none(),
                "listen: nobody can migrate to it: give `libvirt` or `tls` an address, or `unix` a path",
            ),
            (
                listen.tls.as_ref().is_some_and(|tls| tls.at.is_empty()),
                "listen.tls.at: nobody reaches it: give it an address",
            ),
            (
                host.hostname.is_empty() || host.hostname.starts_with("localhost"),
                "host.hostname: libvirt refuses a neighbour of that name: give it one of its own",
            ),
            (
                host.uuid.is_nil(),
                "host.uuid: a host has one: take what `uuidgen` prints, not a real host's",
            ),
            (
                host.data_address.is_unspecified(),
                "host.data-address: hypervisors connect to it: give this agent's own address",
            ),
            (
                neighbour.name == site.name,
                "neighbour.name: it is this site's own: name the other one",
            ),
            (
                neighbour.address.ip().is_unspecified() || neighbour.address.port() == 0,
                "neighbour.address: nobody is there: give the other agent's address and port",
            ),
            (arrivals.pool.is_empty(), "arrivals.pool: name a storage pool of this site"),
            (
                arrivals.loaders.values().any(|code| !code.starts_with('/')),
                "arrivals.loaders: give whole paths of firmware on this site's hypervisor",
            ),
            (
                arrivals.templates.iter().any(|image| image.is_relative()),
                "arrivals.templates: give whole paths of raw images on this agent's machine",
            ),
            (
                arrivals.nvram_dir.as_ref().is_some_and(|dir| dir.is_relative()),
                "arrivals.nvram-dir: give the whole path of a folder on this site's hypervisor",
            ),
        ];
        wrong.into_iter().filter(|(is, _)| *is).map(|(_, what)| what.to_owned()).collect()
    }
}

const fn memory_mib() -> u32 {
    4096
}

const fn loopback() -> IpAddr {
    IpAddr::V4(Ipv4Addr::LOCALHOST)
}

fn parsed<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> String {
        include_str!("config.rs")
            .lines()
            .skip_while(|line| *line != "//! ```toml")
            .skip(1)
            .take_while(|line| *line != "//! ```")
            .map(|line| format!("{}\n", line.trim_start_matches("//!").trim_start()))
            .collect()
    }

    fn load(text: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mobility.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(&path)
    }

    #[test]
    fn the_example_above_is_a_configuration() {
        let config = load(&example()).unwrap();
        assert_eq!(config.site.name.as_str(), "east");
        let networks = config.arrivals.networks();
        assert_eq!(networks["br0"], NetworkRef::Network("default".to_owned()));
        assert_eq!(networks["br1"], NetworkRef::Bridge("br-lan".to_owned()));
    }

    #[test]
    fn a_wrong_line_is_shown_with_its_number() {
        for (right, wrong, said) in [
            ("[arrivals]", "[arrivals]\nhots = 1", "hots"),
            ("49152-49215", "49152", "49152"),
            ("unix:/run", "/run", "unix:PATH"),
            ("302a3005", "302a3006", "public key"),
        ] {
            let error = load(&example().replace(right, wrong)).unwrap_err().to_string();
            assert!(error.contains("mobility.toml") && error.contains("line"), "{error}");
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let text = example()
            .replace("neighbour-of-east", "localhost")
            .replace("\"west\"", "\"east\"")
            .replace("data-address = \"10.77.1.1\"", "data-address = \"0.0.0.0\"")
            .replace("/usr/share/OVMF/", "")
            .replace("/var/lib/libvirt/", "")
            .replace("/srv/templates/", "");
        let Err(ConfigError::Mistakes { mistakes, .. }) = load(&text) else { panic!("taken") };
        assert_eq!(mistakes.len(), 6, "{mistakes:?}");
    }
}
