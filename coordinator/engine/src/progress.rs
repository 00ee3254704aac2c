//! What the engine tells whoever watches. Nothing depends on it being read.

use std::fmt;

use serde::Serialize;
use tokio::sync::mpsc;
use units::Bytes;
use wire::control::RoundProgress;

use crate::phase::Phase;

/// One thing worth showing.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Progress {
    Phase {
        from: Phase,
        to: Phase,
    },
    /// A step within a phase, in words: `creating disk vda`.
    Step {
        text: String,
    },
    Round {
        progress: RoundProgress,
        forecast_ms: u64,
        budget_ms: u64,
    },
    RoundEnded {
        number: u32,
        remaining: Bytes,
        forecast_ms: u64,
        budget_ms: u64,
    },
    Indexing {
        done: Bytes,
        total: Bytes,
    },
    Warning {
        text: String,
    },
    /// The line broke; trying again.
    Reconnecting {
        whom: String,
        why: String,
    },
    Frozen,
    Answered {
        downtime_ms: Option<u64>,
        budget_ms: u64,
        forecast_ms: Option<u64>,
    },
}

/// Where progress goes.
#[derive(Clone)]
pub struct Watcher(Option<mpsc::UnboundedSender<Progress>>);

impl Watcher {
    /// A watcher and what it will hear. Unbounded, because a slow terminal must not slow a
    /// migration; about two events a second come of it.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Progress>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(Some(sender)), receiver)
    }

    /// Nobody watches.
    pub const fn nobody() -> Self {
        Self(None)
    }

    pub fn tell(&self, progress: Progress) {
        if let Some(sender) = &self.0 {
            // Whoever watched may have gone.
            drop(sender.send(progress));
        }
    }

    pub fn step(&self, text: impl fmt::Display) {
        self.tell(Progress::Step { text: text.to_string() });
    }

    pub fn warn(&self, text: impl fmt::Display) {
        self.tell(Progress::Warning { text: text.to_string() });
    }
}
