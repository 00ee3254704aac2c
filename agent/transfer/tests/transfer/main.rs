//! Copies that go well, copies that break, peers that lie. One program, built and linked once.
#![expect(clippy::unwrap_used, reason = "a test helper that fails fails its test")]

mod copy;
mod faults;
mod files;
mod hostile;
mod schedule;
mod world;
