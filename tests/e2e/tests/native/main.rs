//! A real guest moves live between real sites, by an unmodified virsh and two mobility agents.

#![expect(clippy::unwrap_used, reason = "a test ends where a helper of it fails")]

mod certificates;
mod driven;
mod faults;
mod firmware;
mod lost;
mod story;
mod tpm;
mod variants;
mod waiting;
