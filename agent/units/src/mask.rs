//! Which pages of a block were written.

use crate::block::PAGE_SIZE;

/// A set of pages within one block: bit `i` of word `i / 64` stands for page `i`.
///
/// As many words as the block size has pages / 64, so a block of 256 KiB is one word: trackers
/// take a block's mask with one atomic exchange.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct PageMask(Vec<u64>);

impl PageMask {
    pub fn from_words(words: impl Into<Vec<u64>>) -> Self {
        Self(words.into())
    }

    /// Every page of a block of `pages` pages (a multiple of 64).
    pub fn full(pages: u64) -> Self {
        let words = usize::try_from(pages.div_ceil(64)).unwrap_or(usize::MAX);
        Self(vec![u64::MAX; words])
    }

    pub fn words(&self) -> &[u64] {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// How many pages are in the set.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    pub fn contains(&self, page: u64) -> bool {
        usize::try_from(page / 64)
            .ok()
            .and_then(|word| self.0.get(word))
            .is_some_and(|word| word >> (page % 64) & 1 == 1)
    }

    /// Adds every page of `other`.
    pub fn merge(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            *mine |= theirs;
        }
    }

    /// The runs of consecutive pages as (offset, length) in bytes within the block, cut at `len`,
    /// the block's own length (less than full for the last block of an odd-sized disk).
    pub fn runs(&self, len: u64) -> Vec<(u64, u64)> {
        let pages = len.div_ceil(PAGE_SIZE);
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for page in (0..pages).filter(|page| self.contains(*page)) {
            let start = page * PAGE_SIZE;
            let end = (start + PAGE_SIZE).min(len);
            match runs.last_mut() {
                Some((at, run)) if *at + *run == start => *run = end - *at,
                _ => runs.push((start, end - start)),
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn runs_cover_exactly_the_pages_of_the_set(pages in proptest::collection::btree_set(0_u64..128, 0..60), len in 1_u64..=128 * PAGE_SIZE) {
            let mut words = vec![0_u64; 2];
            for page in &pages {
                words[usize::try_from(page / 64).unwrap()] |= 1 << (page % 64);
            }
            let mask = PageMask::from_words(words);
            let mut seen = BTreeSet::new();
            let mut last_end = None;
            for (at, run) in mask.runs(len) {
                prop_assert!(run > 0 && at % PAGE_SIZE == 0 && at + run <= len);
                prop_assert!(last_end.is_none_or(|end| at > end), "runs that touch are one run");
                last_end = Some(at + run);
                seen.extend(at / PAGE_SIZE..(at + run).div_ceil(PAGE_SIZE));
            }
            let expected: BTreeSet<u64> = pages.into_iter().filter(|p| p * PAGE_SIZE < len).collect();
            prop_assert_eq!(seen, expected);
        }
    }
}
