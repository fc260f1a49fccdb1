//! One simulated file without its name: what the page cache holds, what the drive may hold.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::sync::{Arc, Weak};

use super::super::map::{MapWriter, Mapping, Memory};
use super::Handle;
use super::buffer::{Buffer, SECTOR_BYTES};
use super::cut::{Fate, SplitMix64};
use super::fingerprint;

/// What space is given out in, and so what a hole is made of.
const BLOCK_BYTES: usize = 4096;

/// How many contents since the last sync a power cut can bring back, besides the newest.
const REMEMBERED: usize = 8;

pub(super) type Sector = [u8; SECTOR_BYTES];

/// The past of a value that is not known to be durable.
#[derive(Clone)]
pub(super) struct History<T> {
    /// The durable value, then what it was since, without the present one. Write-back may have happened at any moment.
    past: Vec<T>,
    /// A sync of the present value has failed: no later one will write it.
    lost: bool,
}

impl<T: Clone + PartialEq> History<T> {
    fn new(durable: T) -> Self {
        Self { past: vec![durable], lost: false }
    }

    fn supersede(&mut self, value: T) {
        self.lost = false;
        if self.past.last() != Some(&value) {
            self.past.push(value);
        }
        if self.past.len() > 1 + REMEMBERED {
            self.past.remove(1);
        }
    }

    /// What a power cut leaves.
    fn after_cut<'a>(&'a self, present: &'a T, fate: Fate, random: &mut SplitMix64) -> &'a T {
        if !random.chance(fate.kept_of_8) {
            &self.past[0]
        } else if fate.newest_only || random.chance(4) {
            present
        } else {
            &self.past[random.below(self.past.len())]
        }
    }
}

/// A file's content and length.
///
/// Its buffer may be shared with inodes of other disks (a fork copies on the first write) and with mappings, but it is
/// written only by the inode that alone, of all inodes, has it: see [`Inode::own`].
pub(super) struct Inode {
    /// The page cache. Zero from `len` on.
    buffer: Arc<Buffer>,
    /// The sum of its sectors' fingerprints.
    print: u128,
    /// A copy of it for forks, while a writer keeps it for itself.
    snapshot: Option<Arc<Buffer>>,
    /// What the last power cut left instead of it, with its fingerprint: the next one often leaves the same.
    left: Option<(u128, Arc<Buffer>)>,
    len: u64,
    /// None if the length is durable.
    past_len: Option<History<u64>>,
    /// The sectors whose content is not known to be durable.
    dirty: BTreeMap<usize, Arc<History<Sector>>>,
    /// Handles share it.
    open: Arc<()>,
    /// Whoever holds it shares this.
    held: Arc<()>,
    /// Lives as long as the writer of the mapping.
    writer: Weak<()>,
    /// What is or was mapped.
    mapped: Vec<Weak<Memory>>,
}

impl Inode {
    /// An empty file, durably so.
    pub(super) fn empty() -> Self {
        Self::clean(Arc::new(Buffer::new(0)), 0, 0)
    }

    pub(super) fn durable(content: &[u8]) -> Self {
        let buffer = Buffer::new(content.len());
        // SAFETY: nobody else has the buffer yet.
        unsafe { buffer.write(0, content) };
        // SAFETY: as above.
        let print = fingerprint::of_sectors(unsafe { buffer.bytes() });
        Self::clean(Arc::new(buffer), print, content.len() as u64)
    }

    fn clean(buffer: Arc<Buffer>, print: u128, len: u64) -> Self {
        Self {
            buffer,
            print,
            snapshot: None,
            left: None,
            len,
            past_len: None,
            dirty: BTreeMap::new(),
            open: Arc::default(),
            held: Arc::default(),
            writer: Weak::new(),
            mapped: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// The end of the last block that is not all zero: as a file system says that never writes blocks of zeroes, which is
    /// the least that any may say.
    pub(super) fn data_end(&self) -> u64 {
        let sectors = self.sectors().as_chunks::<SECTOR_BYTES>().0;
        let last = sectors.iter().rposition(|sector| *sector != [0; SECTOR_BYTES]);
        let end = last.map_or(0, |last| (last + 1) * SECTOR_BYTES);
        (end.next_multiple_of(BLOCK_BYTES) as u64).min(self.len)
    }

    /// A number that two files share if they have the same content.
    pub(super) fn print(&self) -> u128 {
        fingerprint::mixed(self.print, self.len)
    }

    pub(super) fn content(&self) -> &[u8] {
        &self.sectors()[..self.len as usize]
    }

    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let content = self.content();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = match buf {
            // Nothing can be read anywhere, also beyond the end.
            [] => Some(&[][..]),
            _ => content.get(start..).and_then(|rest| rest.get(..buf.len())),
        };
        buf.copy_from_slice(bytes.ok_or(ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    /// For as long as it lives, the file is open.
    pub(super) fn open(&self) -> Arc<()> {
        Arc::clone(&self.open)
    }

    pub(super) fn is_open(&self) -> bool {
        Arc::strong_count(&self.open) > 1
    }

    /// For as long as it lives, the file is held.
    pub(super) fn hold(&self) -> Arc<()> {
        Arc::clone(&self.held)
    }

    pub(super) fn is_held(&self) -> bool {
        Arc::strong_count(&self.held) > 1
    }

    fn has_writer(&self) -> bool {
        self.writer.strong_count() > 0
    }

    /// Whether it may be changed other than by the writer of its mapping.
    pub(super) fn check_free(&self) -> io::Result<()> {
        if self.has_writer() { Err(ErrorKind::ResourceBusy.into()) } else { Ok(()) }
    }

    pub(super) fn map_read(&mut self) -> Mapping {
        let mapping = Mapping::of_buffer(Arc::clone(&self.buffer), self.len);
        self.register(mapping.memory());
        mapping
    }

    pub(super) fn map_write(&mut self, handle: Handle) -> io::Result<MapWriter> {
        self.check_free()?;
        self.own(0);
        let sole = Arc::new(());
        self.writer = Arc::downgrade(&sole);
        let writer = MapWriter::of_buffer(Arc::clone(&self.buffer), self.len, sole, handle);
        self.register(writer.mapping().memory());
        Ok(writer)
    }

    fn register(&mut self, memory: &Arc<Memory>) {
        self.mapped.retain(|memory| memory.strong_count() > 0);
        self.mapped.push(Arc::downgrade(memory));
    }

    /// Writes, and grows if need be. With a live writer, only that writer may call this.
    pub(super) fn write(&mut self, at: u64, bytes: &[u8]) {
        let end = at + bytes.len() as u64;
        self.own(end as usize);
        self.put(at as usize, bytes);
        if end > self.len {
            self.change_len(end);
        }
    }

    /// A store through the mapping; it cannot grow the file.
    pub(super) fn write_mapped(&mut self, at: u64, bytes: &[u8]) {
        let end = at + bytes.len() as u64;
        assert!(end <= self.len, "SIGBUS: the file was truncated under its mapping");
        self.put(at as usize, bytes);
    }

    pub(super) fn set_len(&mut self, len: u64) {
        self.own(len as usize);
        if len < self.len {
            // Should the file grow again, the bytes must be zero.
            let cut_off = (self.len - len) as usize;
            self.put(len as usize, &vec![0; cut_off]);
        }
        self.change_len(len);
    }

    fn change_len(&mut self, len: u64) {
        let old = std::mem::replace(&mut self.len, len);
        match &mut self.past_len {
            Some(past) => past.supersede(old),
            None if len != old => self.past_len = Some(History::new(old)),
            None => {}
        }
    }

    /// Everything in the page cache is durable, except for what an earlier failed sync has lost.
    pub(super) fn sync(&mut self) {
        self.dirty.retain(|_, past| past.lost);
        self.past_len.take_if(|past| !past.lost);
    }

    /// A sync that failed: what was to be written counts as clean, and may or may not be on the drive.
    pub(super) fn fail_sync(&mut self) {
        for past in self.dirty.values_mut() {
            Arc::make_mut(past).lost = true;
        }
        if let Some(past) = &mut self.past_len {
            past.lost = true;
        }
    }

    /// The same file on a disk forked from this one.
    pub(super) fn fork(&mut self) -> Self {
        Self {
            dirty: self.dirty.clone(),
            past_len: self.past_len.clone(),
            ..Self::clean(self.fork_buffer(), self.print, self.len)
        }
    }

    /// The same file after a power cut.
    pub(super) fn power_cut(&mut self, fate: Fate, random: &mut SplitMix64) -> Self {
        let len = match &self.past_len {
            Some(past) => *past.after_cut(&self.len, fate, random),
            None => self.len,
        };
        let mut print = self.print;
        let mut others = Vec::new();
        for (&index, past) in &self.dirty {
            let present = self.sector(index);
            let left = past.after_cut(present, fate, random);
            if left != present {
                print = print
                    .wrapping_sub(fingerprint::of_sector(index, present))
                    .wrapping_add(fingerprint::of_sector(index, left));
                others.push((index, left));
            }
        }
        if others.is_empty() && len == self.len {
            return Self::clean(self.fork_buffer(), print, len);
        }
        let beyond = |(index, _): &(usize, _)| (index + 1) * SECTOR_BYTES > len as usize;
        let cut_off = len < self.len || others.iter().any(beyond);
        let same = |(known, buffer): &&(u128, Arc<Buffer>)| {
            !cut_off && *known == print && len as usize <= buffer.len()
        };
        if let Some((_, buffer)) = self.left.as_ref().filter(same) {
            return Self::clean(Arc::clone(buffer), print, len);
        }
        let buffer = self.copy(len as usize);
        for (index, left) in others {
            // SAFETY: nobody else has the copy yet.
            unsafe { buffer.write(index * SECTOR_BYTES, left) };
        }
        if cut_off {
            let beyond = vec![0; buffer.len() - len as usize];
            // SAFETY: as above.
            unsafe { buffer.write(len as usize, &beyond) };
            // SAFETY: as above.
            print = fingerprint::of_sectors(unsafe { buffer.bytes() });
        }
        let buffer = Arc::new(buffer);
        self.left = Some((print, Arc::clone(&buffer)));
        Self::clean(buffer, print, len)
    }

    /// Shared if it stays as it is. A live writer writes in place, so that it gets to keep the buffer for itself.
    fn fork_buffer(&mut self) -> Arc<Buffer> {
        if !self.has_writer() {
            return Arc::clone(&self.buffer);
        }
        let snapshot = self.snapshot.take().unwrap_or_else(|| Arc::new(self.copy(0)));
        Arc::clone(self.snapshot.insert(snapshot))
    }

    fn sector(&self, index: usize) -> &Sector {
        // Ensures: whoever asks for a sector has it from the buffer.
        self.sectors()[index * SECTOR_BYTES..].first_chunk().expect("a buffer has whole sectors")
    }

    /// The buffer to its end, also beyond the file's.
    fn sectors(&self) -> &[u8] {
        // SAFETY: only `put` writes to the buffer, and only that of the inode that alone has it (see `own`): it is this
        // one, and then the borrow of `self` forbids it, or nobody.
        unsafe { self.buffer.bytes() }
    }

    /// A copy of the buffer, of `len` bytes at least.
    fn copy(&self, len: usize) -> Buffer {
        Buffer::copy_of(self.sectors(), len)
    }

    /// Ensures: the buffer has room for `len` bytes, and no other inode has it. With a live writer it is so already,
    /// since `map_write` called this and `fork_buffer` does not share.
    fn own(&mut self, len: usize) {
        if len > self.buffer.len() {
            // Doubled, so that a file that grows by small writes is not copied for each.
            self.buffer = Arc::new(self.copy(len.max(2 * self.buffer.len())));
            self.snapshot = None;
        } else if !self.has_writer() && Arc::get_mut(&mut self.buffer).is_none() {
            self.buffer = Arc::new(self.copy(0));
        }
    }

    /// Copies `bytes` into the page cache and remembers what they replace. To be called after `own`.
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.check_unpublished(at as u64..(at + bytes.len()) as u64);
        let mut done = 0;
        while done < bytes.len() {
            let index = (at + done) / SECTOR_BYTES;
            let within = (at + done) % SECTOR_BYTES;
            let count = (SECTOR_BYTES - within).min(bytes.len() - done);
            self.put_in_sector(index, within, &bytes[done..done + count]);
            done += count;
        }
    }

    fn put_in_sector(&mut self, index: usize, within: usize, bytes: &[u8]) {
        let old = *self.sector(index);
        if old[within..within + bytes.len()] == *bytes {
            // Written again, it will be synced again.
            if let Some(past) = self.dirty.get_mut(&index).filter(|past| past.lost) {
                Arc::make_mut(past).lost = false;
            }
            return;
        }
        match self.dirty.get_mut(&index) {
            Some(past) => Arc::make_mut(past).supersede(old),
            None => drop(self.dirty.insert(index, Arc::new(History::new(old)))),
        }
        // SAFETY: `own` has made the buffer this inode's, and it is borrowed exclusively. Mappings read only what they
        // have published, which `put` has checked. Slices that a `MapWriter` gives out of the rest do not live now: if
        // there is one, it is the caller, under `&mut`.
        unsafe { self.buffer.write(index * SECTOR_BYTES + within, bytes) };
        self.snapshot = None;
        self.print = self
            .print
            .wrapping_sub(fingerprint::of_sector(index, &old))
            .wrapping_add(fingerprint::of_sector(index, self.sector(index)));
    }

    /// Panics if a live mapping may read some of `range`.
    fn check_unpublished(&self, range: Range<u64>) {
        for memory in self.mapped.iter().filter_map(Weak::upgrade) {
            assert!(
                range.is_empty() || memory.published() <= range.start,
                "writing to {range:?} of a file of which a live mapping has published {}",
                memory.published()
            );
        }
    }
}
