//! The configuration file: what one does not want to type.
//!
//! ```toml
//! [sites.east]
//! uri = "qemu+ssh://root@host-a/system"
//! mobility = "qemu+tcp://agent-a/system"
//!
//! [guests.web1]
//! login = "root@10.0.0.5"
//! host_key = "SHA256:…"
//!
//! [routes."east/west"]
//! pools = { "*" = "default" }
//! networks = { br0 = "br-lan" }
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use model::SiteName;
use serde::Deserialize;

use crate::failure::{Failure, Kind};
use crate::store::{HostLogin, SiteConfig};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    #[serde(default)]
    sites: BTreeMap<SiteName, ConfiguredSite>,
    /// By the VM's name.
    #[serde(default)]
    pub guests: BTreeMap<String, ConfiguredGuest>,
    /// By `FROM/TO`.
    #[serde(default)]
    pub routes: BTreeMap<String, ConfiguredRoute>,
    /// The static agent.
    pub agent: Option<PathBuf>,
    /// Folder of the helper's kernel and initramfs.
    pub appliance: Option<PathBuf>,
    /// Seconds that a broken line may stay broken.
    pub patience_s: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfiguredSite {
    uri: String,
    host: Option<HostLogin>,
    /// Its mobility agent, as its hypervisors reach it.
    mobility: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfiguredGuest {
    pub login: String,
    pub identity: Option<PathBuf>,
    pub host_key: Option<String>,
    pub known_hosts: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfiguredRoute {
    #[serde(default)]
    pub pools: BTreeMap<String, String>,
    #[serde(default)]
    pub networks: BTreeMap<String, String>,
}

impl Config {
    /// Reads `path`, or the usual place if there is one.
    pub fn load(path: Option<&Path>) -> Result<Self, Failure> {
        let path = match path {
            Some(path) => path.to_owned(),
            None => match usual_place() {
                Some(path) if path.exists() => path,
                _ => return Ok(Self::default()),
            },
        };
        let text = std::fs::read_to_string(&path).map_err(|error| {
            Failure::new(Kind::Usage, format!("cannot read the configuration {}", path.display()))
                .caused_by(&error)
        })?;
        toml::from_str(&text).map_err(|error| {
            Failure::new(Kind::Usage, format!("the configuration {} is not right", path.display()))
                .caused_by(&error)
        })
    }

    pub fn sites(&self) -> Vec<SiteConfig> {
        self.sites
            .iter()
            .map(|(name, site)| SiteConfig {
                name: name.clone(),
                uri: site.uri.clone(),
                host: site.host.clone(),
                mobility: site.mobility.clone(),
            })
            .collect()
    }
}

fn usual_place() -> Option<PathBuf> {
    if rustix::process::getuid().is_root() {
        return Some(PathBuf::from("/etc/causeway/causeway.toml"));
    }
    let base = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config"));
    base.or(home).map(|base| base.join("causeway/causeway.toml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_above_is_a_configuration() {
        let text: String = include_str!("config.rs")
            .lines()
            .skip_while(|line| *line != "//! ```toml")
            .skip(1)
            .take_while(|line| *line != "//! ```")
            .map(|line| format!("{}\n", line.trim_start_matches("//!")))
            .collect();
        let config: Config = toml::from_str(&text).unwrap();
        assert_eq!(config.sites().len(), 1);
        assert_eq!(config.routes["east/west"].networks["br0"], "br-lan");
    }

    #[test]
    fn a_misspelt_key_is_refused() {
        assert!(toml::from_str::<Config>("[sites.east]\nuri = 'x'\nhots = 'y'\n").is_err());
    }
}
