//! A site's ledger with the role that it amounts to, as whoever runs that role keeps it: the coordinator
//! for both sites, a mobility agent for its own.
//!
//! Every question of who may run goes to the roles of crate `handover`; here their records are made
//! durable, at the site ([`copy`]) and on this machine ([`shelf`]), before anything is done on them.

mod agents;
mod copy;
mod error;
mod mark;
mod native;
mod shelf;
mod site_ledger;
mod stories;
mod unfence;
mod word;

pub use agents::{AgentPaper, Unpaired, paired};
pub use copy::{CopyError, copy_of_ledger, decode as decode_copy, forget, key, of_key};
pub use error::CustodyError;
pub use mark::{mark_of, mark_seen, own_mark};
pub use native::{
    LiveWire, NativeError, NativePaper, keep_job, keep_wire, kept_job, kept_wire, native_key,
    natives,
};
pub use shelf::{Folder, Shelf, keep_file, read_ledger};
pub use site_ledger::{Role, SiteLedger};
pub use stories::longer;
pub use word::{operator, parse_why};

/// The journal's kind for site ledgers.
pub const LEDGER_KIND: u16 = 1;
