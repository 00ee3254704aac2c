//! One record of a ledger, as bytes.
//!
//! ```text
//! magic u32 | length u32 | sequence u64 | time ns u64 | run [16] | previous hash [32] | body | hash [32]
//! ```
//! Little endian. `length` counts the whole record, the hash covers everything before it, and
//! `previous` is the hash of the record before: nothing can be lost, changed, doubled or swapped
//! without breaking the chain.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The longest record that is ever written or read, in bytes.
pub const MAX_RECORD: usize = 64 * 1024;

pub(super) const MAGIC: [u8; 4] = *b"CLR1";
const HEAD: usize = 4 + 4 + 8 + 8 + 16 + 32;
const TAIL: usize = 32;

/// A ledger, named at random when its first record is written; copies of a disk share it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct LedgerId(pub [u8; 16]);

/// One life of a writer, from its start to its death. Two at once on one ledger are a split brain.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct RunId(pub [u8; 16]);

/// The BLAKE3 hash that ends a record.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct RecordHash(pub [u8; 32]);

impl RecordHash {
    /// What the first record of a ledger has for its `previous`.
    pub const NONE: Self = Self([0; 32]);
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Counted from 0 without gaps, through all runs.
    pub sequence: u64,
    /// The writer's wall clock, nanoseconds since 1970; not trusted for anything.
    pub time_ns: u64,
    pub run: RunId,
    pub previous: RecordHash,
    pub body: Body,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// The first record of every run.
    Opened {
        ledger: LedgerId,
        /// The kernel's boot id: tells a reboot from a restarted service.
        kernel_boot: [u8; 16],
        /// Bytes of an unfinished record that were cut off the end, never acknowledged.
        cut: u32,
        /// Damaged blocks that were found in the random files before this run wrote to them.
        damaged: u32,
    },
    Payload {
        /// What was durable in the other ledgers before this record was written: disks copied at
        /// different moments contradict each other here.
        seen: Vec<Seen>,
        bytes: Vec<u8>,
    },
    /// These random writes are on stable storage.
    Durable { writes: Vec<Write> },
}

/// A record of another ledger that was durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub ledger: LedgerId,
    pub sequence: u64,
    pub hash: RecordHash,
}

/// One random write: `count` blocks from `first`, all carrying `generation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Write {
    pub file: u16,
    pub count: u16,
    pub first: u32,
    pub generation: u64,
}

/// Why these bytes are no record.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DecodeError {
    #[error("unfinished record")]
    Unfinished,
    #[error("no record starts here")]
    Magic,
    #[error("record length {0} is impossible")]
    Length(usize),
    #[error("hash does not match the record")]
    Hash,
    #[error("record body is malformed")]
    Body,
}

impl Record {
    /// The bytes of this record and the hash at their end.
    ///
    /// # Panics
    /// When the body is over [`MAX_RECORD`]: the writer's limits keep it far below.
    #[must_use]
    pub fn encode(&self) -> (Vec<u8>, RecordHash) {
        let mut out = Vec::with_capacity(512);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&self.time_ns.to_le_bytes());
        out.extend_from_slice(&self.run.0);
        out.extend_from_slice(&self.previous.0);
        self.body.encode(&mut out);
        let length = out.len() + TAIL;
        assert!(length <= MAX_RECORD, "a record of {length} bytes");
        let length = u32::try_from(length).expect("MAX_RECORD fits in 32 bits");
        out[4..8].copy_from_slice(&length.to_le_bytes());
        let hash = RecordHash(*blake3::hash(&out).as_bytes());
        out.extend_from_slice(&hash.0);
        (out, hash)
    }

    /// The record at the start of `bytes`, its hash and its length.
    pub fn decode(bytes: &[u8]) -> Result<(Self, RecordHash, usize), DecodeError> {
        let mut reader = Reader(bytes);
        let magic = reader.array::<4>().map_err(|_| DecodeError::Unfinished)?;
        if magic != MAGIC {
            return Err(DecodeError::Magic);
        }
        let length = reader.u32().map_err(|_| DecodeError::Unfinished)?;
        let length = usize::try_from(length).map_err(|_| DecodeError::Length(usize::MAX))?;
        if !(HEAD + 1 + TAIL..=MAX_RECORD).contains(&length) {
            return Err(DecodeError::Length(length));
        }
        let whole = bytes.get(..length).ok_or(DecodeError::Unfinished)?;
        let (covered, stored) = whole.split_at(length - TAIL);
        let hash = RecordHash(*blake3::hash(covered).as_bytes());
        if hash.0 != stored {
            return Err(DecodeError::Hash);
        }
        let mut reader = Reader(&covered[8..]);
        let record = Self {
            sequence: reader.u64()?,
            time_ns: reader.u64()?,
            run: RunId(reader.array()?),
            previous: RecordHash(reader.array()?),
            body: Body::decode(&mut reader)?,
        };
        if reader.0.is_empty() { Ok((record, hash, length)) } else { Err(DecodeError::Body) }
    }
}

impl Body {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Opened { ledger, kernel_boot, cut, damaged } => {
                out.push(1);
                out.extend_from_slice(&ledger.0);
                out.extend_from_slice(kernel_boot);
                out.extend_from_slice(&cut.to_le_bytes());
                out.extend_from_slice(&damaged.to_le_bytes());
            }
            Self::Payload { seen, bytes } => {
                out.push(2);
                put_count(out, seen.len());
                for Seen { ledger, sequence, hash } in seen {
                    out.extend_from_slice(&ledger.0);
                    out.extend_from_slice(&sequence.to_le_bytes());
                    out.extend_from_slice(&hash.0);
                }
                put_count(out, bytes.len());
                out.extend_from_slice(bytes);
            }
            Self::Durable { writes } => {
                out.push(3);
                put_count(out, writes.len());
                for Write { file, count, first, generation } in writes {
                    out.extend_from_slice(&file.to_le_bytes());
                    out.extend_from_slice(&count.to_le_bytes());
                    out.extend_from_slice(&first.to_le_bytes());
                    out.extend_from_slice(&generation.to_le_bytes());
                }
            }
        }
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match from.array::<1>()? {
            [1] => Ok(Self::Opened {
                ledger: LedgerId(from.array()?),
                kernel_boot: from.array()?,
                cut: from.u32()?,
                damaged: from.u32()?,
            }),
            [2] => {
                let mut seen = Vec::new();
                for _ in 0..from.u16()? {
                    seen.push(Seen {
                        ledger: LedgerId(from.array()?),
                        sequence: from.u64()?,
                        hash: RecordHash(from.array()?),
                    });
                }
                let count = from.u16()?;
                Ok(Self::Payload { seen, bytes: from.take(count.into())?.to_vec() })
            }
            [3] => {
                let mut writes = Vec::new();
                for _ in 0..from.u16()? {
                    writes.push(Write {
                        file: from.u16()?,
                        count: from.u16()?,
                        first: from.u32()?,
                        generation: from.u64()?,
                    });
                }
                Ok(Self::Durable { writes })
            }
            _ => Err(DecodeError::Body),
        }
    }
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    let count = u16::try_from(count).expect("lists in a record are short: it is at most 64 KiB");
    out.extend_from_slice(&count.to_le_bytes());
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(DecodeError::Body)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        self.take(N)?.try_into().map_err(|_| DecodeError::Body)
    }

    fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }
}

/// The text is not the hexadecimal form of an id or hash.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("not the hexadecimal form of {expected} bytes: {text}")]
pub struct NotHex {
    expected: usize,
    text: String,
}

macro_rules! hexadecimal {
    ($name:ident, $bytes:literal) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl From<$name> for String {
            fn from(it: $name) -> Self {
                it.to_string()
            }
        }

        impl TryFrom<String> for $name {
            type Error = NotHex;

            fn try_from(text: String) -> Result<Self, NotHex> {
                let mut bytes = [0; $bytes];
                match hex::decode_to_slice(&text, &mut bytes) {
                    Ok(()) => Ok(Self(bytes)),
                    Err(_) => Err(NotHex { expected: $bytes, text }),
                }
            }
        }
    };
}

hexadecimal!(LedgerId, 16);
hexadecimal!(RunId, 16);
hexadecimal!(RecordHash, 32);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bodies() -> impl Strategy<Value = Body> {
        let seen = (any::<[u8; 16]>(), any::<u64>(), any::<[u8; 32]>())
            .prop_map(|(l, s, h)| Seen { ledger: LedgerId(l), sequence: s, hash: RecordHash(h) });
        let write = (any::<u16>(), any::<u16>(), any::<u32>(), any::<u64>())
            .prop_map(|(file, count, first, generation)| Write { file, count, first, generation });
        prop_oneof![
            (any::<[u8; 16]>(), any::<[u8; 16]>(), any::<u32>(), any::<u32>()).prop_map(
                |(ledger, kernel_boot, cut, damaged)| Body::Opened {
                    ledger: LedgerId(ledger),
                    kernel_boot,
                    cut,
                    damaged
                }
            ),
            (prop::collection::vec(seen, 0..4), prop::collection::vec(any::<u8>(), 0..200))
                .prop_map(|(seen, bytes)| Body::Payload { seen, bytes }),
            prop::collection::vec(write, 0..70).prop_map(|writes| Body::Durable { writes }),
        ]
    }

    fn records() -> impl Strategy<Value = Record> {
        (any::<u64>(), any::<u64>(), any::<[u8; 16]>(), any::<[u8; 32]>(), bodies()).prop_map(
            |(sequence, time_ns, run, previous, body)| Record {
                sequence,
                time_ns,
                run: RunId(run),
                previous: RecordHash(previous),
                body,
            },
        )
    }

    proptest! {
        #[test]
        fn a_record_is_read_as_it_was_written(record in records()) {
            let (bytes, hash) = record.encode();
            prop_assert_eq!(Record::decode(&bytes), Ok((record, hash, bytes.len())));
        }

        #[test]
        fn any_cut_leaves_an_unfinished_record(record in records(), cut in any::<prop::sample::Index>()) {
            let (bytes, _) = record.encode();
            prop_assert_eq!(Record::decode(&bytes[..cut.index(bytes.len())]), Err(DecodeError::Unfinished));
        }

        #[test]
        fn any_changed_byte_is_noticed(record in records(), at in any::<prop::sample::Index>(), flip in 1_u8..) {
            let (mut bytes, _) = record.encode();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            prop_assert!(Record::decode(&bytes).is_err());
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut with_magic = MAGIC.to_vec();
            with_magic.extend_from_slice(&bytes);
            let _ = Record::decode(&with_magic);
        }
    }
}
