//! A source that is written to, a target that fails when told to, and streams that break.
#![allow(dead_code, reason = "each test file uses its part of the world")]
#![allow(clippy::unwrap_used, reason = "test code")]

pub mod disk;
pub mod pipe;

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::JoinSet;
use transfer::{
    Changes, Holds, NoChanges, Receiver, ReceiverError, ReceiverLimits, Round, RoundOptions,
    Sender, SenderError, SenderLimits, SourceDisk, TargetDisk,
};
use units::{BlockSize, Bytes, DiskNo, MigrationId};
use wire::control::RoundProgress;

use disk::MemoryDisk;

pub const BLOCK: usize = 262_144;

pub fn migration() -> MigrationId {
    "test-1".parse().unwrap()
}

/// Both ends of a migration of some disks.
pub struct World {
    pub sources: Vec<Arc<MemoryDisk>>,
    pub targets: Vec<Arc<MemoryDisk>>,
    pub changes: Arc<dyn Changes>,
    pub sender: Sender,
    pub receiver: Receiver,
    pub generation: u64,
    pub rounds: u32,
    pub serving: JoinSet<Result<(), ReceiverError>>,
}

pub fn small_limits() -> ReceiverLimits {
    ReceiverLimits {
        credit: Bytes::mib(1),
        sync_bytes: Bytes(3 * 262_144),
        writers: 2,
        ..ReceiverLimits::default()
    }
}

pub fn target_disks(targets: &[Arc<MemoryDisk>], holds: Holds) -> Vec<TargetDisk> {
    let disk = |(no, target): (u16, &Arc<MemoryDisk>)| TargetDisk {
        no: DiskNo(no),
        size: Bytes(target.len() as u64),
        block_size: BlockSize::MIN,
        disk: Arc::clone(target) as Arc<dyn transfer::BlockWrite>,
        holds,
    };
    (0..).zip(targets).map(disk).collect()
}

pub fn source_disks(sources: &[Arc<MemoryDisk>]) -> Vec<SourceDisk> {
    let disk = |(no, source): (u16, &Arc<MemoryDisk>)| SourceDisk {
        no: DiskNo(no),
        size: Bytes(source.len() as u64),
        block_size: BlockSize::MIN,
        disk: Arc::clone(source) as Arc<dyn transfer::BlockRead>,
    };
    (0..).zip(sources).map(disk).collect()
}

impl World {
    /// Disks of these sizes, filled; targets fresh.
    pub fn new(sizes: &[usize]) -> Self {
        let sources: Vec<_> =
            sizes.iter().map(|size| Arc::new(MemoryDisk::filled(*size))).collect();
        Self::with(sources, Arc::new(NoChanges))
    }

    pub fn with(sources: Vec<Arc<MemoryDisk>>, changes: Arc<dyn Changes>) -> Self {
        let targets: Vec<_> =
            sources.iter().map(|source| Arc::new(MemoryDisk::zeros(source.len()))).collect();
        let sender = Sender::new(
            migration(),
            source_disks(&sources),
            Arc::clone(&changes),
            SenderLimits { workers: 3 },
        );
        let receiver =
            Receiver::new(migration(), target_disks(&targets, Holds::Zeros), small_limits());
        Self {
            sources,
            targets,
            changes,
            sender: sender.unwrap(),
            receiver: receiver.unwrap(),
            generation: 0,
            rounds: 0,
            serving: JoinSet::new(),
        }
    }

    /// The agent at the destination was killed: its successor knows nothing of the targets.
    pub fn restart_receiver(&mut self, holds: Holds) {
        self.serving = JoinSet::new();
        for target in &self.targets {
            target.crash();
        }
        let disks = target_disks(&self.targets, holds);
        self.receiver = Receiver::new(migration(), disks, small_limits()).unwrap();
    }

    /// The agent at the source was killed.
    pub fn restart_sender(&mut self) {
        let disks = source_disks(&self.sources);
        let limits = SenderLimits { workers: 3 };
        self.sender = Sender::new(migration(), disks, Arc::clone(&self.changes), limits).unwrap();
    }

    /// Connects over streams made by `pair`, which gives the source's end and the destination's.
    pub async fn connect<A, B>(
        &mut self,
        streams: u16,
        mut pair: impl FnMut(u16) -> (A, B),
    ) -> Result<(), SenderError>
    where
        A: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        B: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        self.generation += 1;
        let mut ends = Vec::new();
        for no in 0..streams {
            let (here, there) = pair(no);
            ends.push(here);
            let receiver = self.receiver.clone();
            self.serving.spawn(async move { receiver.serve(there).await });
        }
        self.sender.connect(self.generation, ends).await
    }

    pub async fn connect_plainly(&mut self, streams: u16) {
        self.connect(streams, |_| tokio::io::duplex(64 << 10)).await.unwrap();
    }

    pub async fn round(&mut self) -> Round {
        self.round_with(RoundOptions { limit_rate: None, limit_read: None, compress: 1 }).await
    }

    pub async fn round_with(&mut self, options: RoundOptions) -> Round {
        self.rounds += 1;
        let (progress, _) = watch::channel(RoundProgress::default());
        self.sender.round(self.rounds, options, &progress).await
    }

    /// Everything arrived, is durable, and both ends name it alike.
    pub async fn assert_equal(&self) {
        for (source, target) in self.sources.iter().zip(&self.targets) {
            assert!(source.content() == target.content(), "the target differs");
            assert!(source.content() == target.durable(), "the target is not durable");
        }
        let digests = self.receiver.digests().await.unwrap();
        assert_eq!(self.sender.seal(self.rounds).unwrap(), digests);
        assert_eq!(self.receiver.reread(|_, _| {}).await.unwrap(), digests);
    }
}

pub fn sum(progress: &RoundProgress, of: impl Fn(&wire::control::DiskProgress) -> Bytes) -> usize {
    let sum: Bytes = progress.disks.iter().map(of).sum();
    usize::try_from(sum.0).unwrap()
}

pub fn ok(round: Round) -> RoundProgress {
    assert!(round.failure.is_none(), "{:?}", round.failure);
    round.progress
}
