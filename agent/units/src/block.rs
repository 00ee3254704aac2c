//! Sizes, offsets and blocks.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The unit in which trackers notice writes, in bytes. The page size of every x86-64 kernel, and
/// the smallest unit that file systems on it write.
pub const PAGE_SIZE: u64 = 4096;

/// A size or an offset, in bytes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl Bytes {
    pub const ZERO: Self = Self(0);

    pub const fn mib(n: u64) -> Self {
        Self(n * 1024 * 1024)
    }

    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl std::ops::Add for Bytes {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

impl std::ops::AddAssign for Bytes {
    fn add_assign(&mut self, other: Self) {
        self.0 += other.0;
    }
}

/// Stays at the largest size: what is summed up is often what somebody else said, and no disks are
/// that large.
impl std::iter::Sum for Bytes {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, Self::saturating_add)
    }
}

/// Binary units with one decimal, as people read sizes: `1.5 GiB`. Exact bytes below 1 KiB.
impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        let mut shift = 10_u32;
        let mut unit = 0;
        while unit + 1 < UNITS.len() && (self.0 >> shift) >= 1024 {
            shift += 10;
            unit += 1;
        }
        // In 128 bits, because ten times the largest size does not fit 64.
        let tenths = (u128::from(self.0) * 10) >> shift;
        write!(f, "{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
    }
}

/// Which block of a disk, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BlockIndex(pub u64);

/// How many blocks.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct BlockCount(pub u64);

impl BlockCount {
    /// Every index below this count, in order.
    pub fn indices(self) -> impl DoubleEndedIterator<Item = BlockIndex> {
        (0..self.0).map(BlockIndex)
    }
}

/// The size of one block: a power of two, from 256 KiB (64 pages) to 4 MiB.
///
/// Below 256 KiB the 32 bytes of hash that each block costs in memory grow too dear (128 MiB per
/// TiB at 256 KiB); above 4 MiB a single lost block wastes too much of a slow line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct BlockSize {
    shift: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a block size of {bytes} bytes is not a power of two from 262144 to 4194304")]
pub struct BlockSizeError {
    pub bytes: u64,
}

impl BlockSize {
    pub const MIN: Self = Self { shift: 18 };
    pub const MAX: Self = Self { shift: 22 };

    /// The block size for a disk of this size: hashes of one disk stay within 32 MiB of memory up
    /// to 256 GiB, within 64 MiB up to 2 TiB.
    pub const fn for_disk(size: Bytes) -> Self {
        match size.0 >> 30 {
            0..=256 => Self::MIN,
            257..=2048 => Self { shift: 20 },
            _ => Self::MAX,
        }
    }

    pub const fn bytes(self) -> u64 {
        1 << self.shift
    }

    /// Pages in one full block: a multiple of 64.
    pub const fn pages(self) -> u64 {
        self.bytes() / PAGE_SIZE
    }

    /// How many blocks hold `len`; the last one may be partly filled.
    pub const fn blocks_to_hold(self, len: Bytes) -> BlockCount {
        BlockCount(len.0.div_ceil(self.bytes()))
    }

    /// The offset at which a block starts.
    pub const fn offset_of(self, block: BlockIndex) -> Bytes {
        Bytes(block.0 << self.shift)
    }

    /// The block in which a byte lies.
    pub const fn block_at(self, offset: Bytes) -> BlockIndex {
        BlockIndex(offset.0 >> self.shift)
    }

    /// How many bytes of a disk of `size` lie in `block`: a full block, less for the last one of
    /// an odd size, 0 past the end.
    pub fn len_of(self, block: BlockIndex, size: Bytes) -> Bytes {
        Bytes(size.0.saturating_sub(self.offset_of(block).0).min(self.bytes()))
    }
}

impl TryFrom<u64> for BlockSize {
    type Error = BlockSizeError;

    fn try_from(bytes: u64) -> Result<Self, BlockSizeError> {
        if !bytes.is_power_of_two() || bytes < Self::MIN.bytes() || bytes > Self::MAX.bytes() {
            return Err(BlockSizeError { bytes });
        }
        let shift = u8::try_from(bytes.trailing_zeros()).map_err(|_| BlockSizeError { bytes })?;
        Ok(Self { shift })
    }
}

impl From<BlockSize> for u64 {
    fn from(size: BlockSize) -> Self {
        size.bytes()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_read_as_people_write_them() {
        assert_eq!(Bytes(1023).to_string(), "1023 B");
        assert_eq!(Bytes(1536).to_string(), "1.5 KiB");
        assert_eq!(Bytes::mib(2048).to_string(), "2.0 GiB");
        assert_eq!(Bytes(u64::MAX).to_string(), "15.9 EiB");
    }

    #[test]
    fn a_sum_of_sizes_that_nothing_has_is_the_largest() {
        let sum: Bytes = [Bytes(u64::MAX), Bytes(1), Bytes(u64::MAX)].into_iter().sum();
        assert_eq!(sum, Bytes(u64::MAX));
    }

    #[test]
    fn a_block_size_off_the_powers_or_the_range_is_refused() {
        for bytes in [0, 1, 4096, 131_072, 300_000, 8 << 20] {
            assert_eq!(BlockSize::try_from(bytes), Err(BlockSizeError { bytes }));
        }
        assert_eq!(BlockSize::try_from(262_144), Ok(BlockSize::MIN));
    }

    proptest! {
        #[test]
        fn blocks_tile_the_disk_without_gap_or_overlap(size in 1_u64..(1 << 36), shift in 18_u32..=22) {
            let block_size = BlockSize::try_from(1_u64 << shift).unwrap();
            let count = block_size.blocks_to_hold(Bytes(size));
            let last = BlockIndex(count.0 - 1);
            let end = block_size.offset_of(last) + block_size.len_of(last, Bytes(size));
            prop_assert_eq!(end, Bytes(size));
            prop_assert_eq!(block_size.len_of(BlockIndex(count.0), Bytes(size)), Bytes::ZERO);
            prop_assert_eq!(block_size.block_at(Bytes(size - 1)), last);
        }
    }
}
