//! What an NBD server says: which requests are done.
//!
//! ```text
//! "NBDMAGIC" "IHAVEOPT" u16 flags                                                     its greeting
//! u64 3e889045565a9, u32 option, u32 type, u32 len, data                              answers to options
//! u32 67446698, u32 error, u64 cookie, data of a read                                 replies
//! u32 668e33ef, u16 flags, u16 type, u64 cookie, u32 len, data                        in chunks
//! u32 6e8a278c, u16 flags, u16 type, u64 cookie, u64 offset, u64 len, data            longer ones
//! ```

use std::collections::VecDeque;

use super::EarlyError;
use super::gate::Gate;
use super::requests::Kind;
use crate::relay::parse::at;

const GREETING: usize = 18;
const MAGIC: &[u8; 16] = b"NBDMAGICIHAVEOPT";
const ANSWER: u64 = 0x0003_e889_0455_65a9;
const SIMPLE: u32 = 0x6744_6698;
const CHUNK: u32 = 0x668e_33ef;
const LONG_CHUNK: u32 = 0x6e8a_278c;
/// It is the last one of its reply.
const DONE: u16 = 1;
const IS_ERROR: u16 = 1 << 15;
/// `NBD_OPT_GO` and `NBD_REP_ACK`: requests come from then on.
const GO: u32 = 7;
const ACK: u32 = 1;
/// `NBD_REP_INFO` about the export, and how long that is.
const INFO: u32 = 3;
const EXPORT: u32 = 12;
const SEND_FLUSH: u16 = 1 << 2;
const CAN_MULTI_CONN: u16 = 1 << 8;
/// The longest header that there is, with what is looked at behind it.
const HEADER_MAX: usize = 36;

/// That a request is done, as a server says it.
pub(super) fn done(cookie: u64) -> [u8; 16] {
    let mut reply = [0; 16];
    reply[..4].copy_from_slice(&SIMPLE.to_be_bytes());
    reply[8..].copy_from_slice(&cookie.to_be_bytes());
    reply
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Greeting,
    Options,
    Replies,
    Lost,
}

/// Follows the server.
pub(super) struct Replies {
    state: State,
    /// Bytes ahead that belong to what came, and whether the client has them.
    skip: u64,
    passed_on: bool,
    /// The beginning of a header.
    begun: Vec<u8>,
}

impl Replies {
    pub(super) const fn new() -> Self {
        Self { state: State::Greeting, skip: 0, passed_on: true, begun: Vec::new() }
    }

    /// Whether an answer has begun that the client has a part of.
    pub(super) const fn is_amid(&self) -> bool {
        self.skip > 0 && self.passed_on
    }

    /// Takes what came, and puts what the client is to have of it to `out`.
    pub(super) fn take(
        &mut self,
        mut bytes: &[u8],
        gate: &mut Gate,
        out: &mut VecDeque<u8>,
    ) -> Result<(), EarlyError> {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let len =
                    usize::try_from(self.skip).map_or(bytes.len(), |len| len.min(bytes.len()));
                let (now, rest) = bytes.split_at(len);
                if self.passed_on {
                    out.extend(now);
                }
                self.skip -= len as u64;
                bytes = rest;
                continue;
            }
            if self.state == State::Lost {
                gate.open();
                out.extend(bytes);
                return Ok(());
            }
            // Headers are put together, byte by byte if they come so.
            let before = self.begun.len();
            self.begun.extend(&bytes[..bytes.len().min(HEADER_MAX - before)]);
            let begun = std::mem::take(&mut self.begun);
            match self.header(&begun, gate, out)? {
                Some(len) => bytes = &bytes[len - before..],
                None if self.state == State::Lost => {
                    gate.open();
                    out.extend(&begun);
                    bytes = &bytes[begun.len() - before..];
                }
                None => {
                    self.begun = begun;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// How long the header is; `None`: not all of it is there, or it is none.
    fn header(
        &mut self,
        bytes: &[u8],
        gate: &mut Gate,
        out: &mut VecDeque<u8>,
    ) -> Result<Option<usize>, EarlyError> {
        Ok(match self.state {
            State::Greeting => {
                let begins = bytes.len().min(MAGIC.len());
                if bytes[..begins] != MAGIC[..begins] {
                    self.state = State::Lost;
                    return Ok(None);
                }
                let Some(greeting) = bytes.get(..GREETING) else { return Ok(None) };
                self.state = State::Options;
                out.extend(greeting);
                Some(GREETING)
            }
            State::Options => {
                let u32_at = |from| at(bytes, from).map(|bytes| u32::from_be_bytes(*bytes));
                if at(bytes, 0).is_some_and(|magic| u64::from_be_bytes(*magic) != ANSWER) {
                    self.state = State::Lost;
                    return Ok(None);
                }
                let (Some(option), Some(kind), Some(len)) = (u32_at(8), u32_at(12), u32_at(16))
                else {
                    return Ok(None);
                };
                let (mut whole, mut flags) = (20, None);
                if (option, kind) == (GO, INFO) && len >= EXPORT {
                    // u16 0, u64 size, u16 flags
                    let u16_at = |from| at(bytes, from).map(|bytes| u16::from_be_bytes(*bytes));
                    let (Some(what), Some(said)) = (u16_at(20), u16_at(30)) else {
                        return Ok(None);
                    };
                    if what == 0 {
                        gate.can_flush(said & SEND_FLUSH != 0);
                        flags = Some(said & !CAN_MULTI_CONN);
                    }
                    whole += EXPORT as usize;
                }
                match flags {
                    Some(flags) => {
                        out.extend(&bytes[..30]);
                        out.extend(flags.to_be_bytes());
                    }
                    None => out.extend(&bytes[..whole]),
                }
                (self.skip, self.passed_on) = (u64::from(len) - (whole as u64 - 20), true);
                if (option, kind) == (GO, ACK) {
                    self.state = State::Replies;
                }
                Some(whole)
            }
            State::Replies => self.reply(bytes, gate, out)?,
            State::Lost => None,
        })
    }

    fn reply(
        &mut self,
        bytes: &[u8],
        gate: &mut Gate,
        out: &mut VecDeque<u8>,
    ) -> Result<Option<usize>, EarlyError> {
        let u16_at = |from| at(bytes, from).map(|bytes| u16::from_be_bytes(*bytes));
        let u32_at = |from| at(bytes, from).map(|bytes| u32::from_be_bytes(*bytes));
        let u64_at = |from| at(bytes, from).map(|bytes| u64::from_be_bytes(*bytes));
        let Some(magic) = u32_at(0) else { return Ok(None) };
        let (header, error, is_last, len) = match magic {
            SIMPLE => (16, u32_at(4), true, None),
            CHUNK | LONG_CHUNK => {
                let header = if magic == CHUNK { 20 } else { 32 };
                let len = if magic == CHUNK { u32_at(16).map(u64::from) } else { u64_at(24) };
                let (Some(flags), Some(kind), Some(len)) = (u16_at(4), u16_at(6), len) else {
                    return Ok(None);
                };
                // Which error it is stands in what follows.
                let (header, error, len) = match kind & IS_ERROR {
                    0 => (header, Some(0), len),
                    _ if len < 4 => (header, Some(u32::from(kind)), len),
                    _ => (header + 4, u32_at(header).map(|error| error.max(1)), len - 4),
                };
                (header, error, flags & DONE != 0, Some(len))
            }
            _ => return Err(EarlyError::Unknown),
        };
        let (Some(bytes), Some(error)) = (bytes.get(..header), error) else { return Ok(None) };
        let cookie = u64::from_be_bytes(*at(bytes, 8).expect("it is in every header"));
        let one = gate.of(cookie).ok_or(EarlyError::NotAsked)?;
        if one.acknowledged && error != 0 {
            return Err(EarlyError::Failed { error, at: one.range.start });
        }
        let read = (one.kind == Kind::Read && error == 0).then(|| one.range.end - one.range.start);
        (self.skip, self.passed_on) = (len.or(read).unwrap_or(0), !one.acknowledged);
        if self.passed_on {
            out.extend(&bytes[..8]);
            out.extend(one.cookie.to_be_bytes());
            out.extend(&bytes[16..]);
        }
        if is_last {
            gate.done(cookie);
        }
        Ok(Some(header))
    }
}
