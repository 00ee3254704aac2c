//! Where the blocks are in what an NBD client says.
//!
//! ```text
//! u32 flags of the client
//! "IHAVEOPT", u32 option, u32 len, data                                                  options
//! u32 25609513, u16 flags, u16 type, u64 cookie, u64 offset, u32 length, payload         requests
//! u32 21e41c71, u16 flags, u16 type, u64 cookie, u64 offset, u64 length, payload         long ones
//! ```
//! A request is followed by so many bytes of payload as its length says where it writes (type 1), or
//! where its flags say so (`PAYLOAD_LEN`, long ones only). Numbers are big endian (the NBD project's
//! doc/proto.md). Whatever else comes, and all that follows it, is bytes: TLS, for one.

use super::parse::{Parser, Piece, at};

#[cfg(test)]
pub(super) mod tests;

const PAGE: u64 = super::codec::PAGE as u64;
pub(super) const OPTION: &[u8; 8] = b"IHAVEOPT";
pub(super) const REQUEST: u32 = 0x2560_9513;
pub(super) const LONG_REQUEST: u32 = 0x21e4_1c71;
const WRITE: u16 = 1;
pub(super) const PAYLOAD_LEN: u16 = 1 << 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Begin,
    Message,
    Lost,
}

/// Follows one connection to a disk.
#[derive(Debug)]
pub(super) struct NbdParser {
    state: State,
    /// Bytes ahead that mean nothing here.
    skip: u64,
    /// Bytes ahead that are written, and where to.
    write: u64,
    offset: u64,
}

impl NbdParser {
    pub(super) const fn new() -> Self {
        Self { state: State::Begin, skip: 0, write: 0, offset: 0 }
    }

    /// `len` bytes that only have to be passed.
    fn pass(&mut self, len: u64, have: usize) -> Piece {
        let now = usize::try_from(len).map_or(have, |len| len.min(have));
        self.skip = len - now as u64;
        Piece::Bytes(now)
    }

    /// Blocks begin where they do on the disk.
    fn payload(&mut self, bytes: &[u8]) -> Option<Piece> {
        let to_boundary = (PAGE - self.offset % PAGE) % PAGE;
        let len = if to_boundary == 0 && self.write >= PAGE {
            bytes.get(..super::codec::PAGE)?;
            PAGE
        } else {
            let len = if to_boundary == 0 { self.write } else { to_boundary.min(self.write) };
            usize::try_from(len).map_or(bytes.len(), |len| len.min(bytes.len())) as u64
        };
        let place = (0, self.offset / PAGE);
        self.write -= len;
        // A client may claim to write beyond what can be counted.
        self.offset = self.offset.wrapping_add(len);
        Some(if len == PAGE {
            Piece::Page { place }
        } else {
            Piece::Bytes(usize::try_from(len).expect("it is below a page"))
        })
    }

    fn message(&mut self, bytes: &[u8]) -> Option<Piece> {
        let have = bytes.len();
        let u16_at = |from| Some(u16::from_be_bytes(*at(bytes, from)?));
        let u32_at = |from| Some(u32::from_be_bytes(*at(bytes, from)?));
        let u64_at = |from| Some(u64::from_be_bytes(*at(bytes, from)?));
        let magic = u32_at(0)?;
        if &magic.to_be_bytes() == OPTION.first_chunk::<4>().expect("it has eight") {
            let len = u32_at(12)?;
            return Some(if at(bytes, 0)? == OPTION {
                self.pass(16 + u64::from(len), have)
            } else {
                self.lost(have)
            });
        }
        let (header, payload) = match magic {
            REQUEST => (28, (u16_at(6)? == WRITE).then_some(u64::from(u32_at(24)?))),
            LONG_REQUEST => {
                let length = u64_at(24)?;
                let carries = u16_at(6)? == WRITE || u16_at(4)? & PAYLOAD_LEN != 0;
                (32, carries.then_some(length))
            }
            _ => return Some(self.lost(have)),
        };
        let offset = u64_at(16)?;
        at::<0>(bytes, header)?;
        if u16_at(6)? == WRITE {
            (self.write, self.offset) = (payload.unwrap_or(0), offset);
            return Some(Piece::Bytes(header));
        }
        let len = (header as u64).checked_add(payload.unwrap_or(0));
        Some(match len {
            Some(len) => self.pass(len, have),
            None => self.lost(have),
        })
    }

    fn lost(&mut self, have: usize) -> Piece {
        self.state = State::Lost;
        Piece::Bytes(have)
    }
}

impl Parser for NbdParser {
    fn next(&mut self, bytes: &[u8]) -> Option<Piece> {
        if bytes.is_empty() {
            return None;
        }
        if self.skip > 0 {
            return Some(self.pass(self.skip, bytes.len()));
        }
        if self.write > 0 {
            return self.payload(bytes);
        }
        match self.state {
            State::Begin => {
                at::<4>(bytes, 0)?;
                self.state = State::Message;
                Some(self.pass(4, bytes.len()))
            }
            State::Message => self.message(bytes),
            State::Lost => Some(Piece::Bytes(bytes.len())),
        }
    }
}
