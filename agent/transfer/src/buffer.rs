//! Memory for blocks and payloads.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use wire::data::credit_cost;

/// What O_DIRECT asks of memory at most: the page size.
pub const ALIGNMENT: usize = 4096;

/// Buffers to use again. Allocating and freeing hundreds of kilobytes for every block would have
/// the kernel clear that memory every time.
///
/// Does not bound how many buffers are in use: whoever takes them has a bound of its own (credit,
/// the length of a queue). Keeps at most `keep` bytes of unused ones.
#[derive(Clone)]
pub struct Pool(Arc<Mutex<Free>>);

struct Free {
    keep: usize,
    kept: usize,
    /// By the binary logarithm of their size in pages.
    by_class: Vec<Vec<Vec<u8>>>,
}

/// `len` bytes at an aligned address, of any content at first. Goes back to its pool.
pub struct Buffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
    pool: Pool,
}

impl Pool {
    pub fn new(keep: usize) -> Self {
        let free = Free { keep, kept: 0, by_class: vec![Vec::new(); CLASSES] };
        Self(Arc::new(Mutex::new(free)))
    }

    /// A buffer of `len` bytes, of at most the largest block.
    pub fn take(&self, len: usize) -> Buffer {
        let capacity = capacity_for(len);
        let found = {
            let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let found = free.by_class[class_of(capacity)].pop();
            if found.is_some() {
                free.kept -= capacity;
            }
            found
        };
        let memory = found.unwrap_or_else(|| vec![0; capacity + ALIGNMENT]);
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        Buffer { memory, start, len, pool: self.clone() }
    }
}

impl Buffer {
    /// Makes it shorter.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let capacity = self.memory.len() - ALIGNMENT;
        let mut free = self.pool.0.lock().unwrap_or_else(PoisonError::into_inner);
        if free.kept + capacity <= free.keep {
            free.kept += capacity;
            free.by_class[class_of(capacity)].push(std::mem::take(&mut self.memory));
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

/// Never the content.
impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.len)
    }
}

/// From one page to the largest block, by powers of two.
const CLASSES: usize = 11;

/// What a payload costs of the credit is what it takes here.
fn capacity_for(len: usize) -> usize {
    let len = u32::try_from(len).expect("a payload is at most 4 MiB");
    usize::try_from(credit_cost(len)).expect("a payload is at most 4 MiB")
}

fn class_of(capacity: usize) -> usize {
    let class = (capacity / ALIGNMENT).trailing_zeros();
    usize::try_from(class).expect("a small number")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_used_again_up_to_the_bound() {
        let pool = Pool::new(3 * 262_144);
        let buffers: Vec<Buffer> = (0..5).map(|_| pool.take(262_144)).collect();
        let places: Vec<*const u8> = buffers.iter().map(|buffer| buffer.as_ptr()).collect();
        assert!(places.iter().all(|place| place.align_offset(ALIGNMENT) == 0));
        drop(buffers);
        assert_eq!(pool.0.lock().unwrap().kept, 3 * 262_144);
        let again = pool.take(200_000);
        assert!(places.contains(&again.as_ptr()));
        assert_eq!(again.len(), 200_000);
        assert_eq!(pool.0.lock().unwrap().kept, 2 * 262_144);
    }

    #[test]
    fn every_payload_has_its_class() {
        let pool = Pool::new(0);
        for len in [0, 1, 4096, 4097, 4 << 20] {
            assert_eq!(pool.take(len).len(), len);
        }
    }
}
