//! What is held back for when the disk is full.
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

use super::super::{File, Prepare};
use super::{PROBE, STEP, Space, is_full};
use crate::planted::{Bug, planted};
use crate::sync::atomic::Ordering;

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

/// So many times too long a spare may be before it is cut.
const TOO_LONG: u64 = 2;

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

impl Space {
    /// Removes a file whose name says nothing, whether it is there or not; or makes a spare of it, if one is missing.
    pub fn put_back(&self, spare: Spare, name: &str) {
        let bytes = self.spares.lock();
        self.put_back_one(spare, name, *bytes);
    }

    /// As [`put_back`](Space::put_back), for files that mean something to an open: they are changed only once it would
    /// not find them any more. Nobody may have them mapped who does not hold them.
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
        // What a backup shares must stay as it is, and what a delivery of an earlier owner of the store may have mapped.
        let shared = || self.storage.is_linked(name) || self.storage.is_held(name);
        let missing = match self.is_complete() || shared() {
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
                // A failed sync of somebody before may have lost it: set anew, it goes with the next one.
                file.set_len(file.len()?)?;
                if spare == Spare::Log && !planted(Bug::SpareTakenBeforeTheSync) {
                    // The name of a segment says something at once, and what the file held may be another segment.
                    if let Err(error) = file.sync_data() {
                        // Nobody knows what of it is on the disk, and the next sync would not say.
                        self.remove(held);
                        return Err(error);
                    }
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
