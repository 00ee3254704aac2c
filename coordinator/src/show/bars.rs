//! Progress: bars on a terminal, plain lines without one, events with `--json`.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use engine::Progress;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio::sync::mpsc::UnboundedReceiver;
use units::{Bytes, DiskNo};
use wire::control::{Bottleneck, RoundProgress};

use super::plan::seconds as s;
use super::{error, line};

/// Without a terminal, at most one line of progress in this time.
const PLAIN_EVERY: Duration = Duration::from_secs(5);

/// Shows progress until the engine is done. `disks`: the slots, in the plan's order.
pub async fn watch(mut progress: UnboundedReceiver<Progress>, disks: Vec<String>, json: bool) {
    if json {
        while let Some(event) = progress.recv().await {
            if let Ok(text) = serde_json::to_string(&event) {
                line(&text);
            }
        }
    } else if std::io::stderr().is_terminal() {
        let mut bars = Bars::new(disks);
        while let Some(event) = progress.recv().await {
            bars.show(&event);
        }
        bars.clear();
    } else {
        let mut last = None;
        while let Some(event) = progress.recv().await {
            let periodic = matches!(event, Progress::Round { .. } | Progress::Indexing { .. });
            if periodic && last.is_some_and(|at: Instant| at.elapsed() < PLAIN_EVERY) {
                continue;
            }
            if periodic {
                last = Some(Instant::now());
            }
            error(&sentence(&event));
        }
    }
}

struct Bars {
    all: MultiProgress,
    status: ProgressBar,
    disks: HashMap<DiskNo, ProgressBar>,
    names: Vec<String>,
}

impl Bars {
    fn new(names: Vec<String>) -> Self {
        let all = MultiProgress::new();
        let status = all.add(ProgressBar::new_spinner());
        status.enable_steady_tick(Duration::from_millis(200));
        Self { all, status, disks: HashMap::new(), names }
    }

    fn show(&mut self, event: &Progress) {
        match event {
            Progress::Round { progress, .. } => {
                self.status.set_message(sentence(event));
                self.show_disks(progress);
            }
            Progress::Indexing { .. } | Progress::Step { .. } => {
                self.status.set_message(sentence(event));
            }
            // A bar that cannot be drawn over is no reason to stop.
            _ => drop(self.all.println(sentence(event))),
        }
    }

    fn show_disks(&mut self, progress: &RoundProgress) {
        for disk in &progress.disks {
            let Some(no) = disk.disk else { continue };
            let bar = self.disks.entry(no).or_insert_with(|| {
                let bar = self.all.add(ProgressBar::new(disk.total.0));
                let template =
                    "  {prefix:>5} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec} {msg}";
                if let Ok(style) = ProgressStyle::with_template(template) {
                    bar.set_style(style);
                }
                let name = self.names.get(usize::from(no.0)).cloned().unwrap_or_default();
                bar.set_prefix(name);
                bar
            });
            bar.set_length(disk.total.0);
            bar.set_position(disk.done.0);
            bar.set_message(ratio(disk.sent, disk.wire));
        }
    }

    fn clear(self) {
        for bar in self.disks.values() {
            bar.finish_and_clear();
        }
        self.status.finish_and_clear();
        drop(self.all.clear());
    }
}

/// An event in one line.
fn sentence(event: &Progress) -> String {
    match event {
        Progress::Phase { to, .. } => format!("phase: {}", to.word()),
        Progress::Step { text } => text.clone(),
        Progress::Round { progress, forecast_ms, budget_ms } => {
            round(progress, *forecast_ms, *budget_ms)
        }
        Progress::RoundEnded { number, remaining, forecast_ms, budget_ms } => format!(
            "round {number} done, {remaining} left; downtime would be {:.1} s of {:.1} s",
            s(*forecast_ms),
            s(*budget_ms)
        ),
        Progress::Indexing { done, total } => format!("reading the targets: {done} of {total}"),
        Progress::Warning { text } => format!("warning: {text}"),
        Progress::Reconnecting { whom, why } => {
            format!("line to {whom} broken, trying again: {why}")
        }
        Progress::Frozen => "the guest stands still; the downtime has begun".to_owned(),
        Progress::Answered { downtime_ms, budget_ms, forecast_ms } => {
            let forecast =
                forecast_ms.map_or_else(String::new, |ms| format!(", forecast {:.1} s", s(ms)));
            let Some(downtime) = downtime_ms.map(s) else {
                return "answers; how long it was down is not known".to_owned();
            };
            format!("answers; downtime {downtime:.1} s of {:.1} s allowed{forecast}", s(*budget_ms))
        }
    }
}

fn round(progress: &RoundProgress, forecast_ms: u64, budget_ms: u64) -> String {
    let sum = |pick: fn(&wire::control::DiskProgress) -> Bytes| {
        progress.disks.iter().map(pick).sum::<Bytes>()
    };
    let (done, total) = (sum(|disk| disk.done), sum(|disk| disk.total));
    let (sent, wire) = (sum(|disk| disk.sent), sum(|disk| disk.wire));
    let per_second =
        |bytes: Bytes| Bytes(bytes.0.saturating_mul(1000) / progress.elapsed_ms.max(1));
    let bottleneck = match progress.bottleneck {
        None => String::new(),
        Some(Bottleneck::Read) => ", reading is slowest".to_owned(),
        Some(Bottleneck::Cpu) => ", the CPU is slowest".to_owned(),
        Some(Bottleneck::Wire) => ", the line is slowest".to_owned(),
        Some(Bottleneck::Write) => ", writing is slowest".to_owned(),
        Some(Bottleneck::Limit) => ", held back by --limit-rate".to_owned(),
    };
    format!(
        "round {}: {done} of {total}, {}/s on the wire ({}), guest writes {}/s; downtime {:.1} s of {:.1} s{bottleneck}",
        progress.number,
        per_second(wire),
        ratio(sent, wire),
        per_second(progress.dirtied),
        s(forecast_ms),
        s(budget_ms),
    )
}

/// What compression left of what was sent.
fn ratio(sent: Bytes, wire: Bytes) -> String {
    match wire.0.saturating_mul(100).checked_div(sent.0) {
        None => "nothing sent".to_owned(),
        Some(percent) => format!("{percent} % of {sent}"),
    }
}
