//! The source's half: what changed, read, hashed, compressed, sent.
//!
//! ```text
//!  what is not known ─┐            ┌─ worker thread ─┐         ┌─ stream task ─▶
//!  to be equal, or    ├─ cursor ───┼─ worker thread ─┼─ queue ─┼─ stream task ─▶
//!  was written        ┘            └─ worker thread ─┘         └─ stream task ─▶
//!                        take, read, hash, compress      credit, limit, encrypt, send
//! ```
//!
//! A worker does all that has to be done to a block; while one waits for the disk another hashes.
//! The queue between workers and streams is short: whether it is full or empty tells what the
//! round waits for, and decides how hard to compress.
//!
//! # When a block is done
//!
//! When the destination has acknowledged it, not when it was sent. Until then the pages that were
//! taken from the [`Changes`] are owed, and every failure puts them back. Besides what was written,
//! a round looks at every block that this sender has not yet seen to be equal at the destination:
//! all of them at first, those that the destination's table contradicts after a reconnect.

mod cursor;
mod level;
mod limiter;
mod link;
mod pending;
mod progress;
mod round;
mod source;
mod stream;
mod worker;

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use units::{BlockIndex, BlockSize, Bytes, Digest, DiskNo, MigrationId, chain};
use wire::control::{ErrorCode as ControlCode, Failure, RoundProgress};
use wire::data::{DATA_VERSION, ErrorCode};

use self::level::LevelControl;
use self::limiter::Limiter;
use self::link::Link;
use self::source::Source;
use crate::buffer::Pool;
use crate::changes::Changes;
use crate::disk::BlockRead;
use crate::frames::StreamError;

/// A disk to be copied.
pub struct SourceDisk {
    pub no: DiskNo,
    pub size: Bytes,
    pub block_size: BlockSize,
    pub disk: Arc<dyn BlockRead>,
}

#[derive(Clone, Copy, Debug)]
pub struct SenderLimits {
    /// Threads that read, hash and compress. More than there are cores, so that disks are kept
    /// busy.
    pub workers: usize,
}

impl Default for SenderLimits {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        Self { workers: (cores + 1).clamp(2, 6) }
    }
}

/// How a round is to go.
#[derive(Clone, Copy, Debug, Default)]
pub struct RoundOptions {
    /// Bytes per second on the wire, over all streams.
    pub limit_rate: Option<Bytes>,
    /// Bytes per second read from the disks; holes cost nothing.
    pub limit_read: Option<Bytes>,
    /// The highest zstd level; 0: no compression.
    pub compress: i32,
}

/// How a round went.
#[derive(Debug)]
pub struct Round {
    pub progress: RoundProgress,
    /// `None`: nothing is in flight, and all that was sent is on stable storage.
    pub failure: Option<SenderError>,
    /// It was ended early: not everything was looked at.
    pub stopped: bool,
    /// What the next round would have to look at.
    pub remaining: Bytes,
}

#[derive(Debug, Error)]
pub enum SenderError {
    #[error(transparent)]
    Stream(#[from] StreamError),

    #[error("nothing was heard from the destination for {} s", wire::data::DEAD_AFTER_MS / 1000)]
    Silent,

    #[error("the destination broke the protocol: {what}")]
    Protocol { what: String },

    #[error(
        "the destination speaks version {theirs} of the data protocol, this agent {DATA_VERSION}"
    )]
    Version { theirs: u16 },

    #[error("the destination gave up: {text}")]
    Peer { code: ErrorCode, text: String },

    #[error("there is no connection to the destination")]
    NotConnected,

    #[error("generation {asked} after {last}: it has to grow")]
    Generation { asked: u64, last: u64 },

    #[error("a connection has 1 to {} streams, not {asked}", wire::data::STREAMS_MAX)]
    Streams { asked: usize },

    #[error("disk {disk}: the destination was told a size of {theirs} bytes, it has {ours}", theirs = .theirs.0, ours = .ours.0)]
    Shape { disk: DiskNo, theirs: Bytes, ours: Bytes },

    #[error("disk {disk}: reading block {} failed", .block.0)]
    Read {
        disk: DiskNo,
        block: BlockIndex,
        #[source]
        cause: io::Error,
    },

    #[error("disk {disk}: the device has {device} bytes, {size} are needed", device = .device.0, size = .size.0)]
    TooSmall { disk: DiskNo, size: Bytes, device: Bytes },

    #[error("disk {disk} is there twice")]
    Twice { disk: DiskNo },

    #[error("disk {disk}: the destination refused block {} {times} times", .block.0)]
    Refused { disk: DiskNo, block: BlockIndex, times: u32 },

    #[error("a round is under way")]
    Busy,

    #[error("disk {disk}: {what}")]
    NotSealed { disk: DiskNo, what: &'static str },

    #[error("the last round was not completed, or was before round {since}")]
    NotDrained { since: u32 },

    #[error("no memory for a compressor")]
    Compressor {
        #[source]
        cause: io::Error,
    },
}

impl From<&SenderError> for Failure {
    fn from(error: &SenderError) -> Self {
        let (code, hint) = match error {
            SenderError::Read { .. } => {
                (ControlCode::Io, Some("the source's disk has an error there: check it"))
            }
            SenderError::Peer { code: ErrorCode::Target, .. } | SenderError::Compressor { .. } => {
                (ControlCode::Io, None)
            }
            SenderError::TooSmall { .. }
            | SenderError::Twice { .. }
            | SenderError::Shape { .. } => (ControlCode::Disk, None),
            SenderError::Version { .. } | SenderError::Peer { code: ErrorCode::Version, .. } => {
                (ControlCode::Version, None)
            }
            SenderError::Peer { code: ErrorCode::Foreign, .. } => (ControlCode::Foreign, None),
            SenderError::Busy => (ControlCode::WrongState, Some("stop the round first")),
            SenderError::NotSealed { .. } | SenderError::NotDrained { .. } => {
                (ControlCode::NotClean, Some("copy another round"))
            }
            SenderError::Generation { .. } | SenderError::Streams { .. } => {
                (ControlCode::WrongState, None)
            }
            SenderError::Stream(_)
            | SenderError::Silent
            | SenderError::Protocol { .. }
            | SenderError::Peer { .. }
            | SenderError::NotConnected
            | SenderError::Refused { .. } => (ControlCode::Streams, None),
        };
        Self { code, text: chain(error), hint: hint.map(str::to_owned) }
    }
}

/// The source's half of a migration. Clones are the same sender.
#[derive(Clone)]
pub struct Sender(Arc<Shared>);

struct Shared {
    migration: MigrationId,
    sources: Arc<[Source]>,
    changes: Arc<dyn Changes>,
    limits: SenderLimits,
    pool: Pool,
    limiter: Arc<Limiter>,
    reads: Limiter,
    link: Mutex<Option<Arc<Link>>>,
    /// The generation of the last attempt to connect.
    last_generation: Mutex<u64>,
    /// Held by the round under way, and by a connect.
    turn: tokio::sync::Mutex<()>,
    /// Ends the round under way.
    stop: Mutex<CancellationToken>,
    /// What the last round found out about the line.
    levels: Mutex<Option<LevelControl>>,
    /// The number of the last round, and one more, if it looked at everything and was acknowledged:
    /// else 0. Numbers may come again, and an earlier round of the same says nothing of this one.
    completed: AtomicU32,
}

impl Sender {
    pub fn new(
        migration: MigrationId,
        disks: Vec<SourceDisk>,
        changes: Arc<dyn Changes>,
        limits: SenderLimits,
    ) -> Result<Self, SenderError> {
        let mut sources: Vec<Source> = Vec::new();
        for disk in disks {
            if sources.iter().any(|source| source.no == disk.no) {
                return Err(SenderError::Twice { disk: disk.no });
            }
            sources.push(Source::new(disk)?);
        }
        Ok(Self(Arc::new(Shared {
            migration,
            sources: sources.into(),
            changes,
            limits,
            pool: Pool::new(POOL_KEEPS),
            limiter: Arc::default(),
            reads: Limiter::default(),
            link: Mutex::default(),
            last_generation: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            stop: Mutex::default(),
            levels: Mutex::default(),
            completed: AtomicU32::new(0),
        })))
    }

    /// Opens a connection of these streams, which are authenticated already, and learns what the
    /// destination holds. `generation` is higher than that of every attempt before.
    ///
    /// A connection that is there is given up first, as by [`Self::disconnect`].
    pub async fn connect<S>(&self, generation: u64, streams: Vec<S>) -> Result<(), SenderError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        self.disconnect().await;
        let _turn = self.0.turn.lock().await;
        {
            let mut last = self.0.last_generation.lock().unwrap_or_else(PoisonError::into_inner);
            if generation <= *last {
                return Err(SenderError::Generation { asked: generation, last: *last });
            }
            *last = generation;
        }
        let (limiter, sources) = (Arc::clone(&self.0.limiter), Arc::clone(&self.0.sources));
        let link = Link::open(&self.0.migration, generation, streams, limiter, sources).await?;
        if let Err(error) = link.learn().await {
            link.close().await;
            return Err(error);
        }
        tracing::info!(generation, "connected");
        *self.0.link() = Some(link);
        Ok(())
    }

    /// Gives up the connection, and with it the round under way. What was in flight is dirty again
    /// when this returns.
    pub async fn disconnect(&self) {
        let link = self.0.link().take();
        if let Some(link) = link {
            link.close().await;
            // The round under way still holds what it was looking at.
            let _turn = self.0.turn.lock().await;
        }
    }

    /// One pass over all that is not known to be equal at the destination. `progress` is told
    /// about twice a second.
    pub async fn round(
        &self,
        number: u32,
        options: RoundOptions,
        progress: &watch::Sender<RoundProgress>,
    ) -> Round {
        round::run(&self.0, number, options, progress).await
    }

    /// Ends the round under way early; what is in flight is still acknowledged.
    pub fn stop_round(&self) {
        self.0.stop.lock().unwrap_or_else(PoisonError::into_inner).cancel();
    }

    /// Of the round under way and of later ones.
    pub fn limit_rate(&self, bytes_per_s: Option<Bytes>) {
        self.0.limiter.set(bytes_per_s);
    }

    /// The highest generation that it was asked to connect for; 0 for none.
    pub fn last_generation(&self) -> u64 {
        *self.0.last_generation.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The generation of the connection, unless it has ended.
    pub fn generation(&self) -> Option<u64> {
        let link = self.0.link();
        link.as_ref().filter(|link| link.is_open()).map(|link| link.generation)
    }

    /// What a round would have to look at now: blocks not known to be equal at the destination,
    /// in full, and in the others the pages that were written.
    pub fn remaining(&self) -> Bytes {
        remaining(&self.0)
    }

    /// The digest of every disk, if the destination has all of it on stable storage: everything is
    /// known to be equal there, nothing was written since, and the last round was a whole one and
    /// number `drained_in` or later. That round is to have begun after the last write: for
    /// changes that are not precise it is the only evidence.
    pub fn seal(&self, drained_in: u32) -> Result<Vec<Digest>, SenderError> {
        let Ok(_turn) = self.0.turn.try_lock() else { return Err(SenderError::Busy) };
        if self.0.completed.load(Ordering::Relaxed) <= drained_in {
            return Err(SenderError::NotDrained { since: drained_in });
        }
        let digest = |source: &Source| {
            let not_sealed = |what| SenderError::NotSealed { disk: source.no, what };
            let changes = &self.0.changes;
            if changes.precise() && changes.next_dirty(source.no, BlockIndex(0)).is_some() {
                return Err(not_sealed("it was written since"));
            }
            let mut held = source.held();
            if held.unknown_bytes() > Bytes::ZERO {
                return Err(not_sealed("not all of it was compared"));
            }
            Ok(held.root())
        };
        self.0.sources.iter().map(digest).collect()
    }
}

/// Unused buffers to keep: those of a busy sender of small blocks.
const POOL_KEEPS: usize = 12 << 20;

fn remaining(shared: &Shared) -> Bytes {
    let of_disk = |source: &Source| {
        let bytes = source.held().unknown_bytes() + shared.changes.dirty(source.no);
        bytes.min(source.size)
    };
    shared.sources.iter().map(of_disk).sum()
}

impl Shared {
    fn link(&self) -> MutexGuard<'_, Option<Arc<Link>>> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The streams end with the last handle.
impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(link) = &*self.link() {
            link.end();
        }
    }
}
