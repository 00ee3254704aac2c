//! What a site's ledger says, record by record, and its encoding.
//!
//! A ledger is a journal whose records are these. One ledger may hold many VMs and both roles:
//! every record names its VM and epoch. The kind (the journal's) says what it is:
//!
//! | kind | source | kind | destination |
//! |---|---|---|---|
//! | 1 | attempt known | 33 | attempt known |
//! | 2 | fence intent | 34 | placeholder |
//! | 3 | further un-fence record | 35 | synced |
//! | 4 | fenced | 36 | **granted** |
//! | 5 | released | 37 | **revoked** |
//! | 6 | retired | 38 | marked |
//! | 7 | settled | 39 | started |
//! | 8 | destroyed | 40 | healthy |
//!
//! The payload: version = 1, VM, epoch, and what the kind needs. Kinds and layouts of a released
//! version never change; `tests/handover/golden.rs` holds their bytes.

use units::Epoch;

use crate::attempt::{Attempt, Attestation, Content, VmKey, Words, key};
use crate::codec::{DecodeError, Reader, Writer};
use crate::fence::{Fence, Unfence};
use crate::receipt::{FenceReceipt, GrantReceipt, MAX_RECEIPT, RevokeReceipt};

const VERSION: u8 = 1;

/// One line of a site's ledger.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    pub vm: VmKey,
    pub epoch: Epoch,
    pub entry: Entry,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Entry {
    Source(SourceEntry),
    Destination(DestinationEntry),
}

/// What the site that the VM leaves writes down.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SourceEntry {
    AttemptKnown(Attempt),
    /// The fence is about to be made. `unfence` undoes its first part; `content`, where the disks
    /// were drained already, is what they hold.
    FenceIntent {
        unfence: Unfence,
        content: Option<Content>,
    },
    /// What undoes a further part of the fence, which is about to be made.
    FenceFurther {
        unfence: Unfence,
    },
    Fenced(Fence),
    /// The destination will never run it: the right to un-fence.
    Released(RevokeReceipt),
    /// The destination runs it: the right to retire this copy.
    Retired(GrantReceipt),
    /// What `Released` or `Retired` called for has been done at the platform.
    Settled,
    /// The retired copy's disks are gone.
    Destroyed,
}

/// What the site that the VM moves to writes down.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum DestinationEntry {
    AttemptKnown(Attempt),
    /// The platform's id of the held VM.
    Placeholder {
        id: Words,
    },
    /// The targets are on stable storage and hold this. A later one replaces it.
    Synced {
        content: Content,
    },
    /// The decision, written once: the VM runs here.
    Granted {
        fence: FenceReceipt,
    },
    /// The decision, written once: the VM never runs here in this epoch.
    Revoked {
        attested: Option<Attestation>,
    },
    /// The decision stands on the placeholder too.
    Marked,
    Started,
    Healthy,
}

impl Record {
    /// The journal's kind and payload.
    pub fn encode(&self) -> (u16, Vec<u8>) {
        let mut to = Writer::default();
        to.u8(VERSION);
        to.bytes(self.vm.as_str().as_bytes());
        to.u64(self.epoch.0);
        let kind = match &self.entry {
            Entry::Source(entry) => entry.encode(&mut to),
            Entry::Destination(entry) => entry.encode(&mut to),
        };
        (kind, to.0)
    }

    pub fn decode(kind: u16, payload: &[u8]) -> Result<Self, DecodeError> {
        let mut from = Reader(payload);
        match from.u8()? {
            VERSION => {}
            found => return Err(DecodeError::Version { found }),
        }
        let vm = key(&mut from, "the VM")?;
        let epoch = Epoch(from.u64()?);
        let entry = if kind < FIRST_OF_DESTINATION {
            Entry::Source(SourceEntry::decode(kind, &mut from)?)
        } else {
            Entry::Destination(DestinationEntry::decode(kind, &mut from)?)
        };
        from.finish()?;
        Ok(Self { vm, epoch, entry })
    }
}

const FIRST_OF_DESTINATION: u16 = 33;

impl SourceEntry {
    fn encode(&self, to: &mut Writer) -> u16 {
        match self {
            Self::AttemptKnown(attempt) => {
                attempt.encode(to);
                1
            }
            Self::FenceIntent { unfence, content } => {
                unfence.encode(to);
                match content {
                    None => to.u8(0),
                    Some(content) => {
                        to.u8(1);
                        content.encode(to);
                    }
                }
                2
            }
            Self::FenceFurther { unfence } => {
                unfence.encode(to);
                3
            }
            Self::Fenced(fence) => {
                fence.encode_to(to);
                4
            }
            Self::Released(receipt) => {
                to.bytes(&receipt.encode());
                5
            }
            Self::Retired(receipt) => {
                to.bytes(&receipt.encode());
                6
            }
            Self::Settled => 7,
            Self::Destroyed => 8,
        }
    }

    fn decode(kind: u16, from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match kind {
            1 => Self::AttemptKnown(Attempt::decode(from)?),
            2 => Self::FenceIntent {
                unfence: Unfence::decode(from)?,
                content: match from.u8()? {
                    0 => None,
                    1 => Some(Content::decode(from)?),
                    tag => {
                        let what = "the fence intent's content";
                        return Err(DecodeError::Tag { what, tag: tag.into() });
                    }
                },
            },
            3 => Self::FenceFurther { unfence: Unfence::decode(from)? },
            4 => Self::Fenced(Fence::decode_from(from)?),
            5 => Self::Released(RevokeReceipt::decode(from.bytes("the receipt", MAX_RECEIPT)?)?),
            6 => Self::Retired(GrantReceipt::decode(from.bytes("the receipt", MAX_RECEIPT)?)?),
            7 => Self::Settled,
            8 => Self::Destroyed,
            tag => return Err(DecodeError::Tag { what: "the record", tag }),
        })
    }
}

impl DestinationEntry {
    fn encode(&self, to: &mut Writer) -> u16 {
        match self {
            Self::AttemptKnown(attempt) => {
                attempt.encode(to);
                33
            }
            Self::Placeholder { id } => {
                id.encode(to);
                34
            }
            Self::Synced { content } => {
                content.encode(to);
                35
            }
            Self::Granted { fence } => {
                to.bytes(&fence.encode());
                36
            }
            Self::Revoked { attested } => {
                Attestation::encode_option(attested.as_ref(), to);
                37
            }
            Self::Marked => 38,
            Self::Started => 39,
            Self::Healthy => 40,
        }
    }

    fn decode(kind: u16, from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match kind {
            33 => Self::AttemptKnown(Attempt::decode(from)?),
            34 => Self::Placeholder { id: Words::decode(from)? },
            35 => Self::Synced { content: Content::decode(from)? },
            36 => Self::Granted {
                fence: FenceReceipt::decode(from.bytes("the receipt", MAX_RECEIPT)?)?,
            },
            37 => Self::Revoked { attested: Attestation::decode_option(from)? },
            38 => Self::Marked,
            39 => Self::Started,
            40 => Self::Healthy,
            tag => return Err(DecodeError::Tag { what: "the record", tag }),
        })
    }
}
