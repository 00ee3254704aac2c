//! What this machine allows, for the operator who asks before a migration.

use serde::Serialize;
use wire::control::TrackerReport;

use crate::carrier::tracker_report;
use crate::inspect::{self, Tree};
use crate::sandbox;

/// As JSON on standard output.
#[derive(Debug, Serialize)]
pub struct SelfCheck {
    version: &'static str,
    kernel: String,
    root: bool,
    tracker: Option<TrackerReport>,
    systemd: bool,
    /// What confines the processes that read from the network.
    sandbox: String,
}

pub fn check() -> SelfCheck {
    let tree = Tree::of_this_system();
    SelfCheck {
        version: env!("CARGO_PKG_VERSION"),
        kernel: inspect::kernel(&tree),
        root: rustix::process::geteuid().is_root(),
        tracker: tracker(),
        systemd: crate::quiesce::systemd_runs(),
        sandbox: sandbox::possible(),
    }
}

/// Which tracker disks would get here. Loads its programs into the kernel and takes them out again.
pub fn tracker() -> Option<TrackerReport> {
    let (tracker, reason) = track::choose(Vec::new(), track::Preference::Best).ok()?;
    Some(tracker_report(tracker.kind(), &reason))
}
