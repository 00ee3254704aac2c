//! The control protocol: the coordinator asks, one agent answers and reports.
//!
//! Every message is one JSON value in a frame of its own (see `PROTOCOL.md`). A request carries an
//! id, its reply carries the same; events carry none and come at any time. Requests are
//! repeatable: asking again after a lost reply does no harm and gives the same answer.
//!
//! Fields are only ever added, with a default for those who do not send them; a change of meaning
//! is a new [`CONTROL_VERSION`].

mod event;
pub mod frame;
mod guest;
mod request;

pub use event::{Bottleneck, DiskProgress, Event, RoundEnd, RoundProgress};
pub use guest::{
    BlockDevice, BlockKind, BootFinding, FileSystem, GuestReport, NetworkInterface, RawWriter,
    Severity, SwapArea,
};
pub use request::{
    AgentDisk, AgentRole, AgentStatus, Endpoint, ErrorCode, Failure, Reply, Request, Sealed,
    TrackerChoice, TrackerReport, TrackerWish,
};

use serde::{Deserialize, Serialize};

/// The version of the control protocol that this build speaks.
pub const CONTROL_VERSION: u16 = 1;

/// The largest control message, in bytes.
pub const CONTROL_MAX: usize = 1 << 20;

/// From the coordinator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Call {
    pub id: u64,
    pub request: Request,
}

/// From the agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    Reply { id: u64, result: Result<Reply, Failure> },
    Event(Event),
}
