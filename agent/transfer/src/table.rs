//! What a disk holds, block by block.

use units::{BlockCount, BlockIndex, BlockSize, Bytes, Digest};
use wire::data::{SPAN_BLOCKS, UNKNOWN};

/// The hash of every block of a disk, and the disk's digest: a tree of two levels whose upper one
/// is kept, so that the digest after a round costs what the round changed.
///
/// ```text
///  block hash   BLAKE3 of the block's bytes (fewer than a whole block at the end of the disk)
///  span digest  BLAKE3, derived key "causeway 1 span", of the hashes of 1024 blocks
///  disk digest  BLAKE3, derived key "causeway 1 disk", of size and block size (u64, little-endian)
///               and the span digests
/// ```
///
/// Sender and receiver keep the same table of the same content: the sender of what it knows the
/// target to hold, the receiver of what the target holds. 32 bytes per block: 8 MiB for 64 GiB.
#[derive(Debug)]
pub struct Table {
    size: Bytes,
    block_size: BlockSize,
    hashes: Vec<Digest>,
    /// `None`: to be computed again.
    spans: Vec<Option<Digest>>,
    /// How many hashes are [`UNKNOWN`].
    unknown: u64,
    zero_block: Digest,
    zero_tail: Digest,
}

impl Table {
    /// Of a disk of zeros.
    pub fn zeros(size: Bytes, block_size: BlockSize) -> Self {
        let tail = BlockIndex(block_size.blocks_to_hold(size).0.saturating_sub(1));
        let zero_block = hash_of_zeros(Bytes(block_size.bytes()));
        let zero_tail = hash_of_zeros(block_size.len_of(tail, size));
        let blocks = index(block_size.blocks_to_hold(size).0);
        let mut hashes = vec![zero_block; blocks];
        if let Some(last) = hashes.last_mut() {
            *last = zero_tail;
        }
        let spans = vec![None; blocks.div_ceil(index(SPAN_BLOCKS))];
        Self { size, block_size, hashes, spans, unknown: 0, zero_block, zero_tail }
    }

    /// Of a disk of which nothing is known.
    pub fn unknown(size: Bytes, block_size: BlockSize) -> Self {
        let mut table = Self::zeros(size, block_size);
        table.hashes.fill(UNKNOWN);
        table.unknown = table.blocks().0;
        table
    }

    pub fn blocks(&self) -> BlockCount {
        self.block_size.blocks_to_hold(self.size)
    }

    pub fn spans(&self) -> u64 {
        self.blocks().0.div_ceil(SPAN_BLOCKS)
    }

    /// # Panics
    ///
    /// Like everything that takes a block: past the end of the disk.
    pub fn hash(&self, block: BlockIndex) -> Digest {
        self.hashes[index(block.0)]
    }

    pub fn set(&mut self, block: BlockIndex, hash: Digest) {
        let at = index(block.0);
        let old = std::mem::replace(&mut self.hashes[at], hash);
        self.unknown -= u64::from(old == UNKNOWN);
        self.unknown += u64::from(hash == UNKNOWN);
        if old != hash {
            self.spans[at / index(SPAN_BLOCKS)] = None;
        }
    }

    /// The hash that this block would have if it were all zeros.
    pub fn hash_of_zeros(&self, block: BlockIndex) -> Digest {
        if block.0 + 1 == self.blocks().0 { self.zero_tail } else { self.zero_block }
    }

    /// How many blocks there are of which nothing is known.
    pub const fn unknown_blocks(&self) -> u64 {
        self.unknown
    }

    /// The blocks of a span.
    pub fn span_range(&self, span: u64) -> std::ops::Range<u64> {
        let end = (span + 1) * SPAN_BLOCKS;
        span * SPAN_BLOCKS..end.min(self.blocks().0)
    }

    pub fn span_hashes(&self, span: u64) -> &[Digest] {
        let range = self.span_range(span);
        &self.hashes[index(range.start)..index(range.end)]
    }

    pub fn span_digest(&mut self, span: u64) -> Digest {
        if let Some(digest) = self.spans[index(span)] {
            return digest;
        }
        let mut hasher = blake3::Hasher::new_derive_key("causeway 1 span");
        for hash in self.span_hashes(span) {
            hasher.update(&hash.0);
        }
        let digest = Digest(hasher.finalize().into());
        self.spans[index(span)] = Some(digest);
        digest
    }

    /// The digest of the disk.
    pub fn root(&mut self) -> Digest {
        let mut hasher = blake3::Hasher::new_derive_key("causeway 1 disk");
        hasher.update(&self.size.0.to_le_bytes());
        hasher.update(&self.block_size.bytes().to_le_bytes());
        for span in 0..self.spans() {
            hasher.update(&self.span_digest(span).0);
        }
        Digest(hasher.finalize().into())
    }
}

/// The hash of a block.
pub fn hash(content: &[u8]) -> Digest {
    Digest(blake3::hash(content).into())
}

pub fn is_zero(content: &[u8]) -> bool {
    // In pieces that the compiler turns into wide comparisons; most blocks differ in the first.
    let (pieces, rest) = content.as_chunks::<128>();
    pieces.iter().all(|piece| piece.iter().fold(0, |all, byte| all | byte) == 0)
        && rest.iter().all(|byte| *byte == 0)
}

fn hash_of_zeros(len: Bytes) -> Digest {
    let mut hasher = blake3::Hasher::new();
    let zeros = [0; 4096];
    let mut left = index(len.0);
    while left > 0 {
        let piece = left.min(zeros.len());
        hasher.update(&zeros[..piece]);
        left -= piece;
    }
    Digest(hasher.finalize().into())
}

fn index(n: u64) -> usize {
    usize::try_from(n).expect("a table of 64 bits fits the memory of a machine of 64 bits")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BLOCK: u64 = BlockSize::MIN.bytes();

    /// The definition, without keeping anything.
    fn digest_by_the_book(size: u64, hashes: &[Digest]) -> Digest {
        let mut disk = blake3::Hasher::new_derive_key("causeway 1 disk");
        disk.update(&size.to_le_bytes()).update(&BLOCK.to_le_bytes());
        for span in hashes.chunks(1024) {
            let mut hasher = blake3::Hasher::new_derive_key("causeway 1 span");
            span.iter().for_each(|hash| {
                hasher.update(&hash.0);
            });
            disk.update(hasher.finalize().as_bytes());
        }
        Digest(disk.finalize().into())
    }

    #[test]
    fn the_digest_of_a_known_disk_is_as_released() {
        let mut table = Table::zeros(Bytes(BLOCK + 5), BlockSize::MIN);
        assert_eq!(table.root().to_string(), V1_ZEROS);
        table.set(BlockIndex(0), hash(b"causeway"));
        assert_eq!(table.root().to_string(), V1_CHANGED);
    }

    /// As the first release computed them. Never edited.
    const V1_ZEROS: &str = "4d0b86904deb50be1dd1a45ae964b85ea5557ee585843e5f9666cad852a5615d";
    const V1_CHANGED: &str = "4a53c9e2975eb861625251860a4e9ef51ae30a4da6362bc973fb0ff17d00719c";

    #[test]
    fn the_last_block_of_an_odd_size_has_a_zero_hash_of_its_own() {
        let table = Table::zeros(Bytes(BLOCK + 1), BlockSize::MIN);
        assert_eq!(table.hash(BlockIndex(1)), hash(&[0]));
        assert_eq!(table.hash(BlockIndex(0)), hash(&vec![0; 262_144]));
        assert_eq!(table.hash_of_zeros(BlockIndex(1)), hash(&[0]));
    }

    #[test]
    fn blocks_of_which_nothing_is_known_are_counted() {
        let mut table = Table::unknown(Bytes(3 * BLOCK), BlockSize::MIN);
        table.set(BlockIndex(0), hash(b"x"));
        table.set(BlockIndex(0), hash(b"y"));
        assert_eq!(table.unknown_blocks(), 2);
        table.set(BlockIndex(0), UNKNOWN);
        assert_eq!(table.unknown_blocks(), 3);
    }

    #[test]
    fn one_byte_that_is_not_zero_is_found_anywhere() {
        let mut content = vec![0; 1000];
        assert!(is_zero(&content));
        for at in [0, 127, 128, 895, 896, 999] {
            content[at] = 1;
            assert!(!is_zero(&content), "{at}");
            content[at] = 0;
        }
    }

    proptest! {
        #[test]
        fn the_digest_kept_up_to_date_is_the_digest_by_the_book(
            changes in proptest::collection::vec((0_u64..2500, any::<u8>()), 0..40),
            ask_at in 0_usize..40,
        ) {
            let size = 2500 * BLOCK - 17;
            let mut table = Table::zeros(Bytes(size), BlockSize::MIN);
            for (at, (block, value)) in changes.into_iter().enumerate() {
                if at == ask_at {
                    table.root();
                }
                table.set(BlockIndex(block), hash(&[value]));
            }
            let hashes = table.hashes.clone();
            prop_assert_eq!(table.root(), digest_by_the_book(size, &hashes));
        }
    }
}
