//! What the agent asks of its carrier, and what it hears.

use serde::{Deserialize, Serialize};
use units::{Bytes, MigrationId};
use wire::control::{AgentDisk, Event, Failure, Sealed, TrackerReport, TrackerWish};

/// The first message, read before the carrier confines itself. It holds the agent's private key.
#[derive(Serialize, Deserialize)]
pub struct Start {
    pub migration: MigrationId,
    /// PKCS #8. By this key the destination knows the agent.
    pub key: Vec<u8>,
    pub disks: Vec<AgentDisk>,
    pub wish: TrackerWish,
}

#[derive(Serialize, Deserialize)]
pub struct Call {
    pub id: u64,
    pub order: Order,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    Status,
    /// The sockets are waiting in the other channel.
    Connect {
        generation: u64,
        peer_key: String,
        way: Way,
    },
    Disconnect,
    Round {
        number: u32,
        limit_rate: Option<Bytes>,
        limit_read: Option<Bytes>,
        compress: i32,
    },
    LimitRate {
        bytes_per_s: Option<Bytes>,
    },
    StopRound,
    /// The guest will be frozen: what is in memory stays there.
    StayInMemory,
    LeaveMemory,
    /// From now on the guest is in this rest, counted from 1; 0: it works.
    Rest {
        number: u64,
    },
    /// All was acknowledged that was ever written, up to now and within this rest.
    Seal {
        rest: u64,
    },
}

/// What the sockets of a connection are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Way {
    /// Handed in by the coordinator, in order, with what was read ahead of each.
    Relay { ahead: Vec<Vec<u8>> },
    /// TCP to the destination, on which nothing was said yet.
    Direct,
}

#[derive(Serialize, Deserialize)]
pub enum Said {
    Answer { id: u64, result: Result<Answer, Failure> },
    Event(Event),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    Done,
    /// To [`Start`], whose id is 0.
    Started(TrackerReport),
    Status(Status),
    Sealed(Sealed),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The generation of the connection, unless it has ended.
    pub connected: Option<u64>,
    /// The highest that was ever asked for; 0 for none.
    pub last: u64,
    pub round: Option<u32>,
}
