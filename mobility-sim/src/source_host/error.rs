//! Why a VM does not arrive.

use model::{Power, SiteName};
use rpc::error::{Code, Origin};
use site::SiteError;
use thiserror::Error;
use units::{Bytes, chain};

use crate::custody::HandoverError;
use crate::domain::TranslateError;
use crate::domain::cookie::CookieError;
use crate::domain::node::XmlError;
use crate::ledger::LedgerError;
use crate::libvirt::client::DaemonError;
use crate::wan::message::Failed;

#[derive(Debug, Error)]
pub enum ArrivalError {
    #[error("the definition cannot be read")]
    Xml(#[from] XmlError),
    #[error(transparent)]
    Translate(#[from] TranslateError),
    #[error(transparent)]
    Cookie(#[from] CookieError),
    #[error("{0}")]
    Disks(String),
    #[error("a VM of this id is {power} here already")]
    IsHere { power: Power },
    #[error("more parameters than a migration has")]
    Params,
    #[error("no host here runs VMs of architecture {arch}")]
    Arch { arch: String },
    #[error("the destination's libvirt says nothing of use about {what}")]
    Useless { what: &'static str },
    #[error(transparent)]
    Site(#[from] SiteError),
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    #[error("the destination's agent cannot keep records")]
    Ledger(#[from] LedgerError),
    #[error("who may run the VM cannot be put on record at the destination")]
    Handover(#[from] HandoverError),
    #[error(
        "somebody resumed it here before it was handed over: it is ended, and runs at its source"
    )]
    Resumed,
    #[error("the source's agent shows a key that is none")]
    Key,
    #[error("{} bytes of {what} left the source, and {} arrived", theirs.0, ours.0)]
    Short { what: &'static str, theirs: Bytes, ours: Bytes },
    #[error(
        "a definition of the VM is kept here, from which a later start would come up with other disks"
    )]
    IsDefined,
}

impl ArrivalError {
    /// What the source's operator reads. An error of libvirt's keeps its number.
    pub fn for_the_source(&self, site: &SiteName) -> Failed {
        let (code, origin) = match self {
            Self::Daemon(DaemonError::Refused(error)) => (error.code, error.domain),
            Self::Translate(_) | Self::Disks(_) => (Code::CONFIG_UNSUPPORTED, Origin::QEMU),
            _ => (Code::OPERATION_FAILED, Origin::QEMU),
        };
        Failed { code: code.0, origin: origin.0, text: format!("{site}: {}", chain(self)) }
    }
}
