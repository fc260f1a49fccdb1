//! The memory of one simulated file: a block that mappings may point into while it is written.

use std::ptr::NonNull;

/// A sector is what a drive writes in one piece.
pub(super) const SECTOR_BYTES: usize = 512;

/// A fixed number of whole sectors, aligned to 8 bytes, zero at first.
///
/// It is written through a shared pointer, since readers of the published part of a mapping hold slices of the same
/// block. Who may write is for its `Inode` to know.
pub(crate) struct Buffer {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: it is plain memory that belongs to no thread; what may be accessed when is a condition of the methods.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// At least `len` bytes.
    pub(super) fn new(len: usize) -> Self {
        let len = len.next_multiple_of(SECTOR_BYTES);
        Self::of_words(vec![0u64; len / 8])
    }

    /// At least `len` bytes, which begin with `bytes`, themselves whole sectors.
    pub(super) fn copy_of(bytes: &[u8], len: usize) -> Self {
        let len = len.max(bytes.len()).next_multiple_of(SECTOR_BYTES);
        // Only what is not copied is filled with zeroes.
        let mut words = Vec::<u64>::with_capacity(len / 8);
        // SAFETY: the vector has room for `len` bytes, of which those that `bytes` covers are initialised before they
        // count. It is memory of its own, so that the two do not overlap.
        unsafe {
            let to = words.as_mut_ptr().cast::<u8>();
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
            words.set_len(bytes.len() / 8);
        }
        words.resize(len / 8, 0);
        Self::of_words(words)
    }

    fn of_words(words: Vec<u64>) -> Self {
        let len = words.len() * 8;
        Self { start: NonNull::from(Box::leak(words.into_boxed_slice())).cast(), len }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// # Safety
    /// Nobody writes to the buffer while the slice lives.
    pub(super) unsafe fn bytes(&self) -> &[u8] {
        // SAFETY: the block is `len` bytes long and initialised; unchanging by the caller's promise.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// # Safety
    /// Nobody else reads or writes these bytes at the same time.
    pub(super) unsafe fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at <= self.len && bytes.len() <= self.len - at);
        // SAFETY: in bounds, just checked. `bytes` does not lie there, since nobody else reads these bytes.
        unsafe {
            let to = self.start.as_ptr().add(at);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let words = NonNull::slice_from_raw_parts(self.start.cast::<u64>(), self.len / 8);
        // SAFETY: it is the box that `new` leaked, with the same length.
        drop(unsafe { Box::from_raw(words.as_ptr()) });
    }
}
