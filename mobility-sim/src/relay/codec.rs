//! A stretch of a stream as a program: what the other end has is named, the rest is enclosed.
//!
//! ```text
//! varint  length of the instructions
//! the instructions, then what they enclose, in their order
//!
//! 0 ENCLOSED  varint len                  len bytes
//! 1 HEADER    (8 enclosed)                they are a header, big endian: page number and flags (12 bits)
//! 2 STEP      varint flags, zigzag pages  a header so many pages from the last one
//! 3 PAGE      (4096 enclosed)             a page, to be kept
//! 4 SAME      zigzag slot                 the page in the slot
//! 5 BLOCK     varint disk, zigzag slot    the block in that slot of the disk
//! 6 DELTA     zigzag slot (4096 enclosed) the page in the slot, XOR; it takes its place
//! 7 ZEROS                                 a page of zeros
//! 8 MEMORY    varint room                 pages of this connection are kept in a ring of so many
//! 9 DISK      varint number               pages of this connection are blocks of that disk
//! ```
//! Slots are relative to the one that the same instruction would name next: the last one and one.
//! The end that plays a program knows nothing of what streams mean: what the other end misunderstood
//! comes out all the same.

use std::sync::Arc;

use super::RelayError;
use super::block::BLOCK_MAX;
use super::parse::{AnyParser, Parser, Piece};
use super::store::{IndexedRing, Migration, Ring, hash};

#[cfg(test)]
mod tests;

pub(super) const PAGE: usize = 4096;
pub(super) type Page = [u8; PAGE];

/// The longest program: a header of eight bytes takes at most nine, a byte between two of them three.
pub(super) const PROGRAM_MAX: usize = 2 * BLOCK_MAX;

const ENCLOSED: u8 = 0;
const HEADER: u8 = 1;
const STEP: u8 = 2;
const PAGE_KEPT: u8 = 3;
const SAME: u8 = 4;
const BLOCK: u8 = 5;
const DELTA: u8 = 6;
const ZEROS: u8 = 7;
const MEMORY: u8 = 8;
const DISK: u8 = 9;

/// A page of which more eighths of words changed is sent anew: what it was before is of no help.
const CHANGED_MAX: usize = 6;
/// Steps beyond it take more than a header does.
const STEP_MAX: i64 = 1 << 26;

/// What the pages of the stream are.
enum Kept {
    Nothing,
    Memory(Box<IndexedRing>),
    /// Its number.
    Disk(u16),
}

/// Makes programs of a stream.
pub(super) struct Composer {
    migration: Arc<Migration>,
    parser: AnyParser,
    kept: Kept,
    open: bool,
    instructions: Vec<u8>,
    enclosed: Vec<u8>,
    /// Bytes enclosed at the end that the last instruction, an ENCLOSED, does not count yet.
    loose: usize,
    program: Vec<u8>,
    /// Of the next piece, what has gone already.
    gone: usize,
    header: u64,
    slot: u64,
    block: u64,
}

impl Composer {
    pub(super) fn new(parser: AnyParser, migration: Arc<Migration>) -> Self {
        Self {
            migration,
            parser,
            kept: Kept::Nothing,
            open: false,
            instructions: Vec::new(),
            enclosed: Vec::new(),
            loose: 0,
            program: Vec::new(),
            gone: 0,
            header: 0,
            slot: 0,
            block: 0,
        }
    }

    /// The disk that this connection is of.
    pub(super) const fn disk(&self) -> Option<u16> {
        match self.kept {
            Kept::Disk(number) => Some(number),
            Kept::Nothing | Kept::Memory(_) => None,
        }
    }

    /// Makes a program for what the bytes begin with, and says how many of them are done with. The rest
    /// is fewer than a page, of which more has to come; they are to be shown again in front of it.
    pub(super) fn compose(&mut self, bytes: &[u8]) -> usize {
        let mut at = 0;
        while let Some(piece) = self.parser.next(&bytes[at..]) {
            let len = match piece {
                Piece::Bytes(len) => len,
                Piece::Header(_) => 8,
                Piece::Page { .. } => PAGE,
            };
            let (gone, piece_bytes) = (self.gone.min(len), &bytes[at..at + len]);
            self.gone -= gone;
            match (piece, piece_bytes.first_chunk()) {
                (Piece::Header(header), _) if gone == 0 => self.header(header),
                (Piece::Page { place }, Some(page)) if gone == 0 => self.page(place, page),
                _ => self.enclose(&piece_bytes[gone..]),
            }
            at += len;
        }
        self.finish();
        at
    }

    /// Makes a program for what is left of them: nothing more has come. They are to be shown again all
    /// the same.
    pub(super) fn rest(&mut self, bytes: &[u8]) {
        let gone = self.gone.min(bytes.len());
        self.enclose(&bytes[gone..]);
        self.gone = bytes.len();
        self.finish();
    }

    /// The program made last.
    pub(super) fn program(&self) -> &[u8] {
        &self.program
    }

    /// Whether [`Composer::rest`] would have anything to say.
    pub(super) const fn has_rest(&self, bytes: &[u8]) -> bool {
        bytes.len() > self.gone
    }

    fn enclose(&mut self, bytes: &[u8]) {
        self.enclosed.extend_from_slice(bytes);
        self.loose += bytes.len();
    }

    fn say(&mut self, instruction: u8) {
        self.count_loose();
        self.instructions.push(instruction);
    }

    fn count_loose(&mut self) {
        if self.loose > 0 {
            self.instructions.push(ENCLOSED);
            put_varint(&mut self.instructions, self.loose as u64);
            self.loose = 0;
        }
    }

    fn finish(&mut self) {
        self.count_loose();
        self.program.clear();
        if !self.instructions.is_empty() {
            put_varint(&mut self.program, self.instructions.len() as u64);
            self.program.append(&mut self.instructions);
            self.program.append(&mut self.enclosed);
        }
    }

    fn header(&mut self, header: u64) {
        let pages = i64::try_from(header >> 12).unwrap_or(i64::MAX)
            - i64::try_from(self.header >> 12).unwrap_or(0);
        if pages.abs() > STEP_MAX {
            self.say(HEADER);
            self.enclosed.extend_from_slice(&header.to_be_bytes());
        } else {
            self.say(STEP);
            put_varint(&mut self.instructions, header & 0xfff);
            put_varint(&mut self.instructions, zigzag(pages));
        }
        self.header = header;
    }

    fn page(&mut self, place: (usize, u64), page: &Page) {
        if !self.open {
            self.open();
        }
        if page.iter().all(|byte| *byte == 0) {
            return self.say(ZEROS);
        }
        let hash = hash(page);
        if let Kept::Memory(ring) = &mut self.kept
            && let Some(slot) = ring.find(&hash)
        {
            ring.place(place, slot);
            return self.name(SAME, slot);
        }
        if let Some((disk, slot)) = self.migration.find(&hash, self.disk()) {
            self.say(BLOCK);
            put_varint(&mut self.instructions, u64::from(disk));
            let slot = u64::from(slot);
            put_varint(&mut self.instructions, relative(slot, &mut self.block));
            return;
        }
        match &mut self.kept {
            Kept::Nothing => self.enclose(page),
            Kept::Disk(number) => {
                if self.migration.keep(hash, *number) {
                    self.say(PAGE_KEPT);
                    self.enclosed.extend_from_slice(page);
                } else {
                    self.enclose(page);
                }
            }
            Kept::Memory(ring) => {
                if let Some((slot, before)) = ring.before(place)
                    && let Some(delta) = delta(before, page)
                {
                    ring.replace(slot, hash, page);
                    self.name(DELTA, slot);
                    self.enclosed.extend_from_slice(&delta);
                } else if ring.push(place, hash, page) {
                    self.say(PAGE_KEPT);
                    self.enclosed.extend_from_slice(page);
                } else {
                    self.enclose(page);
                }
            }
        }
    }

    /// Only now is it seen that the stream has pages.
    fn open(&mut self) {
        self.open = true;
        match self.parser {
            AnyParser::Ram(_) => {
                let room = self.migration.take_memory();
                if room > 0 {
                    self.say(MEMORY);
                    put_varint(&mut self.instructions, u64::from(room));
                    self.kept = Kept::Memory(Box::new(IndexedRing::new(room)));
                }
            }
            AnyParser::Nbd(_) => {
                if let Some(number) = self.migration.add_disk() {
                    self.say(DISK);
                    put_varint(&mut self.instructions, u64::from(number));
                    self.kept = Kept::Disk(number);
                }
            }
        }
    }

    fn name(&mut self, instruction: u8, slot: u64) {
        self.say(instruction);
        put_varint(&mut self.instructions, relative(slot, &mut self.slot));
    }
}

/// What a page plays into.
enum Playing {
    Nothing,
    Memory(Ring),
    Disk { number: u16, slots: u32 },
}

/// Plays the programs of one connection.
pub(super) struct Player {
    migration: Arc<Migration>,
    kept: Playing,
    out: Vec<u8>,
    header: u64,
    slot: u64,
    block: u64,
}

impl Player {
    pub(super) const fn new(migration: Arc<Migration>) -> Self {
        let kept = Playing::Nothing;
        Self { migration, kept, out: Vec::new(), header: 0, slot: 0, block: 0 }
    }

    /// Whether anything may be kept.
    pub(super) fn has_room(&self) -> bool {
        self.migration.has_room()
    }

    /// Blocks of a disk that it has; `None` where it is none.
    pub(super) const fn blocks(&self) -> Option<u32> {
        match self.kept {
            Playing::Disk { slots, .. } => Some(slots),
            Playing::Nothing | Playing::Memory(_) => None,
        }
    }

    /// What it amounts to, at most [`BLOCK_MAX`] bytes.
    pub(super) fn play(&mut self, program: &[u8]) -> Result<&[u8], RelayError> {
        self.out.clear();
        self.run(program).map_err(|what| RelayError::Protocol { what })?;
        Ok(&self.out)
    }

    fn run(&mut self, mut program: &[u8]) -> Result<(), &'static str> {
        let len = usize::try_from(take_varint(&mut program)?).map_err(|_| SHORT)?;
        let (mut instructions, mut enclosed) = program.split_at_checked(len).ok_or(SHORT)?;
        while let Some((instruction, rest)) = instructions.split_first() {
            instructions = rest;
            self.step(*instruction, &mut instructions, &mut enclosed)?;
            if self.out.len() > BLOCK_MAX {
                return Err("a program that amounts to more than a block");
            }
        }
        if enclosed.is_empty() { Ok(()) } else { Err("a program that leaves something over") }
    }

    fn step(
        &mut self,
        instruction: u8,
        arguments: &mut &[u8],
        enclosed: &mut &[u8],
    ) -> Result<(), &'static str> {
        const UNKNOWN: &str = "a page that was never sent";
        match instruction {
            ENCLOSED => {
                let len = usize::try_from(take_varint(arguments)?).map_err(|_| SHORT)?;
                let (bytes, rest) = enclosed.split_at_checked(len).ok_or(SHORT)?;
                *enclosed = rest;
                self.out.extend_from_slice(bytes);
            }
            HEADER => {
                let header: &[u8; 8] = take(enclosed)?;
                self.header = u64::from_be_bytes(*header);
                self.out.extend_from_slice(header);
            }
            STEP => {
                let flags = take_varint(arguments)? & 0xfff;
                let pages = unzigzag(take_varint(arguments)?);
                let page = (self.header >> 12).wrapping_add_signed(pages);
                self.header = page << 12 | flags;
                self.out.extend_from_slice(&self.header.to_be_bytes());
            }
            PAGE_KEPT => {
                let page: &Page = take(enclosed)?;
                self.out.extend_from_slice(page);
                let kept = match &mut self.kept {
                    Playing::Nothing => false,
                    Playing::Memory(ring) => ring.push(page),
                    Playing::Disk { number, slots } => {
                        let slot = self.migration.receive_block(*number, page);
                        slot.is_some_and(|slot| {
                            *slots = slot + 1;
                            true
                        })
                    }
                };
                if !kept {
                    return Err("more pages to keep than there is room for");
                }
            }
            SAME => {
                let slot = absolute(take_varint(arguments)?, &mut self.slot);
                let Playing::Memory(ring) = &self.kept else { return Err(UNKNOWN) };
                self.out.extend_from_slice(ring.get(slot).ok_or(UNKNOWN)?);
            }
            BLOCK => {
                let disk = u16::try_from(take_varint(arguments)?).map_err(|_| UNKNOWN)?;
                let slot = absolute(take_varint(arguments)?, &mut self.block);
                let slot = u32::try_from(slot).map_err(|_| UNKNOWN)?;
                self.migration.append_block(disk, slot, &mut self.out).ok_or(UNKNOWN)?;
            }
            DELTA => {
                let slot = absolute(take_varint(arguments)?, &mut self.slot);
                let delta: &Page = take(enclosed)?;
                let Playing::Memory(ring) = &mut self.kept else { return Err(UNKNOWN) };
                let page = ring.get_mut(slot).ok_or(UNKNOWN)?;
                page.iter_mut().zip(delta).for_each(|(byte, delta)| *byte ^= delta);
                self.out.extend_from_slice(page);
            }
            ZEROS => self.out.extend_from_slice(&[0; PAGE]),
            MEMORY | DISK if !matches!(self.kept, Playing::Nothing) => {
                return Err("a connection of two kinds");
            }
            MEMORY => {
                let room = u32::try_from(take_varint(arguments)?).map_err(|_| SHORT)?;
                if !self.migration.grant_memory(room) {
                    return Err("it wants more memory than it is given here");
                }
                self.kept = Playing::Memory(Ring::new(room));
            }
            DISK => {
                let number = u16::try_from(take_varint(arguments)?).map_err(|_| SHORT)?;
                if !self.migration.receive_disk(number) {
                    return Err("two disks of one number");
                }
                self.kept = Playing::Disk { number, slots: 0 };
            }
            _ => return Err("an instruction that there is not"),
        }
        Ok(())
    }
}

const SHORT: &str = "a program that ends too early";

/// How a page differs from the one before; `None` where that is not worth it.
fn delta(before: &Page, page: &Page) -> Option<Page> {
    let mut delta = [0; PAGE];
    let mut changed = 0;
    let words = before.as_chunks::<8>().0.iter().zip(page.as_chunks::<8>().0);
    for ((before, now), delta) in words.zip(delta.as_chunks_mut::<8>().0) {
        let word = u64::from_ne_bytes(*before) ^ u64::from_ne_bytes(*now);
        changed += usize::from(word != 0);
        *delta = word.to_ne_bytes();
    }
    (changed <= PAGE / 8 / 8 * CHANGED_MAX).then_some(delta)
}

fn relative(slot: u64, next: &mut u64) -> u64 {
    let distance = zigzag(slot.wrapping_sub(*next).cast_signed());
    *next = slot.wrapping_add(1);
    distance
}

fn absolute(distance: u64, next: &mut u64) -> u64 {
    let slot = next.wrapping_add_signed(unzigzag(distance));
    *next = slot.wrapping_add(1);
    slot
}

const fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)).cast_unsigned()
}

const fn unzigzag(number: u64) -> i64 {
    (number >> 1).cast_signed() ^ -(number & 1).cast_signed()
}

fn put_varint(to: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        to.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    to.push(number.to_le_bytes()[0]);
}

fn take_varint(from: &mut &[u8]) -> Result<u64, &'static str> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = from.split_first().ok_or(SHORT)?;
        *from = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err("a number that is too large")
}

fn take<'a, const N: usize>(from: &mut &'a [u8]) -> Result<&'a [u8; N], &'static str> {
    let (taken, rest) = from.split_first_chunk().ok_or(SHORT)?;
    *from = rest;
    Ok(taken)
}
