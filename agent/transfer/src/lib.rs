//! How bytes move between two agents.
//!
//! The story: a [`Sender`] at the source and a [`Receiver`] at the destination are connected by
//! some streams and copy disks in *rounds*, each over what may differ, until little enough is left
//! to stop the source, drain, and [`Sender::seal`].
//!
//! ```text
//!  source                                                              destination
//!  BlockRead ─┐                                                          ┌─ BlockWrite
//!  Changes ───┴─ Sender ── secure::connect ─ meet::open ── any pipe ── meet::accept ─ secure::accept ── Receiver
//! ```
//!
//! * [`meet`] finds the other end on a pipe that outlives sessions, and says what the session is
//!   for. Harmless on any other pipe.
//! * [`secure`] proves who is at the other end, and encrypts.
//! * [`Sender`] and [`Receiver`] speak [`wire::data`] over that; `PROTOCOL.md` beside it has the
//!   rules, and why.
//! * [`control`] carries the coordinator's messages over such a stream.
//!
//! A disk is anything that is a [`BlockRead`] or a [`BlockWrite`]: here block devices and image
//! files ([`FileDisk`]). What was written is told by [`Changes`]: a tracker, or [`NoChanges`].
//!
//! # Memory
//!
//! Per disk and end 32 bytes for each block (8 MiB for 64 GiB) and one bit. Besides that the sender
//! needs two blocks for each worker and each place in its queue, and the receiver its credit and
//! two blocks for each writer; each stream has half a MiB of ciphertext.

mod buffer;
mod changes;
mod codec;
pub mod control;
mod disk;
mod frames;
pub mod meet;
mod receiver;
pub mod secure;
mod sender;
mod table;

pub use changes::{Changes, NoChanges};
pub use disk::{BlockRead, BlockWrite, Caching, FileDisk, OpenDiskError};
pub use frames::StreamError;
pub use receiver::{Holds, Receiver, ReceiverError, ReceiverLimits, TargetDisk};
pub use sender::{Round, RoundOptions, Sender, SenderError, SenderLimits, SourceDisk};
