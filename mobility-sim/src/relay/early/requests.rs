//! What an NBD client says, request by request. Its options come first: [`super::super::nbd`] has the shapes.

use std::collections::VecDeque;
use std::ops::Range;

use super::super::nbd::{LONG_REQUEST, OPTION, PAYLOAD_LEN, REQUEST};
use super::super::parse::at;

/// Force unit access: it is done when it is on stable storage.
const FUA: u16 = 1;
/// It fails if it would take as long as a write, and nothing is wrong then.
const FAST_ZERO: u16 = 1 << 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    Disconnect,
    Trim,
    Zeroes,
    /// Flush, block status and whatever there will be.
    Other,
}

impl Kind {
    const fn of(number: u16) -> Self {
        match number {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::Disconnect,
            4 => Self::Trim,
            6 => Self::Zeroes,
            _ => Self::Other,
        }
    }

    pub(super) const fn is_write(self) -> bool {
        matches!(self, Self::Write | Self::Trim | Self::Zeroes)
    }
}

pub(super) struct Request {
    pub(super) kind: Kind,
    /// Its answer is waited for.
    pub(super) is_forced: bool,
    pub(super) cookie: u64,
    offset: u64,
    length: u64,
    payload: u64,
    header: usize,
}

impl Request {
    pub(super) const fn range(&self) -> Range<u64> {
        self.offset..self.offset.saturating_add(self.length)
    }

    /// `None`: it is none, or not all of it is there.
    fn read(bytes: &[u8]) -> Option<Self> {
        let u16_at = |from| Some(u16::from_be_bytes(*at(bytes, from)?));
        let u64_at = |from| Some(u64::from_be_bytes(*at(bytes, from)?));
        let (flags, number) = (u16_at(4)?, u16_at(6)?);
        let (header, length, says_payload) = match u32::from_be_bytes(*at(bytes, 0)?) {
            REQUEST => (28, u64::from(u32::from_be_bytes(*at(bytes, 24)?)), false),
            LONG_REQUEST => (32, u64_at(24)?, flags & PAYLOAD_LEN != 0),
            _ => return None,
        };
        let kind = Kind::of(number);
        let payload = if kind == Kind::Write || says_payload { length } else { 0 };
        Some(Self {
            kind,
            is_forced: flags & (FUA | FAST_ZERO) != 0,
            cookie: u64_at(8)?,
            offset: u64_at(16)?,
            length,
            payload,
            header,
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Begin,
    Message,
    Lost,
}

/// Follows the client.
pub(super) struct Requests {
    state: State,
    /// Bytes ahead that belong to what was let go.
    skip: u64,
    /// Of those that were let go and not handed out: cookies, and where in the stream they end.
    open: VecDeque<(u64, u64)>,
    /// How many bytes were let go, and handed out.
    let_go: u64,
    handed_out: u64,
}

/// The longest header.
const HEADER_MAX: usize = 32;

impl Requests {
    pub(super) const fn new() -> Self {
        Self { state: State::Begin, skip: 0, open: VecDeque::new(), let_go: 0, handed_out: 0 }
    }

    /// From now on, or where the request that is under way ends, everything is bytes.
    pub(super) const fn lose(&mut self) {
        self.state = State::Lost;
    }

    /// Whether what it waits for is there.
    pub(super) fn has_whole(&self, bytes: &[u8]) -> bool {
        bytes.len() >= HEADER_MAX || Request::read(bytes).is_some()
    }

    /// How many bytes may go now; a request only with what `admit` calls it, and only so. `None`: none.
    pub(super) fn next(
        &mut self,
        bytes: &mut [u8],
        admit: impl FnOnce(&Request) -> Option<u64>,
    ) -> Option<usize> {
        if self.skip > 0 {
            let now = usize::try_from(self.skip).map_or(bytes.len(), |len| len.min(bytes.len()));
            self.skip -= now as u64;
            self.let_go += now as u64;
            return Some(now);
        }
        match self.state {
            State::Lost => Some(self.pass(bytes.len() as u64, bytes.len())),
            State::Begin => {
                at::<4>(bytes, 0)?;
                self.state = State::Message;
                Some(self.pass(4, 4))
            }
            State::Message => self.message(bytes, admit),
        }
    }

    /// `len` bytes belong together; how many of them are there.
    fn pass(&mut self, len: u64, have: usize) -> usize {
        let now = usize::try_from(len).map_or(have, |len| len.min(have));
        self.skip = len - now as u64;
        self.let_go += now as u64;
        now
    }

    fn message(
        &mut self,
        bytes: &mut [u8],
        admit: impl FnOnce(&Request) -> Option<u64>,
    ) -> Option<usize> {
        let magic = u32::from_be_bytes(*at(bytes, 0)?);
        if magic.to_be_bytes() == OPTION[..4] {
            let option: &[u8; 8] = at(bytes, 0)?;
            if option != OPTION {
                self.lose();
                return Some(self.pass(bytes.len() as u64, bytes.len()));
            }
            let len = 16 + u64::from(u32::from_be_bytes(*at(bytes, 12)?));
            return Some(self.pass(len, bytes.len()));
        }
        if magic != REQUEST && magic != LONG_REQUEST {
            self.lose();
            return Some(self.pass(bytes.len() as u64, bytes.len()));
        }
        let request = Request::read(bytes)?;
        let cookie = admit(&request)?;
        bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
        let len = (request.header as u64).saturating_add(request.payload);
        self.open.push_back((cookie, self.let_go.saturating_add(len)));
        Some(self.pass(len, bytes.len()))
    }

    /// So many bytes went: requests that end in them are told.
    pub(super) fn handed_out(&mut self, len: usize, gone: &mut Vec<u64>) {
        self.handed_out += len as u64;
        while let Some((cookie, end)) = self.open.front()
            && *end <= self.handed_out
        {
            gone.push(*cookie);
            self.open.pop_front();
        }
    }
}
