//! What a store takes of the disk, and what it holds back for when there is no more.
//!
//! A full disk stops inserts. Everything else has to go on, or nothing would be deleted any more and the disk stay full:
//! settling needs log, a checkpoint a cursor, compaction a copy. So spares are kept: files whose space is reserved, and
//! which get another name when a file of that kind is needed and cannot be made. Inserts wait until all spares are
//! there again; what is given back goes to them first.
//!
//! **Nothing that must go on makes a file.** A file system may want much more space for a new file than the file takes
//! (XFS some hundred KiB), but none for another name. So what is no longer needed becomes a spare again by a rename, and
//! is cut or lengthened there.
//!
//! A limit that a store is opened with acts in the same way as the end of the disk, only earlier.
//!
//! Crash windows:
//! - a spare is missing or too short: the next insert finds that, and makes it anew;
//! - a spare has its new name: it is a file of zeroes, as one that was made. Where the name says something, the zeroes are
//!   durable before;
//! - a file that was given back has its old name again after a power cut: it holds what it did, since a spare is changed
//!   only once the directory is synced. To an open it is a file that was not removed yet: a segment that no kept cursor
//!   names, or a cursor older than those, neither of which it believes.

use std::io::{self, ErrorKind};
use std::ops::RangeInclusive;
use std::sync::Arc;

use super::{File, Prepare, Storage};
use crate::lock::Lock;
use crate::planted::{Bug, planted};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What a spare is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spare {
    /// Segments for records that settle. There are three: one is written to, and what the one before took is given back
    /// when the log has gone on in the next for a while.
    Log,
    /// Cursors. There are two, since a store that has just begun writes two of them before it gives one back.
    Cursor,
    /// What a compaction writes.
    Copy,
}

/// How long each spare is to be, in bytes; 0 for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SpareBytes {
    pub log: u64,
    pub cursor: u64,
    pub copy: u64,
}

/// The name of a file that is made only to see whether there is room for it.
pub(crate) const PROBE: &str = "spare.probe";

/// So many times too long a spare may be before it is cut.
const TOO_LONG: u64 = 2;

/// Space is had and given back in multiples of this, in bytes.
const STEP: u64 = 4096;

/// How many zeroes are written at a time.
const ZEROES: [u8; 4096] = [0; 4096];

impl Spare {
    const fn names(self) -> &'static [&'static str] {
        match self {
            Spare::Log => &["spare.log-1", "spare.log-2", "spare.log-3"],
            Spare::Cursor => &["spare.cursor-1", "spare.cursor-2"],
            Spare::Copy => &["spare.copy"],
        }
    }
}

/// Whether there is no space. An allocation that is told apart from other failures by this can succeed later.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

/// The space of a store: every file that can be large is made here.
pub(crate) struct Space {
    storage: Arc<dyn Storage>,
    /// How long all files together may be, in bytes; None for as long as the disk has room.
    max_bytes: Option<u64>,
    /// All spares were there when last looked at, and none was taken since. Changes under the lock.
    complete: AtomicBool,
    /// A spare was taken since all were there.
    short: AtomicBool,
    /// There was no space when it was last asked for, and none was given back since.
    full: AtomicBool,
    /// How often space was given back, held back, or asked for in vain.
    changes: AtomicU64,
    /// Held from the look at the limit until the file is there. How long all files were when the store was opened, or the
    /// first spare was taken: if that was beyond the limit, what was held back then is held back again.
    limit: Lock<u64>,
    /// Held by whoever makes, takes or changes spares, or gives back what becomes one. How long they were to be last.
    spares: Lock<SpareBytes>,
}

impl Space {
    pub fn new(storage: Arc<dyn Storage>, max_bytes: Option<u64>) -> Space {
        // A store that is beyond its limit may hold back again what it has lost meanwhile, in whole pages.
        let used = |page: u64| -> u64 {
            let files = storage.list().unwrap_or_default();
            files.iter().map(|entry| entry.len.next_multiple_of(page)).sum()
        };
        let before = if max_bytes.is_some_and(|max| used(1) > max) { used(STEP) } else { 0 };
        Space {
            storage,
            max_bytes,
            complete: AtomicBool::new(false),
            short: AtomicBool::new(false),
            full: AtomicBool::new(false),
            changes: AtomicU64::new(0),
            limit: Lock::new(before),
            spares: Lock::default(),
        }
    }

    /// Whether no thread has panicked in here.
    pub fn is_healthy(&self) -> bool {
        self.spares.try_healthy().is_some() && self.limit.try_healthy().is_some()
    }

    /// Whether all spares are there, so that inserts may go on.
    #[inline]
    pub fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    /// Whether it is no use to ask for space before some is given back.
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Acquire)
    }

    /// Changes whenever there may be space where there was none.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Space was given back.
    pub fn freed(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
        self.full.store(false, Ordering::Release);
    }

    /// Somebody needs space: whoever has found none may look again.
    pub fn asked(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// Removes a file. Whether it was there.
    pub fn remove(&self, name: &str) -> bool {
        let removed = self.storage.remove(name).is_ok();
        if removed {
            self.freed();
        }
        removed
    }

    /// Removes a file whose name says nothing, whether it is there or not; or makes a spare of it, if one is missing.
    pub fn put_back(&self, spare: Spare, name: &str) {
        let bytes = self.spares.lock();
        self.put_back_one(spare, name, *bytes);
    }

    /// As [`put_back`](Space::put_back), for files that mean something to an open: they are changed only once it would
    /// not find them any more. Nobody may have them mapped.
    ///
    /// An error is that of a sync of the directory, after which nothing may go on.
    pub fn give_back(&self, spare: Spare, names: &[String]) -> io::Result<()> {
        let bytes = self.spares.lock();
        let mut kept = false;
        for name in names {
            kept |= self.put_back_one(spare, name, *bytes);
        }
        if kept && !planted(Bug::ReusedBeforeTheSync) { self.storage.sync_dir() } else { Ok(()) }
    }

    /// Whether a spare was made of it.
    fn put_back_one(&self, spare: Spare, name: &str, bytes: SpareBytes) -> bool {
        // What a backup shares must stay as it is.
        let missing = match self.is_complete() || self.storage.is_linked(name) {
            true => None,
            false => self.missing(spare, bytes),
        };
        let kept = missing.is_some_and(|missing| self.storage.rename(name, missing).is_ok());
        if kept {
            self.freed();
        } else {
            // One that stays is removed by the next open.
            self.remove(name);
        }
        kept
    }

    /// The name of a spare that is not there, of this kind rather than another.
    fn missing(&self, spare: Spare, bytes: SpareBytes) -> Option<&'static str> {
        let is_missing = |name: &&&str| {
            let opened = self.storage.open_read(name);
            opened.is_err_and(|error| error.kind() == ErrorKind::NotFound)
        };
        let kinds = [spare, Spare::Cursor, Spare::Copy, Spare::Log].into_iter();
        let kinds = kinds.filter(|kind| *kind != Spare::Copy || bytes.copy > 0);
        kinds.flat_map(|kind| kind.names().iter().find(is_missing)).next().copied()
    }

    /// As [`Storage::create`], within the limit.
    pub fn create(&self, name: &str, len: u64, prepare: Prepare) -> io::Result<Arc<dyn File>> {
        self.create_within(false, name, len, prepare)
    }

    fn create_within(
        &self,
        restores: bool,
        name: &str,
        len: u64,
        prepare: Prepare,
    ) -> io::Result<Arc<dyn File>> {
        let made = self.within_limit(restores, len, || self.storage.create(name, len, prepare));
        if made.as_ref().is_err_and(is_full) {
            self.full.store(true, Ordering::Release);
        }
        made
    }

    /// Does what takes so much `more`, if the limit allows, or if it restores no more than what there was.
    fn within_limit<T>(
        &self,
        restores: bool,
        more: u64,
        make: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        let Some(mut max) = self.max_bytes else { return make() };
        let before = self.limit.lock();
        if restores {
            max = max.max(*before);
        }
        let full = self.used()?.saturating_add(more) > max;
        if full { Err(ErrorKind::StorageFull.into()) } else { make() }
    }

    fn used(&self) -> io::Result<u64> {
        Ok(self.storage.list()?.iter().map(|entry| entry.len).sum())
    }

    /// As [`create`](Space::create), with the longest of `lens`, or what is held back for this if there is no space. Once
    /// something was, it is taken first, until all is there again: what is free belongs to the spares.
    pub fn create_or_take(
        &self,
        spare: Spare,
        name: &str,
        lens: RangeInclusive<u64>,
        prepare: Prepare,
    ) -> io::Result<Arc<dyn File>> {
        if self.short.load(Ordering::Acquire)
            && let Some(taken) = self.take(spare, name, lens.clone())?
        {
            return Ok(taken);
        }
        match self.create_within(true, name, *lens.end(), prepare) {
            Err(error) if is_full(&error) => self.take(spare, name, lens)?.ok_or(error),
            made => made,
        }
    }

    /// Makes a spare as long as it is to be, fills it with zeroes, and gives it another name.
    fn take(
        &self,
        spare: Spare,
        name: &str,
        lens: RangeInclusive<u64>,
    ) -> io::Result<Option<Arc<dyn File>>> {
        let _spares = self.spares.lock();
        let kinds: &[Spare] = match spare {
            Spare::Log => &[Spare::Log],
            // Without a cursor nothing is given back, so it is worth more than the rest.
            Spare::Cursor => &[Spare::Cursor, Spare::Copy, Spare::Log],
            Spare::Copy => &[Spare::Copy],
        };
        for held in kinds.iter().flat_map(|kind| kind.names()) {
            let Ok(file) = self.storage.open(held) else { continue };
            self.is_taken();
            // Under its own name, so that nothing is left under the other one if it fails.
            if self.fit(&*file, lens.clone())? {
                zero(&*file, file.len()?)?;
                if spare == Spare::Log && !planted(Bug::SpareTakenBeforeTheSync) {
                    // The name of a segment says something at once, and what the file held may be another segment.
                    file.sync_data()?;
                }
                self.storage.rename(held, name)?;
                return Ok(Some(file));
            }
        }
        Ok(None)
    }

    /// Cuts a file that is too long, and lengthens one that is too short. Whether there was space for that.
    fn fit(&self, file: &dyn File, lens: RangeInclusive<u64>) -> io::Result<bool> {
        let (held, least, most) = (file.len()?, *lens.start(), *lens.end());
        if held > most {
            file.set_len(most)?;
            self.freed();
        } else if held < least {
            match self.within_limit(true, least - held, || file.lengthen(least)) {
                Err(error) if is_full(&error) => return Ok(false),
                lengthened => lengthened?,
            }
        }
        Ok(true)
    }

    fn is_taken(&self) {
        self.complete.store(false, Ordering::Release);
        if !self.short.swap(true, Ordering::AcqRel) && self.max_bytes.is_some() {
            let mut before = self.limit.lock();
            *before = self.used().unwrap_or(0).max(*before);
        }
    }

    /// How long the longest spare of this kind is that is there; 0 if none is.
    pub fn held(&self, spare: Spare) -> u64 {
        let len = |name: &&str| self.storage.open_read(name).and_then(|file| file.len()).ok();
        spare.names().iter().filter_map(len).max().unwrap_or(0)
    }

    /// Makes sure that all spares are there, and as long as this; those that are much longer are cut. Where there is no space
    /// for that, they become as long as they can, roughly.
    pub fn hold_back(&self, bytes: SpareBytes) -> io::Result<()> {
        let mut spares = self.spares.lock();
        *spares = bytes;
        self.cut(bytes);
        // A log spare that is missing is most often a segment by now, and comes back: made anew, it would take from the
        // others. What cursors need grows while the disk is full, and goes before what compaction needs.
        self.hold(Spare::Log, bytes.log, false)?;
        let held = self.hold(Spare::Cursor, bytes.cursor, true);
        let held = held.and_then(|()| self.hold(Spare::Copy, bytes.copy, true));
        self.changes.fetch_add(1, Ordering::AcqRel);
        held.and_then(|()| self.hold(Spare::Log, bytes.log, true))?;
        if let Some(max) = self.max_bytes
            && self.used()? <= max
        {
            *self.limit.lock() = 0;
        }
        self.short.store(false, Ordering::Release);
        self.complete.store(true, Ordering::Release);
        Ok(())
    }

    /// Lengthens the spares of a kind, and if it `makes` them, makes those that are missing.
    fn hold(&self, spare: Spare, len: u64, makes: bool) -> io::Result<()> {
        for name in spare.names().iter().filter(|_| len > 0) {
            match self.storage.open(name) {
                Ok(file) if file.len()? < len => self.lengthen(&*file, file.len()?, len)?,
                Ok(_) => {}
                Err(_) if makes => drop(self.create_within(true, name, len, Prepare::Reserve)?),
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Cuts what is held beyond this.
    pub fn hold_less(&self, bytes: SpareBytes) {
        let _spares = self.spares.lock();
        self.cut(bytes);
    }

    fn cut(&self, bytes: SpareBytes) {
        let SpareBytes { log, cursor, copy } = bytes;
        for (spare, len) in [(Spare::Log, log), (Spare::Cursor, cursor), (Spare::Copy, copy)] {
            for name in spare.names() {
                let Ok(held) = self.storage.open_read(name).and_then(|file| file.len()) else {
                    continue;
                };
                if len == 0 {
                    self.remove(name);
                } else if held > len.saturating_mul(TOO_LONG)
                    && self.storage.open(name).and_then(|file| file.set_len(len)).is_ok()
                {
                    self.freed();
                }
            }
        }
    }

    fn lengthen(&self, file: &dyn File, held: u64, len: u64) -> io::Result<()> {
        let longer = |len: u64| self.within_limit(true, len - held, || file.lengthen(len));
        let made = longer(len);
        if made.as_ref().is_err_and(is_full) {
            self.full.store(true, Ordering::Release);
            let mut more = (len - held) / 2;
            while more >= STEP && longer(held + more).is_err() {
                more /= 2;
            }
        }
        made
    }

    /// Gives up the spare for compaction, if another one could be made: a store at rest needs none.
    pub fn let_go_of_copy(&self) {
        let _spares = self.spares.lock();
        let held = self.held(Spare::Copy);
        self.remove(PROBE);
        if held > 0 && self.create(PROBE, held, Prepare::Reserve).is_ok() {
            self.complete.store(false, Ordering::Release);
            self.remove(Spare::Copy.names()[0]);
            self.remove(PROBE);
        }
    }
}

/// Writes zeroes over a whole file.
fn zero(file: &dyn File, len: u64) -> io::Result<()> {
    let mut at = 0;
    while at < len {
        let count = (len - at).min(ZEROES.len() as u64);
        file.write_at(at, &ZEROES[..count as usize])?;
        at += count;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::disk::RealDirectory;
    use super::super::sim::Disk;
    use super::*;

    const K: u64 = 1024;

    const BYTES: SpareBytes = SpareBytes { log: 8 * K, cursor: 16 * K, copy: 0 };

    fn space(capacity: u64, max_bytes: Option<u64>) -> (Disk, Space) {
        let disk = Disk::with_capacity(capacity);
        (disk.clone(), Space::new(Arc::new(disk), max_bytes))
    }

    fn create_log(space: &Space, name: &str) -> io::Result<u64> {
        space.create_or_take(Spare::Log, name, 6 * K..=100 * K, Prepare::Reserve)?.len()
    }

    fn create_cursor(space: &Space, name: &str, len: u64) -> io::Result<u64> {
        space.create_or_take(Spare::Cursor, name, len..=len, Prepare::Reserve)?.len()
    }

    #[test]
    fn spares_are_taken_only_when_nothing_can_be_made() {
        let (disk, space) = space(156 * K, None);
        space.hold_back(BYTES).unwrap();
        assert!(space.is_complete());
        assert_eq!(create_log(&space, "a").unwrap(), 100 * K);
        assert!(space.is_complete() && !space.is_full());
        for name in ["b", "c", "d"] {
            assert_eq!(create_log(&space, name).unwrap(), 8 * K);
            assert!(!space.is_complete() && space.is_full());
        }
        assert!(is_full(&create_log(&space, "e").unwrap_err()));
        assert!(is_full(&space.hold_back(BYTES).unwrap_err()));
        assert_eq!(disk.file_names(), ["a", "b", "c", "d", "spare.cursor-1", "spare.cursor-2"]);

        assert!(space.remove("a") && !space.is_full());
        space.hold_back(BYTES).unwrap();
        assert!(space.is_complete());
    }

    #[test]
    fn what_is_given_back_becomes_a_spare_where_no_file_can_be_made() {
        let (disk, space) = space(56 * K, None);
        space.hold_back(BYTES).unwrap();
        disk.set_creation_slack(1000 * K);
        let [a, b] = ["a", "b"].map(str::to_owned);
        assert_eq!(create_cursor(&space, "a", 5 * K).unwrap(), 5 * K);
        assert_eq!(create_cursor(&space, "b", 5 * K).unwrap(), 5 * K);
        assert_eq!(space.held(Spare::Cursor), 0);
        space.give_back(Spare::Cursor, &[a, b.clone()]).unwrap();
        space.hold_back(BYTES).unwrap();
        assert_eq!(space.held(Spare::Cursor), 16 * K);

        assert_eq!(create_log(&space, "b").unwrap(), 8 * K);
        assert!(is_full(&space.hold_back(BYTES).unwrap_err()));
        space.give_back(Spare::Log, &[b]).unwrap();
        space.hold_back(BYTES).unwrap();
        assert!(space.is_complete());
        disk.set_creation_slack(0);
        disk.set_capacity(None);
        space.create("c", 1, Prepare::Reserve).unwrap();
        space.give_back(Spare::Log, &["c".to_owned()]).unwrap();
        assert_eq!(disk.file_names().len(), 5, "no more than are wanted");
    }

    /// With its old name it would be taken for what it was.
    #[test]
    fn what_was_given_back_never_has_its_old_name_and_another_content() {
        for seed in 0..100 {
            let (disk, space) = space(32 * K, None);
            disk.write_file("a", vec![7; 8 << 10]);
            space.give_back(Spare::Log, &["a".to_owned()]).unwrap();
            create_log(&space, "b").unwrap();
            let left = disk.power_cut(seed);
            assert!(left.read_file("a").is_none_or(|bytes| bytes == [7; 8 << 10]), "{seed}");
        }
    }

    #[test]
    fn what_a_backup_shares_is_not_used_again() {
        let [dir, backup] = [(), ()].map(|()| tempfile::tempdir().unwrap());
        let [ours, shared] = [dir.path().join("a"), backup.path().join("a")];
        std::fs::write(&ours, [7; 8 << 10]).unwrap();
        std::fs::hard_link(&ours, &shared).unwrap();
        let storage = Arc::new(RealDirectory::open(dir.path()).unwrap());
        let space = Space::new(storage.clone(), None);
        space.give_back(Spare::Log, &["a".to_owned()]).unwrap();
        assert_eq!(storage.list().unwrap(), []);
        space.hold_back(BYTES).unwrap();
        assert_eq!(std::fs::read(&shared).unwrap(), [7; 8 << 10]);
    }

    #[test]
    fn a_cursor_takes_the_place_of_a_compaction_or_of_the_log_if_it_must() {
        let (_, space) = space(96 * K, None);
        space.hold_back(SpareBytes { copy: 40 * K, ..BYTES }).unwrap();
        assert_eq!(create_cursor(&space, "c", 30 * K).unwrap(), 30 * K);
        assert_eq!((space.held(Spare::Cursor), space.held(Spare::Copy)), (16 * K, 0));
        for (name, len) in [("d", 26 * K), ("e", 16 * K), ("f", 8 * K)] {
            assert_eq!(create_cursor(&space, name, len).unwrap(), len);
        }
        assert_eq!((space.held(Spare::Cursor), space.held(Spare::Log)), (0, 8 * K));
        assert!(is_full(&create_cursor(&space, "g", 9 * K).unwrap_err()));
    }

    #[test]
    fn what_was_left_in_a_spare_is_not_left_in_the_log() {
        let (disk, space) = space(8 * K, None);
        disk.write_file("spare.log-2", vec![7; 8 << 10]);
        assert_eq!(create_log(&space, "a").unwrap(), 8 * K);
        assert_eq!(disk.read_file("a").unwrap(), [0; 8 << 10]);
        // Wherever the name goes, the zeroes have gone before.
        for seed in 0..50 {
            if let Some(content) = disk.power_cut(seed).read_file("a") {
                assert_eq!(content, [0; 8 << 10], "seed {seed}");
            }
        }
    }

    #[test]
    fn spares_grow_and_shrink_with_what_they_are_for() {
        let (disk, space) = space(1000 * K, None);
        let held = |bytes: SpareBytes| {
            let full = space.hold_back(bytes).is_err();
            let [log, cursor, copy] =
                [Spare::Log, Spare::Cursor, Spare::Copy].map(|spare| space.held(spare) / K);
            (log, cursor, copy, full)
        };
        assert_eq!(held(BYTES), (8, 16, 0, false));
        let more = SpareBytes { cursor: 40 * K, copy: 100 * K, ..BYTES };
        assert_eq!(held(more), (8, 40, 100, false));
        assert_eq!(held(SpareBytes { copy: 60 * K, ..BYTES }), (8, 16, 100, false));
        assert_eq!(held(SpareBytes { copy: 40 * K, ..BYTES }), (8, 16, 40, false));
        // As much as there is.
        assert_eq!(held(SpareBytes { copy: 1640 * K, ..BYTES }), (8, 16, 840, true));
        assert_eq!(held(BYTES), (8, 16, 0, false));
        assert_eq!(disk.file_names().len(), 5);
    }

    #[test]
    fn a_limit_acts_as_the_end_of_the_disk() {
        let (_, space) = space(10_000 * K, Some(156 * K));
        space.hold_back(BYTES).unwrap();
        assert_eq!(create_log(&space, "a").unwrap(), 100 * K);
        assert_eq!(create_log(&space, "b").unwrap(), 8 * K);
        assert!(space.create("c", 1, Prepare::Reserve).is_err_and(|error| is_full(&error)));
    }
}
