//! Why the destination's agent did not do what it was asked.

use std::io;

use thiserror::Error;
use transfer::secure::PublicKeyError;
use transfer::{OpenDiskError, ReceiverError};
use units::Bytes;
use wire::control::{ErrorCode, Failure};

use crate::failure::{Blame, failure};

#[derive(Debug, Error)]
pub enum DestinationError {
    #[error("there is no target with the serial number {serial:?}; there are: {there}")]
    NoTarget { serial: String, there: String },

    #[error("two targets have the serial number {serial:?}: {names}")]
    TwoTargets { serial: String, names: String },

    #[error("target {serial:?} has {is}, less than the disk's {planned}")]
    TooSmall { serial: String, is: Bytes, planned: Bytes },

    #[error("target {serial:?} is read-only")]
    ReadOnly { serial: String },

    #[error("target {serial:?} is in use: {by}")]
    InUse { serial: String, by: String },

    #[error("cannot open target {serial:?}")]
    Open {
        serial: String,
        #[source]
        cause: OpenDiskError,
    },

    #[error("other targets are attached: {serials}")]
    OtherTargets { serials: String },

    #[error("{what}")]
    State { what: &'static str, hint: &'static str },

    #[error("generation {asked} is not newer than {known}")]
    OldGeneration { asked: u64, known: u64 },

    #[error("cannot listen on port {port}")]
    Listen {
        port: u16,
        #[source]
        cause: io::Error,
    },

    #[error(transparent)]
    Key(#[from] PublicKeyError),

    #[error(transparent)]
    Receiver(#[from] ReceiverError),

    #[error("a worker thread ended unexpectedly")]
    Worker(#[from] tokio::task::JoinError),
}

impl Blame for DestinationError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::NoTarget { .. }
            | Self::TwoTargets { .. }
            | Self::TooSmall { .. }
            | Self::ReadOnly { .. }
            | Self::InUse { .. }
            | Self::Open { .. } => ErrorCode::Disk,
            Self::OtherTargets { .. } | Self::State { .. } => ErrorCode::WrongState,
            Self::OldGeneration { .. } | Self::Key(_) => ErrorCode::Streams,
            Self::Listen { .. } => ErrorCode::Unsupported,
            Self::Receiver(_) | Self::Worker(_) => ErrorCode::Io,
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NoTarget { .. } => {
                "see whether the helper's definition has the target attached, with its serial number"
            }
            Self::TooSmall { .. } => "remove the volume and let it be created again",
            Self::OtherTargets { .. } => "restart the helper: it serves one migration in its life",
            Self::State { hint, .. } => hint,
            Self::Listen { .. } => {
                "use the relay, or give the helper causeway.net and causeway.listen"
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

/// What crosses the wire.
pub fn to_failure(error: DestinationError) -> Failure {
    match error {
        DestinationError::Receiver(error) => Failure::from(&error),
        error => failure(&error),
    }
}
