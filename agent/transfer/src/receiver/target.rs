//! One disk being written.

use std::sync::{Mutex, MutexGuard, PoisonError};

use units::{BlockIndex, BlockSize, Bytes, Digest, DiskNo};
use wire::data::UNKNOWN;

use super::{Holds, ReceiverError, TargetDisk};
use crate::disk::BlockWrite;
use crate::table::Table;

/// One disk being written, and what it holds.
///
/// The table says [`UNKNOWN`] of a block from before its write until the write has returned, and
/// of every block that was written but not made durable when a sync fails: after a failed sync
/// nobody can tell what is on the disk, and a second sync that succeeds proves nothing. Such blocks
/// are sent again, in full.
pub struct Target {
    pub no: DiskNo,
    pub size: Bytes,
    pub block_size: BlockSize,
    pub disk: std::sync::Arc<dyn BlockWrite>,
    table: Mutex<Table>,
    /// Written since the last sync began.
    unsynced: Mutex<Vec<BlockIndex>>,
    /// Held during a sync: the kernel tells of a failure only once, so two must not overlap.
    syncing: Mutex<SyncHealth>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum SyncHealth {
    Good,
    /// A sync failed in this generation; every later one fails too.
    Failed,
}

impl Target {
    pub fn new(disk: TargetDisk) -> Result<Self, ReceiverError> {
        let TargetDisk { no, size, block_size, disk, holds } = disk;
        let device = disk.size();
        if device < size {
            return Err(ReceiverError::TooSmall { disk: no, size, device });
        }
        let table = Mutex::new(match holds {
            Holds::Zeros => Table::zeros(size, block_size),
            Holds::Anything => Table::unknown(size, block_size),
        });
        let (unsynced, syncing) = (Mutex::default(), Mutex::new(SyncHealth::Good));
        Ok(Self { no, size, block_size, disk, table, unsynced, syncing })
    }

    pub fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn replace_table(&self, table: Table) {
        *self.table() = table;
    }

    pub fn is_unread(&self) -> bool {
        self.table().unknown_blocks() > 0
    }

    /// How many bytes of the disk are in this block; `None` past its end.
    pub fn len_of(&self, block: BlockIndex) -> Option<usize> {
        let inside = block.0 < self.block_size.blocks_to_hold(self.size).0;
        let len = inside.then(|| self.block_size.len_of(block, self.size).0)?;
        usize::try_from(len).ok()
    }

    /// Runs `write`, after which the block has this hash.
    pub fn write(
        &self,
        block: BlockIndex,
        hash: Digest,
        write: impl FnOnce(Bytes) -> std::io::Result<()>,
    ) -> Result<(), ReceiverError> {
        if self.table().hash(block) == hash {
            return Ok(());
        }
        self.table().set(block, UNKNOWN);
        write(self.block_size.offset_of(block)).map_err(|cause| self.error("writing", cause))?;
        self.unsynced().push(block);
        self.table().set(block, hash);
        Ok(())
    }

    /// Makes durable what was written before.
    pub fn sync(&self) -> Result<(), ReceiverError> {
        let mut health = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        if *health == SyncHealth::Failed {
            return Err(self.error("syncing", std::io::Error::other("an earlier sync failed")));
        }
        let written = std::mem::take(&mut *self.unsynced());
        self.disk.sync().map_err(|cause| {
            *health = SyncHealth::Failed;
            self.distrust(&written);
            self.error("syncing", cause)
        })
    }

    /// For a new generation, when nobody writes: makes durable what was written, or forgets it.
    pub fn restart(&self) -> Result<(), ReceiverError> {
        let mut health = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        let written = std::mem::take(&mut *self.unsynced());
        if *health == SyncHealth::Failed {
            // Written while or after the sync failed.
            self.distrust(&written);
            *health = SyncHealth::Good;
        }
        self.disk.sync().map_err(|cause| {
            self.distrust(&written);
            self.error("syncing", cause)
        })
    }

    /// The digest of what the disk holds.
    pub fn digest(&self) -> Result<Digest, ReceiverError> {
        let mut table = self.table();
        match table.unknown_blocks() {
            0 => Ok(table.root()),
            blocks => Err(ReceiverError::NotWhole { disk: self.no, blocks }),
        }
    }

    pub const fn error(&self, doing: &'static str, cause: std::io::Error) -> ReceiverError {
        ReceiverError::Target { disk: self.no, doing, cause }
    }

    fn distrust(&self, blocks: &[BlockIndex]) {
        let mut table = self.table();
        for block in blocks {
            table.set(*block, UNKNOWN);
        }
    }

    fn unsynced(&self) -> MutexGuard<'_, Vec<BlockIndex>> {
        self.unsynced.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
