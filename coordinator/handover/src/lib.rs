//! Who may run. The one place in the tree that decides it; engine, adapters and agents ask.
//!
//! Pure: no files, no clock, no randomness. Keys and what the platform showed are arguments.
//!
//! # Why never two
//! Each site keeps a *ledger*. The destination's holds one write-once decision per VM and
//! *epoch* (the number of an attempt, which only grows): granted or revoked.
//!
//! 1. The destination writes *granted* only with the source's fence receipt in hand, for the very
//!    content that its targets hold. So the source was fenced before, durably, and every write
//!    of it is there.
//! 2. The source, once it began to fence, runs again only with the destination's revoke receipt
//!    in hand. So *revoked* was written before.
//! 3. The decision is written once. So one of the two may run, and while it is not written
//!    neither may.
//!
//! The coordinator is not needed for any of this. It may crash, forget, ask twice or ask wrongly;
//! a command is only a request, a *receipt* is the right to act. There is no timeout that
//! un-fences and none that grants.
//!
//! # How to use a role
//! A role is its ledger, replayed. A step does nothing: it says what is to be recorded and done,
//! in order. A record takes effect when it is durable and was given to `apply`.
//!
//! ```
//! # use handover::*;
//! # fn carry_out(role: &mut SourceRole, epoch: units::Epoch, request: SourceRequest,
//! #     mut durable: impl FnMut(u16, &[u8]), mut perform: impl FnMut(SourceEffect)) -> Result<(), Box<dyn std::error::Error>> {
//! for action in role.step(epoch, request)? {
//!     match action {
//!         Action::Record(record) => {
//!             let (kind, payload) = record.encode();
//!             durable(kind, &payload);     // an error here stops the process
//!             role.apply(&record)?;
//!         }
//!         Action::Effect(effect) => perform(effect),
//!     }
//! }
//! # Ok(()) }
//! ```
//!
//! # Where to read on
//! | to understand | read |
//! |---|---|
//! | the order of a handover | [`next_step`] |
//! | the rules of each side | [`SourceRole`], [`DestinationRole`] |
//! | what a ledger holds | [`Record`] |
//! | what a receipt proves | [`Receipt`] |
//! | where a VM lives after a fault | [`verdict`] |
//! | which faults were tried | `FAULTS.md`, `tests/faults/` |

mod attempt;
mod codec;
mod coordinator;
mod destination;
mod fence;
mod ledger;
mod mark;
mod receipt;
mod record;
mod role;
mod source;
mod verdict;

pub use attempt::{
    Attempt, Attestation, Content, DiskCountError, Field, InstallKey, KeyError, MAX_DISKS,
    Mismatch, PlanDigest, SiteKey, VmKey, Words,
};
pub use codec::DecodeError;
pub use coordinator::{Contradiction, Intent, Outcome, Side, Step, next_step};
pub use destination::{
    DestinationAction, DestinationEffect, DestinationRequest, DestinationRole, DestinationState,
};
pub use ed25519_dalek::{SigningKey, VerifyingKey};
pub use fence::{ContentBasis, Established, Fence, FenceLevel, Unfence, UnfenceTooLong};
pub use ledger::LedgerError;
pub use mark::MarkSeen;
pub use receipt::{
    Claim, FenceReceipt, Grant, GrantReceipt, KeyId, Receipt, ReceiptError, Revoke, RevokeReceipt,
    SyncReceipt, Synced,
};
pub use record::{DestinationEntry, Entry, Record, SourceEntry};
pub use role::{Action, Identity, Refusal};
pub use source::{SourceAction, SourceEffect, SourceRequest, SourceRole, SourceState};
pub use verdict::{Evidence, Held, Next, Platform, Strength, Verdict, VerdictKind, verdict};
