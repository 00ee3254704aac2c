//! The end that sends: a stream into programs.

use std::sync::Arc;

use super::super::parse::{AnyParser, Parser, Piece};
use super::super::store::{IndexedRing, Migration, hash};
use super::super::toll::Pages;
use super::{
    BLOCK, DELTA, DISK, ENCLOSED, HEADER, MEMORY, PAGE, PAGE_KEPT, Page, SAME, STEP, ZEROS,
    put_varint, relative, zigzag,
};

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
pub(in super::super) struct Composer {
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
    pages: Pages,
    left: u64,
}

impl Composer {
    pub(in super::super) fn new(parser: AnyParser, migration: Arc<Migration>) -> Self {
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
            pages: Pages::default(),
            left: 0,
        }
    }

    pub(in super::super) fn migration(&self) -> &Migration {
        &self.migration
    }

    /// The disk that this connection is of.
    pub(in super::super) const fn disk(&self) -> Option<u16> {
        match self.kept {
            Kept::Disk(number) => Some(number),
            Kept::Nothing | Kept::Memory(_) => None,
        }
    }

    /// Makes a program for what the bytes begin with, and says how many of them are done with. The rest
    /// is fewer than a page, of which more has to come; they are to be shown again in front of it.
    pub(in super::super) fn compose(&mut self, bytes: &[u8]) -> usize {
        self.pages = Pages::default();
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
        self.left =
            self.parser.take_progress().map_or(u64::MAX, |progress| self.migration.went(progress));
        self.finish();
        at
    }

    /// Pages of what was composed last.
    pub(in super::super) const fn pages(&self) -> Pages {
        self.pages
    }

    /// Pages of memory that no connection has carried yet; any number, where it is none of memory.
    pub(in super::super) const fn left(&self) -> u64 {
        self.left
    }

    /// Makes a program for what is left of them: nothing more has come. They are to be shown again all
    /// the same.
    pub(in super::super) fn rest(&mut self, bytes: &[u8]) {
        let gone = self.gone.min(bytes.len());
        self.enclose(&bytes[gone..]);
        self.gone = bytes.len();
        self.pages = Pages::default();
        self.finish();
    }

    /// The program made last.
    pub(in super::super) fn program(&self) -> &[u8] {
        &self.program
    }

    /// Whether [`Composer::rest`] would have anything to say.
    pub(in super::super) const fn has_rest(&self, bytes: &[u8]) -> bool {
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
            self.pages.named += 1;
            return self.say(ZEROS);
        }
        let hash = hash(page);
        self.pages.named += 1;
        if let Kept::Memory(ring) = &mut self.kept
            && let Some(slot) = ring.find(&hash, page)
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
        self.pages.named -= 1;
        self.pages.sent += 1;
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
        match &self.parser {
            AnyParser::Ram(parser) => {
                let room = self.migration.take_memory(parser.is_channel());
                if room > 0
                    && let Some(ring) = IndexedRing::new(room)
                {
                    self.say(MEMORY);
                    put_varint(&mut self.instructions, u64::from(room));
                    self.kept = Kept::Memory(Box::new(ring));
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
