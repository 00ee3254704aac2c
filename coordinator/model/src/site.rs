//! A site and what it offers.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use units::Bytes;

use crate::{Firmware, NetworkRef};

/// The operator's name for a site: 1 to 32 of `a-z`, `0-9` and `-`, starting with a letter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SiteName(String);

#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("not a site name (1 to 32 of a-z, 0-9 and '-', starting with a letter): {text:?}")]
pub struct SiteNameError {
    pub text: String,
}

impl SiteName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SiteName {
    type Err = SiteNameError;

    fn from_str(text: &str) -> Result<Self, SiteNameError> {
        let fits = text.len() <= 32
            && text.starts_with(|c: char| c.is_ascii_lowercase())
            && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        if fits { Ok(Self(text.to_owned())) } else { Err(SiteNameError { text: text.to_owned() }) }
    }
}

impl TryFrom<String> for SiteName {
    type Error = SiteNameError;
    fn try_from(text: String) -> Result<Self, SiteNameError> {
        text.parse()
    }
}

impl From<SiteName> for String {
    fn from(name: SiteName) -> Self {
        name.0
    }
}

impl fmt::Display for SiteName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a site answered when it was probed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteReport {
    /// Product and version as the site gives them: `libvirt 9.0.0, QEMU 7.2.22`.
    pub platform: String,
    pub host: String,
    pub arch: String,
    /// Machine types that it can start.
    pub machines: Vec<String>,
    pub firmwares: Vec<Firmware>,
    /// CPU models that it can start; empty where it does not tell.
    pub cpu_models: Vec<String>,
    /// Most virtual CPUs that one VM may have here.
    pub vcpus_max: u32,
    pub memory_free: Option<Bytes>,
    pub pools: Vec<PoolOffer>,
    pub networks: Vec<NetworkOffer>,
    pub capabilities: Vec<Capability>,
    /// What is too old here to take part.
    pub outdated: Vec<String>,
    /// Odd, but not in the way: shown to the operator.
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolOffer {
    pub name: String,
    pub capacity: Bytes,
    pub available: Bytes,
    pub active: bool,
    /// The site's word: `dir`, `logical`.
    pub kind: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkOffer {
    pub network: NetworkRef,
    pub active: bool,
}

/// What a site can do beyond the least. Asked instead of the site's kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Capability {
    /// Can boot a placeholder from a kernel and initramfs of ours.
    HelperByKernel,
    /// Carries byte streams into a VM over its own management connection.
    ManagementChannel,
    /// Counts a running VM's writes per disk.
    WriteCounters,
    /// Can suspend a VM's virtual CPUs and resume them.
    Suspend,
    /// Keeps records for a coordinator.
    Records,
    /// The operator gave access to the hypervisor's host itself.
    HostAccess,
}

/// One means of keeping a stopped VM from coming up writable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceMeans {
    /// Short name: `definition`, `disk-header`, `image-renamed`.
    pub name: String,
    /// One sentence for the plan: what is done, with which paths.
    pub does: String,
}

/// How a site would fence a VM, strongest combination that its access allows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceOffer {
    pub means: Vec<FenceMeans>,
    /// Ways around it that remain, one sentence each. Said before the operator agrees.
    pub does_not_stop: Vec<String>,
}
