//! One block: decode, check, write.

use std::io;
use std::sync::Arc;

use units::{Bytes, PAGE_SIZE};
use wire::data::{Block, Content, Encoding, NackReason, PageRun, UNKNOWN};

use super::ReceiverError;
use super::stream::StreamState;
use super::target::Target;
use crate::buffer::{Buffer, Pool};
use crate::codec::Decompressor;
use crate::table;

/// One block to be written.
pub struct Job {
    pub stream: Arc<StreamState>,
    pub target: Arc<Target>,
    pub block: Block,
    pub payload: Buffer,
    /// Of the credit.
    pub cost: u64,
}

/// What one thread needs to write.
pub struct Writer {
    decompressor: Decompressor,
    /// The block as it will be.
    content: Buffer,
    /// What a compressed patch unpacks to.
    unpacked: Buffer,
}

/// Where the runs of a patch lie in a block of `len` bytes; `None`: past its end.
pub fn run_ranges(runs: &[PageRun], len: usize) -> Option<Vec<std::ops::Range<usize>>> {
    let page = usize::try_from(PAGE_SIZE).expect("small");
    let range = |run: &PageRun| {
        let start = usize::from(run.first) * page;
        let end = start + usize::from(run.count) * page;
        let fits = start < len && end - page < len;
        fits.then(|| start..end.min(len))
    };
    runs.iter().map(range).collect()
}

impl Writer {
    pub fn new(pool: &Pool, largest_block: u64) -> io::Result<Self> {
        let len = usize::try_from(largest_block).expect("a block is at most 4 MiB");
        let (content, unpacked) = (pool.take(len), pool.take(len));
        Ok(Self { decompressor: Decompressor::new()?, content, unpacked })
    }

    /// Writes the block if it will have the hash that it should; otherwise says why not, and
    /// nothing was written.
    pub fn perform(&mut self, job: Job) -> Result<Option<NackReason>, ReceiverError> {
        let Job { target, block, payload, .. } = job;
        let len = target.len_of(block.block).expect("the reader checked it");
        match &block.content {
            Content::Zero => {
                if target.table().hash_of_zeros(block.block) != block.hash {
                    return Ok(Some(NackReason::HashMismatch));
                }
                let zero = |at| target.disk.zero(at, Bytes(len as u64));
                target.write(block.block, block.hash, zero)?;
            }
            Content::Full => {
                if block.encoding == Encoding::Zstd
                    && self.decompressor.decompress(&payload, &mut self.content[..len]).is_err()
                {
                    return Ok(Some(NackReason::HashMismatch));
                }
                let content = match block.encoding {
                    Encoding::Raw => &payload[..],
                    Encoding::Zstd => &self.content[..len],
                };
                if table::hash(content) != block.hash {
                    return Ok(Some(NackReason::HashMismatch));
                }
                target.write(block.block, block.hash, |at| target.disk.write_at(at, content))?;
            }
            Content::Patch(runs) => return self.patch(&target, &block, runs, &payload, len),
        }
        Ok(None)
    }

    /// Writes only the changed pages, but checks the whole block.
    fn patch(
        &mut self,
        target: &Target,
        block: &Block,
        runs: &[PageRun],
        payload: &[u8],
        len: usize,
    ) -> Result<Option<NackReason>, ReceiverError> {
        let at = target.block_size.offset_of(block.block);
        let content = &mut self.content[..len];
        let known = target.table().hash(block.block) != UNKNOWN;
        if !known || target.disk.read_at(at, content).is_err() {
            return Ok(Some(NackReason::NeedFull));
        }
        let mut pages = match block.encoding {
            Encoding::Raw => payload,
            Encoding::Zstd => {
                let raw_len = usize::try_from(block.raw_len).expect("32 bits fit");
                let unpacked = &mut self.unpacked[..raw_len];
                if self.decompressor.decompress(payload, unpacked).is_err() {
                    return Ok(Some(NackReason::HashMismatch));
                }
                unpacked
            }
        };
        let ranges = run_ranges(runs, len).expect("the reader checked it");
        for range in &ranges {
            let (run, rest) = pages.split_at(range.len());
            content[range.clone()].copy_from_slice(run);
            pages = rest;
        }
        if table::hash(content) != block.hash {
            return Ok(Some(NackReason::HashMismatch));
        }
        target.write(block.block, block.hash, |at| {
            ranges.into_iter().try_for_each(|range| {
                let offset = at + Bytes(range.start as u64);
                target.disk.write_at(offset, &content[range])
            })
        })?;
        Ok(None)
    }
}
