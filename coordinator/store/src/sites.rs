//! Registered sites.

use std::path::PathBuf;

use model::SiteName;
use serde::{Deserialize, Serialize};

/// A site as it is registered, in the state database or in the configuration file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiteConfig {
    pub name: SiteName,
    pub uri: String,
    /// SSH login of the hypervisor's host.
    #[serde(default)]
    pub host: Option<HostLogin>,
    /// The site's mobility agent, as its hypervisors reach it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mobility: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostLogin {
    pub login: String,
    #[serde(default)]
    pub identity: Option<PathBuf>,
    #[serde(default)]
    pub known_hosts: Option<PathBuf>,
}
