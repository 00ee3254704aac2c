//! Proof that nothing was lost: a writer inside the guest, a witness outside, and a verdict.
//!
//! The writer appends to one ledger per directory. Each record carries the hash of the one before
//! and is on stable storage before the witness hears of it. Beside the ledger it writes at random
//! places into preallocated files, and the ledger tells which of those writes are durable. So a
//! copy of the disks can be judged by itself, and against the witness:
//!
//! | what went wrong | who notices |
//! |---|---|
//! | a record lost, changed, doubled, swapped | the chain |
//! | acknowledged records missing at the end | the witness |
//! | a random write lost, torn, misplaced, out of date | the labels of the blocks |
//! | disks that are copies of different moments | references between their ledgers |
//! | two copies that ran at once | the witness: two records of one number, runs that overlap |
//!
//! A torn last record is normal after a power cut: it was never acknowledged, and the next run cuts
//! it off and says so.

mod append;
mod block;
mod book;
mod chain;
mod random;
mod record;
mod sender;
mod verify;
mod witness;
mod writer;

pub use append::{Appender, Header, OpenError};
pub use block::BLOCK;
pub use book::{Acknowledged, Alarm, Arrival, Book, Entry};
pub use chain::{Break, BreakReason, Chain, Link, Run, chain_file};
pub use random::{
    Damage, Dice, Fault, MAX_BLOCKS_PER_WRITE, RandomShape, RandomWriter, Scan, scan,
};
pub use record::{Body, DecodeError, LedgerId, Record, RecordHash, RunId, Seen, Write};
pub use sender::{QUEUE_LIMIT, Sender};
pub use verify::{
    LedgerFacts, Problem, Verdict, WitnessFacts, verify_dir, verify_dirs, verify_witnessed,
};
pub use witness::{Status, Witness, read_arrivals};
pub use writer::{Orders, WriterError, write};
