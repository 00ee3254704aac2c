//! Moves that `make test` has no time for and CI has: `make rest`.

#![expect(clippy::unwrap_used, reason = "a test ends where a helper of it fails")]

mod abort;
mod breaks;
mod hold;
mod lost;
mod slow;
