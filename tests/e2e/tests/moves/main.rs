//! A real guest moves between real sites. One program, so that two tests are always under way; the
//! longest one comes first by its name.

#![expect(clippy::unwrap_used, reason = "a test ends where a helper of it fails")]

mod again;
mod lines;
mod many;
mod refusals;
mod resume;
mod sites;
mod story;
mod switchover;
