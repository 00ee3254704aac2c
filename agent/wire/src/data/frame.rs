//! All frames, and reading and writing them.

use bytes::BufMut;
use thiserror::Error;
use units::{BlockSize, Bytes, Digest, DiskNo, MigrationId};

use super::block::Block;
use super::fields::{Fields, put_text};
use super::{HEAD_MAX, PAYLOAD_MAX, PREFIX_LEN, STREAMS_MAX, TEXT_MAX};

/// One message of the data protocol, without its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// First on every stream, from the sender.
    Hello {
        version: u16,
        migration: MigrationId,
        generation: u64,
        stream: u16,
        streams: u16,
    },
    /// The answer: every stream of a lower generation has stopped, and what was written through
    /// them is on stable storage. `credit` is what this stream may spend at first.
    HelloAck {
        version: u16,
        generation: u64,
        stream: u16,
        credit: Bytes,
    },
    Block(Block),
    /// The sender may spend this much more on this stream. `waiting` is what all streams together
    /// hold in the receiver's memory just now.
    Credit {
        bytes: Bytes,
        waiting: Bytes,
    },
    /// Every block of this stream up to this number is on stable storage, but for those that were
    /// refused before.
    Ack {
        upto: u64,
    },
    /// This block was not written.
    Nack {
        seq: u64,
        reason: NackReason,
    },
    /// Make what was sent on this stream durable, and say so.
    Flush {
        token: u64,
    },
    /// Every block sent before the flush was acknowledged or refused.
    Flushed {
        token: u64,
    },
    /// What does the target of this disk hold?
    TableQuery {
        disk: DiskNo,
    },
    /// Payload: the digests of the table's spans.
    Table {
        disk: DiskNo,
        size: Bytes,
        block_size: BlockSize,
        root: Digest,
    },
    SpanQuery {
        disk: DiskNo,
        span: u64,
    },
    /// Payload: the hashes of the span's blocks.
    Span {
        disk: DiskNo,
        span: u64,
    },
    /// The end of all streams of this generation.
    Error {
        code: ErrorCode,
        text: String,
    },
    /// The orderly end of this stream.
    Bye,
    /// Nothing to say.
    Alive,
}

/// Why a block was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NackReason {
    /// The block as it would be does not have the hash that came with it. Send it in full.
    HashMismatch,
    /// The old content could not be read. Send it in full.
    NeedFull,
}

/// Why the streams end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    /// The peer broke the protocol.
    Protocol,
    /// The peer speaks no version that this end does.
    Version,
    /// A stream of a generation that is over.
    Stale,
    /// Of another migration.
    Foreign,
    /// A target could not be written or made durable.
    Target,
    /// This end was told to stop, or another stream of the generation broke.
    Stopped,
}

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    #[error("unknown frame {tag}")]
    UnknownFrame { tag: u8 },

    #[error("a reserved byte is {byte}, not 0")]
    Reserved { byte: u8 },

    #[error("a head of {len} bytes is longer than {HEAD_MAX}")]
    HeadLimit { len: usize },

    #[error("a payload of {len} bytes is longer than {limit}")]
    PayloadLimit { len: u32, limit: u32 },

    #[error("the head is too short for its fields")]
    HeadTooShort,

    #[error("the head is longer than its fields")]
    HeadTooLong,

    #[error("a text of {len} bytes is too long")]
    TextTooLong { len: usize },

    #[error("a text is not UTF-8")]
    TextNotUtf8,

    #[error("{text:?} is no migration id")]
    Migration { text: String },

    #[error("stream {stream} of {streams}: there may be 1 to {STREAMS_MAX}")]
    Streams { stream: u16, streams: u16 },

    #[error("unknown content {tag}")]
    UnknownContent { tag: u8 },

    #[error("unknown encoding {tag}")]
    UnknownEncoding { tag: u8 },

    #[error("{raw_len} bytes in a payload of {payload_len} do not fit the block")]
    BlockLengths { raw_len: u32, payload_len: u32 },

    #[error("runs of pages out of order, empty or past the largest block")]
    Runs,

    #[error("{bytes} is no block size")]
    BlockSize { bytes: u64 },

    #[error("a table's payload of {len} bytes is no number of hashes")]
    Hashes { len: u32 },

    #[error("unknown reason {tag}")]
    UnknownReason { tag: u8 },
}

/// How far a buffer reaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Not yet: this many bytes are needed, counted from the start of the buffer.
    Need(usize),
    /// A frame of `used` bytes; `payload_len` bytes of payload follow.
    Frame { frame: Frame, used: usize, payload_len: u32 },
}

const HELLO: u8 = 1;
const HELLO_ACK: u8 = 2;
const BLOCK: u8 = 3;
const CREDIT: u8 = 4;
const ACK: u8 = 5;
const NACK: u8 = 6;
const FLUSH: u8 = 7;
const FLUSHED: u8 = 8;
const TABLE_QUERY: u8 = 9;
const TABLE: u8 = 10;
const SPAN_QUERY: u8 = 11;
const SPAN: u8 = 12;
const ERROR: u8 = 13;
const BYE: u8 = 14;
const ALIVE: u8 = 15;

impl Frame {
    /// Prefix and head. `payload_len` bytes of payload are to follow.
    ///
    /// # Panics
    ///
    /// For a patch of more runs than the largest block has room for.
    pub fn encode(&self, payload_len: u32) -> Vec<u8> {
        let mut out = vec![self.tag(), 0];
        out.put_u16_le(0);
        out.put_u32_le(payload_len);
        self.encode_head(&mut out);
        let head_len = out.len() - PREFIX_LEN;
        assert!(head_len <= HEAD_MAX, "a head of {head_len} bytes is over the limit");
        let head_len = u16::try_from(head_len).expect("checked against a smaller limit");
        out[2..4].copy_from_slice(&head_len.to_le_bytes());
        out
    }

    /// The frame at the start of `buffer`. The answer does not change with what follows it.
    pub fn parse(buffer: &[u8]) -> Result<Parsed, FrameError> {
        let Some(prefix) = buffer.first_chunk::<PREFIX_LEN>() else {
            return Ok(Parsed::Need(PREFIX_LEN));
        };
        let [tag, reserved, h0, h1, p0, p1, p2, p3] = *prefix;
        let head_len = usize::from(u16::from_le_bytes([h0, h1]));
        let payload_len = u32::from_le_bytes([p0, p1, p2, p3]);
        if reserved != 0 {
            return Err(FrameError::Reserved { byte: reserved });
        }
        if head_len > HEAD_MAX {
            return Err(FrameError::HeadLimit { len: head_len });
        }
        let limit = payload_limit(tag)?;
        if payload_len > limit {
            return Err(FrameError::PayloadLimit { len: payload_len, limit });
        }
        let used = PREFIX_LEN + head_len;
        let Some(head) = buffer.get(PREFIX_LEN..used) else { return Ok(Parsed::Need(used)) };
        let mut fields = Fields(head);
        let frame = Self::decode_head(tag, &mut fields, payload_len)?;
        fields.end()?;
        Ok(Parsed::Frame { frame, used, payload_len })
    }

    const fn tag(&self) -> u8 {
        match self {
            Self::Hello { .. } => HELLO,
            Self::HelloAck { .. } => HELLO_ACK,
            Self::Block(_) => BLOCK,
            Self::Credit { .. } => CREDIT,
            Self::Ack { .. } => ACK,
            Self::Nack { .. } => NACK,
            Self::Flush { .. } => FLUSH,
            Self::Flushed { .. } => FLUSHED,
            Self::TableQuery { .. } => TABLE_QUERY,
            Self::Table { .. } => TABLE,
            Self::SpanQuery { .. } => SPAN_QUERY,
            Self::Span { .. } => SPAN,
            Self::Error { .. } => ERROR,
            Self::Bye => BYE,
            Self::Alive => ALIVE,
        }
    }

    fn encode_head(&self, out: &mut Vec<u8>) {
        match self {
            Self::Hello { version, migration, generation, stream, streams } => {
                out.put_u16_le(*version);
                put_text(out, migration.as_str(), TEXT_MAX);
                out.put_u64_le(*generation);
                out.put_u16_le(*stream);
                out.put_u16_le(*streams);
            }
            Self::HelloAck { version, generation, stream, credit } => {
                out.put_u16_le(*version);
                out.put_u64_le(*generation);
                out.put_u16_le(*stream);
                out.put_u64_le(credit.0);
            }
            Self::Block(block) => block.encode(out),
            Self::Credit { bytes, waiting } => {
                out.put_u64_le(bytes.0);
                out.put_u64_le(waiting.0);
            }
            Self::Ack { upto } => out.put_u64_le(*upto),
            Self::Nack { seq, reason } => {
                out.put_u64_le(*seq);
                out.put_u8(reason.tag());
            }
            Self::Flush { token } | Self::Flushed { token } => out.put_u64_le(*token),
            Self::TableQuery { disk } => out.put_u16_le(disk.0),
            Self::Table { disk, size, block_size, root } => {
                out.put_u16_le(disk.0);
                out.put_u64_le(size.0);
                out.put_u64_le(block_size.bytes());
                out.put_slice(&root.0);
            }
            Self::SpanQuery { disk, span } | Self::Span { disk, span } => {
                out.put_u16_le(disk.0);
                out.put_u64_le(*span);
            }
            Self::Error { code, text } => {
                out.put_u8(code.tag());
                put_text(out, text, TEXT_MAX);
            }
            Self::Bye | Self::Alive => {}
        }
    }

    fn decode_head(tag: u8, head: &mut Fields<'_>, payload: u32) -> Result<Self, FrameError> {
        Ok(match tag {
            HELLO => {
                let version = head.u16()?;
                let text = head.text(TEXT_MAX)?;
                let migration = text.parse().map_err(|_| FrameError::Migration { text })?;
                let (generation, stream, streams) = (head.u64()?, head.u16()?, head.u16()?);
                if stream >= streams || streams > STREAMS_MAX {
                    return Err(FrameError::Streams { stream, streams });
                }
                Self::Hello { version, migration, generation, stream, streams }
            }
            HELLO_ACK => Self::HelloAck {
                version: head.u16()?,
                generation: head.u64()?,
                stream: head.u16()?,
                credit: Bytes(head.u64()?),
            },
            BLOCK => Self::Block(Block::decode(head, payload)?),
            CREDIT => Self::Credit { bytes: Bytes(head.u64()?), waiting: Bytes(head.u64()?) },
            ACK => Self::Ack { upto: head.u64()? },
            NACK => Self::Nack { seq: head.u64()?, reason: NackReason::from_tag(head.u8()?)? },
            FLUSH => Self::Flush { token: head.u64()? },
            FLUSHED => Self::Flushed { token: head.u64()? },
            TABLE_QUERY => Self::TableQuery { disk: head.disk()? },
            TABLE => {
                let (disk, size, bytes) = (head.disk()?, Bytes(head.u64()?), head.u64()?);
                let block_size = BlockSize::try_from(bytes);
                let block_size = block_size.map_err(|_| FrameError::BlockSize { bytes })?;
                whole_hashes(payload)?;
                Self::Table { disk, size, block_size, root: head.digest()? }
            }
            SPAN_QUERY => Self::SpanQuery { disk: head.disk()?, span: head.u64()? },
            SPAN => {
                whole_hashes(payload)?;
                Self::Span { disk: head.disk()?, span: head.u64()? }
            }
            ERROR => {
                let code = ErrorCode::from_tag(head.u8()?)?;
                Self::Error { code, text: head.text(TEXT_MAX)? }
            }
            BYE => Self::Bye,
            ALIVE => Self::Alive,
            tag => return Err(FrameError::UnknownFrame { tag }),
        })
    }
}

/// The longest payload that a frame of this kind may have.
const fn payload_limit(tag: u8) -> Result<u32, FrameError> {
    match tag {
        BLOCK | TABLE => Ok(PAYLOAD_MAX),
        SPAN => Ok(32 * 1024),
        1..=ALIVE => Ok(0),
        _ => Err(FrameError::UnknownFrame { tag }),
    }
}

const fn whole_hashes(len: u32) -> Result<(), FrameError> {
    if len.is_multiple_of(32) { Ok(()) } else { Err(FrameError::Hashes { len }) }
}

impl NackReason {
    const fn tag(self) -> u8 {
        match self {
            Self::HashMismatch => 1,
            Self::NeedFull => 2,
        }
    }

    const fn from_tag(tag: u8) -> Result<Self, FrameError> {
        match tag {
            1 => Ok(Self::HashMismatch),
            2 => Ok(Self::NeedFull),
            _ => Err(FrameError::UnknownReason { tag }),
        }
    }
}

impl ErrorCode {
    const fn tag(self) -> u8 {
        match self {
            Self::Protocol => 1,
            Self::Version => 2,
            Self::Stale => 3,
            Self::Foreign => 4,
            Self::Target => 5,
            Self::Stopped => 6,
        }
    }

    const fn from_tag(tag: u8) -> Result<Self, FrameError> {
        match tag {
            1 => Ok(Self::Protocol),
            2 => Ok(Self::Version),
            3 => Ok(Self::Stale),
            4 => Ok(Self::Foreign),
            5 => Ok(Self::Target),
            6 => Ok(Self::Stopped),
            _ => Err(FrameError::UnknownReason { tag }),
        }
    }
}
