//! What may be asked of an agent, and its answers.

use std::fmt;

use serde::{Deserialize, Serialize};
use units::{BlockSize, Bytes, Digest, DiskNo, MigrationId};

use super::guest::GuestReport;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    // --- both roles ---------------------------------------------------------------------------
    /// First on every control stream. Answer: [`Reply::Hello`]. `coordinator_key` is the raw
    /// public key (SPKI, hexadecimal) that the coordinator keeps for this migration: the first one
    /// is remembered, another one is refused with [`ErrorCode::Foreign`].
    Hello {
        version: u16,
        migration: MigrationId,
        coordinator_key: String,
    },
    Status,
    /// Gives up every data stream. What was in flight becomes dirty again.
    Disconnect,
    /// Ends the agent. At the source it removes itself; the helper syncs and powers off.
    Shutdown,

    // --- source, inside the guest -------------------------------------------------------------
    /// Looks, changes nothing. Answer: [`Reply::Guest`].
    Inspect,
    /// Starts tracking writes to these disks. Answer: [`Reply::Tracking`].
    Track {
        disks: Vec<AgentDisk>,
        wish: TrackerWish,
    },
    /// Opens the data streams to the destination. Answer: [`Reply::Done`] when all of them are
    /// authenticated and both ends agree on what the destination holds.
    Connect {
        /// Grows with every attempt. The destination drops every stream of a lower one first.
        generation: u64,
        streams: u16,
        /// The destination's raw public key (SPKI, hexadecimal).
        peer_key: String,
        endpoint: Endpoint,
    },
    /// One pass over all that is not known to be equal at the destination. Answers at once with
    /// [`Reply::Done`]; [`super::Event::Round`] reports, [`super::Event::RoundEnded`] ends it.
    /// Limits are in bytes per second, on the wire and from the disks; `compress`: the highest zstd
    /// level, 0 for none.
    Round {
        number: u32,
        limit_rate: Option<Bytes>,
        #[serde(default)]
        limit_read: Option<Bytes>,
        compress: i32,
    },
    /// Changes the limit of the round under way and of later ones.
    LimitRate {
        bytes_per_s: Option<Bytes>,
    },
    /// Stops the round under way; what is in flight is still acknowledged.
    StopRound,
    /// Stops `units` (systemd services), runs `hooks`, turns swap off, syncs, freezes every file
    /// system on a tracked disk. The guest thaws by itself after `thaw_after_ms` unless
    /// [`Request::Seal`] extends it; it then runs `thaw_hooks` too, since nobody is there to ask
    /// for them. Answer: [`Reply::Done`].
    Quiesce {
        units: Vec<String>,
        hooks: Vec<String>,
        thaw_after_ms: u64,
        /// The hooks' counterpart, for a guest that has to put itself back.
        #[serde(default)]
        thaw_hooks: Vec<String>,
    },
    /// Only under freeze, after a last round: is everything that was ever written acknowledged by
    /// the destination, and can the tracker be trusted? Answer: [`Reply::Sealed`] or a failure
    /// [`ErrorCode::NotClean`] (drain again). Extends the thaw deadline.
    Seal {
        thaw_after_ms: u64,
    },
    /// Undoes [`Request::Quiesce`]: thaw, swap on, hooks' counterpart, units. `hooks` are run
    /// instead of the `thaw_hooks` given there, unless there are none.
    Thaw {
        units: Vec<String>,
        hooks: Vec<String>,
    },

    // --- destination, in the helper -----------------------------------------------------------
    /// Takes these disks as targets. `fresh`: the platform has just created it, all zeros; any
    /// other is read and hashed first. Answer: [`Reply::Done`] when ready.
    Attach {
        disks: Vec<AgentDisk>,
    },
    /// Expects `streams` data streams of this generation from the holder of `peer_key`. With
    /// `listen` it also accepts them over TCP. Answer: [`Reply::Listening`].
    Expect {
        generation: u64,
        streams: u16,
        peer_key: String,
        listen: bool,
    },
    /// Makes all that was acknowledged durable and names it. Answer: [`Reply::Digests`].
    Digests,
    /// Reads the targets again, start to end, and names what is really there. Answer:
    /// [`Reply::Digests`].
    Reread,
    /// Looks into the copy for what would keep it from booting here. Answer: [`Reply::Boot`].
    InspectBoot,
}

/// A disk of the migration as an agent is told to find it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentDisk {
    pub no: DiskNo,
    pub size: Bytes,
    pub block_size: BlockSize,
    /// At the source the kernel's name as [`GuestReport`] gave it (`vda`); at the destination the
    /// serial number that the platform gave the target.
    pub device: String,
    /// Destination only: created empty for this migration and never written.
    #[serde(default)]
    pub fresh: bool,
}

/// How the source reaches the destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Endpoint {
    /// Through streams that the coordinator opens to both and joins.
    Relay,
    /// The first of these addresses (`10.0.0.5:7447`) that answers.
    Direct { addresses: Vec<String> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrackerWish {
    /// The best that the kernel allows.
    Auto,
    Bpf,
    Rescan,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrackerChoice {
    Bpf,
    Rescan,
}

impl fmt::Display for TrackerChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bpf => "bpf",
            Self::Rescan => "rescan",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrackerReport {
    pub choice: TrackerChoice,
    /// Why this one, for the operator.
    pub reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentRole {
    Source,
    Destination,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    Done,
    Hello {
        version: u16,
        role: AgentRole,
        /// The program's version.
        build: String,
        /// This agent's raw public key (SPKI, hexadecimal), new with every start.
        key: String,
        /// Differs after every boot of the machine.
        boot_id: String,
    },
    Status(AgentStatus),
    Guest(Box<GuestReport>),
    Tracking(TrackerReport),
    /// Addresses at which a direct connection may be tried; empty without `listen`.
    Listening {
        addresses: Vec<String>,
    },
    Sealed(Sealed),
    Digests {
        disks: Vec<Digest>,
    },
    Boot {
        findings: Vec<super::guest::BootFinding>,
    },
}

/// The source's word that the destination has everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// Of each disk, in the plan's order.
    pub digests: Vec<Digest>,
    pub tracker: TrackerChoice,
    /// What the tracker's audit compared, for the receipt.
    pub audit: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStatus {
    pub role: AgentRole,
    pub boot_id: String,
    pub tracking: Option<TrackerReport>,
    /// The highest generation of streams that it was told of, open or not.
    pub generation: Option<u64>,
    pub frozen: bool,
    pub round: Option<u32>,
    /// Resident memory of the agent.
    pub memory: Bytes,
}

/// Why an agent did not do it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub code: ErrorCode,
    /// The whole chain of causes, outermost first, joined by `: `.
    pub text: String,
    /// What the operator can do.
    #[serde(default)]
    pub hint: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The other side speaks no version that we do.
    Version,
    /// Another coordinator or another migration owns this agent.
    Foreign,
    /// Asked out of order.
    WrongState,
    /// A disk is not there, or not what the plan says.
    Disk,
    /// Not permitted, or a tool or kernel feature is missing.
    Unsupported,
    /// The data streams broke; connect again with a higher generation.
    Streams,
    /// Written since the drain, or the tracker may have missed something.
    NotClean,
    /// Reading or writing a disk failed.
    Io,
    /// The guest could not be quiesced; it was put back as it was.
    Quiesce,
    /// An unknown request: a newer coordinator.
    Unknown,
}
