//! One block's new content.

use bytes::BufMut;
use units::{BlockIndex, Digest, DiskNo, PAGE_SIZE};

use super::fields::Fields;
use super::frame::FrameError;

/// One block's new content, of which the payload is what [`Content`] and [`Encoding`] say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Counts the blocks of one stream from 1, without gaps.
    pub seq: u64,
    pub disk: DiskNo,
    pub block: BlockIndex,
    /// Of the whole block as it will be: of its real length, which is less for the last block of
    /// an odd-sized disk.
    pub hash: Digest,
    pub content: Content,
    pub encoding: Encoding,
    /// The payload's length once decoded.
    pub raw_len: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// The payload is the block.
    Full,
    /// The block is all zeros; there is no payload.
    Zero,
    /// The payload is these pages of the block, one after the other; the rest of it is as the
    /// target has it.
    Patch(Vec<PageRun>),
}

/// Consecutive pages within a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRun {
    pub first: u16,
    pub count: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Raw,
    /// One zstd frame, shorter than what it encodes.
    Zstd,
}

const FULL: u8 = 1;
const ZERO: u8 = 2;
const PATCH: u8 = 3;
const RAW: u8 = 1;
const ZSTD: u8 = 2;

/// The pages of the largest block.
const PAGES_MAX: u64 = units::BlockSize::MAX.pages();

impl Block {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64_le(self.seq);
        out.put_u16_le(self.disk.0);
        out.put_u64_le(self.block.0);
        out.put_slice(&self.hash.0);
        out.put_u8(match self.content {
            Content::Full => FULL,
            Content::Zero => ZERO,
            Content::Patch(_) => PATCH,
        });
        out.put_u8(match self.encoding {
            Encoding::Raw => RAW,
            Encoding::Zstd => ZSTD,
        });
        out.put_u32_le(self.raw_len);
        if let Content::Patch(runs) = &self.content {
            for run in runs {
                out.put_u16_le(run.first);
                out.put_u16_le(run.count);
            }
        }
    }

    pub(super) fn decode(fields: &mut Fields<'_>, payload_len: u32) -> Result<Self, FrameError> {
        let (seq, disk, block) = (fields.u64()?, fields.disk()?, BlockIndex(fields.u64()?));
        let hash = fields.digest()?;
        let kind = fields.u8()?;
        let encoding = match fields.u8()? {
            RAW => Encoding::Raw,
            ZSTD => Encoding::Zstd,
            tag => return Err(FrameError::UnknownEncoding { tag }),
        };
        let raw_len = fields.u32()?;
        let content = match kind {
            FULL => Content::Full,
            ZERO => Content::Zero,
            PATCH => Content::Patch(decode_runs(fields)?),
            tag => return Err(FrameError::UnknownContent { tag }),
        };
        let block = Self { seq, disk, block, hash, content, encoding, raw_len };
        block.check_lengths(payload_len)?;
        Ok(block)
    }

    /// Do the lengths fit each other? Whether they fit the disk only the receiver can tell.
    fn check_lengths(&self, payload_len: u32) -> Result<(), FrameError> {
        let error = FrameError::BlockLengths { raw_len: self.raw_len, payload_len };
        let payload_fits = match self.encoding {
            Encoding::Raw => payload_len == self.raw_len,
            Encoding::Zstd => 0 < payload_len && payload_len < self.raw_len,
        };
        let content_fits = match &self.content {
            Content::Full => self.raw_len > 0,
            Content::Zero => self.raw_len == 0,
            // The last page of an odd-sized disk is shorter than a page.
            Content::Patch(runs) => {
                let pages: u64 = runs.iter().map(|run| u64::from(run.count)).sum();
                let raw_len = u64::from(self.raw_len);
                raw_len <= pages * PAGE_SIZE && raw_len > (pages - 1) * PAGE_SIZE
            }
        };
        if payload_fits && content_fits && self.raw_len <= super::PAYLOAD_MAX {
            Ok(())
        } else {
            Err(error)
        }
    }
}

/// At least one run, in order, with a gap between any two: one way to write a set of pages.
fn decode_runs(fields: &mut Fields<'_>) -> Result<Vec<PageRun>, FrameError> {
    let mut runs: Vec<PageRun> = Vec::with_capacity(fields.0.len() / 4);
    let mut free_from = 0;
    while !fields.0.is_empty() {
        let run = PageRun { first: fields.u16()?, count: fields.u16()? };
        let end = u32::from(run.first) + u32::from(run.count);
        if run.count == 0 || u32::from(run.first) < free_from || u64::from(end) > PAGES_MAX {
            return Err(FrameError::Runs);
        }
        free_from = end + 1;
        runs.push(run);
    }
    if runs.is_empty() { Err(FrameError::Runs) } else { Ok(runs) }
}
