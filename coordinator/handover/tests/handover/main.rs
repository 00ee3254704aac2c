//! Steps, receipts, verdicts, bytes as released. One program, built and linked once.
#![expect(clippy::unwrap_used, reason = "a test helper that fails fails its test")]

mod common;
mod golden;
mod receipts;
mod steps;
mod verdict;
