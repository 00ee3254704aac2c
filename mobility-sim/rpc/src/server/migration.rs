//! How far a migration through a connection is. One at a time: a source that sends several VMs
//! opens a connection for each.

use super::{AnswerError, Violation};
use crate::error::{Code, Origin, RemoteError};
use crate::frame::Header;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Migration {
    None,
    /// With the header of the call, which the answer repeats.
    Preparing(Header),
    Prepared,
    Finishing {
        header: Header,
        cancelled: bool,
    },
}

impl Migration {
    /// A number that waits for its answer is nobody else's.
    pub fn check_serial(&self, serial: u32) -> Result<(), Violation> {
        match self {
            Self::Preparing(header) | Self::Finishing { header, .. } if header.serial == serial => {
                Err(Violation::SerialTwice { serial })
            }
            _ => Ok(()),
        }
    }

    pub fn may_prepare(&self) -> Result<(), RemoteError> {
        match self {
            Self::None => Ok(()),
            Self::Preparing(_) | Self::Prepared | Self::Finishing { .. } => {
                Err(invalid("another migration is coming in through this connection"))
            }
        }
    }

    pub fn may_finish(&self) -> Result<(), RemoteError> {
        match self {
            Self::Prepared => Ok(()),
            Self::None => Err(invalid("no migration was prepared through this connection")),
            Self::Preparing(_) => Err(invalid("the migration is still being prepared")),
            Self::Finishing { .. } => Err(invalid("the migration is being finished already")),
        }
    }

    /// The header of the call that was answered.
    pub fn prepare_answered(&mut self, serial: u32, ok: bool) -> Result<Header, AnswerError> {
        match *self {
            Self::Preparing(header) if header.serial == serial => {
                *self = if ok { Self::Prepared } else { Self::None };
                Ok(header)
            }
            _ => Err(AnswerError::NotPending { serial }),
        }
    }

    /// The header of the call that was answered. Either way the source is told, and does not ask
    /// again.
    pub fn finish_answered(&mut self, serial: u32, ok: bool) -> Result<Header, AnswerError> {
        match *self {
            Self::Finishing { header, cancelled: true } if ok && header.serial == serial => {
                Err(AnswerError::Cancelled { serial })
            }
            Self::Finishing { header, .. } if header.serial == serial => {
                *self = Self::None;
                Ok(header)
            }
            _ => Err(AnswerError::NotPending { serial }),
        }
    }
}

fn invalid(message: &str) -> RemoteError {
    RemoteError::new(Code::OPERATION_INVALID, Origin::QEMU, message)
}
