//! A BPF array, mapped into our memory and shared with the programs in the kernel.
#![expect(unsafe_code, reason = "mapping a BPF array has no safe interface")]

use std::io;
use std::os::fd::AsFd;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::AtomicU64;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

#[derive(Debug)]
pub(crate) struct SharedWords {
    start: NonNull<AtomicU64>,
    len: usize,
}

// SAFETY: the mapping belongs to this value alone and is no thread's own; its cells are atomic.
unsafe impl Send for SharedWords {}

impl SharedWords {
    /// Maps the first `len` words of an array made with BPF_F_MMAPABLE.
    pub(crate) fn map(array: impl AsFd, len: usize) -> io::Result<Self> {
        let (bytes, flags) = (len * size_of::<AtomicU64>(), MapFlags::SHARED);
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let start = unsafe {
            mmap(ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, flags, array, 0)
        }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { start, len })
    }

    pub(crate) fn cells(&self) -> &[AtomicU64] {
        // SAFETY: `start` is the page-aligned start of a mapping of at least `len` words (the
        // kernel refuses to map past an array's end) that lives until `self` is dropped. Every
        // bit pattern is a u64, and whoever else writes them, programs in the kernel, does so by
        // atomic instructions.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        let bytes = self.len * size_of::<AtomicU64>();
        // SAFETY: exactly what `map` mapped, and no borrow of the cells outlives `self`.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), bytes) };
        debug_assert!(unmapped.is_ok(), "what was mapped can be unmapped");
    }
}
