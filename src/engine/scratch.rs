//! A buffer for each thread, so that encoding a record allocates nothing.

use std::cell::Cell;

/// A buffer that has grown beyond this is given back: one large record is no reason to keep so much for good.
const KEPT_BYTES: usize = 64 << 10;

thread_local! {
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Lends this thread's buffer, empty, to `work`. Within another loan it lends a new one.
#[inline]
pub(super) fn with_scratch<T>(work: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    BUFFER.with(|kept| {
        let mut buffer = kept.take();
        buffer.clear();
        let done = work(&mut buffer);
        if buffer.capacity() <= KEPT_BYTES {
            kept.set(buffer);
        }
        done
    })
}
