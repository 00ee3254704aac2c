//! What inside the guest stands against copying or freezing it.

use crate::facts::Facts;
use crate::plan::PlannedDisk;
use crate::refusal::Refusal;
use crate::request::{Request, Tracker};

/// Refuses what would make the copy wrong or unbootable; returns what is merely worth knowing.
pub(crate) fn guest(
    request: &Request,
    facts: &Facts,
    disks: &[PlannedDisk],
    refusals: &mut Vec<Refusal>,
) -> Vec<String> {
    let Ok(guest) = &facts.guest else { return Vec::new() };
    let moving =
        |names: &[String]| names.iter().any(|name| disks.iter().any(|disk| disk.device == *name));
    let mut warnings = Vec::new();
    for mount in guest.mounts.iter().filter(|mount| moving(&mount.disks) && !mount.read_only) {
        if !mount.freezable {
            warnings.push(format!(
                "{} ({}) cannot be frozen: it is made read-only for the switchover, which fails while a program has a file on it open for writing",
                mount.mount_point, mount.kind
            ));
        }
        if let Some(foreign) = mount.disks.iter().find(|name| !moving(std::slice::from_ref(name))) {
            refusals.push(Refusal::new(
                "file-system",
                format!("{} lies partly on {foreign}, which does not move", mount.mount_point),
                "detach or move that disk as well",
            ));
        }
    }
    for swap in guest.swaps.iter().filter(|swap| moving(&swap.disks)) {
        // swapoff brings it all back to memory; a tenth is kept for the agent and the kernel.
        if swap.used.0 > guest.memory_available.0 / 10 * 9 {
            refusals.push(Refusal::new(
                "swap",
                format!("{} of swap are in use on {}, and only {} of memory are free: it cannot be turned off", swap.used, swap.path, guest.memory_available),
                "free memory in the guest, or stop services with --stop-unit",
            ));
        }
    }
    if request.options.hooks_before.is_empty() && request.options.stop_units.is_empty() {
        for writer in guest.raw_writers.iter().filter(|writer| moving(&writer.disks)) {
            refusals.push(Refusal::new(
                "raw-writer",
                format!(
                    "{} (pid {}) writes to {} past any file system; a freeze does not stop it",
                    writer.program, writer.pid, writer.device
                ),
                "stop it before the freeze: --stop-unit NAME or --hook-before COMMAND",
            ));
        }
    }
    for finding in &guest.findings {
        if finding.blocking {
            refusals.push(Refusal::new(
                &finding.check,
                finding.text.as_str(),
                finding.remedy.as_deref().unwrap_or("change it in the guest, then plan again"),
            ));
        } else {
            let remedy = finding.remedy.as_ref().map(|remedy| format!("; to be sure: {remedy}"));
            warnings.push(format!("{}{}", finding.text, remedy.unwrap_or_default()));
        }
    }
    if request.options.tracker == Tracker::Bpf
        && let Some((choice, reason)) = &guest.tracker
        && choice != "bpf"
    {
        refusals.push(Refusal::new(
            "tracker",
            format!("--tracker bpf is not possible in this guest: {reason}"),
            "leave --tracker out: every round then reads and compares the whole disk",
        ));
    }
    warnings
}
