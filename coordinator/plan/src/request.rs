//! What was asked for.

use std::collections::BTreeMap;

use model::SiteName;
use serde::{Deserialize, Serialize};
use units::{Bytes, MigrationId};

/// One migration, as the operator asked for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub id: MigrationId,
    /// Name or id at the source.
    pub vm: String,
    pub from: SiteName,
    pub to: SiteName,
    /// Destination pool per disk slot (`vdb`), or for all others under `*`.
    pub pools: BTreeMap<String, String>,
    /// Source network or bridge → destination network or bridge.
    pub networks: BTreeMap<String, String>,
    pub options: Options,
}

/// How to go about it. Saved in the plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// From the freeze at the source until the destination answers.
    pub max_downtime_ms: u64,
    /// Bytes per second on the wire; none: as fast as it goes.
    pub limit_rate: Option<Bytes>,
    /// Bytes per second read from the guest's disks while it works; none: as fast as it goes.
    pub limit_read: Option<Bytes>,
    pub tracker: Tracker,
    pub route: Route,
    /// Parallel data streams.
    pub streams: u16,
    /// Highest zstd level that the agent may choose; 0 sends as is.
    pub compress: i32,
    pub format: VolumeFormat,
    /// systemd services to stop before the freeze; they start again if it is called off.
    pub stop_units: Vec<String>,
    /// Shell commands run in the guest before the freeze.
    pub hooks_before: Vec<String>,
    /// Shell commands run in the guest if the switchover is called off.
    pub hooks_undo: Vec<String>,
    /// Shell command run by the coordinator once the source is fenced and the copy is complete.
    /// Only if it succeeds is the destination started; otherwise everything is taken back.
    pub gate: Option<String>,
    /// Keep copying until `causeway switchover` releases it.
    pub hold: bool,
    /// Seconds since the epoch before which no switchover begins.
    pub not_before: Option<i64>,
    /// Rounds after which a copy that does not converge is given up.
    pub rounds_max: u32,
    /// How long the guest needs from power-on until it answers, where the operator knows better
    /// than the guest's last boot.
    pub boot_ms: Option<u64>,
    /// How to tell that the destination is healthy.
    pub probe: Probe,
    /// Before the decision, read every target again and compare.
    pub reread: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_downtime_ms: 30_000,
            limit_rate: None,
            limit_read: None,
            tracker: Tracker::Auto,
            route: Route::Relay,
            streams: 2,
            compress: 3,
            format: VolumeFormat::AsSource,
            stop_units: Vec::new(),
            hooks_before: Vec::new(),
            hooks_undo: Vec::new(),
            gate: None,
            hold: false,
            not_before: None,
            rounds_max: 30,
            boot_ms: None,
            probe: Probe::Running,
            reread: false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tracker {
    Auto,
    Bpf,
    Rescan,
}

/// How the agents reach each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Route {
    /// Over the operator's two connections. Needs no firewall change.
    Relay,
    /// From the guest straight to the helper, which gets a card on this destination network and
    /// this address (`10.0.0.5/24` or `10.0.0.5/24,10.0.0.1` with a gateway, or `dhcp`).
    Direct { network: String, address: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeFormat {
    /// Raw stays raw, qcow2 stays qcow2.
    AsSource,
    Raw,
    Qcow2,
}

/// What counts as an answer from the destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Probe {
    /// The platform says that it runs. Weak: it may hang in its boot loader.
    Running,
    /// Something accepts TCP connections at `host:port`, seen from the operator's machine.
    Tcp { address: String },
    /// An SSH server answers with its banner at `host:port`.
    Ssh { address: String },
}
