//! Why a VM does not leave.

use site::SiteError;
use thiserror::Error;
use units::Bytes;

use crate::custody::HandoverError;
use crate::domain::cookie::CookieError;
use crate::domain::node::XmlError;
use crate::ledger::LedgerError;
use crate::ports::{DataUriError, ListenError};
use crate::wan::WanError;
use crate::wan::message::Failed;

#[derive(Debug, Error)]
pub enum OutgoingError {
    #[error("the definition cannot be read")]
    Xml(#[from] XmlError),
    #[error("the definition has no UUID, or no name that a VM has")]
    Nameless,
    #[error(
        "{name} does not run at the libvirtd that this agent looks at (`site.uri` of its configuration): its end would not be seen"
    )]
    NotHere { name: String },
    #[error(transparent)]
    Site(#[from] SiteError),
    #[error(transparent)]
    DataUri(#[from] DataUriError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("the mobility agent cannot keep records")]
    Ledger(#[from] LedgerError),
    #[error("who may run the VM cannot be put on record at the source")]
    Handover(#[from] HandoverError),
    #[error("the other agent shows a key that is none")]
    Key,
    #[error("{} bytes of {what} left, and {} arrived", ours.0, theirs.0)]
    Short { what: &'static str, ours: Bytes, theirs: Bytes },
    #[error(
        "writes to disks that have not been answered, and that the source took for done: {owed}"
    )]
    NotWritten { owed: u64 },
    #[error("the system gives no random numbers")]
    Random(#[from] getrandom::Error),
    #[error("the other site is not reached")]
    Wan(#[from] WanError),
    #[error("the other site answers with a cookie that is none")]
    Cookie(#[from] CookieError),
    /// In its own words.
    #[error("{}", .0.text)]
    Theirs(Failed),
    #[error("the other agent answers something else than it was asked")]
    Unexpected,
}
