//! How a round gets on, and what it waits for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use units::{Bytes, DiskNo};
use wire::control::{Bottleneck, DiskProgress, RoundProgress};

use super::Shared;

/// A counter that many threads add to.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Nanoseconds since.
    pub fn add_since(&self, start: Instant) {
        self.add(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }

    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One disk's share of a round, in bytes; see [`DiskProgress`].
#[derive(Debug)]
pub struct DiskStats {
    disk: DiskNo,
    total: Bytes,
    pub done: Counter,
    pub sent: Counter,
    pub wire: Counter,
    pub equal: Counter,
    pub zero: Counter,
}

/// A round's figures.
pub struct RoundStats {
    number: u32,
    started: Instant,
    /// Written to all disks when the round began.
    written_before: Bytes,
    pub disks: Vec<Arc<DiskStats>>,
}

impl DiskStats {
    pub fn new(disk: DiskNo, total: Bytes) -> Self {
        let (done, sent, wire) = Default::default();
        let (equal, zero) = Default::default();
        Self { disk, total, done, sent, wire, equal, zero }
    }

    fn progress(&self) -> DiskProgress {
        let done = Bytes(self.done.value());
        DiskProgress {
            disk: Some(self.disk),
            // What is written ahead of the pass is looked at too.
            total: self.total.max(done),
            done,
            sent: Bytes(self.sent.value()),
            wire: Bytes(self.wire.value()),
            equal: Bytes(self.equal.value()),
            zero: Bytes(self.zero.value()),
        }
    }
}

impl RoundStats {
    pub fn start(number: u32, shared: &Shared) -> Self {
        let disks = shared.sources.iter().map(|source| {
            let total = super::cursor::blocks_to_visit(source, &*shared.changes);
            Arc::new(DiskStats::new(source.no, total))
        });
        Self {
            number,
            started: Instant::now(),
            written_before: written(shared),
            disks: disks.collect(),
        }
    }

    /// Content that was sent, of all disks.
    pub fn sent(&self) -> u64 {
        self.disks.iter().map(|disk| disk.sent.value()).sum()
    }

    pub fn progress(&self, shared: &Shared, bottleneck: Option<Bottleneck>) -> RoundProgress {
        RoundProgress {
            number: self.number,
            disks: self.disks.iter().map(|disk| disk.progress()).collect(),
            elapsed_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            dirtied: written(shared).saturating_sub(self.written_before),
            bottleneck,
        }
    }
}

fn written(shared: &Shared) -> Bytes {
    shared.sources.iter().map(|source| shared.changes.written(source.no)).sum()
}

/// Where time goes, in nanoseconds, summed over the workers and over the streams.
#[derive(Debug, Default)]
pub struct Times {
    /// Workers: waiting for the disk.
    pub read: Counter,
    /// Workers: looking for zeros, hashing, compressing.
    pub cpu: Counter,
    /// Workers: the queue was full.
    pub queue: Counter,
    /// Streams: the queue was empty.
    pub starved: Counter,
    /// Streams: no credit.
    pub credit: Counter,
    /// Streams: encrypting, and the socket.
    pub socket: Counter,
    /// Streams: the limit.
    pub limit: Counter,
}

/// The same between two moments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    pub read: u64,
    pub cpu: u64,
    pub queue: u64,
    pub starved: u64,
    pub credit: u64,
    pub socket: u64,
    pub limit: u64,
}

impl Times {
    pub fn so_far(&self) -> Spent {
        Spent {
            read: self.read.value(),
            cpu: self.cpu.value(),
            queue: self.queue.value(),
            starved: self.starved.value(),
            credit: self.credit.value(),
            socket: self.socket.value(),
            limit: self.limit.value(),
        }
    }
}

impl Spent {
    pub const fn since(self, before: Self) -> Self {
        Self {
            read: self.read - before.read,
            cpu: self.cpu - before.cpu,
            queue: self.queue - before.queue,
            starved: self.starved - before.starved,
            credit: self.credit - before.credit,
            socket: self.socket - before.socket,
            limit: self.limit - before.limit,
        }
    }

    /// Which share of their time the workers found the queue full, in percent.
    pub fn blocked_percent(self) -> u64 {
        let all = self.read + self.cpu + self.queue;
        (self.queue * 100).checked_div(all).unwrap_or(0)
    }

    /// What the round waits for. A full queue means the streams, otherwise it is the workers.
    /// Waiting for credit is the receiver's disks if its memory is mostly full, else the way there
    /// and back.
    pub fn bottleneck(self, receiver: ReceiverMemory) -> Option<Bottleneck> {
        let workers = self.read + self.cpu + self.queue;
        if workers == 0 {
            return None;
        }
        if self.blocked_percent() < 30 {
            return Some(if self.read > self.cpu { Bottleneck::Read } else { Bottleneck::Cpu });
        }
        let waits = [
            (self.limit, Bottleneck::Limit),
            (self.credit, receiver.bottleneck()),
            (self.socket, Bottleneck::Wire),
        ];
        waits.into_iter().max_by_key(|(spent, _)| *spent).map(|(_, bottleneck)| bottleneck)
    }
}

/// How full the receiver's memory is.
#[derive(Clone, Copy, Debug)]
pub struct ReceiverMemory {
    pub waiting: u64,
    pub credit: u64,
}

impl ReceiverMemory {
    const fn bottleneck(self) -> Bottleneck {
        // Both are the receiver's words, and it can say anything.
        if self.waiting >= self.credit.div_ceil(2) { Bottleneck::Write } else { Bottleneck::Wire }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bottleneck_is_what_is_waited_for_most() {
        let (full, empty) =
            (ReceiverMemory { waiting: 9, credit: 16 }, ReceiverMemory { waiting: 2, credit: 16 });
        let no_memory = ReceiverMemory { waiting: u64::MAX, credit: u64::MAX };
        let none = Spent::default();
        for (spent, receiver, expected) in [
            (none, empty, None),
            (Spent { read: 9, cpu: 1, ..none }, empty, Some(Bottleneck::Read)),
            (Spent { read: 1, cpu: 9, queue: 2, ..none }, full, Some(Bottleneck::Cpu)),
            (Spent { cpu: 1, queue: 9, socket: 9, ..none }, empty, Some(Bottleneck::Wire)),
            (Spent { cpu: 1, queue: 9, credit: 9, ..none }, empty, Some(Bottleneck::Wire)),
            (Spent { cpu: 1, queue: 9, credit: 9, ..none }, full, Some(Bottleneck::Write)),
            (Spent { cpu: 1, queue: 9, credit: 9, ..none }, no_memory, Some(Bottleneck::Write)),
            (
                Spent { cpu: 1, queue: 9, limit: 9, credit: 3, ..none },
                full,
                Some(Bottleneck::Limit),
            ),
        ] {
            assert_eq!(spent.bottleneck(receiver), expected, "{spent:?}");
        }
    }
}
