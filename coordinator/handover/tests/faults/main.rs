//! Everything that can go wrong in any order, driven through the product's own step functions.
//!
//! `world` is two sites with what a platform does and how it fails; `exhaustive` visits every
//! state of it, `mutants` breaks one rule at a time and must be caught, `random` goes deeper along
//! random paths and then brings each one to its end.
#![expect(clippy::unwrap_used, reason = "a test helper that fails fails its test")]

mod exhaustive;
mod mutants;
mod pure;
mod random;
mod world;
