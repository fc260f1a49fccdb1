//! Checking a whole store without changing it, also while another process works with it.
//!
//! What an open looks at is looked at in the same way; besides, every frame of every segment and every index is verified.
//! A process that works with the store meanwhile removes segments and writes frames while they are read. So nothing
//! counts as damage that is not found a second time.

use std::collections::BTreeMap;
use std::io::ErrorKind as IoErrorKind;
use std::sync::Arc;

use super::open::{Known, Opening, noted};
use super::recover::Found;
use super::walk::build_index;
use crate::clock::TimeSource;
use crate::cursor::{BadCursor, Loaded, load, unreadable_before};
use crate::error::{Error, Result};
use crate::format::cursor::CursorHeader;
use crate::format::cursor::sections::Section;
use crate::format::header::Header;
use crate::log::{LaneIndex, Segment, index_name};
use crate::options::Settings;
use crate::random::Entropy;
use crate::report::Report;
use crate::storage::{ReadOnly, Storage};

/// How often a store is read again whose files change meanwhile.
const TRIES: usize = 20;

/// A store as it is found, with nothing changed.
pub(super) struct Examined {
    pub opening: Opening,
    pub headers: BTreeMap<u32, (Header, u64)>,
    pub store_id: [u8; 16],
    pub found: Found,
    pub report: Report,
}

/// Verifies the store in `storage`.
pub(crate) fn verify(storage: Arc<dyn Storage>) -> Result<Report> {
    let storage: Arc<dyn Storage> = Arc::new(ReadOnly(storage));
    let mut report = examine_again(&storage)?.report;
    if report.is_sound() {
        return Ok(report);
    }
    let again = examine_again(&storage)?.report;
    report.damaged.retain(|damage| {
        again.damaged.iter().any(|other| {
            (&other.file, other.offset, &other.what) == (&damage.file, damage.offset, &damage.what)
        })
    });
    report.bad_cursors.retain(|name| again.bad_cursors.contains(name));
    report.bad_indexes.retain(|name| again.bad_indexes.contains(name));
    Ok(report)
}

/// Until no file vanishes while it is read.
fn examine_again(storage: &Arc<dyn Storage>) -> Result<Examined> {
    let vanished = |error: &Error| {
        error.io_error().is_some_and(|error| {
            matches!(error.kind(), IoErrorKind::NotFound | IoErrorKind::UnexpectedEof)
        })
    };
    for _ in 1..TRIES {
        match examine(storage) {
            Err(error) if vanished(&error) => {}
            done => return done,
        }
    }
    examine(storage)
}

/// Reads everything. `storage` is one that changes nothing.
pub(super) fn examine(storage: &Arc<dyn Storage>) -> Result<Examined> {
    let unreadable = |what: &'static str, error| Error::io(what, error).file(storage.path(""));
    let listed = storage.list().map_err(|e| unreadable("cannot list the directory", e))?;
    let files = listed.into_iter().filter(|entry| entry.is_file).map(|e| (e.name, e.len)).collect();
    let opening = Opening {
        storage: storage.clone(),
        settings: Settings::default(),
        time: TimeSource::System,
        entropy: Entropy::System,
        files,
        same_boot: is_same_boot(&**storage),
    };
    let Known { cursor, bad, headers, store, .. } = opening.known()?;
    let Some(store_id) = store else {
        let error = std::io::Error::from(IoErrorKind::NotFound);
        return Err(unreadable("there is no store in this directory", error));
    };
    let found = opening.find(cursor.as_ref(), &bad, headers.clone(), store_id)?;
    let mut report = opening.full_report(&found, cursor.as_ref(), &bad)?;
    if let Some((header, _)) = &cursor {
        // An open is content with the newest one.
        let names: Vec<String> = opening.files.iter().map(|(name, _)| name.clone()).collect();
        let older = unreadable_before(&**storage, &names, header.generation);
        report.bad_cursors.extend(older.iter().map(|name| storage.path(name)));
    }
    Ok(Examined { opening, headers, store_id, found, report })
}

/// Whether the log was last known to be whole in the page cache of this boot.
fn is_same_boot(storage: &dyn Storage) -> bool {
    let read = || -> std::io::Result<String> {
        let file = storage.open_read("LOCK")?;
        let mut note = vec![0; usize::try_from(file.len()?.min(4096)).unwrap_or(0)];
        file.read_at(0, &mut note)?;
        Ok(String::from_utf8_lossy(&note).into_owned())
    };
    let boot = storage.boot_id();
    !boot.is_empty() && read().is_ok_and(|note| noted(&note, "boot") == Some(&boot))
}

impl Opening {
    fn full_report(
        &self,
        found: &Found,
        cursor: Option<&(CursorHeader, Vec<Section>)>,
        bad: &[BadCursor],
    ) -> Result<Report> {
        let recovery = self.report(found, cursor, bad, false);
        let state = &found.replay.state;
        let mut report = Report {
            queues: state.queues.len(),
            messages: state.queues.values().map(|queue| queue.settled_balance.max(0) as u64).sum(),
            segments: state.segments.len(),
            damaged: recovery.damaged,
            set_aside: recovery.set_aside,
            bad_cursors: recovery.bad_cursors,
            full_walk: recovery.full_walk,
            ..Report::default()
        };
        for s in &state.segments {
            let mut walked = found.verdict.segments.iter().map(|&at| &found.files[at].header);
            let walked = walked.any(|header| header.number == s.segment.file);
            report.bytes += u64::from(s.segment.end());
            if !walked {
                self.verify_segment(&s.segment, s.id_end.min(found.next_id), &mut report)?;
            }
        }
        Ok(report)
    }

    /// Whether the newest cursor that there is now names a segment.
    fn is_named(&self, segment: &Segment) -> Result<bool> {
        let listed = self.storage.list().map_err(|error| self.io("cannot list it", error))?;
        let names: Vec<String> = listed.into_iter().map(|entry| entry.name).collect();
        let loaded = load(&*self.storage, &names, None);
        Ok(match loaded.map_err(|error| self.io("cannot read a cursor", error))? {
            Loaded::Found { cursor: Some((_, sections)), .. } => {
                sections.iter().any(|s| matches!(s, Section::Segment(s) if s.file == segment.file))
            }
            _ => true,
        })
    }

    /// Verifies a segment that an open does not read, and its index.
    fn verify_segment(&self, segment: &Segment, id_end: u64, report: &mut Report) -> Result<()> {
        let path = self.storage.path(&segment.name());
        let open = || self.storage.open_read(&segment.name())?.map_read();
        let data = match open() {
            Ok(data) => data,
            // Rewritten or dropped since: the log goes on without it.
            Err(error) if error.kind() == IoErrorKind::NotFound && !self.is_named(segment)? => {
                return Ok(());
            }
            Err(error) => return Err(Error::io("cannot read a segment", error).file(path)),
        };
        let end = segment.end();
        let bytes = data.bytes(0..data.published().min(end.into()));
        let (index, damage) = build_index(bytes, segment, end, id_end, &path);
        for new in damage {
            // That it is too short is known already.
            if !report
                .damaged
                .iter()
                .any(|known| known.file == new.file && known.offset == new.offset)
            {
                report.damaged.push(new);
            }
        }
        let name = index_name(segment.file);
        let stored = self.storage.open_read(&name).and_then(|file| file.map_read());
        if let Ok(stored) = stored {
            let stored = LaneIndex::from_file(stored, segment.file, segment.salt, end);
            if stored.is_none_or(|stored| stored.messages() != index.messages()) {
                report.bad_indexes.push(self.storage.path(&name));
            }
        }
        Ok(())
    }
}
