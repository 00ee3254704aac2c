//! One block of a random file: it says who wrote it, where it belongs and when, and proves itself
//! by its hash, so that a block which is torn, misplaced or too old cannot pass for a good one.
//!
//! ```text
//! magic u32 | file u32 | index u64 | generation u64 | run [16] | filling | hash [32]
//! ```

use super::record::RunId;

/// Bytes of one block: what file systems write in one piece.
pub const BLOCK: usize = 4096;

const MAGIC: [u8; 4] = *b"CLB1";
const HEAD: usize = 4 + 4 + 8 + 8 + 16;
const FILL_END: usize = BLOCK - 32;

/// What a good block says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label {
    pub file: u16,
    /// Its position in the file, in blocks.
    pub index: u32,
    /// Grows with every write to this directory, through all runs.
    pub generation: u64,
    pub run: RunId,
}

/// What a block of a random file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// All zeros: preallocated, never written.
    Blank,
    Good(Label),
    /// Neither blank nor whole.
    Torn,
}

impl Label {
    /// Appends the block of this label; its filling does not compress.
    pub fn fill(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&u32::from(self.file).to_le_bytes());
        out.extend_from_slice(&u64::from(self.index).to_le_bytes());
        out.extend_from_slice(&self.generation.to_le_bytes());
        out.extend_from_slice(&self.run.0);
        // xorshift64: cheap enough for an emulated CPU.
        let place = u64::from(self.index) ^ u64::from(self.file).rotate_left(32);
        let mut state = (place ^ self.generation.wrapping_mul(0x9E37_79B9_7F4A_7C15)) | 1;
        while out.len() - start < FILL_END {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            out.extend_from_slice(&state.to_le_bytes());
        }
        let hash = blake3::hash(&out[start..]);
        out.extend_from_slice(hash.as_bytes());
        debug_assert_eq!(out.len() - start, BLOCK, "head and filling are multiples of 8");
    }
}

impl Content {
    /// What `block`, which is [`BLOCK`] bytes, holds.
    #[must_use]
    pub fn of(block: &[u8]) -> Self {
        if block.iter().all(|&byte| byte == 0) {
            return Self::Blank;
        }
        Self::good(block).map_or(Self::Torn, Self::Good)
    }

    fn good(block: &[u8]) -> Option<Label> {
        let (covered, hash) = block.split_at_checked(FILL_END)?;
        if !covered.starts_with(&MAGIC) || blake3::hash(covered).as_bytes() != hash {
            return None;
        }
        let file = u32::from_le_bytes(covered[4..8].try_into().ok()?);
        let index = u64::from_le_bytes(covered[8..16].try_into().ok()?);
        Some(Label {
            file: u16::try_from(file).ok()?,
            index: u32::try_from(index).ok()?,
            generation: u64::from_le_bytes(covered[16..24].try_into().ok()?),
            run: RunId(covered[24..HEAD].try_into().ok()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn block(generation: u64) -> Vec<u8> {
        let mut out = Vec::new();
        Label { file: 3, index: 77, generation, run: RunId([9; 16]) }.fill(&mut out);
        out
    }

    #[test]
    fn a_block_says_what_it_was_told() {
        let label = Label { file: 3, index: 77, generation: 12, run: RunId([9; 16]) };
        assert_eq!(Content::of(&block(12)), Content::Good(label));
        assert_eq!(Content::of(&[0; BLOCK]), Content::Blank);
    }

    proptest! {
        #[test]
        fn a_block_of_two_writes_is_torn(sectors in 1_usize..8) {
            let mut torn = block(1);
            torn[..sectors * 512].copy_from_slice(&block(2)[..sectors * 512]);
            prop_assert_eq!(Content::of(&torn), Content::Torn);
        }

        #[test]
        fn a_changed_byte_tears_a_block(at in 0..BLOCK, flip in 1_u8..) {
            let mut changed = block(5);
            changed[at] ^= flip;
            prop_assert_eq!(Content::of(&changed), Content::Torn);
        }
    }
}
