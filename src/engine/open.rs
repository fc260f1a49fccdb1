//! Opening a store: locking, reading the cursor, walking what it does not cover, passing the verdict, repairing.
//!
//! Everything up to the verdict only reads. In strict mode damage ends it there. The repair then makes durable what
//! the walk has found, before anything is appended:
//!
//! 1. what lies behind the end is copied to `quarantine/`;
//! 2. frames that no proof covers are written again, since they may be pages of a failed write-back that never
//!    reached the disk, and zeros are written over what lies behind the end, so that no frame left there ever joins
//!    the log; the file is synced;
//! 3. a cursor is published that ends there and names no later segment; and again, so that both of the cursors that are
//!    kept say so. The one before may be that of a clean close: alone with it, if its successor were lost, all that is
//!    appended from now on would be taken for what that close had left behind. Or a bad one, or one that does not know
//!    how a log goes on whose next segment was torn;
//! 4. files that it does not name are removed or set aside, and the directory synced.
//!
//! Crash windows: after 1, a copy too many; after 2, the same log, proven no further; after 3, once or twice, stray
//! segments, which the next open passes over, because nothing names them. Doing it all again finds the same log each time.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Engine;
use super::recover::Found;
use crate::clock::TimeSource;
use crate::cursor::{BadCursor, Loaded, load};
use crate::error::{Error, ErrorKind, Result};
use crate::format::cursor::CursorHeader;
use crate::format::cursor::sections::Section;
use crate::format::header::{
    self, FRAMES_START, HEADER_BYTES, HEADER_COPIES_AT, Header, HeaderFound,
};
use crate::log::{file_bytes, parse_segment_name, segment_name, used_bytes};
use crate::options::Settings;
use crate::random::Entropy;
use crate::report::{Recovery, SetAside};
use crate::storage::{self, File, LockError, Storage};

/// What the lock file says: who has it, and the boot in which the log was last known to be whole in the page cache.
pub(super) fn lock_note(pid: u32, boot: &str) -> String {
    format!("pid {pid}\nboot {boot}\n")
}

pub(super) fn noted<'a>(note: &'a str, key: &str) -> Option<&'a str> {
    note.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))
}

/// A segment file that the last frame of another one names, and that has no header.
pub(super) enum Named {
    /// As it was made ready.
    Unused,
    /// It holds something behind where the header would be.
    Torn,
    /// Missing, cut off, or its header is damaged.
    Lost,
}

/// Where the last byte of a segment file lies that is not zero, the header aside, among the first `limit`.
pub(super) fn used_of(storage: &dyn Storage, name: &str, limit: u64) -> std::io::Result<u32> {
    let file = storage.open_read(name)?;
    let data = file.map_read()?;
    let limit = limit.min(file.data_end()?).min(data.published());
    Ok(used_bytes(data.bytes(0..limit), FRAMES_START))
}

/// What a segment file of `len` bytes begins with.
pub(super) fn read_header(file: &dyn File, len: u64) -> std::io::Result<HeaderFound> {
    let mut copies = [[0; HEADER_BYTES]; 2];
    for (copy, at) in copies.iter_mut().zip(HEADER_COPIES_AT) {
        let left = len.saturating_sub(at as u64).min(HEADER_BYTES as u64) as usize;
        if left > 0 {
            file.read_at(at as u64, &mut copy[..left])?;
        }
    }
    Ok(header::decode(&copies[0], &copies[1]))
}

/// What the files of a directory say of themselves.
pub(super) struct Known {
    pub cursor: Option<(CursorHeader, Vec<Section>)>,
    /// Newer than that one.
    pub bad: Vec<BadCursor>,
    pub headers: BTreeMap<u32, (Header, u64)>,
    /// None if there is no store yet.
    pub store: Option<[u8; 16]>,
}

pub(super) struct Opening {
    pub storage: Arc<dyn Storage>,
    pub settings: Settings,
    pub time: TimeSource,
    pub entropy: Entropy,
    /// All files of the directory, with their lengths.
    pub files: Vec<(String, u64)>,
    pub same_boot: bool,
}

impl Engine {
    pub fn open(
        storage: Arc<dyn Storage>,
        settings: Settings,
        time: TimeSource,
        entropy: Entropy,
    ) -> Result<Arc<Engine>> {
        settings.check()?;
        let lock = storage.lock().map_err(|error| match error {
            LockError::Held { note } => {
                let pid = noted(&note, "pid").and_then(|pid| pid.parse().ok());
                let holder =
                    pid.map_or("another process".to_owned(), |pid| format!("process {pid}"));
                Error::new(ErrorKind::Locked { pid }, format!("the store is open in {holder}"))
                    .file(storage.path(""))
            }
            LockError::Io(error) => {
                Error::io("cannot lock the store", error).file(storage.path("LOCK"))
            }
        })?;
        let boot = storage.boot_id();
        let last_boot = noted(lock.previous_note(), "boot").unwrap_or_default().to_owned();
        lock.note(&lock_note(storage.pid(), &last_boot)).map_err(|error| {
            Error::io("cannot write the lock file", error).file(storage.path("LOCK"))
        })?;
        let listed = storage.list().map_err(|error| {
            Error::io("cannot list the directory", error).file(storage.path(""))
        })?;
        let files =
            listed.into_iter().filter(|entry| entry.is_file).map(|e| (e.name, e.len)).collect();
        let same_boot = !boot.is_empty() && boot == last_boot;
        let opening = Opening { storage, settings, time, entropy, files, same_boot };
        let engine = opening.run(lock)?;
        if let Some(lock) = &*engine.directory_lock.lock() {
            // Without it a bad frame after the death of this process is taken for the end, and set aside.
            let _ = lock.note(&lock_note(engine.storage.pid(), &boot));
        }
        if engine.settings.background {
            engine.start_background()?;
        }
        Ok(engine)
    }
}

impl Opening {
    fn run(self, lock: Box<dyn storage::Lock>) -> Result<Arc<Engine>> {
        let Known { cursor, bad, headers, store } = self.known()?;
        let store_id = match store {
            Some(store) => store,
            None => self.entropy.store_id().map_err(|error| self.io("cannot make an id", error))?,
        };
        let is_new = cursor.is_none() && headers.is_empty() && bad.is_empty();
        let found = self.find(cursor.as_ref(), &bad, headers, store_id)?;
        let recovery = self.report(&found, cursor.as_ref(), &bad, is_new);
        if self.settings.strict {
            self.refuse_damage(&recovery, &bad)?;
        }
        self.repair(found, recovery, store_id, cursor.as_ref(), lock)
    }

    /// What the files say of themselves.
    pub(super) fn known(&self) -> Result<Known> {
        let headers = self.headers()?;
        let mut stores: BTreeMap<[u8; 16], usize> = BTreeMap::new();
        for (header, _) in headers.values() {
            *stores.entry(header.store).or_default() += 1;
        }
        // Files of another store may have got in between.
        let most = stores.into_iter().max_by_key(|(_, files)| *files).map(|(store, _)| store);
        let names: Vec<String> = self.files.iter().map(|(name, _)| name.clone()).collect();
        let loaded = load(&*self.storage, &names, most)
            .map_err(|error| self.io("cannot read a cursor", error))?;
        match loaded {
            Loaded::Found { cursor, bad } => {
                let store = cursor.as_ref().map(|(header, _)| header.store).or(most);
                Ok(Known { cursor, bad, headers, store })
            }
            Loaded::Newer { name, version } => Err(Error::new(
                ErrorKind::NewerFormat,
                format!("a cursor of format version {version}, written by a newer millpond"),
            )
            .file(self.storage.path(&name))),
        }
    }

    pub(super) fn io(&self, what: &'static str, error: std::io::Error) -> Error {
        Error::io(what, error).file(self.storage.path(""))
    }

    /// The header of every segment file that has one, by number, with the file's length.
    pub(super) fn headers(&self) -> Result<BTreeMap<u32, (Header, u64)>> {
        let mut headers = BTreeMap::new();
        let numbered =
            self.files.iter().filter_map(|(name, len)| Some((parse_segment_name(name)?, *len)));
        for (number, len) in numbered {
            match self.header(number, len)? {
                HeaderFound::Header { header, .. } if header.number == number => {
                    headers.insert(number, (header, len));
                }
                HeaderFound::Newer { version } => {
                    return Err(Error::new(
                        ErrorKind::NewerFormat,
                        format!(
                            "a segment of format version {version}, written by a newer millpond"
                        ),
                    )
                    .file(self.storage.path(&segment_name(number))));
                }
                _ => {}
            }
        }
        Ok(headers)
    }

    pub(super) fn header(&self, number: u32, len: u64) -> Result<HeaderFound> {
        let name = segment_name(number);
        let found = self.storage.open_read(&name).and_then(|file| read_header(&*file, len));
        found.map_err(|error| {
            Error::io("cannot read a segment's header", error).file(self.storage.path(&name))
        })
    }

    /// What the file of segment `number`, which is no segment of the log, is.
    pub(super) fn named(&self, number: u32) -> Named {
        let name = segment_name(number);
        let len = self.files.iter().find(|(file, _)| *file == name).map(|(_, len)| *len);
        let Some(len) = len.filter(|len| *len >= file_bytes(0)) else { return Named::Lost };
        if !matches!(self.header(number, len), Ok(HeaderFound::Unused)) {
            return Named::Lost;
        }
        match used_of(&*self.storage, &name, u64::MAX) {
            Ok(FRAMES_START) => Named::Unused,
            _ => Named::Torn,
        }
    }

    pub(super) fn report(
        &self,
        found: &Found,
        cursor: Option<&(CursorHeader, Vec<Section>)>,
        bad: &[BadCursor],
        is_new: bool,
    ) -> Recovery {
        let mut recovery = Recovery {
            clean: is_new || (cursor.is_some_and(|(h, _)| h.clean) && bad.is_empty()),
            replayed_bytes: found.replayed_bytes,
            damaged: found.damage.clone(),
            bad_cursors: bad.iter().map(|bad| self.storage.path(&bad.name)).collect(),
            full_walk: cursor.is_none() && !is_new,
            renamed_queues: found.replay.renamed_queues.clone(),
            ..Recovery::default()
        };
        for (at, file) in found.files.iter().enumerate() {
            let last = found.verdict.segments.last() == Some(&at);
            let in_log = found.verdict.segments.contains(&at);
            let start = if last { found.end } else { FRAMES_START };
            if (last || !in_log) && file.survey.used > start {
                recovery.set_aside.push(SetAside {
                    file: self.storage.path(&segment_name(file.header.number)),
                    offset: start.into(),
                    bytes: (file.survey.used - start).into(),
                });
            }
        }
        recovery
    }

    /// Strict mode: the damage as an error, which names the first place of it.
    pub(super) fn refuse_damage(&self, recovery: &Recovery, bad: &[BadCursor]) -> Result<()> {
        if let Some(damage) = recovery.damaged.first() {
            return Err(Error::new(ErrorKind::Corrupt, damage.what.clone())
                .file(&damage.file)
                .offset(damage.offset)
                .damage_found(&recovery.damaged));
        }
        if let Some(bad) = bad.first() {
            return Err(Error::new(ErrorKind::Corrupt, format!("a bad cursor: {}", bad.reason))
                .file(self.storage.path(&bad.name))
                .offset(bad.offset));
        }
        Ok(())
    }
}
