//! The definition of a VM that comes from another site: never forwarded, read against an allow-list and
//! written anew.

pub mod cookie;
mod devices;
pub mod grammar;
pub mod node;
pub mod translate;

pub use translate::{DiskPlace, Firmware, Mapping, Refusal, TranslateError, Translated, translate};

#[cfg(test)]
mod tests;
