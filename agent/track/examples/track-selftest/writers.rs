//! Writers that do to a file system what programs do: buffered and direct writes, holes, deletion,
//! trimming.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle, sleep};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rustix::fs::{FallocateFlags, OFlags, fallocate};

use crate::guest;
use crate::plan::Disk;

pub struct Writers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Writers {
    pub fn start(disks: &[Disk]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for (seed, disk) in (1_u64..).zip(disks) {
            let at = guest::mount_point(&disk.mounted);
            for (kind, write) in [(0, buffered as Writer), (1, direct), (2, shapes)] {
                let (at, stop) = (at.clone(), Arc::clone(&stop));
                let random = Random(seed * 4 + kind + 1);
                threads.push(thread::spawn(move || write(&at, random, &stop)));
            }
        }
        Self { stop, threads }
    }

    pub fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().map_err(|_| anyhow!("a writer panicked"))??;
        }
        Ok(())
    }
}

type Writer = fn(&Path, Random, &AtomicBool) -> Result<()>;

/// Longest pause between two writes: busy, but the copying side gets its share of an emulated CPU.
const PAUSE_MS: u64 = 30;

const FILE_LEN: u64 = 1 << 20;

/// Any offset, any length up to 64 KiB, now and then synced; files come and go.
fn buffered(at: &Path, mut random: Random, stop: &AtomicBool) -> Result<()> {
    let mut bytes = vec![0; 64 << 10];
    while !stop.load(Ordering::SeqCst) {
        let path = at.join(format!("buffered-{}", random.below(24)));
        if random.below(40) == 0 && path.exists() {
            fs::remove_file(&path)?;
            continue;
        }
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
        random.fill(&mut bytes);
        let len = usize::try_from(random.below(64 << 10))?;
        unless_full(file.write_all_at(&bytes[..len], random.below(FILE_LEN)), &path)?;
        if random.below(8) == 0 {
            file.sync_all()?;
        }
        sleep(Duration::from_millis(random.below(PAUSE_MS)));
    }
    Ok(())
}

/// Past the page cache, in place: each write changes data at once and only data.
fn direct(at: &Path, mut random: Random, stop: &AtomicBool) -> Result<()> {
    let path = at.join("direct");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .custom_flags(i32::try_from(OFlags::DIRECT.bits())?)
        .open(&path)?;
    let len = 8 * FILE_LEN;
    fallocate(&file, FallocateFlags::empty(), 0, len).context("cannot allocate")?;
    let mut aligned = Aligned::new(128 << 10);
    while !stop.load(Ordering::SeqCst) {
        let bytes = aligned.bytes();
        random.fill(bytes);
        let pages = 1 + random.below(32);
        let count = usize::try_from(pages * 4096)?;
        file.write_all_at(&bytes[..count], random.below(len / 4096 - pages) * 4096)?;
        sleep(Duration::from_millis(random.below(PAUSE_MS)));
    }
    Ok(())
}

/// Holes, zeroes, truncation, trimming of what is free.
fn shapes(at: &Path, mut random: Random, stop: &AtomicBool) -> Result<()> {
    let path = at.join("shapes");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
    let mut bytes = vec![0; 256 << 10];
    while !stop.load(Ordering::SeqCst) {
        random.fill(&mut bytes);
        let (offset, len) = (random.below(FILE_LEN), 4096 + random.below(FILE_LEN / 4));
        let keep = FallocateFlags::KEEP_SIZE;
        match random.below(400) {
            0..=199 => unless_full(file.write_all_at(&bytes, offset), &path)?,
            200..=299 => fallocate(&file, FallocateFlags::PUNCH_HOLE | keep, offset, len)?,
            300..=329 => fallocate(&file, FallocateFlags::ZERO_RANGE | keep, offset, len)?,
            330..=359 => file.set_len(random.below(FILE_LEN))?,
            360..=397 => file.sync_data()?,
            // Seldom: it dirties all free space at once.
            _ => trim(at)?,
        }
        sleep(Duration::from_millis(random.below(40)));
    }
    Ok(())
}

/// The disk may know no discards.
fn trim(at: &Path) -> Result<()> {
    let trimmed = guest::busybox(&["fstrim", at.to_str().context("ASCII name")?]);
    match trimmed {
        Err(error) if !error.to_string().contains("not supported") => Err(error),
        _ => Ok(()),
    }
}

fn unless_full(written: io::Result<()>, path: &Path) -> Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::StorageFull => Ok(()),
        other => other.with_context(|| format!("cannot write {}", path.display())),
    }
}

/// Memory that O_DIRECT takes.
pub struct Aligned {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    pub fn new(len: usize) -> Self {
        let memory = vec![0; len + 4096];
        let start = memory.as_ptr().align_offset(4096);
        Self { memory, start, len }
    }

    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

pub fn open_direct(name: &str) -> Result<File> {
    let node = PathBuf::from(format!("/dev/{name}"));
    let flags = i32::try_from(OFlags::DIRECT.bits())?;
    OpenOptions::new().read(true).custom_flags(flags).open(&node).context("cannot open the disk")
}

/// xorshift64: good enough to choose offsets, and the same in every run.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Two fresh words per page, so that filling costs little.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for page in bytes.chunks_mut(512) {
            let word = self.next().to_le_bytes();
            let len = word.len().min(page.len());
            page[..len].copy_from_slice(&word[..len]);
        }
    }
}
