//! What is fed with anything at all, and what must hold whatever comes: a module for each target,
//! which the program of its name in `bin/` hands to libFuzzer. See `README.md`.
//!
//! What belongs to a program and not to a library is taken in as source: the reader of definitions
//! (private, beside what needs libvirt) and of the configuration (part of `causeway`).

pub mod config;
pub mod control;
pub mod domain;
pub mod early;
pub mod frames;
pub mod journal;
pub mod ledger;
pub mod plan;
pub mod preamble;
pub mod receiver;
pub mod relay;
pub mod rpc_frames;
pub mod rpc_xdr;
pub mod sender;
pub mod translate;

mod disk;
mod memory;
mod script;
mod stand_in;

/// `adapters/libvirt/src/xml.rs` and what lies below it.
#[path = "../../../adapters/libvirt/src"]
#[expect(dead_code, unused_imports, reason = "what needs a connection is not called here")]
mod libvirt {
    pub(crate) mod xml;
}

/// The configuration, and the part of it that is kept in the state database as well.
#[path = "../../../coordinator"]
#[expect(dead_code, reason = "what opens files is not called here")]
mod causeway {
    #[path = "src/config.rs"]
    pub(crate) mod config;
    #[path = "store/src/sites.rs"]
    pub(crate) mod sites;
}

// By the names that those sources know them by.
use self::causeway::sites as store;
use self::libvirt::xml;
use self::stand_in::{UefiLoader, failure, fault};
