//! Where the pages are in QEMU's migration stream.
//!
//! ```text
//! "QEVM", u32 version 3
//! 07  u32 len, name of the machine type                       configuration
//! 08  u16 command, u16 len, payload                           command
//! 01  u32 section, u8 len, name, u32 instance, u32 version    begin of "ram"; then what is below
//! 02, 03  u32 section                                         more of it; the rest of it
//! 7e  u32 section                                             footer
//!
//! u64 address | flags, and unless CONTINUE u8 len, name of the memory block; then by flag:
//!   MEM_SIZE: for each block u8 len, name, u64 length, until all of it is named
//!   ZERO: u8    PAGE: 4096 bytes    XBZRLE: u8, u16 len, delta    EOS: the section ends
//! ```
//! Numbers are big endian (QEMU 7.2 to 9.0, `migration/ram.c`, `savevm.c`, docs/devel/migration). What
//! is not understood, and with it all that follows, is bytes: the state of devices has no lengths.
//! A stream that is understood wrongly costs room on the line and nothing else: who puts it together
//! again does not ask this parser.

use std::collections::VecDeque;

use super::multifd::{self, Unknown, packet};
use super::parse::{Parser, Piece, at};

#[cfg(test)]
pub(super) mod tests;

const PAGE: usize = super::codec::PAGE;

const CONFIGURATION: u8 = 0x07;
const COMMAND: u8 = 0x08;
const SECTION_START: u8 = 0x01;
const SECTION_PART: u8 = 0x02;
const SECTION_END: u8 = 0x03;
const SECTION_FOOTER: u8 = 0x7e;

const FLAG_ZERO: u64 = 0x02;
const FLAG_MEM_SIZE: u64 = 0x04;
const FLAG_PAGE: u64 = 0x08;
const FLAG_EOS: u64 = 0x10;
const FLAG_CONTINUE: u64 = 0x20;
const FLAG_XBZRLE: u64 = 0x40;
const FLAG_MULTIFD_FLUSH: u64 = 0x200;

/// Memory blocks that are told apart; a VM has some ten.
const BLOCKS_MAX: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Begin,
    /// Before the type of a section.
    Section,
    /// Before the header of a page.
    Pages,
    /// Before the name of a block of memory, so many bytes of which are not named yet.
    Sizes(u64),
    /// Before what belongs to this header.
    Content(u64),
    /// Before a packet of a channel, or among its pages.
    Channel,
    /// It is not understood.
    Lost,
}

/// Follows one stream of memory.
#[derive(Debug)]
pub(super) struct RamParser {
    state: State,
    section: Option<u32>,
    /// Bytes ahead that mean nothing here.
    skip: usize,
    /// Names seen before pages; the index of the one in force.
    blocks: Vec<Vec<u8>>,
    block: usize,
    /// Pages of a channel's packet that are still to come.
    coming: VecDeque<u64>,
    progress: Progress,
}

/// Pages of a VM's memory.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Progress {
    pub(super) all: u64,
    /// Those that were sent, again and again where they were.
    pub(super) sent: u64,
}

impl RamParser {
    pub(super) const fn new() -> Self {
        Self {
            state: State::Begin,
            section: None,
            skip: 0,
            blocks: Vec::new(),
            block: 0,
            coming: VecDeque::new(),
            progress: Progress { all: 0, sent: 0 },
        }
    }

    /// What it has seen since it was asked last.
    pub(super) fn take_progress(&mut self) -> Progress {
        std::mem::take(&mut self.progress)
    }

    /// Whether it is one of several channels for pages.
    pub(super) fn is_channel(&self) -> bool {
        self.state == State::Channel
    }

    /// `len` bytes that only have to be passed.
    fn pass(&mut self, len: usize, then: State, have: usize) -> Piece {
        self.state = then;
        let now = len.min(have);
        self.skip = len - now;
        Piece::Bytes(now)
    }

    fn lost(&mut self, have: usize) -> Piece {
        self.state = State::Lost;
        Piece::Bytes(have)
    }

    fn section(&mut self, bytes: &[u8]) -> Option<Piece> {
        let have = bytes.len();
        let section = |at| Some(u32::from_be_bytes(at_4(bytes, at)?));
        match bytes[0] {
            CONFIGURATION => {
                let len = u32::from_be_bytes(at_4(bytes, 1)?);
                Some(match usize::try_from(len) {
                    Ok(len) if len < 4096 => self.pass(5 + len, State::Section, have),
                    _ => self.lost(have),
                })
            }
            COMMAND => {
                let len = u16::from_be_bytes(*at(bytes, 3)?);
                Some(self.pass(5 + usize::from(len), State::Section, have))
            }
            SECTION_START => {
                let id = section(1)?;
                let len = usize::from(*bytes.get(5)?);
                let name = bytes.get(6..6 + len)?;
                at::<8>(bytes, 6 + len)?;
                if name != b"ram" || self.section.is_some() {
                    return Some(self.lost(have));
                }
                self.section = Some(id);
                Some(self.pass(6 + len + 8, State::Pages, have))
            }
            SECTION_PART | SECTION_END if Some(section(1)?) == self.section => {
                Some(self.pass(5, State::Pages, have))
            }
            SECTION_FOOTER if Some(section(1)?) == self.section => {
                Some(self.pass(5, State::Section, have))
            }
            _ => Some(self.lost(have)),
        }
    }

    /// What follows is of the memory block of that name; `false` where there are too many.
    fn enter(&mut self, name: &[u8]) -> bool {
        let known = self.blocks.iter().position(|block| block == name);
        self.block = known.unwrap_or(self.blocks.len());
        if known.is_none() && self.blocks.len() < BLOCKS_MAX {
            self.blocks.push(name.to_vec());
        }
        self.block < self.blocks.len()
    }

    fn channel(&mut self, bytes: &[u8]) -> Option<Piece> {
        if let Some(page) = self.coming.front() {
            bytes.get(..PAGE)?;
            let place = (self.block, *page);
            self.progress.sent += 1;
            self.coming.pop_front();
            return Some(Piece::Page { place });
        }
        match packet(bytes) {
            Ok(None) => None,
            Ok(Some(packet)) if self.enter(packet.block) => {
                self.coming = packet.pages.into();
                Some(Piece::Bytes(packet.len))
            }
            Ok(Some(_)) | Err(Unknown) => Some(self.lost(bytes.len())),
        }
    }

    fn header(&mut self, bytes: &[u8]) -> Option<Piece> {
        let header = u64::from_be_bytes(*at(bytes, 0)?);
        let flags = header & 0xfff;
        self.state = match flags & !FLAG_CONTINUE {
            FLAG_MEM_SIZE => {
                self.progress.all = header >> 12;
                State::Sizes(header & !0xfff)
            }
            FLAG_EOS => State::Section,
            FLAG_MULTIFD_FLUSH => State::Pages,
            FLAG_ZERO | FLAG_PAGE | FLAG_XBZRLE => {
                if flags & FLAG_CONTINUE == 0 {
                    let name = named(bytes, 8)?;
                    if !self.enter(name) {
                        return Some(self.lost(bytes.len()));
                    }
                    self.state = State::Content(header);
                    return Some(Piece::Bytes(8 + 1 + name.len()));
                }
                State::Content(header)
            }
            _ => return Some(self.lost(bytes.len())),
        };
        Some(Piece::Header(header))
    }

    fn content(&mut self, header: u64, bytes: &[u8]) -> Option<Piece> {
        let have = bytes.len();
        let piece = match header & 0xfff & !FLAG_CONTINUE {
            FLAG_PAGE => {
                bytes.get(..PAGE)?;
                self.state = State::Pages;
                Piece::Page { place: (self.block, header >> 12) }
            }
            FLAG_XBZRLE => {
                let len = u16::from_be_bytes(*at(bytes, 1)?);
                self.pass(3 + usize::from(len), State::Pages, have)
            }
            _ => self.pass(1, State::Pages, have),
        };
        self.progress.sent += 1;
        Some(piece)
    }

    fn sizes(&mut self, left: u64, bytes: &[u8]) -> Option<Piece> {
        let name = named(bytes, 0)?;
        let len = 1 + name.len();
        let size = u64::from_be_bytes(*at(bytes, len)?);
        Some(match left.checked_sub(size) {
            Some(0) => self.pass(len + 8, State::Pages, bytes.len()),
            Some(left) => self.pass(len + 8, State::Sizes(left), bytes.len()),
            None => self.lost(bytes.len()),
        })
    }
}

impl Parser for RamParser {
    fn next(&mut self, bytes: &[u8]) -> Option<Piece> {
        if bytes.is_empty() {
            return None;
        }
        if self.skip > 0 {
            return Some(self.pass(self.skip, self.state, bytes.len()));
        }
        match self.state {
            State::Begin => {
                let begins = at::<8>(bytes, 0)?;
                Some(if begins == b"QEVM\0\0\0\x03" {
                    self.pass(8, State::Section, bytes.len())
                } else if begins == multifd::MAGIC {
                    self.pass(multifd::BEGIN, State::Channel, bytes.len())
                } else {
                    self.lost(bytes.len())
                })
            }
            State::Section => self.section(bytes),
            State::Pages => self.header(bytes),
            State::Sizes(left) => self.sizes(left, bytes),
            State::Content(header) => self.content(header, bytes),
            State::Channel => self.channel(bytes),
            State::Lost => Some(Piece::Bytes(bytes.len())),
        }
    }
}

fn at_4(bytes: &[u8], from: usize) -> Option<[u8; 4]> {
    at(bytes, from).copied()
}

/// A name with its length before it.
fn named(bytes: &[u8], from: usize) -> Option<&[u8]> {
    let len = usize::from(*bytes.get(from)?);
    bytes.get(from + 1..from + 1 + len)
}
