//! Frames: what a connection's stream of bytes is made of.
//!
//! ```text
//!  | length u32 | program u32 | version u32 | procedure i32 |
//!  | kind u32 | serial u32 | status u32 | payload ... |
//! ```
//!
//! All numbers are big-endian. The length counts everything, itself included.
//!
//! A length is compared with the connection's limit as soon as its four bytes are there, so a
//! frame that is too long is refused before any more of it is kept. Of a frame within the limit
//! no more memory is taken than bytes of it have come.
//!
//! Two forms that the protocol knows are refused by name: frames that carry file descriptors
//! (only Unix sockets could), because nothing here wants any, and numbers that nobody has given a
//! meaning. Programs of libvirt that are not served ([`Program::Qemu`], [`Program::Lxc`]) are
//! read, so that the caller can be told.

mod decoder;

use std::fmt;

use bytes::{BufMut, Bytes};
use thiserror::Error;

pub use decoder::Decoder;

/// The length word, in bytes.
pub const LENGTH_LEN: usize = 4;

/// The header after the length word, in bytes: `VIR_NET_MESSAGE_HEADER_MAX`.
pub const HEADER_LEN: usize = 24;

/// The longest frame that libvirt takes, in bytes with its length word: `VIR_NET_MESSAGE_MAX` and
/// the word, which libvirt leaves out of the count.
pub const FRAME_MAX: usize = (32 << 20) + LENGTH_LEN;

/// The longest frame before a connection is open, in bytes: ours, libvirt has one limit for all.
/// What is said until then takes less than a tenth of it.
pub const FRAME_MAX_BEFORE_OPEN: usize = 64 << 10;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub header: Header,
    pub payload: Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub program: Program,
    /// Signed on the wire and nowhere negative.
    pub procedure: i32,
    pub kind: Kind,
    /// The caller's number of a call, repeated in its reply; 0 in keepalive frames.
    pub serial: u32,
    pub status: Status,
}

/// The programs of libvirt that clients address, each in the one version there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// The public interface.
    Remote,
    /// Calls past libvirt to QEMU's monitor and agent.
    Qemu,
    Lxc,
    Keepalive,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Call,
    Reply,
    /// Unasked for, in either direction: keepalive and events.
    Message,
    Stream,
    StreamHole,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Ok,
    /// The payload is an error.
    Error,
    /// More of the stream follows.
    Continue,
}

/// Why bytes are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    #[error("a frame of {len} bytes is shorter than its header")]
    TooShort { len: u32 },

    #[error("a frame of {len} bytes is longer than {max}")]
    TooLong { len: u32, max: usize },

    #[error("unknown program {program:#x} in version {version}")]
    UnknownProgram { program: u32, version: u32 },

    #[error("unknown kind of frame {kind}")]
    UnknownKind { kind: u32 },

    #[error("a frame of kind {kind} carries file descriptors")]
    CarriesDescriptors { kind: u32 },

    #[error("unknown status {status}")]
    UnknownStatus { status: u32 },
}

impl Frame {
    pub fn encode(&self) -> Vec<u8> {
        self.header.with_payload(&self.payload)
    }
}

impl Header {
    /// The frame of this header with a payload.
    ///
    /// # Panics
    /// If the payload has 4 GiB or more; whoever writes it keeps to the limits of its fields.
    pub fn with_payload(&self, payload: &[u8]) -> Vec<u8> {
        let len = LENGTH_LEN + HEADER_LEN + payload.len();
        let mut out = Vec::with_capacity(len);
        out.put_u32(u32::try_from(len).expect("payloads are far below 4 GiB"));
        let (program, version) = self.program.number();
        out.put_u32(program);
        out.put_u32(version);
        out.put_i32(self.procedure);
        out.put_u32(self.kind.number());
        out.put_u32(self.serial);
        out.put_u32(self.status.number());
        out.put_slice(payload);
        out
    }

    /// The header of what answers a call.
    pub const fn reply(&self, status: Status) -> Self {
        Self { kind: Kind::Reply, status, ..*self }
    }

    fn decode(words: [u32; 6]) -> Result<Self, FrameError> {
        let [program, version, procedure, kind, serial, status] = words;
        Ok(Self {
            program: Program::from_number(program, version)?,
            procedure: procedure.cast_signed(),
            kind: Kind::from_number(kind)?,
            serial,
            status: Status::from_number(status)?,
        })
    }
}

impl Program {
    const fn number(self) -> (u32, u32) {
        match self {
            Self::Remote => (0x2000_8086, 1),
            Self::Qemu => (0x2000_8087, 1),
            Self::Lxc => (0x0006_8000, 1),
            Self::Keepalive => (0x6b65_6570, 1),
        }
    }

    fn from_number(program: u32, version: u32) -> Result<Self, FrameError> {
        [Self::Remote, Self::Qemu, Self::Lxc, Self::Keepalive]
            .into_iter()
            .find(|known| known.number() == (program, version))
            .ok_or(FrameError::UnknownProgram { program, version })
    }
}

/// As libvirt names it in its own errors: two decimal numbers.
impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (program, version) = self.number();
        write!(f, "program {program} version {version}")
    }
}

impl Kind {
    const fn number(self) -> u32 {
        match self {
            Self::Call => 0,
            Self::Reply => 1,
            Self::Message => 2,
            Self::Stream => 3,
            Self::StreamHole => 6,
        }
    }

    const fn from_number(kind: u32) -> Result<Self, FrameError> {
        match kind {
            0 => Ok(Self::Call),
            1 => Ok(Self::Reply),
            2 => Ok(Self::Message),
            3 => Ok(Self::Stream),
            4 | 5 => Err(FrameError::CarriesDescriptors { kind }),
            6 => Ok(Self::StreamHole),
            kind => Err(FrameError::UnknownKind { kind }),
        }
    }
}

impl Status {
    const fn number(self) -> u32 {
        match self {
            Self::Ok => 0,
            Self::Error => 1,
            Self::Continue => 2,
        }
    }

    const fn from_number(status: u32) -> Result<Self, FrameError> {
        match status {
            0 => Ok(Self::Ok),
            1 => Ok(Self::Error),
            2 => Ok(Self::Continue),
            status => Err(FrameError::UnknownStatus { status }),
        }
    }
}

#[cfg(test)]
mod tests;
