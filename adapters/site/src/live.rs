//! A platform's own live migration: what is wished, and how it gets on.

use serde::{Deserialize, Serialize};
use units::Bytes;

/// What is wished of a live migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveWish {
    /// Where the platform finds the host to which it migrates, as its own tools name it: for libvirt a URI
    /// that the *source's hypervisor* connects to.
    pub neighbour: String,
    /// Bytes per second of memory and disks; the platform may round it.
    pub limit_rate: Option<Bytes>,
    /// How long the VM may stand still, in milliseconds; `None`: as long as the platform lets it by itself.
    pub max_downtime_ms: Option<u64>,
}

/// How a live migration gets on, as the source's platform counts, or how one went that has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveJob {
    pub elapsed_ms: u64,
    pub memory: LivePart,
    pub disks: LivePart,
    /// Memory that the guest changes, per second.
    pub dirtied_per_s: Bytes,
    /// Passes over memory so far.
    pub passes: u64,
    /// That it would take if it were stopped now; of one that has ended, that it took. `None`: not known.
    pub downtime_ms: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LivePart {
    pub total: Bytes,
    /// Grows beyond the total by what has to be sent again.
    pub done: Bytes,
    pub left: Bytes,
    pub per_s: Bytes,
}
