//! A live migration as people see it: before, on its way, and at its end.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use model::{SiteName, Vm};
use serde_json::json;
use site::{LiveJob, LiveWish};
use site_ledger::LiveWire;
use units::Bytes;

use super::plan::seconds;
use super::{error, line};

/// Without a terminal, at most one line of progress in this time.
const PLAIN_EVERY: Duration = Duration::from_secs(5);

pub fn live_text(
    (vm, wish): (&Vm, &LiveWish),
    from: &SiteName,
    to: &SiteName,
    why: Option<&str>,
) -> String {
    let mut lines = vec![format!("{}  {from} → {to}   live, by the sites' own migration", vm.name)];
    if let Some(why) = why {
        lines.push(format!(
            "  method    native: {why}; --method guest copies from inside the guest"
        ));
    }
    lines.push(format!(
        "  machine   {} vCPU, {}, {}, {:?}",
        vm.vcpus, vm.memory, vm.machine, vm.firmware
    ));
    lines.extend(vm.disks.iter().map(|disk| format!("  disk      {}  {}", disk.target, disk.size)));
    lines.push(format!("  by        {}, the mobility agent of {from}", wish.neighbour));
    lines.push(match wish.max_downtime_ms {
        Some(most) => format!("  downtime  at most {:.1} s, or it goes on until somebody calls it off", seconds(most)),
        None => "  downtime  as the hypervisor has it by itself, or it goes on until somebody calls it off".to_owned(),
    });
    lines.extend(wish.limit_rate.map(|limit| {
        format!("  limit     {}/s for each disk, and then for memory", Bytes(limit.0 >> 20 << 20))
    }));
    lines.push(format!(
        "  created   at {to}: by its agent, as its [arrivals] say: volumes and the VM"
    ));
    lines.push(format!(
        "  custody   in memory at {to}, between its end here and its start there: if that host fails then, it boots from its disks"
    ));
    lines.push(if vm.persistent {
        format!("  after     {} is defined at {to} and no more at {from}, where its disks stay", vm.name)
    } else {
        format!("  after     {} is gone with its end at {to}, as it would be at {from}, where its disks stay", vm.name)
    });
    lines.join("\n")
}

/// Tells how one gets on.
pub struct LiveWatch {
    json: bool,
    bar: Option<ProgressBar>,
    last: Option<Instant>,
}

impl LiveWatch {
    pub fn new(json: bool) -> Self {
        let bar = (!json && std::io::stderr().is_terminal()).then(ProgressBar::new_spinner);
        Self { json, bar, last: None }
    }

    /// `wire`: as far as the agent has said.
    pub fn tell(&mut self, job: &LiveJob, wire: Option<LiveWire>) {
        if self.json {
            line(&json!({ "event": "live", "job": job, "line": wire }).to_string());
        } else if let Some(bar) = &self.bar {
            bar.set_message(live_sentence(job, wire));
            bar.tick();
        } else if self.last.is_none_or(|at| at.elapsed() >= PLAIN_EVERY) {
            self.last = Some(Instant::now());
            error(&live_sentence(job, wire));
        }
    }
}

impl Drop for LiveWatch {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// How one gets on.
pub fn live_sentence(job: &LiveJob, wire: Option<LiveWire>) -> String {
    let (memory, disks) = (&job.memory, &job.disks);
    let mut parts = Vec::new();
    if disks.total.0 > 0 {
        parts.push(format!("disks: {} of {} left{}", disks.left, disks.total, at(disks.per_s)));
    }
    if memory.total.0 > 0 {
        parts.push(format!(
            "memory: pass {}, {} of {} left{}, the guest changes {}/s",
            job.passes,
            memory.left,
            memory.total,
            at(memory.per_s),
            job.dirtied_per_s
        ));
        // That which shrinks ends some day.
        let gains = memory.per_s.0.saturating_sub(job.dirtied_per_s.0);
        parts.push(match memory.left.0.checked_div(gains) {
            Some(s) => format!("about {s} s to go"),
            None => "it does not get less".to_owned(),
        });
    }
    parts.extend(wire.map(|wire| format!("line: {}", on_the_line(wire))));
    if parts.is_empty() { "the sites prepare it".to_owned() } else { parts.join("; ") }
}

fn on_the_line(LiveWire { carried, wire }: LiveWire) -> String {
    // To a tenth: what one byte of it stands for.
    match u128::from(carried.0).saturating_mul(10).checked_div(wire.0.into()) {
        Some(tenths) => format!("{wire} for {carried} (1 : {}.{})", tenths / 10, tenths % 10),
        None => "nothing yet".to_owned(),
    }
}

/// libvirt does not count it all the time.
fn at(per_s: Bytes) -> String {
    if per_s == Bytes::ZERO { String::new() } else { format!(" at {per_s}/s") }
}

/// How one went, as the destination's platform counted it.
pub fn live_done(json: bool, took: Duration, job: Option<&LiveJob>, wire: Option<LiveWire>) {
    if json {
        let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        line(&json!({ "moved_live": job, "line": wire, "took_ms": took_ms }).to_string());
        return;
    }
    let downtime = job.and_then(|job| job.downtime_ms).map_or_else(
        || "how long it stood still is not known".to_owned(),
        |ms| format!("it stood still for {:.2} s", seconds(ms)),
    );
    line(&format!("  took      {:.1} s; {downtime}", took.as_secs_f64()));
    if let Some(wire) = wire {
        line(&format!("  line      {}", on_the_line(wire)));
    }
}

#[cfg(test)]
mod tests {
    use site::LivePart;

    use super::*;

    #[test]
    fn a_forecast_is_made_only_where_it_gets_less() {
        let part = |left, per_s| LivePart {
            total: Bytes(1 << 30),
            done: Bytes(0),
            left: Bytes(left),
            per_s: Bytes(per_s),
        };
        let job = |memory, dirtied| LiveJob {
            memory,
            dirtied_per_s: Bytes(dirtied),
            ..LiveJob::default()
        };
        let said = |memory, dirtied| live_sentence(&job(memory, dirtied), None);
        assert!(said(part(100 << 20, 20 << 20), 10 << 20).contains("about 10 s to go"));
        assert!(said(part(100 << 20, 20 << 20), 20 << 20).contains("it does not get less"));
        assert!(said(part(100 << 20, 0), 0).contains("it does not get less"));
        assert_eq!(live_sentence(&LiveJob::default(), None), "the sites prepare it");
    }

    #[test]
    fn what_goes_over_the_line_is_told_with_what_it_stands_for() {
        let wire = |carried, wire| LiveWire { carried: Bytes(carried), wire: Bytes(wire) };
        assert_eq!(on_the_line(wire(3 << 30, 1 << 30)), "1.0 GiB for 3.0 GiB (1 : 3.0)");
        assert_eq!(on_the_line(wire(0, 0)), "nothing yet");
        assert_eq!(on_the_line(wire(u64::MAX, u64::MAX)).split_once('(').unwrap().1, "1 : 1.0)");
    }
}
