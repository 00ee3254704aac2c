//! The bytes as released; crashes and errors. One program, built and linked once.
#![expect(clippy::unwrap_used, reason = "a test helper that fails fails its test")]

mod bytes;
mod faults;
