//! What a session tells its caller.

use thiserror::Error;

use crate::flags::Flags;
use crate::frame::{FrameError, Kind, Program, Status};
use crate::params::Params;
use crate::procedures::CallError;

/// What the caller has to know, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A source wants to send a VM. Answered by
    /// [`Session::answer_prepare`](super::Session::answer_prepare).
    Prepare {
        serial: u32,
        /// The parameter `destination_xml`, which is not among `params` any more.
        xml: String,
        params: Params,
        cookie: Vec<u8>,
        flags: Flags,
    },
    /// A source has sent it, or has given up. Answered by
    /// [`Session::answer_finish`](super::Session::answer_finish).
    Finish {
        serial: u32,
        /// The parameter `destination_name`, which is not among `params` any more.
        name: String,
        params: Params,
        cookie: Vec<u8>,
        flags: Flags,
        /// The source has given up: its VM runs on there and is to be gone from here. libvirt
        /// answers with
        /// [`RemoteError::migrate_finish_ok`](crate::error::RemoteError::migrate_finish_ok).
        cancelled: bool,
    },
    /// The client has said goodbye. What that proves of the source's VM: see
    /// [the module](super).
    Closing {
        how: Goodbye,
        /// The last Finish was answered with a VM, before.
        after_handover: bool,
    },
    /// The last event: nothing is taken in any more; what is still to be sent may be.
    Closed(Ended),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goodbye {
    /// The callback for a broken connection was unregistered.
    Unregistered,
    /// The connection was closed in due form.
    Closed,
}

/// Why a session is over.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Ended {
    #[error("the client closed the connection")]
    Closed,

    #[error("the stream ended without a goodbye")]
    HungUp,

    #[error("the client answers no pings")]
    Silent,

    #[error("the client did not open the connection in time")]
    NeverOpened,

    #[error("the client broke the protocol")]
    Violation(#[from] Violation),
}

/// What no client of libvirt's does.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Violation {
    #[error("what came is no frame")]
    Frame(#[from] FrameError),

    #[error("a frame of kind {kind:?} of {program:?} from a client")]
    Kind { program: Program, kind: Kind },

    #[error("a call with status {status:?}")]
    Status { status: Status },

    #[error("a ping or pong with {len} bytes")]
    Keepalive { len: usize },

    #[error("call {serial} while a call of that number waits for its answer")]
    SerialTwice { serial: u32 },

    #[error("call {serial} was not understood")]
    Call {
        serial: u32,
        #[source]
        cause: CallError,
    },

    #[error("{held} bytes were pushed although none were wanted")]
    Overrun { held: usize },
}

/// Why an answer was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AnswerError {
    /// The session may be over; that is told by an event.
    #[error("no such call {serial} waits for an answer")]
    NotPending { serial: u32 },

    /// A libvirtd that gets a VM although it had given up ends its own and reports success.
    #[error("the migration of call {serial} was cancelled: there is no VM to answer with")]
    Cancelled { serial: u32 },

    #[error("a cookie of {cookie} bytes or a text of {text}, longer than libvirt takes")]
    TooLong { cookie: usize, text: usize },
}
