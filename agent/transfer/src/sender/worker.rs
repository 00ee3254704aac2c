//! One thread that reads, hashes and compresses.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use units::{BlockIndex, Bytes, PAGE_SIZE, PageMask};
use wire::data::{Content, Encoding, PageRun, UNKNOWN};

use super::SenderError;
use super::cursor::Visit;
use super::level::OFF;
use super::pending::{Flight, Outgoing};
use super::round::RoundContext;
use super::source::Source;
use crate::buffer::Buffer;
use crate::changes::Taken;
use crate::codec::Compressor;
use crate::table;

/// Below this a payload is sent as it is: compressing single pages costs more than it saves.
const COMPRESS_FROM: usize = 8 << 10;

/// One thread that reads, hashes and compresses.
pub struct Worker {
    round: Arc<RoundContext>,
    compressor: Compressor,
    hole: Option<Hole>,
}

/// A stretch of a disk without data.
///
/// Asking for every block would cost a system call for each of the quarter of a million blocks of
/// 64 GiB. What an earlier question found is good for a block only if nothing was written to it
/// since, that is, if the take that followed the question was empty.
struct Hole {
    disk: usize,
    start: Bytes,
    end: Bytes,
}

/// A block as it is now.
enum Seen {
    Zero,
    Content(Buffer),
}

impl Worker {
    pub fn new(round: Arc<RoundContext>) -> Result<Self, SenderError> {
        let compressor = Compressor::new().map_err(|cause| SenderError::Compressor { cause })?;
        Ok(Self { round, compressor, hole: None })
    }

    /// Works until there is nothing left to look at, or the round is to end.
    pub fn run(mut self) -> Result<(), SenderError> {
        while let Some(visit) = self.round.next_visit() {
            let Some(outgoing) = self.look_at(visit)? else { continue };
            let times = &self.round.link.times;
            let start = Instant::now();
            let queued = self.round.link.send(outgoing);
            times.queue.add_since(start);
            if !queued {
                break;
            }
        }
        Ok(())
    }

    /// Reads a block; answers what has to be sent, if anything.
    fn look_at(&mut self, visit: Visit) -> Result<Option<Outgoing>, SenderError> {
        let Visit { disk, block, taken } = visit;
        let round = Arc::clone(&self.round);
        let source = &round.shared.sources[disk];
        let len = source.len_of(block);
        let start = Instant::now();
        let seen = self.read(disk, block, &taken);
        round.link.times.read.add_since(start);
        let seen = seen.map_err(|cause| SenderError::Read { disk: source.no, block, cause })?;

        let start = Instant::now();
        let (hash, is_zero, held, known) = {
            let hash = match &seen {
                Seen::Zero => None,
                Seen::Content(content) => Some(table::hash(content)),
            };
            let held = source.held();
            let zero = held.hash_of_zeros(block);
            (hash.unwrap_or(zero), hash.is_none(), held.hash(block), held.is_known(block))
        };
        let stats = Arc::clone(&round.stats.disks[disk]);
        if hash == held {
            source.held().settle(block, hash);
            taken.settle();
            stats.done.add(len.0);
            if is_zero {
                stats.zero.add(len.0);
            } else {
                stats.equal.add(len.0);
            }
            round.link.times.cpu.add_since(start);
            return Ok(None);
        }
        let patch = (known && held != UNKNOWN).then(|| self.changed_pages(source, block, &taken));
        let flight = Flight { disk, block, hash, taken, stats };
        let outgoing = match seen {
            Seen::Zero => {
                flight.stats.zero.add(len.0);
                zero(flight)
            }
            Seen::Content(content) => match patch.flatten() {
                Some(mask) => self.patch(flight, &content, &mask),
                None => self.full(flight, content),
            },
        };
        round.link.times.cpu.add_since(start);
        Ok(Some(outgoing))
    }

    fn read(&mut self, disk: usize, block: BlockIndex, taken: &Taken) -> std::io::Result<Seen> {
        let source = &self.round.shared.sources[disk];
        let at = source.block_size.offset_of(block);
        let len = source.len_of(block);
        let in_known_hole = self
            .hole
            .as_ref()
            .is_some_and(|hole| hole.disk == disk && hole.start <= at && at + len <= hole.end);
        if in_known_hole && taken.mask().is_empty() {
            return Ok(Seen::Zero);
        }
        let data = source.disk.next_data(at)?.unwrap_or(source.size).min(source.size);
        if data >= at + len {
            self.hole = Some(Hole { disk, start: at, end: data });
            return Ok(Seen::Zero);
        }
        let len = usize::try_from(len.0).expect("a block is at most 4 MiB");
        let mut content = self.round.shared.pool.take(len);
        source.disk.read_at(at, &mut content)?;
        self.round.shared.reads.owe(len);
        Ok(if table::is_zero(&content) { Seen::Zero } else { Seen::Content(content) })
    }

    /// The pages in which the block may differ from what the destination holds; `None`: too many
    /// to be worth a patch.
    ///
    /// A write between the take and the read is in what was read, but not in what was taken, and a
    /// patch without its pages would not hash right. So take once more, after the read, and give
    /// that back at once: the next round wants it.
    fn changed_pages(&self, source: &Source, block: BlockIndex, taken: &Taken) -> Option<PageMask> {
        let since = Taken::take(&self.round.shared.changes, source.no, block);
        let mut mask = taken.mask().clone();
        mask.merge(since.mask());
        let small = mask.count() * PAGE_SIZE * 2 <= source.len_of(block).0;
        (small && !mask.is_empty()).then_some(mask)
    }

    fn full(&mut self, flight: Flight, content: Buffer) -> Outgoing {
        let raw_len = u32::try_from(content.len()).expect("a block is at most 4 MiB");
        let (encoding, payload) = self.encode(content);
        Outgoing { flight, content: Content::Full, encoding, raw_len, payload: Some(payload) }
    }

    fn patch(&mut self, flight: Flight, content: &Buffer, mask: &PageMask) -> Outgoing {
        let ranges = mask.runs(content.len() as u64);
        let len: u64 = ranges.iter().map(|(_, len)| len).sum();
        let small = |n: u64| usize::try_from(n).expect("within a block");
        let mut pages = self.round.shared.pool.take(small(len));
        let (mut filled, mut runs) = (0, Vec::with_capacity(ranges.len()));
        for (at, len) in ranges {
            let end = filled + small(len);
            pages[filled..end].copy_from_slice(&content[small(at)..small(at + len)]);
            filled = end;
            let page = |n: u64| u16::try_from(n / PAGE_SIZE).expect("a block has 1024 pages");
            runs.push(PageRun { first: page(at), count: page(len.next_multiple_of(PAGE_SIZE)) });
        }
        let raw_len = u32::try_from(len).expect("within a block");
        let (encoding, payload) = self.encode(pages);
        let content = Content::Patch(runs);
        Outgoing { flight, content, encoding, raw_len, payload: Some(payload) }
    }

    fn encode(&mut self, content: Buffer) -> (Encoding, Buffer) {
        let level = self.round.level.load(Ordering::Relaxed);
        if level == OFF || content.len() < COMPRESS_FROM {
            return (Encoding::Raw, content);
        }
        let mut packed = self.round.shared.pool.take(content.len());
        match self.compressor.compress(level, &content, &mut packed) {
            Some(len) => {
                packed.truncate(len);
                (Encoding::Zstd, packed)
            }
            None => (Encoding::Raw, content),
        }
    }
}

const fn zero(flight: Flight) -> Outgoing {
    let (content, encoding) = (Content::Zero, Encoding::Raw);
    Outgoing { flight, content, encoding, raw_len: 0, payload: None }
}
