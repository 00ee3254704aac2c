//! Whole migrations in memory, by the product's own steps: two sites in RAM, a guest that writes all
//! the time, agents that copy, ledgers on a disk that forgets what was not synced. The coordinator is
//! killed at every place at which it touches any of them, and has to end well all the same.
//!
//! ```text
//!  process ── engine::migrate ──┬── Sited ─── MemorySite (panics at two writers)
//!     ↑                         ├── Access ── the guest and its agent ┐ copy from disk to disk
//!   killed at a point ──────────┼── ports ─── the helper ─────────────┘
//!     by name and number        ├── Pages ─── both ledgers, what undoes the fences
//!                               └── Book ──── the journal
//! ```

#![expect(clippy::unwrap_used, reason = "a test helper that fails fails its test")]

mod agents;
mod crash;
mod hands;
mod load;
mod lost;
mod points;
mod seeds;
mod shelf;
mod sited;
mod stage;
mod talk;
mod verdicts;
mod word;
