//! Why the source's agent did not do what it was asked.

use std::io;
use std::time::Duration;

use thiserror::Error;
use track::{ChooseError, DeviceError};
use transfer::meet::MeetError;
use transfer::secure::{PublicKeyError, SecureError};
use transfer::{OpenDiskError, SenderError};
use units::{Bytes, chain};
use wire::control::{ErrorCode, Failure};

use crate::failure::Blame;
use crate::quiesce::{QuiesceError, QuiesceFailed};

#[derive(Debug, Error)]
pub enum SourceError {
    #[error("there is no disk {device}; there are {there}")]
    UnknownDisk { device: String, there: String },

    #[error("{device} is no disk to be moved")]
    NoDisk {
        device: String,
        #[source]
        cause: DeviceError,
    },

    #[error("{device} has {is} ({} bytes), the plan says {planned} ({} bytes)", is.0, planned.0)]
    OtherSize { device: String, is: Bytes, planned: Bytes },

    #[error("cannot open {device}")]
    OpenDisk {
        device: String,
        #[source]
        cause: OpenDiskError,
    },

    #[error(transparent)]
    Tracker(#[from] ChooseError),

    #[error("{what}")]
    State { what: &'static str, hint: &'static str },

    #[error("this agent tracks other disks: {disks}")]
    OtherDisks { disks: String },

    #[error("generation {asked} is not newer than {known}")]
    OldGeneration { asked: u64, known: u64 },

    #[error("{arrived} of {wanted} streams came within {} s", waited.as_secs())]
    NotAllStreams { arrived: usize, wanted: u16, waited: Duration },

    #[error("another connection took the place of this one")]
    Superseded,

    #[error("cannot reach any of {addresses}")]
    Unreachable {
        addresses: String,
        #[source]
        cause: Option<io::Error>,
    },

    #[error(transparent)]
    Meet(#[from] MeetError),

    #[error("stream {number} to the destination is not secured")]
    Secure {
        number: u16,
        #[source]
        cause: SecureError,
    },

    #[error(transparent)]
    Key(#[from] PublicKeyError),

    #[error(transparent)]
    Sender(#[from] SenderError),

    #[error(transparent)]
    Quiesce(#[from] QuiesceFailed),

    #[error("not clean: {why}")]
    NotClean { why: String },

    #[error("the guest is not at rest any more")]
    Thawed(#[source] QuiesceError),

    #[error("a socket of the connection cannot be used")]
    Socket(#[source] io::Error),

    /// The carrier's own word, for the coordinator as it is.
    #[error("{}", .0.text)]
    Carrier(Failure),

    #[error("the process that carries the disks does not answer")]
    CarrierLost(#[source] io::Error),

    #[error("a worker thread ended unexpectedly")]
    Worker(#[from] tokio::task::JoinError),
}

impl SourceError {
    /// An answer to something else.
    pub fn carrier_confused() -> Self {
        Self::CarrierLost(io::ErrorKind::InvalidData.into())
    }
}

impl Blame for SourceError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::UnknownDisk { .. }
            | Self::NoDisk { .. }
            | Self::OtherSize { .. }
            | Self::OpenDisk { .. } => ErrorCode::Disk,
            Self::Tracker(_) => ErrorCode::Unsupported,
            Self::State { .. } | Self::OtherDisks { .. } | Self::Thawed(_) => ErrorCode::WrongState,
            Self::OldGeneration { .. }
            | Self::NotAllStreams { .. }
            | Self::Superseded
            | Self::Unreachable { .. }
            | Self::Meet(_)
            | Self::Secure { .. }
            | Self::Socket(_)
            | Self::Key(_) => ErrorCode::Streams,
            Self::Carrier(failure) => failure.code,
            Self::Sender(_) | Self::Worker(_) | Self::CarrierLost(_) => ErrorCode::Io,
            Self::Quiesce(failed) => failed.code(),
            Self::NotClean { .. } => ErrorCode::NotClean,
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::UnknownDisk { .. } | Self::OtherSize { .. } => {
                "draw up the plan anew: the guest has changed"
            }
            Self::Tracker(error) => return Some(error.obstacle.remedy()),
            Self::State { hint, .. } => hint,
            Self::OtherDisks { .. } => "remove the agent and let it be installed again",
            Self::Unreachable { .. } => {
                "check the route and the firewall between the sites, or use the relay"
            }
            Self::Quiesce(failed) => return failed.hint(),
            Self::Carrier(failure) => return failure.hint.clone(),
            Self::Thawed(_) => "quiesce and drain again, with a longer time or less to copy",
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

/// What crosses the wire. The sender knows best how to say its own errors.
pub fn to_failure(error: SourceError) -> Failure {
    match error {
        SourceError::Sender(error) => Failure::from(&error),
        SourceError::Carrier(failure) => failure,
        SourceError::Quiesce(failed) => {
            let text = format!("{}: {}", chain(&failed.cause), failed);
            Failure { code: failed.code(), text, hint: failed.hint() }
        }
        error => crate::failure::failure(&error),
    }
}
