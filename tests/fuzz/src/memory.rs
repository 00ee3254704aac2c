//! How much memory is taken. libFuzzer sees only what the whole process grew to, and that late.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Runs `run`.
///
/// # Panics
/// If at any moment more than `limit` bytes were held on top of what was held before. Other threads
/// count.
pub fn bounded<T>(limit: usize, run: impl FnOnce() -> T) -> T {
    let before = HELD.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    let result = run();
    let taken = MOST.load(Ordering::Relaxed).saturating_sub(before);
    assert!(taken <= limit, "{taken} bytes of memory were taken, {limit} are allowed");
    result
}

/// What reading `len` bytes of TOML may take. A table that has one key costs the crate `toml` some 1200
/// bytes, and each dot begins one, with or without a key before it; beyond 80 in one another it gives
/// up. So it grows with the length alone: measured with 12 to 500 000 bytes of the worst that was found.
pub const fn toml(len: usize) -> usize {
    1408 * len + (64 << 10)
}

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

fn take(len: usize) {
    let held = HELD.fetch_add(len, Ordering::Relaxed).wrapping_add(len);
    MOST.fetch_max(held, Ordering::Relaxed);
}

fn release(len: usize) {
    HELD.fetch_sub(len, Ordering::Relaxed);
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call goes to the system's allocator as it came; counting touches no memory of it.
#[expect(unsafe_code, reason = "an allocator has no safe interface")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: the caller keeps to `GlobalAlloc::alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: the caller keeps to `GlobalAlloc::alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        release(layout.size());
        // SAFETY: the caller keeps to `GlobalAlloc::dealloc`.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        // Both are there while one is copied to the other.
        take(len);
        // SAFETY: the caller keeps to `GlobalAlloc::realloc`.
        let moved = unsafe { System.realloc(memory, layout, len) };
        release(layout.size());
        moved
    }
}
