//! How much memory a check takes: a length in its input must not make it take what the input itself does not justify.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, which counts what each thread holds.
pub struct Counting;

thread_local! {
    static HELD: Cell<i64> = const { Cell::new(0) };
    static PEAK: Cell<i64> = const { Cell::new(0) };
}

fn count(bytes: i64) {
    // A thread that ends may free memory after its counters are gone.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

// SAFETY: everything is handed to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: as the caller promised.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both may be there for a moment.
        count(size as i64);
        count(-(layout.size() as i64));
        // SAFETY: as the caller promised.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as i64));
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// A frame, a segment, a cursor: some copies of the input, and what the checks keep beside it. Five bytes of a cursor may
/// name a page of deleted ids, which takes 4 KiB in memory, and a page's number leads to a table of at most 3 MiB.
#[allow(dead_code, reason = "each target has its own bound")]
pub fn decoding(input: &[u8], check: impl FnOnce(&[u8])) {
    bounded(8 << 20, 4096, input, check);
}

/// A directory: a few stores of some segments of 64 KiB each, on a disk that is memory itself.
#[allow(dead_code, reason = "each target has its own bound")]
pub fn opening(input: &[u8], check: impl FnOnce(&[u8])) {
    bounded(64 << 20, 4096, input, check);
}

/// Panics if `check` ever holds more than `most` bytes, and `each` for each byte of the input.
fn bounded(most: i64, each: i64, input: &[u8], check: impl FnOnce(&[u8])) {
    let before = HELD.get();
    PEAK.set(before);
    check(input);
    let (peak, length) = (PEAK.get() - before, input.len() as i64);
    assert!(
        peak <= most + each * length,
        "{length} bytes of input take {peak} bytes of memory at once"
    );
}
