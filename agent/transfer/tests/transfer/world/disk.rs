//! Disks in memory.

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};

use transfer::{BlockRead, BlockWrite, Changes};
use units::{BlockIndex, Bytes, DiskNo, PAGE_SIZE, PageMask};

use super::BLOCK;

/// A disk in memory with a cache: what was not synced is lost in a crash.
pub struct MemoryDisk {
    state: Mutex<State>,
    gate_opened: Condvar,
    pub faults: Faults,
    /// Runs once, in the middle of the next read, or behind the next question for holes.
    pub in_next_read: Hook,
    pub behind_next_hole: Hook,
    pub reads: AtomicU32,
    pub writes: AtomicU32,
    pub syncs: AtomicU32,
}

/// What the guest does at the worst moment.
pub type Hook = Mutex<Option<Box<dyn FnOnce() + Send>>>;

struct State {
    content: Vec<u8>,
    durable: Vec<u8>,
    /// Writes wait while it is closed.
    gate_is_closed: bool,
    /// Only the first write waits at the gate.
    gate_is_for_one: bool,
    waiting: u32,
}

/// Operations fail when their number is reached; 0 is never.
#[derive(Default)]
pub struct Faults {
    pub fail_write: AtomicU32,
    pub fail_sync: AtomicU32,
    pub fail_read_of_block: AtomicU64,
    /// Writes behind this many bytes find no space; 0 is none.
    pub full_at: AtomicU64,
}

impl MemoryDisk {
    pub fn zeros(len: usize) -> Self {
        Self::holding(vec![0; len])
    }

    pub fn holding(content: Vec<u8>) -> Self {
        let state = State {
            durable: content.clone(),
            content,
            gate_is_closed: false,
            gate_is_for_one: false,
            waiting: 0,
        };
        Self {
            state: Mutex::new(state),
            gate_opened: Condvar::new(),
            faults: Faults::default(),
            in_next_read: Hook::default(),
            behind_next_hole: Hook::default(),
            reads: AtomicU32::new(0),
            writes: AtomicU32::new(0),
            syncs: AtomicU32::new(0),
        }
    }

    /// Every third block zeros, every third compressible, every third not.
    pub fn filled(len: usize) -> Self {
        let mut content = vec![0; len];
        for (n, block) in content.chunks_mut(BLOCK).enumerate() {
            match n % 3 {
                0 => {
                    let key = *blake3::hash(&n.to_le_bytes()).as_bytes();
                    blake3::Hasher::new_keyed(&key).finalize_xof().fill(block);
                }
                1 => {
                    let text = format!("block {n} of a disk, ");
                    let text = text.as_bytes().iter().cycle();
                    block.iter_mut().zip(text).for_each(|(byte, letter)| *byte = *letter);
                }
                _ => {}
            }
        }
        Self::holding(content)
    }

    pub fn len(&self) -> usize {
        self.state.lock().unwrap().content.len()
    }

    pub fn content(&self) -> Vec<u8> {
        self.state.lock().unwrap().content.clone()
    }

    pub fn durable(&self) -> Vec<u8> {
        self.state.lock().unwrap().durable.clone()
    }

    /// Power is lost.
    pub fn crash(&self) {
        let mut state = self.state.lock().unwrap();
        state.content = state.durable.clone();
    }

    /// Changes content behind everybody's back.
    pub fn poke(&self, at: usize, bytes: &[u8]) {
        let mut state = self.state.lock().unwrap();
        state.content[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub fn close_gate(&self) {
        self.state.lock().unwrap().gate_is_closed = true;
    }

    /// The next write waits; those after it pass.
    pub fn hold_next_write(&self) {
        let mut state = self.state.lock().unwrap();
        state.gate_is_closed = true;
        state.gate_is_for_one = true;
    }

    pub fn open_gate(&self) {
        self.state.lock().unwrap().gate_is_closed = false;
        self.gate_opened.notify_all();
    }

    /// How many writes wait at the gate.
    pub fn waiting(&self) -> u32 {
        self.state.lock().unwrap().waiting
    }

    fn change(&self, offset: Bytes, len: usize, change: impl FnOnce(&mut [u8])) -> io::Result<()> {
        let number = self.writes.fetch_add(1, Ordering::Relaxed) + 1;
        let at = usize::try_from(offset.0).unwrap();
        let full_at = self.faults.full_at.load(Ordering::Relaxed);
        if full_at > 0 && (at + len) as u64 > full_at {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut state = self.state.lock().unwrap();
        let passes = state.gate_is_for_one && state.waiting > 0;
        state.waiting += u32::from(!passes);
        while state.gate_is_closed && !passes {
            state = self.gate_opened.wait(state).unwrap();
        }
        state.waiting -= u32::from(!passes);
        change(&mut state.content[at..at + len]);
        if number == self.faults.fail_write.load(Ordering::Relaxed) {
            // Half of it got there.
            state.content[at..at + len / 2].fill(0xee);
            return Err(io::Error::other("injected"));
        }
        Ok(())
    }
}

impl BlockRead for MemoryDisk {
    fn size(&self) -> Bytes {
        Bytes(self.len() as u64)
    }

    fn read_at(&self, offset: Bytes, into: &mut [u8]) -> io::Result<()> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        if let Some(guest) = self.in_next_read.lock().unwrap().take() {
            guest();
        }
        let block = offset.0 / BLOCK as u64;
        if self.faults.fail_read_of_block.load(Ordering::Relaxed) == block + 1 {
            return Err(io::Error::other("injected"));
        }
        let at = usize::try_from(offset.0).unwrap();
        into.copy_from_slice(&self.state.lock().unwrap().content[at..at + into.len()]);
        Ok(())
    }

    /// Blocks of zeros are holes.
    fn next_data(&self, from: Bytes) -> io::Result<Option<Bytes>> {
        let next = {
            let state = self.state.lock().unwrap();
            let from = usize::try_from(from.0).unwrap();
            let data = |at: &usize| {
                let end = (at + BLOCK).min(state.content.len());
                state.content[*at..end].iter().any(|byte| *byte != 0)
            };
            (from..state.content.len()).step_by(BLOCK).find(data)
        };
        if next.is_none()
            && let Some(guest) = self.behind_next_hole.lock().unwrap().take()
        {
            guest();
        }
        Ok(next.map(|at| Bytes(at as u64)))
    }
}

impl BlockWrite for MemoryDisk {
    fn write_at(&self, offset: Bytes, from: &[u8]) -> io::Result<()> {
        self.change(offset, from.len(), |content| content.copy_from_slice(from))
    }

    fn zero(&self, offset: Bytes, len: Bytes) -> io::Result<()> {
        self.change(offset, usize::try_from(len.0).unwrap(), |content| content.fill(0))
    }

    fn sync(&self) -> io::Result<()> {
        let number = self.syncs.fetch_add(1, Ordering::Relaxed) + 1;
        if number == self.faults.fail_sync.load(Ordering::Relaxed) {
            // A sync takes its time, and others write and sync meanwhile. What the cache held at
            // its start and at its end is gone, and nobody will be told again.
            self.crash();
            std::thread::sleep(std::time::Duration::from_millis(20));
            self.crash();
            return Err(io::Error::other("injected"));
        }
        let mut state = self.state.lock().unwrap();
        state.durable = state.content.clone();
        Ok(())
    }
}

/// The pages of disks that were written: marks before and after each write, as a tracker does.
pub struct Marks {
    disks: Vec<Mutex<Vec<u64>>>,
    written: AtomicU64,
    precise: bool,
}

impl Marks {
    pub fn new(sizes: &[usize]) -> Self {
        let words = |size: &usize| Mutex::new(vec![0; size.div_ceil(BLOCK)]);
        let disks = sizes.iter().map(words).collect();
        Self { disks, written: AtomicU64::new(0), precise: true }
    }

    /// Calls everything dirty, always.
    pub fn imprecise(sizes: &[usize]) -> Self {
        Self { precise: false, ..Self::new(sizes) }
    }

    /// A write by the guest.
    pub fn write(&self, disk: usize, source: &MemoryDisk, at: usize, bytes: &[u8]) {
        self.mark(disk, at, bytes.len());
        source.poke(at, bytes);
        self.mark(disk, at, bytes.len());
        self.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    }

    pub fn dirty_pages(&self, disk: usize) -> u32 {
        self.disks[disk].lock().unwrap().iter().map(|word| word.count_ones()).sum()
    }

    fn mark(&self, disk: usize, at: usize, len: usize) {
        let page = usize::try_from(PAGE_SIZE).unwrap();
        let mut words = self.disks[disk].lock().unwrap();
        for page in at / page..(at + len).div_ceil(page) {
            words[page / 64] |= 1 << (page % 64);
        }
    }
}

impl Changes for Marks {
    fn next_dirty(&self, disk: DiskNo, from: BlockIndex) -> Option<BlockIndex> {
        let words = self.disks[usize::from(disk.0)].lock().unwrap();
        let from = usize::try_from(from.0).unwrap();
        let dirty = |at: &usize| !self.precise || words[*at] != 0;
        (from..words.len()).find(dirty).map(|at| BlockIndex(at as u64))
    }

    fn take(&self, disk: DiskNo, block: BlockIndex) -> PageMask {
        if !self.precise {
            return PageMask::full(64);
        }
        let mut words = self.disks[usize::from(disk.0)].lock().unwrap();
        PageMask::from_words(vec![std::mem::take(&mut words[usize::try_from(block.0).unwrap()])])
    }

    fn put_back(&self, disk: DiskNo, block: BlockIndex, mask: &PageMask) {
        let mut words = self.disks[usize::from(disk.0)].lock().unwrap();
        words[usize::try_from(block.0).unwrap()] |= mask.words()[0];
    }

    fn dirty(&self, disk: DiskNo) -> Bytes {
        let words = self.disks[usize::from(disk.0)].lock().unwrap();
        Bytes(words.iter().map(|word| u64::from(word.count_ones())).sum::<u64>() * PAGE_SIZE)
    }

    fn written(&self, _: DiskNo) -> Bytes {
        Bytes(self.written.load(Ordering::Relaxed))
    }

    fn precise(&self) -> bool {
        self.precise
    }
}
