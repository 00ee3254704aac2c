//! Reading what targets hold.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use units::{BlockIndex, Bytes, Digest};

use super::ReceiverError;
use super::target::Target;
use crate::buffer::Pool;
use crate::table::{self, Table};

/// Reads these targets from start to end, one after the other, each by several threads.
pub async fn read_all(
    targets: &[Arc<Target>],
    progress: &(impl Fn(Bytes, Bytes) + Send + Sync),
) -> Result<Vec<Table>, ReceiverError> {
    let total: Bytes = targets.iter().map(|target| target.size).sum();
    let mut before = Bytes::ZERO;
    let mut tables = Vec::new();
    for target in targets {
        let pass = Arc::new(Pass {
            next: AtomicU64::new(0),
            table: Mutex::new(Table::unknown(target.size, target.block_size)),
        });
        let mut threads = JoinSet::new();
        for _ in 0..READERS {
            let (pass, target) = (Arc::clone(&pass), Arc::clone(target));
            threads.spawn_blocking(move || pass.run(&target));
        }
        while !threads.is_empty() {
            tokio::select! {
                Some(read) = threads.join_next() => {
                    let read = read.expect("readers do not panic");
                    read.map_err(|cause| target.error("reading", cause))?;
                }
                () = tokio::time::sleep(Duration::from_millis(500)) => {
                    let blocks = pass.next.load(Ordering::Relaxed);
                    let done = blocks.saturating_mul(target.block_size.bytes());
                    progress(before + Bytes(done.min(target.size.0)), total);
                }
            }
        }
        before += target.size;
        let pass = Arc::into_inner(pass).expect("its threads have ended");
        tables.push(pass.table.into_inner().unwrap_or_else(PoisonError::into_inner));
        progress(before, total);
    }
    Ok(tables)
}

/// Enough for a device's queue to be busy while others hash.
const READERS: usize = 3;

struct Pass {
    next: AtomicU64,
    table: Mutex<Table>,
}

impl Pass {
    fn run(&self, target: &Target) -> io::Result<()> {
        let pool = Pool::new(0);
        let block_len = usize::try_from(target.block_size.bytes()).expect("at most 4 MiB");
        let mut buffer = pool.take(block_len);
        loop {
            let block = BlockIndex(self.next.fetch_add(1, Ordering::Relaxed));
            let Some(len) = target.len_of(block) else { return Ok(()) };
            let hash = read(target, block, &mut buffer[..len]).inspect_err(|_| {
                // The other threads need not go on either.
                self.next.store(PAST_ANY_DISK, Ordering::Relaxed);
            })?;
            self.table.lock().unwrap_or_else(PoisonError::into_inner).set(block, hash);
        }
    }
}

/// A block behind the end of every disk, with room to count on.
const PAST_ANY_DISK: u64 = 1 << 62;

fn read(target: &Target, block: BlockIndex, into: &mut [u8]) -> io::Result<Digest> {
    let at = target.block_size.offset_of(block);
    let end = at + Bytes(into.len() as u64);
    if target.disk.next_data(at)?.is_none_or(|data| data >= end) {
        return Ok(target.table().hash_of_zeros(block));
    }
    target.disk.read_at(at, into)?;
    if table::is_zero(into) {
        return Ok(target.table().hash_of_zeros(block));
    }
    Ok(table::hash(into))
}
