//! What an agent reports unasked.

use serde::{Deserialize, Serialize};
use units::{Bytes, DiskNo};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// About twice a second while a round runs.
    Round(RoundProgress),
    RoundEnded(RoundEnd),
    /// Targets are being read to learn what they hold.
    Indexing {
        done: Bytes,
        total: Bytes,
    },
    /// A warning for the operator.
    Note {
        text: String,
    },
    /// The guest thawed by itself: the deadline passed.
    Thawed,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RoundProgress {
    pub number: u32,
    pub disks: Vec<DiskProgress>,
    /// Since the round began.
    pub elapsed_ms: u64,
    /// Written by the guest since the round began.
    pub dirtied: Bytes,
    pub bottleneck: Option<Bottleneck>,
}

/// One disk's share of a round, in bytes of the disk except where it says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DiskProgress {
    pub disk: Option<DiskNo>,
    /// All that this round has to look at.
    pub total: Bytes,
    /// Looked at so far: read, and found equal, zero or sent and acknowledged.
    pub done: Bytes,
    /// Content that was sent, before compression.
    pub sent: Bytes,
    /// On the wire, after compression, with headers.
    pub wire: Bytes,
    /// Found equal at the destination, not sent.
    pub equal: Bytes,
    pub zero: Bytes,
}

/// What the round waits for most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bottleneck {
    Read,
    Cpu,
    Wire,
    Write,
    Limit,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoundEnd {
    pub progress: RoundProgress,
    /// `None`: complete, all of it acknowledged on stable storage.
    pub failure: Option<super::request::Failure>,
    /// Dirty again already: what the next round would have to look at.
    pub remaining: Bytes,
    /// Disks whose tracking cannot be trusted and which the next round reads in full, with the
    /// reason.
    pub doubts: Vec<(DiskNo, String)>,
}
