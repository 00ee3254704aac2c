//! All streams that are open at a time, and the threads that write for them.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

use tokio_util::sync::CancellationToken;
use units::{BlockIndex, Bytes, DiskNo, chain};
use wire::data::ErrorCode;

use super::job::{Job, Writer};
use super::sync::{SyncQueue, Written};
use super::target::Target;
use super::{ReceiverError, ReceiverLimits};
use crate::buffer::Pool;

/// See the [module above](super).
pub struct Generation {
    pub number: u64,
    pub pool: Pool,
    /// What each stream may spend at first.
    pub credit_total: Bytes,
    /// Cancelled: nothing of this generation is begun any more.
    pub ended: CancellationToken,
    pub syncs: SyncQueue,
    jobs: async_channel::Sender<Job>,
    queued: async_channel::Receiver<Job>,
    streams: Mutex<HashSet<u16>>,
    /// Received and neither acknowledged nor refused.
    in_flight: Mutex<HashSet<(DiskNo, BlockIndex)>>,
    /// What of the credit is spent just now.
    memory: AtomicU64,
    threads: tokio::sync::Mutex<Vec<JoinHandle<()>>>,
    /// Why it ended.
    failure: OnceLock<(ErrorCode, String)>,
}

impl Generation {
    pub fn start(
        number: u64,
        targets: &[Arc<Target>],
        limits: &ReceiverLimits,
        pool: &Pool,
    ) -> Arc<Self> {
        // Bounded by credit and by the number of blocks that may be unacknowledged.
        let (jobs, queued) = async_channel::unbounded();
        let generation = Arc::new(Self {
            number,
            pool: pool.clone(),
            credit_total: limits.credit,
            ended: CancellationToken::new(),
            syncs: SyncQueue::new(limits.sync_bytes, limits.sync_after),
            jobs,
            queued,
            streams: Mutex::default(),
            in_flight: Mutex::default(),
            memory: AtomicU64::new(0),
            threads: tokio::sync::Mutex::default(),
            failure: OnceLock::new(),
        });
        let largest = targets.iter().map(|target| target.block_size.bytes()).max().unwrap_or(0);
        let fit = usize::try_from((WRITER_BYTES / (2 * largest.max(1))).max(2));
        let writers = limits.writers.clamp(1, fit.unwrap_or(usize::MAX));
        let writers = (0..writers).map(|_| {
            let generation = Arc::clone(&generation);
            spawn("causeway-write", move || generation.write_loop(largest))
        });
        let mut threads: Vec<JoinHandle<()>> = writers.collect();
        let syncer = Arc::clone(&generation);
        threads.push(spawn("causeway-sync", move || syncer.sync_loop()));
        *generation.threads.try_lock().expect("nobody else has seen it yet") = threads;
        generation
    }

    pub fn is_running(&self) -> bool {
        !self.ended.is_cancelled()
    }

    pub fn has_blocks(&self) -> bool {
        !self.in_flight().is_empty()
    }

    /// What of the credit is spent just now.
    pub fn memory_waiting(&self) -> Bytes {
        Bytes(self.memory.load(Ordering::Relaxed))
    }

    /// A stream joins, once.
    pub fn join(&self, stream: u16) -> Result<(), ReceiverError> {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let what = || format!("stream {stream} is there twice");
        streams.insert(stream).then_some(()).ok_or_else(|| ReceiverError::Protocol { what: what() })
    }

    /// A block is on its way, once at a time.
    pub fn take_off(&self, disk: DiskNo, block: BlockIndex) -> Result<(), String> {
        let new = self.in_flight().insert((disk, block));
        new.then_some(()).ok_or_else(|| format!("block {} of disk {disk} is under way", block.0))
    }

    pub fn land(&self, disk: DiskNo, block: BlockIndex) {
        self.in_flight().remove(&(disk, block));
    }

    /// Queues a block for the writers.
    pub fn submit(&self, job: Job) -> Result<(), ReceiverError> {
        self.memory.fetch_add(job.cost, Ordering::Relaxed);
        self.jobs.try_send(job).map_err(|_| ReceiverError::Stopped)
    }

    /// Ends it because of this, unless it has ended already; answers why it has.
    pub fn fail(&self, error: &ReceiverError) -> (ErrorCode, String) {
        let failure = self.failure.get_or_init(|| {
            tracing::warn!(generation = self.number, error = chain(error), "generation ended");
            (error.code(), chain(error))
        });
        self.end();
        failure.clone()
    }

    /// Nothing of this generation is begun any more; what runs ends by itself.
    pub fn end(&self) {
        self.ended.cancel();
        self.jobs.close();
        self.syncs.close();
    }

    /// Ends it and waits until the last writer has returned.
    pub async fn stop(&self) {
        self.end();
        let threads = std::mem::take(&mut *self.threads.lock().await);
        super::blocking(move || {
            for thread in threads {
                thread.join().expect("writers do not panic");
            }
        })
        .await;
        while self.queued.try_recv().is_ok() {}
    }

    fn write_loop(&self, largest_block: u64) {
        let mut writer = match Writer::new(&self.pool, largest_block) {
            Ok(writer) => writer,
            Err(cause) => {
                self.fail(&ReceiverError::Decompressor { cause });
                return;
            }
        };
        while let Ok(job) = self.queued.recv_blocking() {
            if !self.is_running() {
                continue;
            }
            let (stream, cost, seq) = (Arc::clone(&job.stream), job.cost, job.block.seq);
            let (target, block) = (Arc::clone(&job.target), job.block.block);
            let outcome = writer.perform(job);
            self.memory.fetch_sub(cost, Ordering::Relaxed);
            match outcome {
                Ok(None) => {
                    let len = target.block_size.len_of(block, target.size);
                    let stream = Arc::clone(&stream);
                    self.syncs.push(Written { stream, seq, target, block, len });
                }
                Ok(Some(reason)) => {
                    self.land(target.no, block);
                    stream.refuse(seq, reason);
                }
                Err(error) => {
                    self.fail(&error);
                    return;
                }
            }
            if stream.release(cost) {
                self.syncs.hurry();
            }
        }
    }

    fn sync_loop(&self) {
        while let Some(mut written) = self.syncs.next() {
            written.sort_by_key(|written| (written.target.no, written.stream.no));
            for of_target in written.chunk_by(|a, b| a.target.no == b.target.no) {
                if let Err(error) = of_target[0].target.sync() {
                    self.fail(&error);
                    return;
                }
                for one in of_target {
                    self.land(one.target.no, one.block);
                }
                for of_stream in of_target.chunk_by(|a, b| a.stream.no == b.stream.no) {
                    of_stream[0].stream.settle(of_stream.iter().map(|one| one.seq));
                }
            }
        }
    }

    fn in_flight(&self) -> MutexGuard<'_, HashSet<(DiskNo, BlockIndex)>> {
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What writers may hold besides what waits for them: each a block, and a patch unpacked.
const WRITER_BYTES: u64 = 16 << 20;

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn(run).expect("the machine has room for a thread")
}
