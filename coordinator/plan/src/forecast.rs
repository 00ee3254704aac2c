//! What it will probably take. Replaced by measurements from the first round on.

use serde::{Deserialize, Serialize};
use units::Bytes;

use crate::facts::Facts;
use crate::plan::PlannedDisk;
use crate::request::Options;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forecast {
    /// Read at the source in the first round.
    pub read: Bytes,
    /// Content that is probably sent.
    pub content: Bytes,
    /// On the wire after compression.
    pub wire: Bytes,
    /// Until the first round is done, in seconds.
    pub first_round_s: u64,
    /// From the freeze until the destination answers, in milliseconds.
    pub downtime_ms: u64,
    /// From power-on until it answers, in milliseconds; part of the downtime.
    pub boot_ms: u64,
    /// What the figures rest on, one sentence each.
    pub assumptions: Vec<String>,
}

/// A system disk at zstd level 1 (measured on a Debian root: 0.364), in per cent.
const RATIO_PERCENT: u64 = 40;
/// Bytes per second when nobody said: a 1 Gbit/s line at a little over half use.
const LINE_DEFAULT: u64 = 75_000_000;
/// What a guest's disk gives under a busy hypervisor, bytes per second.
const READ_DEFAULT: u64 = 300_000_000;
/// From power-on until it answers, when the guest does not tell.
const BOOT_DEFAULT_MS: u64 = 20_000;
/// Quiesce, last drain, fence and decision together on a converged copy; measured 2 to 4 s.
const SWITCH_MS: u64 = 4_000;

impl Forecast {
    /// What a switchover takes however little is left to copy: quiesce, fence, decision, boot.
    pub const fn fixed_ms(&self) -> u64 {
        SWITCH_MS.saturating_add(self.boot_ms)
    }
}

pub(crate) fn forecast(options: &Options, facts: &Facts, disks: &[PlannedDisk]) -> Forecast {
    let read: Bytes = disks.iter().map(|disk| disk.size).sum();
    let content: Bytes = disks.iter().map(|d| d.allocated.unwrap_or(d.size).min(d.size)).sum();
    let percent = if options.compress > 0 { RATIO_PERCENT } else { 100 };
    let wire = Bytes(content.0 / 100 * percent + content.0 % 100);
    let mut assumptions = Vec::new();
    let line = match (options.limit_rate, facts.line) {
        (Some(limit), Some(line)) => limit.min(line).0,
        (Some(rate), None) | (None, Some(rate)) => rate.0,
        (None, None) => {
            assumptions
                .push(format!("line not measured: {} per second assumed", Bytes(LINE_DEFAULT)));
            LINE_DEFAULT
        }
    };
    assumptions.push(format!("content compresses to {percent} %"));
    let reading = options.limit_read.map_or(READ_DEFAULT, |limit| limit.0.clamp(1, READ_DEFAULT));
    // Holes are not read.
    let reads = if options.limit_read.is_some() { content } else { read };
    let first_round_s = (wire.0 / line.max(1)).max(reads.0 / reading) + 1;
    let known = facts.guest.as_ref().ok().and_then(|guest| guest.boot_ms);
    let boot_ms = options.boot_ms.or(known).unwrap_or_else(|| {
        assumptions.push(format!("boot time not known: {} s assumed", BOOT_DEFAULT_MS / 1000));
        BOOT_DEFAULT_MS
    });
    let rescan = facts
        .guest
        .as_ref()
        .is_ok_and(|guest| guest.tracker.as_ref().is_some_and(|(choice, _)| choice == "rescan"));
    let drain_ms = if rescan {
        assumptions.push(
            "no tracker in this guest: the disks are read in full while it stands still".to_owned(),
        );
        read.0 / (READ_DEFAULT / 1000)
    } else {
        0
    };
    Forecast {
        read,
        content,
        wire,
        first_round_s,
        // Guests and operators say how long a boot takes, and can say anything.
        downtime_ms: SWITCH_MS.saturating_add(boot_ms).saturating_add(drain_ms),
        boot_ms,
        assumptions,
    }
}
