//! A bitmap that costs memory only where it is neither empty nor full.

/// Words per leaf: 128 MiB of disk at a bit per page.
const LEAF: usize = 512;

/// Words of 64 bits, as [`crate::marks::Region`] lays them out. The agent locks its memory while
/// the guest is frozen, so zeroes must not lie about as pages that nobody has touched.
#[derive(Debug)]
pub(crate) struct Overlay {
    leaves: Vec<Leaf>,
    /// What is set of the last word when everything is.
    last_word: u64,
    words: usize,
}

#[derive(Clone, Debug)]
enum Leaf {
    Empty,
    Full,
    Mixed { words: Box<[u64; LEAF]>, used: usize },
}

impl Overlay {
    /// Nothing set. `last_word` has the bits of the last word that may be.
    pub(crate) fn new(words: usize, last_word: u64) -> Self {
        Self { leaves: vec![Leaf::Empty; words.div_ceil(LEAF)], last_word, words }
    }

    pub(crate) fn get(&self, word: usize) -> u64 {
        match &self.leaves[word / LEAF] {
            Leaf::Empty => 0,
            Leaf::Full => self.valid(word),
            Leaf::Mixed { words, .. } => words[word % LEAF],
        }
    }

    pub(crate) fn set(&mut self, word: usize, bits: u64) {
        let old = self.get(word);
        self.replace(word, old, old | bits & self.valid(word));
    }

    /// Takes bits out and returns those that were set.
    pub(crate) fn take(&mut self, word: usize, bits: u64) -> u64 {
        let old = self.get(word);
        self.replace(word, old, old & !bits);
        old & bits
    }

    pub(crate) fn fill(&mut self) {
        self.leaves.fill(Leaf::Full);
    }

    fn replace(&mut self, word: usize, old: u64, new: u64) {
        if old == new {
            return;
        }
        let was_full = matches!(self.leaves[word / LEAF], Leaf::Full);
        if !matches!(self.leaves[word / LEAF], Leaf::Mixed { .. }) {
            let first = word - word % LEAF;
            let end = (first + LEAF).min(self.words);
            let mut words = Box::new([0; LEAF]);
            for at in first..end {
                words[at - first] = if was_full { self.valid(at) } else { 0 };
            }
            let used = if was_full { end - first } else { 0 };
            self.leaves[word / LEAF] = Leaf::Mixed { words, used };
        }
        let leaf = &mut self.leaves[word / LEAF];
        if let Leaf::Mixed { words, used } = leaf {
            words[word % LEAF] = new;
            if old == 0 {
                *used += 1;
            } else if new == 0 {
                *used -= 1;
            }
            if *used == 0 {
                *leaf = Leaf::Empty;
            }
        }
    }

    const fn valid(&self, word: usize) -> u64 {
        if word + 1 == self.words { self.last_word } else { u64::MAX }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mixed(overlay: &Overlay) -> usize {
        overlay.leaves.iter().filter(|leaf| matches!(leaf, Leaf::Mixed { .. })).count()
    }

    #[test]
    fn memory_is_used_only_between_empty_and_full() {
        let mut overlay = Overlay::new(3 * LEAF + 1, 0b111);
        overlay.fill();
        assert_eq!((mixed(&overlay), overlay.get(0), overlay.get(3 * LEAF)), (0, u64::MAX, 0b111));
        for word in 0..3 * LEAF + 1 {
            assert_ne!(overlay.take(word, u64::MAX), 0);
            assert!(mixed(&overlay) <= 1, "only the leaf that is being emptied");
        }
        assert_eq!(mixed(&overlay), 0);
        overlay.set(5, 1);
        overlay.set(3 * LEAF, u64::MAX);
        assert_eq!((mixed(&overlay), overlay.take(3 * LEAF, u64::MAX)), (2, 0b111));
    }
}
