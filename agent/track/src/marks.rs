//! One disk's marks: what the kernel's programs set, what was put back, and what leaves.
//!
//! A bit stands for a *chunk*: one page, or more of them where a disk is too large to spend a bit
//! on each (see [`Region`]). Behind the bits of the chunks lie the coarse bits, one per
//! 4096 chunks: a discard of gigabytes sets those instead of a million others.

use std::sync::atomic::{AtomicU64, Ordering};

use units::{BlockCount, BlockIndex, BlockSize, Bytes, PAGE_SIZE, PageMask};

use crate::Dirty;
use crate::overlay::Overlay;

const CHUNKS_PER_WORD: u64 = 64;

/// As the program in the kernel has it. No block is larger than what a coarse bit stands for.
const WORDS_PER_COARSE_BIT: usize = 64;

/// How one disk's marks are laid out in words of 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    /// The power of two of a chunk's size: from that of a page to that of the smallest block.
    pub(crate) shift: u32,
    pub(crate) chunks: u64,
    /// Words of chunk bits; the coarse words follow.
    pub(crate) words: usize,
}

impl Region {
    pub(crate) const MIN_SHIFT: u32 = PAGE_SIZE.trailing_zeros();
    pub(crate) const MAX_SHIFT: u32 = BlockSize::MIN.bytes().trailing_zeros();

    pub(crate) fn new(size: Bytes, shift: u32) -> Self {
        let chunks = size.0.div_ceil(1 << shift);
        Self { shift, chunks, words: index(chunks.div_ceil(CHUNKS_PER_WORD)) }
    }

    /// Words of chunk bits and coarse bits together.
    pub(crate) const fn all_words(self) -> usize {
        self.words + self.words.div_ceil(WORDS_PER_COARSE_BIT).div_ceil(64)
    }

    /// The bits of a word that stand for chunks of the disk: not all in the last word.
    const fn valid(self, word: usize) -> u64 {
        let rest = self.chunks % CHUNKS_PER_WORD;
        if word + 1 == self.words && rest != 0 { (1 << rest) - 1 } else { u64::MAX }
    }

    /// The cell and the bit of the coarse mark over a word.
    const fn coarse(self, word: usize) -> (usize, u64) {
        let bit = word / WORDS_PER_COARSE_BIT;
        (self.words + bit / 64, 1 << (bit % 64))
    }

    /// The words under the coarse mark over a word.
    fn under_coarse(self, word: usize) -> std::ops::Range<usize> {
        let first = word - word % WORDS_PER_COARSE_BIT;
        first..(first + WORDS_PER_COARSE_BIT).min(self.words)
    }
}

/// The user's half of a disk's marks. Methods take the kernel's half as `cells`.
#[derive(Debug)]
pub(crate) struct Marks {
    region: Region,
    size: Bytes,
    block_size: BlockSize,
    /// What is dirty though the kernel's half does not say so: pages put back, discards moved here
    /// from a coarse bit, everything after a doubt.
    overlay: Overlay,
}

impl Marks {
    pub(crate) fn new(region: Region, size: Bytes, block_size: BlockSize) -> Self {
        let last_word = region.valid(region.words.saturating_sub(1));
        Self { region, size, block_size, overlay: Overlay::new(region.words, last_word) }
    }

    pub(crate) fn region(&self) -> Region {
        self.region
    }

    pub(crate) fn take(&mut self, cells: &[AtomicU64], block: BlockIndex) -> PageMask {
        let (words, bits) = self.place_of(block);
        self.resolve_coarse(cells, words.start);
        let taken: Vec<u64> =
            words.map(|word| self.overlay.take(word, bits) | clear(&cells[word], bits)).collect();
        self.pages_of(block, &taken)
    }

    pub(crate) fn put_back(&mut self, block: BlockIndex, mask: &PageMask) {
        let first = self.first_chunk(block);
        let pages_per_chunk = self.pages_per_chunk();
        for chunk in 0..self.chunks_per_block().min(self.region.chunks.saturating_sub(first)) {
            let mut pages = chunk * pages_per_chunk..(chunk + 1) * pages_per_chunk;
            if pages.any(|page| mask.contains(page)) {
                let chunk = first + chunk;
                self.overlay.set(index(chunk / CHUNKS_PER_WORD), 1 << (chunk % CHUNKS_PER_WORD));
            }
        }
    }

    pub(crate) fn next_dirty(&self, cells: &[AtomicU64], from: BlockIndex) -> Option<BlockIndex> {
        let first = self.first_chunk(from);
        let mut bits = u64::MAX << (first % CHUNKS_PER_WORD);
        let start = index((first / CHUNKS_PER_WORD).min(number(self.region.words)));
        for word in start..self.region.words {
            let at = number(word) * CHUNKS_PER_WORD;
            let looked_at_coarse = word != start && word % WORDS_PER_COARSE_BIT != 0;
            if !looked_at_coarse && self.is_coarse(cells, word) {
                return Some(self.block_at(at.max(first)));
            }
            let dirty = self.overlay.get(word) | cells[word].load(Ordering::SeqCst);
            if dirty & bits != 0 {
                return Some(self.block_at(at + u64::from((dirty & bits).trailing_zeros())));
            }
            bits = u64::MAX;
        }
        None
    }

    pub(crate) fn dirty(&self, cells: &[AtomicU64]) -> Dirty {
        let mut blocks = BlockCount(0);
        let mut chunks = 0;
        let mut from = BlockIndex(0);
        while let Some(block) = self.next_dirty(cells, from) {
            blocks.0 += 1;
            chunks += self.dirty_chunks(cells, block);
            from = BlockIndex(block.0 + 1);
        }
        Dirty { blocks, bytes: Bytes((chunks << self.region.shift).min(self.size.0)) }
    }

    /// Marks what `cells` has marked: another of the kernel's regions.
    pub(crate) fn absorb(&mut self, cells: &[AtomicU64]) {
        for (word, cell) in cells.iter().enumerate().take(self.region.words) {
            let coarse = if self.is_coarse(cells, word) { u64::MAX } else { 0 };
            self.overlay.set(word, cell.load(Ordering::SeqCst) | coarse);
        }
    }

    pub(crate) fn mark_all(&mut self) {
        self.overlay.fill();
    }

    /// Moves the coarse mark over `word`, if there is one, to the chunks it stands for.
    fn resolve_coarse(&mut self, cells: &[AtomicU64], word: usize) {
        let (cell, bit) = self.region.coarse(word);
        if clear(&cells[cell], bit) != 0 {
            for word in self.region.under_coarse(word) {
                self.overlay.set(word, u64::MAX);
            }
        }
    }

    fn is_coarse(&self, cells: &[AtomicU64], word: usize) -> bool {
        let (cell, bit) = self.region.coarse(word);
        cells[cell].load(Ordering::SeqCst) & bit != 0
    }

    fn dirty_chunks(&self, cells: &[AtomicU64], block: BlockIndex) -> u64 {
        let (words, bits) = self.place_of(block);
        let dirty = |word: usize| {
            if self.is_coarse(cells, word) {
                return self.region.valid(word);
            }
            self.overlay.get(word) | cells[word].load(Ordering::SeqCst)
        };
        words.map(|word| u64::from((dirty(word) & bits).count_ones())).sum()
    }

    /// The words that hold a block's chunks, and which bits of each: all, or a part of one word.
    fn place_of(&self, block: BlockIndex) -> (std::ops::Range<usize>, u64) {
        let first = self.first_chunk(block);
        let chunks = self.chunks_per_block();
        assert!(first < self.region.chunks, "block {} lies past the end of its disk", block.0);
        let start = index(first / CHUNKS_PER_WORD);
        if chunks < CHUNKS_PER_WORD {
            return (start..start + 1, ((1 << chunks) - 1) << (first % CHUNKS_PER_WORD));
        }
        let end = start + index(chunks / CHUNKS_PER_WORD);
        (start..end.min(self.region.words), u64::MAX)
    }

    fn pages_of(&self, block: BlockIndex, taken: &[u64]) -> PageMask {
        let mut pages = vec![0_u64; index(self.block_size.pages() / 64)];
        if self.region.shift == Region::MIN_SHIFT {
            pages[..taken.len()].copy_from_slice(taken);
            return PageMask::from_words(pages);
        }
        let per_chunk = self.pages_per_chunk();
        let chunk_of_pages = u64::MAX >> (64 - per_chunk);
        let skipped = self.first_chunk(block) % CHUNKS_PER_WORD;
        for chunk in 0..self.chunks_per_block() {
            let bit = skipped + chunk;
            let word = taken.get(index(bit / 64)).copied().unwrap_or_default();
            if word >> (bit % 64) & 1 == 1 {
                let page = chunk * per_chunk;
                pages[index(page / 64)] |= chunk_of_pages << (page % 64);
            }
        }
        PageMask::from_words(pages)
    }

    fn first_chunk(&self, block: BlockIndex) -> u64 {
        self.block_size.offset_of(block).0 >> self.region.shift
    }

    fn block_at(&self, chunk: u64) -> BlockIndex {
        self.block_size.block_at(Bytes(chunk << self.region.shift))
    }

    fn chunks_per_block(&self) -> u64 {
        self.block_size.bytes() >> self.region.shift
    }

    fn pages_per_chunk(&self) -> u64 {
        1 << (self.region.shift - Region::MIN_SHIFT)
    }
}

/// Forgets all marks in `cells`, unless something happens meanwhile: `is_quiet` is asked after
/// some cells were emptied, and when it says no, those get their marks back and the rest is left.
///
/// A mark that is set meanwhile is seen by the next caller, or given back here.
pub(crate) fn forget_while(cells: &[AtomicU64], is_quiet: impl Fn() -> bool) {
    for some in cells.chunks(512) {
        let old: Vec<u64> = some.iter().map(|cell| clear(cell, u64::MAX)).collect();
        if !is_quiet() {
            for (cell, bits) in some.iter().zip(old) {
                cell.fetch_or(bits, Ordering::SeqCst);
            }
            return;
        }
    }
}

/// Takes bits out of a cell: one atomic step, so that a bit set by the kernel is taken or stays.
fn clear(cell: &AtomicU64, bits: u64) -> u64 {
    // Most cells are empty, and looking does not take the cache line from other CPUs.
    if cell.load(Ordering::SeqCst) & bits == 0 {
        return 0;
    }
    cell.fetch_and(!bits, Ordering::SeqCst) & bits
}

fn index(n: u64) -> usize {
    usize::try_from(n).expect("words of a disk that was laid out in memory")
}

fn number(n: usize) -> u64 {
    u64::try_from(n).expect("no address is wider than 64 bits")
}

#[cfg(test)]
#[path = "marks_tests.rs"]
mod tests;
