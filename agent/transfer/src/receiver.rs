//! The destination's half: streams in, targets written.
//!
//! ```text
//!  stream ─ reader task ─┐ credit bounds            ┌─ writer thread ─┐
//!  stream ─ reader task ─┼─ what waits here ─ jobs ─┼─ writer thread ─┼─ written ─ sync thread
//!  stream ─ reader task ─┘                          └─ writer thread ─┘              │
//!     └──────────────── Nack (hash), Credit (memory is free), Ack (durable) ─────────┘
//! ```
//!
//! A reader never waits for a disk: what it reads was paid for with credit, so there is room. A
//! writer checks the hash of the block as it will be before it writes a byte. Only the sync thread
//! acknowledges, after the target said that everything is on stable storage.
//!
//! # Generations
//!
//! All streams that are open at a time form a *generation*. When one of them breaks, all end; the
//! sender comes back with a higher generation. The first Hello of a higher one stops the current
//! one, waits until its last writer has returned, makes durable what was written, and only then is
//! answered. So a block of an old generation cannot be written after one of a newer, however long
//! it lay in a buffer or a disk's queue.

mod generation;
mod index;
mod job;
mod ledger;
mod outbox;
mod stream;
mod sync;
mod target;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use units::{BlockSize, Bytes, Digest, DiskNo, MigrationId, chain};
use wire::control::{ErrorCode as ControlCode, Failure};
use wire::data::{DATA_VERSION, ErrorCode};

use self::generation::Generation;
use self::target::Target;
use crate::buffer::Pool;
use crate::disk::BlockWrite;
use crate::frames::StreamError;

/// A disk to be written.
pub struct TargetDisk {
    pub no: DiskNo,
    /// The source's size; the device may be larger.
    pub size: Bytes,
    pub block_size: BlockSize,
    pub disk: Arc<dyn BlockWrite>,
    pub holds: Holds,
}

/// What is known of a target before anything was written to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// The platform has just created it, all zeros.
    Zeros,
    /// Something. Until [`Receiver::index`] has read it, every block is sent in full.
    Anything,
}

#[derive(Clone, Copy, Debug)]
pub struct ReceiverLimits {
    /// What may wait in memory to be written, over all streams.
    pub credit: Bytes,
    /// Threads that check and write.
    pub writers: usize,
    /// A sync is due when this much was written since the last one began ...
    pub sync_bytes: Bytes,
    /// ... or this long after the first write since then.
    pub sync_after: Duration,
}

impl Default for ReceiverLimits {
    /// The credit fills a line of 1 Gbit/s with 130 ms of round trip. A sync costs a flush of the
    /// device's cache, so it is shared by many blocks; how long it may be put off is what a resume
    /// sends again.
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        Self {
            credit: Bytes::mib(16),
            writers: cores.clamp(2, 4),
            sync_bytes: Bytes::mib(48),
            sync_after: Duration::from_millis(300),
        }
    }
}

#[derive(Debug, Error)]
pub enum ReceiverError {
    #[error(transparent)]
    Stream(#[from] StreamError),

    #[error("nothing was heard from the source for {} s", wire::data::DEAD_AFTER_MS / 1000)]
    Silent,

    #[error("the source broke the protocol: {what}")]
    Protocol { what: String },

    #[error("the source speaks version {theirs} of the data protocol, this agent {DATA_VERSION}")]
    Version { theirs: u16 },

    #[error("a stream of another migration: {theirs}")]
    Foreign { theirs: MigrationId },

    #[error("a stream of generation {theirs}, but {current} has begun")]
    Stale { theirs: u64, current: u64 },

    #[error("the streams of this generation were ended")]
    Stopped,

    #[error("the source gave up: {text}")]
    Peer { code: ErrorCode, text: String },

    #[error("disk {disk}: {doing} the target failed")]
    Target {
        disk: DiskNo,
        doing: &'static str,
        #[source]
        cause: io::Error,
    },

    #[error("disk {disk}: the target has {device} bytes, {size} are needed", device = .device.0, size = .size.0)]
    TooSmall { disk: DiskNo, size: Bytes, device: Bytes },

    #[error("disk {disk} is there twice")]
    Twice { disk: DiskNo },

    #[error("disk {disk}: of {blocks} blocks it is not known what they hold")]
    NotWhole { disk: DiskNo, blocks: u64 },

    #[error("blocks are on their way")]
    InFlight,

    #[error("no memory for a decompressor")]
    Decompressor {
        #[source]
        cause: io::Error,
    },
}

impl ReceiverError {
    /// What the source is told.
    const fn code(&self) -> ErrorCode {
        match self {
            Self::Stream(StreamError::Frame { .. }) | Self::Protocol { .. } => ErrorCode::Protocol,
            Self::Version { .. } => ErrorCode::Version,
            Self::Foreign { .. } => ErrorCode::Foreign,
            Self::Stale { .. } => ErrorCode::Stale,
            Self::Target { .. }
            | Self::TooSmall { .. }
            | Self::NotWhole { .. }
            | Self::Decompressor { .. } => ErrorCode::Target,
            Self::Stream(StreamError::Io { .. })
            | Self::Silent
            | Self::Stopped
            | Self::Peer { .. }
            | Self::Twice { .. }
            | Self::InFlight => ErrorCode::Stopped,
        }
    }
}

impl From<&ReceiverError> for Failure {
    fn from(error: &ReceiverError) -> Self {
        let (code, hint) = match error {
            ReceiverError::Target { cause, .. } if is_full(cause) => {
                (ControlCode::Io, Some("the destination's storage is full: make room, then resume"))
            }
            ReceiverError::Target { .. } | ReceiverError::Decompressor { .. } => {
                (ControlCode::Io, None)
            }
            ReceiverError::TooSmall { .. } | ReceiverError::Twice { .. } => {
                (ControlCode::Disk, None)
            }
            ReceiverError::Version { .. } => (ControlCode::Version, None),
            ReceiverError::Foreign { .. } => (ControlCode::Foreign, None),
            ReceiverError::InFlight => (ControlCode::WrongState, Some("end the round first")),
            ReceiverError::NotWhole { .. } => (ControlCode::NotClean, Some("copy another round")),
            ReceiverError::Stream(_)
            | ReceiverError::Silent
            | ReceiverError::Protocol { .. }
            | ReceiverError::Stale { .. }
            | ReceiverError::Stopped
            | ReceiverError::Peer { .. } => (ControlCode::Streams, None),
        };
        Self { code, text: chain(error), hint: hint.map(str::to_owned) }
    }
}

fn is_full(cause: &io::Error) -> bool {
    matches!(cause.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The destination's half of a migration. Clones are the same receiver.
#[derive(Clone)]
pub struct Receiver(Arc<Shared>);

struct Shared {
    migration: MigrationId,
    targets: Vec<Arc<Target>>,
    limits: ReceiverLimits,
    pool: Pool,
    current: tokio::sync::Mutex<Option<Arc<Generation>>>,
}

impl Receiver {
    pub fn new(
        migration: MigrationId,
        disks: Vec<TargetDisk>,
        limits: ReceiverLimits,
    ) -> Result<Self, ReceiverError> {
        let mut targets: Vec<Arc<Target>> = Vec::new();
        for disk in disks {
            if targets.iter().any(|target| target.no == disk.no) {
                return Err(ReceiverError::Twice { disk: disk.no });
            }
            targets.push(Arc::new(Target::new(disk)?));
        }
        let pool = Pool::new(usize::try_from(limits.credit.0).unwrap_or(usize::MAX));
        let current = tokio::sync::Mutex::new(None);
        Ok(Self(Arc::new(Shared { migration, targets, limits, pool, current })))
    }

    /// Reads every target that may hold something, so that only what differs has to be sent.
    /// `progress` is told how much of how much was read, about twice a second.
    pub async fn index(
        &self,
        progress: impl Fn(Bytes, Bytes) + Send + Sync,
    ) -> Result<(), ReceiverError> {
        let unread: Vec<Arc<Target>> =
            self.0.targets.iter().filter(|target| target.is_unread()).map(Arc::clone).collect();
        for (target, table) in unread.iter().zip(index::read_all(&unread, &progress).await?) {
            target.replace_table(table);
        }
        Ok(())
    }

    /// Begins a generation, if it has not begun: ends every lower one, waits for its writers and
    /// makes durable what they wrote.
    pub async fn begin(&self, generation: u64) -> Result<(), ReceiverError> {
        self.0.enter(generation).await.map(drop)
    }

    /// Serves one data stream, from its Hello to its end; call it for several at once. The end of
    /// one with an error is the end of all of its generation.
    ///
    /// The first Hello of a higher generation begins it.
    pub async fn serve<S>(&self, stream: S) -> Result<(), ReceiverError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        stream::serve(&self.0, stream).await
    }

    /// Ends every stream and waits for the writers.
    pub async fn disconnect(&self) {
        if let Some(generation) = &*self.0.current.lock().await {
            generation.stop().await;
        }
    }

    /// The generation whose streams are served, unless they have ended.
    pub async fn generation(&self) -> Option<u64> {
        let current = self.0.current.lock().await;
        current.as_ref().filter(|current| current.is_running()).map(|current| current.number)
    }

    /// Makes everything that was written durable and names it: the digest of every disk, in the
    /// order in which they were given.
    ///
    /// # Errors
    ///
    /// [`ReceiverError::InFlight`] while a round runs.
    pub async fn digests(&self) -> Result<Vec<Digest>, ReceiverError> {
        self.nothing_in_flight().await?;
        let mut digests = Vec::new();
        for target in &self.0.targets {
            let target = Arc::clone(target);
            let digest = blocking(move || {
                target.sync()?;
                target.digest()
            });
            digests.push(digest.await?);
        }
        Ok(digests)
    }

    /// Reads every target from start to end and names what is really there.
    pub async fn reread(
        &self,
        progress: impl Fn(Bytes, Bytes) + Send + Sync,
    ) -> Result<Vec<Digest>, ReceiverError> {
        self.digests().await?;
        let mut tables = index::read_all(&self.0.targets, &progress).await?;
        Ok(tables.iter_mut().map(crate::table::Table::root).collect())
    }

    async fn nothing_in_flight(&self) -> Result<(), ReceiverError> {
        match &*self.0.current.lock().await {
            Some(current) if current.is_running() && current.has_blocks() => {
                return Err(ReceiverError::InFlight);
            }
            Some(current) if !current.is_running() => current.stop().await,
            Some(_) | None => {}
        }
        Ok(())
    }
}

/// The writers end with the last handle.
impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(generation) = self.current.get_mut() {
            generation.end();
        }
    }
}

impl Shared {
    /// The generation of this number, begun if it is higher than the current one.
    async fn enter(&self, number: u64) -> Result<Arc<Generation>, ReceiverError> {
        let mut slot = self.current.lock().await;
        if let Some(current) = &*slot {
            if current.number == number && current.is_running() {
                return Ok(Arc::clone(current));
            }
            if current.number >= number {
                return Err(ReceiverError::Stale { theirs: number, current: current.number });
            }
            current.stop().await;
        }
        for target in &self.targets {
            let target = Arc::clone(target);
            blocking(move || target.restart()).await?;
        }
        let fresh = Generation::start(number, &self.targets, &self.limits, &self.pool);
        tracing::info!(generation = number, "generation begun");
        *slot = Some(Arc::clone(&fresh));
        Ok(fresh)
    }

    fn target(&self, no: DiskNo) -> Result<&Arc<Target>, ReceiverError> {
        let found = self.targets.iter().find(|target| target.no == no);
        found.ok_or_else(|| ReceiverError::Protocol { what: format!("there is no disk {no}") })
    }
}

/// Runs blocking work on a thread for it.
///
/// # Panics
///
/// When the work does.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("the work does not panic and is not cancelled")
}
