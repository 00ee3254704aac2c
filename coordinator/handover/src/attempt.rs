//! What is being decided about: an attempt to move one VM, and the content of its disks.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use units::{Digest, Epoch};

use crate::codec::{DecodeError, Reader, Writer};

/// Most disks of one VM.
pub const MAX_DISKS: usize = 256;

/// Longest key, in bytes.
const MAX_KEY: usize = 128;

/// Longest description, in bytes.
const MAX_WORDS: usize = 1024;

/// Text that is no key: empty, too long or with something unprintable in it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("not a key (1 to 128 bytes of visible text without spaces): {text:?}")]
pub struct KeyError {
    pub text: String,
}

macro_rules! key {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = KeyError;
            fn from_str(text: &str) -> Result<Self, KeyError> {
                let visible = |c: char| !c.is_control() && !c.is_whitespace();
                if text.is_empty() || text.len() > MAX_KEY || !text.chars().all(visible) {
                    return Err(KeyError { text: text.to_owned() });
                }
                Ok(Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = KeyError;
            fn try_from(text: String) -> Result<Self, KeyError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(key: $name) -> Self {
                key.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

key!(
    /// The identity that a VM keeps for life, at every site; a UUID where the site has one.
    VmKey
);
key!(
    /// A site's name, the same in every ledger.
    SiteKey
);
key!(
    /// Whose Causeway this is. Receipts of one installation say nothing in another.
    InstallKey
);

/// The digest of the plan that the attempt carries out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PlanDigest(pub Digest);

impl fmt::Display for PlanDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One attempt to move one VM. Every receipt carries it whole, and is worth nothing for any other.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Attempt {
    pub install: InstallKey,
    pub vm: VmKey,
    pub epoch: Epoch,
    pub source: SiteKey,
    pub destination: SiteKey,
    pub plan: PlanDigest,
}

/// In which part two attempts differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Field {
    Install,
    Vm,
    Epoch,
    Source,
    Destination,
    Plan,
    Content,
    FenceLevel,
    Signer,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Install => "installation",
            Self::Vm => "VM",
            Self::Epoch => "epoch",
            Self::Source => "source",
            Self::Destination => "destination",
            Self::Plan => "plan",
            Self::Content => "content",
            Self::FenceLevel => "fence level",
            Self::Signer => "signer",
        })
    }
}

/// A field that is not what it should be, with both values in words.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("its {field} is {found}, not {expected}")]
pub struct Mismatch {
    pub field: Field,
    pub expected: String,
    pub found: String,
}

impl Mismatch {
    pub(crate) fn check<T: PartialEq + fmt::Display>(
        field: Field,
        expected: &T,
        found: &T,
    ) -> Result<(), Self> {
        if expected == found {
            return Ok(());
        }
        Err(Self { field, expected: expected.to_string(), found: found.to_string() })
    }
}

impl Attempt {
    /// Whether `found` is this attempt; otherwise the first field in which it differs.
    pub fn check(&self, found: &Self) -> Result<(), Mismatch> {
        Mismatch::check(Field::Install, &self.install, &found.install)?;
        Mismatch::check(Field::Vm, &self.vm, &found.vm)?;
        Mismatch::check(Field::Epoch, &self.epoch, &found.epoch)?;
        Mismatch::check(Field::Source, &self.source, &found.source)?;
        Mismatch::check(Field::Destination, &self.destination, &found.destination)?;
        Mismatch::check(Field::Plan, &self.plan, &found.plan)
    }

    pub(crate) fn encode(&self, to: &mut Writer) {
        to.bytes(self.install.as_str().as_bytes());
        to.bytes(self.vm.as_str().as_bytes());
        to.u64(self.epoch.0);
        to.bytes(self.source.as_str().as_bytes());
        to.bytes(self.destination.as_str().as_bytes());
        to.array(&self.plan.0.0);
    }

    pub(crate) fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            install: key(from, "the installation")?,
            vm: key(from, "the VM")?,
            epoch: Epoch(from.u64()?),
            source: key(from, "the source")?,
            destination: key(from, "the destination")?,
            plan: PlanDigest(Digest(from.array()?)),
        })
    }
}

pub(crate) fn key<K: FromStr>(from: &mut Reader<'_>, what: &'static str) -> Result<K, DecodeError> {
    from.text(what, MAX_KEY)?.parse().map_err(|_| DecodeError::Text { what })
}

/// What all disks of a VM hold: one digest per disk, in the plan's order.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<Digest>", into = "Vec<Digest>")]
pub struct Content(Vec<Digest>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a VM has 1 to {MAX_DISKS} disks, not {count}")]
pub struct DiskCountError {
    pub count: usize,
}

impl Content {
    pub fn new(disks: Vec<Digest>) -> Result<Self, DiskCountError> {
        match disks.len() {
            1..=MAX_DISKS => Ok(Self(disks)),
            count => Err(DiskCountError { count }),
        }
    }

    pub fn disks(&self) -> &[Digest] {
        &self.0
    }

    /// One digest for all of them.
    pub fn combined(&self) -> Digest {
        let mut hasher = blake3::Hasher::new_derive_key("causeway 2026-11 content of all disks v1");
        self.0.iter().for_each(|disk| {
            hasher.update(&disk.0);
        });
        Digest(*hasher.finalize().as_bytes())
    }

    pub(crate) fn encode(&self, to: &mut Writer) {
        to.digests(&self.0);
    }

    pub(crate) fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let what = "the list of disks";
        Self::new(from.digests(what, MAX_DISKS)?).map_err(|_| DecodeError::Empty { what })
    }
}

impl TryFrom<Vec<Digest>> for Content {
    type Error = DiskCountError;
    fn try_from(disks: Vec<Digest>) -> Result<Self, DiskCountError> {
        Self::new(disks)
    }
}

impl From<Content> for Vec<Digest> {
    fn from(content: Content) -> Self {
        content.0
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.combined().fmt(f)
    }
}

/// A description for people; cut at 1 KiB.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct Words(String);

impl Words {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn encode(&self, to: &mut Writer) {
        to.bytes(self.0.as_bytes());
    }

    pub(crate) fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self(from.text("a description", MAX_WORDS)?.to_owned()))
    }
}

impl From<&str> for Words {
    fn from(text: &str) -> Self {
        Self::from(text.to_owned())
    }
}

impl From<String> for Words {
    fn from(mut text: String) -> Self {
        text.truncate(text.floor_char_boundary(MAX_WORDS));
        Self(text)
    }
}

impl From<Words> for String {
    fn from(words: Words) -> Self {
        words.0
    }
}

impl fmt::Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An operator's word in place of a platform's. Recorded as such, and never called proof.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Attestation {
    pub by: Words,
    pub reason: Words,
}

impl Attestation {
    pub(crate) fn encode(&self, to: &mut Writer) {
        self.by.encode(to);
        self.reason.encode(to);
    }

    pub(crate) fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { by: Words::decode(from)?, reason: Words::decode(from)? })
    }

    pub(crate) fn encode_option(attested: Option<&Self>, to: &mut Writer) {
        to.u8(u8::from(attested.is_some()));
        if let Some(attestation) = attested {
            attestation.encode(to);
        }
    }

    pub(crate) fn decode_option(from: &mut Reader<'_>) -> Result<Option<Self>, DecodeError> {
        match from.u8()? {
            0 => Ok(None),
            1 => Self::decode(from).map(Some),
            tag => Err(DecodeError::Tag { what: "the attestation", tag: tag.into() }),
        }
    }
}
