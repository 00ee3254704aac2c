//! Fences: making a VM unable to run or write, provably, at its platform.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::attempt::{Attestation, Content, Words};
use crate::codec::{DecodeError, Reader, Writer};

/// How firmly a VM is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FenceLevel {
    /// Quiesced from inside. Never enough: a reboot opens it again.
    Guest = 1,
    /// Off at the platform, which would start it again if asked.
    Off = 2,
    /// Off, and the platform cannot start it. What a grant needs.
    StartProof = 3,
    Destroyed = 4,
}

impl FenceLevel {
    const fn from_tag(tag: u8) -> Option<Self> {
        Some(match tag {
            1 => Self::Guest,
            2 => Self::Off,
            3 => Self::StartProof,
            4 => Self::Destroyed,
            _ => return None,
        })
    }
}

impl fmt::Display for FenceLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Guest => "quiesced in the guest",
            Self::Off => "off",
            Self::StartProof => "off and start-proof",
            Self::Destroyed => "destroyed",
        })
    }
}

/// Who says that the fence holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Established {
    /// The platform was asked and showed it: which means, in words.
    ByPlatform { means: Words },
    /// The platform could not be asked; an operator answers for it.
    Attested(Attestation),
}

/// How it is known that the disks still held [`Fence::content`] when the power was off.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContentBasis {
    /// The platform read the disks of the stopped VM.
    ReadWhileOff,
    /// Drained under freeze, no write seen since, and powered off by one process that did not
    /// stop in between. Not accepted once that process has died: the guest may have thawed.
    Drained,
    /// Drained under freeze, then the process died; the platform shows that nothing but the
    /// frozen guest ran until the power was off, in words. The content must be the one that the
    /// fence intent recorded.
    DrainedBefore { shown_by: Words },
}

/// The source's word: the VM cannot run or write here, and its disks hold this.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fence {
    pub level: FenceLevel,
    pub established: Established,
    pub content: Content,
    pub basis: ContentBasis,
}

impl Fence {
    pub(crate) fn encode_to(&self, to: &mut Writer) {
        to.u8(self.level as u8);
        match &self.established {
            Established::ByPlatform { means } => {
                to.u8(1);
                means.encode(to);
            }
            Established::Attested(attestation) => {
                to.u8(2);
                attestation.encode(to);
            }
        }
        self.content.encode(to);
        match &self.basis {
            ContentBasis::ReadWhileOff => to.u8(1),
            ContentBasis::Drained => to.u8(2),
            ContentBasis::DrainedBefore { shown_by } => {
                to.u8(3);
                shown_by.encode(to);
            }
        }
    }

    pub(crate) fn decode_from(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let tag = |what, tag: u8| DecodeError::Tag { what, tag: tag.into() };
        let level = from.u8()?;
        Ok(Self {
            level: FenceLevel::from_tag(level).ok_or_else(|| tag("the fence level", level))?,
            established: match from.u8()? {
                1 => Established::ByPlatform { means: Words::decode(from)? },
                2 => Established::Attested(Attestation::decode(from)?),
                other => return Err(tag("how the fence is known", other)),
            },
            content: Content::decode(from)?,
            basis: match from.u8()? {
                1 => ContentBasis::ReadWhileOff,
                2 => ContentBasis::Drained,
                3 => ContentBasis::DrainedBefore { shown_by: Words::decode(from)? },
                other => return Err(tag("how the content is known", other)),
            },
        })
    }
}

/// What undoes a part of a fence: the adapter's bytes, understood by it alone. In the ledger
/// before that part is made.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Unfence(Vec<u8>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("an un-fence record of {len} bytes is more than the limit of {}", Unfence::MAX)]
pub struct UnfenceTooLong {
    pub len: usize,
}

impl Unfence {
    /// In bytes: a VM's definition and some more, and still one journal record.
    pub const MAX: usize = 512 << 10;

    pub fn new(bytes: Vec<u8>) -> Result<Self, UnfenceTooLong> {
        if bytes.len() > Self::MAX {
            return Err(UnfenceTooLong { len: bytes.len() });
        }
        Ok(Self(bytes))
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn encode(&self, to: &mut Writer) {
        to.bytes(&self.0);
    }

    pub(crate) fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self(from.bytes("the un-fence record", Self::MAX)?.to_vec()))
    }
}

/// Its length alone: definitions may hold passwords.
impl fmt::Debug for Unfence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Unfence({} bytes)", self.0.len())
    }
}
