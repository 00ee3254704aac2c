//! libvirt's XML: read with limits, written anew from our own values.

mod caps;
mod devices;
mod domain;
mod node;
mod ours;
mod secret;
mod storage;
mod write;

pub(crate) use caps::{DomainCaps, HostCaps};
pub(crate) use domain::{DomainXml, XmlDisk, XmlSource};
pub use ours::ARRIVAL_NAMESPACE;
pub(crate) use ours::{FenceNote, FencedDisk, Ours, OursState, ours_uri};
pub(crate) use secret::{SecretXml, new_secret};
pub(crate) use storage::{PoolXml, VolumeXml, new_pool, new_volume};
pub(crate) use write::{
    CACHED, DIRECT, Fenced, Form, Host, Located, NOWHERE, WriteError, Written, element, fenced,
    metadata_text, placeholder,
};

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod reading;
#[cfg(test)]
mod writing;
