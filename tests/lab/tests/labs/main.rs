//! Labs with all that is in them. One program, so that two tests are always under way.
#![expect(clippy::unwrap_used, reason = "a test helper that fails fails its test")]

mod guests;
mod kernel;
mod network;
mod sites;
mod vm;
