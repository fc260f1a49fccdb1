//! Memory that a file is mapped into: one writer, many readers, and a frontier between them.
//!
//! `published` is what makes this safe to use. Bytes below it never change again, so that readers may hold slices of
//! them; bytes at or above it are touched only through the one [`MapWriter`], under `&mut` to write and `&` to read.
//! The frontier only rises. It knows nothing of frames: where the frontier goes is the writer's business.
//!
//! If another process truncates a mapped file, touching the missing pages raises SIGBUS. The directory lock keeps other
//! millponds away; nothing keeps away an administrator's `truncate`.

use std::fmt;
use std::fs;
use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use memmap2::{MmapMut, MmapRaw};

use super::File;

#[cfg(any(test, feature = "testing"))]
use super::sim;

/// The mapped memory, shared by the writer and all readers.
pub(super) struct Memory {
    /// Aligned to 8 bytes, valid for `len` bytes for as long as `owner` lives.
    start: NonNull<u8>,
    len: u64,
    published: AtomicU64,
    owner: Owner,
}

/// What the memory belongs to. Dropping it gives the memory back.
enum Owner {
    Nobody,
    File {
        map: MmapRaw,
        /// Whether the system was asked for large pages.
        large: AtomicBool,
    },
    #[cfg(any(test, feature = "testing"))]
    Simulated {
        _buffer: Arc<sim::Buffer>,
    },
}

// SAFETY: `start` is memory that `owner` keeps, which is not tied to a thread. Bytes below `published` are only read;
// bytes at or above it are accessed only through the one `MapWriter`, whose borrows keep reading and writing apart.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    fn empty() -> Self {
        let published = AtomicU64::new(0);
        let start = NonNull::<u64>::dangling().cast();
        Self { start, len: 0, published, owner: Owner::Nobody }
    }

    /// A file's pages. `writable` says whether writing through the pointer is allowed; `published` starts at the end
    /// if not, because then nobody can publish.
    fn of_file(map: MmapRaw, writable: bool) -> Self {
        let Some(start) = NonNull::new(map.as_mut_ptr()) else { return Self::empty() };
        let len = map.len() as u64;
        let published = AtomicU64::new(if writable { 0 } else { len });
        Self { start, len, published, owner: Owner::File { map, large: AtomicBool::new(false) } }
    }

    /// The first `len` bytes of a simulated file's page cache.
    #[cfg(any(test, feature = "testing"))]
    fn of_buffer(buffer: Arc<sim::Buffer>, len: u64, writable: bool) -> Self {
        assert!(len <= buffer.len() as u64);
        let published = AtomicU64::new(if writable { 0 } else { len });
        let start = buffer.start();
        Self { start, len, published, owner: Owner::Simulated { _buffer: buffer } }
    }

    #[inline]
    pub(super) fn published(&self) -> u64 {
        // Pairs with the release store in `MapWriter::publish`: who sees the frontier sees the bytes below it.
        self.published.load(Ordering::Acquire)
    }

    /// # Safety
    /// `start <= end <= len`, and for as long as the slice lives nobody writes to these bytes.
    #[inline]
    unsafe fn slice(&self, range: Range<u64>) -> &[u8] {
        // SAFETY: in bounds of the memory that `owner` keeps, and unchanging, both by the caller's promise.
        unsafe {
            let start = self.start.as_ptr().add(range.start as usize);
            std::slice::from_raw_parts(start, (range.end - range.start) as usize)
        }
    }
}

/// The read side of a mapped file. Clones share the memory; it stays mapped until the last one is gone.
#[derive(Clone)]
pub(crate) struct Mapping {
    memory: Arc<Memory>,
}

impl Mapping {
    pub(super) fn empty() -> Self {
        Self { memory: Arc::new(Memory::empty()) }
    }

    pub(super) fn of_file(map: MmapRaw) -> Self {
        Self { memory: Arc::new(Memory::of_file(map, false)) }
    }

    /// The content of a file as it is now, which nobody can change or cut off.
    pub(super) fn copy_of(file: &dyn File) -> io::Result<Self> {
        let len = usize::try_from(file.len()?).map_err(|_| io::ErrorKind::FileTooLarge)?;
        if len == 0 {
            return Ok(Self::empty());
        }
        let mut copy = MmapMut::map_anon(len)?;
        file.read_at(0, &mut copy)?;
        Ok(Self::of_file(MmapRaw::from(copy)))
    }

    #[cfg(any(test, feature = "testing"))]
    pub(super) fn of_buffer(buffer: Arc<sim::Buffer>, len: u64) -> Self {
        Self { memory: Arc::new(Memory::of_buffer(buffer, len, false)) }
    }

    #[cfg(any(test, feature = "testing"))]
    pub(super) fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Gives the memory up. Whether nobody else has it, so that the file may change.
    pub(crate) fn give_up(self) -> bool {
        Arc::into_inner(self.memory).is_some()
    }

    /// The end of what may be read. It only rises.
    #[inline]
    pub(crate) fn published(&self) -> u64 {
        self.memory.published()
    }

    /// Makes the pages of `range` present and ready to be written, in large pieces where the system has them, so that
    /// whoever writes there next meets no page fault. Changes no byte, and may run beside the writer; they count as
    /// changed all the same, and are written to the disk one day. A hint: where it cannot be done, nothing happens.
    pub(crate) fn prefault(&self, range: Range<u64>) {
        debug_assert!(range.start <= range.end && range.end <= self.memory.len);
        #[cfg(target_os = "linux")]
        if let Owner::File { map, large } = &self.memory.owner
            && !range.is_empty()
        {
            use memmap2::Advice;
            let (at, len) = (range.start as usize, (range.end - range.start) as usize);
            if !large.swap(true, Ordering::Relaxed) {
                let _ = map.advise(Advice::HugePage);
            }
            let _ = map.advise_range(Advice::PopulateWrite, at, len);
        }
    }

    /// The bytes of `range`, or nothing if not all of them are published.
    #[inline]
    pub(crate) fn get(&self, range: Range<u64>) -> Option<&[u8]> {
        if range.start > range.end || range.end > self.published() {
            return None;
        }
        // SAFETY: `range` is in order and below `published`, which is at most `len`; bytes below it never change.
        Some(unsafe { self.memory.slice(range) })
    }

    /// The bytes of `range`.
    ///
    /// # Panics
    /// If not all of them are published.
    #[inline]
    pub(crate) fn bytes(&self, range: Range<u64>) -> &[u8] {
        match self.get(range.clone()) {
            Some(bytes) => bytes,
            None => panic!("{range:?} is not below {}, the end of the published", self.published()),
        }
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping").field("published", &self.published()).finish_non_exhaustive()
    }
}

/// The write side of a mapped file. There is one at a time, and it writes only at or above `published`.
pub(crate) struct MapWriter {
    memory: Arc<Memory>,
    /// Where writes go instead of the memory, if they are to be calls.
    calls: Option<Calls>,
    /// The first call that failed.
    failed: Option<io::Error>,
    /// The file knows by it whether its writer still lives.
    _sole: Arc<()>,
    /// Where writes go instead, if the file is a simulated one, which must see each of them.
    #[cfg(any(test, feature = "testing"))]
    simulated: Option<sim::Handle>,
}

impl MapWriter {
    pub(super) fn empty(sole: Arc<()>) -> Self {
        Self::new(Memory::empty(), sole)
    }

    /// Writes by calls to `file`, if there is one.
    pub(super) fn of_file(map: MmapRaw, file: Option<fs::File>, sole: Arc<()>) -> Self {
        let calls = file.map(|file| Calls { file, pending: Vec::new(), at: 0 });
        Self { calls, ..Self::new(Memory::of_file(map, true), sole) }
    }

    #[cfg(any(test, feature = "testing"))]
    pub(super) fn of_buffer(
        buffer: Arc<sim::Buffer>,
        len: u64,
        sole: Arc<()>,
        handle: sim::Handle,
    ) -> Self {
        let writer = Self::new(Memory::of_buffer(buffer, len, true), sole);
        Self { simulated: Some(handle), ..writer }
    }

    fn new(memory: Memory, sole: Arc<()>) -> Self {
        Self {
            memory: Arc::new(memory),
            calls: None,
            failed: None,
            _sole: sole,
            #[cfg(any(test, feature = "testing"))]
            simulated: None,
        }
    }

    /// A reader of the same memory.
    pub(crate) fn mapping(&self) -> Mapping {
        Mapping { memory: Arc::clone(&self.memory) }
    }

    /// In bytes.
    #[inline]
    pub(crate) fn len(&self) -> u64 {
        self.memory.len
    }

    #[inline]
    fn published(&self) -> u64 {
        // Only this writer stores it, so that there is nothing to synchronise with.
        self.memory.published.load(Ordering::Relaxed)
    }

    /// Any bytes of the file, also unpublished ones.
    ///
    /// # Panics
    /// If `range` is not inside of the file.
    #[cfg(test)]
    pub(crate) fn bytes(&self, range: Range<u64>) -> &[u8] {
        assert!(range.start <= range.end && range.end <= self.len(), "outside of the mapping");
        // SAFETY: in bounds, just checked. These bytes are written only through `&mut self`, which this borrow excludes.
        unsafe { self.memory.slice(range) }
    }

    /// Copies `bytes` to `at`. Nobody but this writer sees them before they are published. Whether that went well,
    /// [`finish`](MapWriter::finish) says.
    ///
    /// # Panics
    /// If that would touch what is published, or go beyond the end.
    #[inline]
    pub(crate) fn write(&mut self, at: u64, bytes: &[u8]) {
        self.check(at, bytes.len() as u64);
        #[cfg(any(test, feature = "testing"))]
        if let Some(handle) = &self.simulated {
            let written = self.failed.is_none().then(|| handle.write_mapped(at, bytes));
            return self.note(written.unwrap_or(Ok(())));
        }
        if self.calls.is_some() {
            return self.write_by_call(at, bytes);
        }
        // SAFETY: in bounds and not below `published`, just checked, so that no reader has a slice of it. `bytes` cannot
        // lie there: a slice of unpublished memory borrows this writer, which is borrowed exclusively here.
        unsafe {
            let to = self.memory.start.as_ptr().add(at as usize);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
    }

    /// Stores 8 bytes, little-endian, in one piece and after everything written before: if a kill leaves the word, it
    /// leaves what was written before the word too.
    ///
    /// # Panics
    /// If `at` is not a multiple of 8, is published, or lies beyond the end.
    #[inline]
    pub(crate) fn store_word(&mut self, at: u64, word: u64) {
        assert!(at.is_multiple_of(8), "a word must be aligned");
        self.check(at, 8);
        #[cfg(any(test, feature = "testing"))]
        if let Some(handle) = &self.simulated {
            let stored =
                self.failed.is_none().then(|| handle.write_mapped(at, &word.to_le_bytes()));
            return self.note(stored.unwrap_or(Ok(())));
        }
        if self.calls.is_some() {
            return self.store_by_calls(&[(at, word)]);
        }
        // SAFETY: in bounds and not below `published`, just checked, so that no reader has a slice of it. `start` is
        // aligned to 8 and so is `at`.
        unsafe {
            let to = self.memory.start.as_ptr().add(at as usize).cast::<u64>();
            AtomicU64::from_ptr(to).store(word.to_le(), Ordering::Release);
        }
    }

    /// Stores words at places that ascend: as [`store_word`](MapWriter::store_word), one after the other.
    #[inline]
    pub(crate) fn store_words(&mut self, words: &[(u64, u64)]) {
        if self.calls.is_some() {
            return self.store_by_calls(words);
        }
        words.iter().for_each(|&(at, word)| self.store_word(at, word));
    }

    /// Each piece of the file that has several of the words is written again by one call, with them in it. A call copies
    /// from the front, and a kill ends it between two pages at most: so a word is there only if those before it are.
    #[cold]
    fn store_by_calls(&mut self, words: &[(u64, u64)]) {
        for &(at, _) in words {
            assert!(at.is_multiple_of(8), "a word must be aligned");
            self.check(at, 8);
        }
        let Some(calls) = self.calls.as_mut().filter(|_| self.failed.is_none()) else { return };
        let mut outcome = calls.flush();
        let mut left = words;
        while let (Some(&(start, _)), true) = (left.first(), outcome.is_ok()) {
            let near = left.partition_point(|(at, _)| *at < start + PENDING_MAX as u64);
            let (piece, rest) = left.split_at(near);
            left = rest;
            let end = piece[near - 1].0 + 8;
            // SAFETY: in bounds, as the first and the last word are. Nobody writes there while this writer is borrowed.
            calls.pending.extend_from_slice(unsafe { self.memory.slice(start..end) });
            calls.at = start;
            for (at, word) in piece {
                let at = (at - start) as usize;
                calls.pending[at..at + 8].copy_from_slice(&word.to_le_bytes());
            }
            outcome = calls.flush();
        }
        self.note(outcome);
    }

    #[cold]
    fn write_by_call(&mut self, at: u64, bytes: &[u8]) {
        let Some(calls) = self.calls.as_mut().filter(|_| self.failed.is_none()) else { return };
        let end = calls.at + calls.pending.len() as u64;
        let outcome = if calls.pending.is_empty() || at < end || at > end + PENDING_GAP_MAX {
            let flushed = calls.flush();
            calls.at = at;
            flushed
        } else {
            // SAFETY: in bounds, since what lies around it is. Nobody writes there while this writer is borrowed.
            calls.pending.extend_from_slice(unsafe { self.memory.slice(end..at) });
            Ok(())
        };
        calls.pending.extend_from_slice(bytes);
        let outcome = match calls.pending.len() > PENDING_MAX {
            true => outcome.and_then(|()| calls.flush()),
            false => outcome,
        };
        self.note(outcome);
    }

    /// After a failure nothing more is written before [`finish`](MapWriter::finish): a word must not be there without
    /// what was to be written before it.
    #[inline]
    fn note(&mut self, outcome: io::Result<()>) {
        if let Err(error) = outcome {
            self.failed.get_or_insert(error);
            if let Some(calls) = &mut self.calls {
                calls.pending.clear();
            }
        }
    }

    /// Ends a series of writes: an error if not all of them have been done. Then nothing is known of any.
    #[inline]
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        if let Some(calls) = &mut self.calls {
            let flushed = calls.flush();
            self.note(flushed);
        }
        self.failed.take().map_or(Ok(()), Err)
    }

    /// Lets readers see everything below `end`, for good. An `end` that is published already changes nothing.
    ///
    /// Call [`finish`](MapWriter::finish) before.
    ///
    /// # Panics
    /// If `end` lies beyond the end of the file.
    #[inline]
    pub(crate) fn publish(&mut self, end: u64) {
        assert!(end <= self.len(), "outside of the mapping");
        if end > self.published() {
            self.memory.published.store(end, Ordering::Release);
        }
    }

    #[inline]
    fn check(&self, at: u64, len: u64) {
        assert!(at >= self.published(), "what is published does not change");
        assert!(at <= self.len() && len <= self.len() - at, "outside of the mapping");
    }
}

/// So much is put together at most before it is written.
const PENDING_MAX: usize = 128 << 10;

/// What lies at most so far apart is written by one call, together with what is between.
const PENDING_GAP_MAX: u64 = 8;

/// Writing by calls.
struct Calls {
    file: fs::File,
    /// To be written at `at`.
    pending: Vec<u8>,
    at: u64,
}

impl Calls {
    fn flush(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let written = self.call(self.at, &self.pending);
        self.pending.clear();
        written
    }

    fn call(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        super::disk::file::write_all_at(&self.file, at, bytes)
    }
}

impl fmt::Debug for MapWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (len, published) = (self.len(), self.published());
        f.debug_struct("MapWriter")
            .field("len", &len)
            .field("published", &published)
            .finish_non_exhaustive()
    }
}
