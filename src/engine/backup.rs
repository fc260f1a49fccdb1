//! A copy of a store in use, as of one moment.
//!
//! A cursor is written, and the segments before its position are given a second name in the other directory: they never
//! change. Where that cannot be done they are copied. What lies behind the position is always copied, by reads and writes,
//! up to where the log ended once the cursor was there: its pieces were captured one after the other, and are true of one
//! moment only together with the log up to the last of them. The cursor comes last.
//!
//! Crash windows: a directory under its temporary name, which nobody takes for a backup.

use std::io;
use std::sync::Arc;

use super::Engine;
use super::maintenance::Maintenance;
use crate::cursor::{cursor_name, read_cursor};
use crate::error::{Error, Result};
use crate::format::header::{FRAMES_START, HeaderFound, decode_start};
use crate::format::position::Position;
use crate::log::{Segment, index_name, parse_segment_name};
use crate::storage::{File, Mapping, Prepare, Storage};

/// How much is copied at a time.
const COPY_BYTES: usize = 1 << 20;

/// What is left to copy once work may go on.
enum Copy {
    /// All of a file.
    File { name: String, file: Arc<dyn File> },
    /// A segment up to `end`, in a file of `len` bytes.
    Part { segment: Arc<Segment>, end: u64, len: u64 },
}

/// What a backup still has to write: first the copies, then the cursor.
struct Rest {
    copies: Vec<Copy>,
    generation: u64,
    cursor: Vec<u8>,
}

impl Engine {
    /// Copies the store into an empty directory, which is not one until this returns.
    pub(crate) fn backup(&self, to: &dyn Storage) -> Result<()> {
        let Rest { copies, generation, cursor } = {
            // As long as it is held, no file of the store is removed or cut.
            let mut maintenance = self.maintenance.lock();
            self.begin_backup(&mut maintenance, to)?
        };
        for copy in copies {
            let name = copy.name();
            copy.run(to).map_err(|error| {
                Error::io("cannot copy a file of the store", error).file(to.path(&name))
            })?;
        }
        let name = cursor_name(generation);
        let finish = || -> io::Result<()> {
            let file = to.create(&name, cursor.len() as u64, Prepare::Reserve)?;
            file.write_at(0, &cursor)?;
            file.sync_data()?;
            to.sync_dir()
        };
        finish().map_err(|error| Error::io("cannot write the cursor", error).file(to.path(&name)))
    }

    /// Links what can be linked.
    fn begin_backup(&self, maintenance: &mut Maintenance, to: &dyn Storage) -> Result<Rest> {
        // A poisoned store writes no cursor any more: the copy is what an open of it would find.
        let poisoned = self.log.is_poisoned();
        if !poisoned {
            self.check_alive()?;
            self.checkpoint(maintenance, false)?;
        }
        let position = maintenance.position;
        let (named, end) = {
            let mut state = self.lock_open()?;
            let mut tail = self.log.tail();
            state.absorb(&mut tail);
            let named = state.segments.iter().filter(|s| s.dropped_in.is_none());
            let named: Vec<Arc<Segment>> = named.map(|s| s.segment.clone()).collect();
            (named, tail.end())
        };
        let mut copies = if poisoned { self.all_but(end)? } else { Vec::new() };
        for segment in named.into_iter().filter(|s| !poisoned || s.number == end.segment()) {
            let copy = if segment.number < position.segment() {
                self.link_or_copy(&segment, to)
            } else {
                let until = (segment.number == end.segment()).then(|| end.offset().into());
                self.copy_part(&segment, until).map(|copy| vec![copy])
            };
            copies.extend(copy.map_err(|error| {
                let path = self.storage.path(&segment.name());
                Error::io("cannot read a segment", error).file(path)
            })?);
        }
        let name = cursor_name(maintenance.generation);
        let cursor = read_cursor(&*self.storage, &name).map_err(|error| {
            Error::io("cannot read the cursor", error).file(self.storage.path(&name))
        })?;
        Ok(Rest { copies, generation: maintenance.generation, cursor })
    }

    /// All segment files but the one that the log ends in. The newest cursor of a poisoned store may name some that the
    /// state has let go of already; none of them is removed any more.
    fn all_but(&self, end: Position) -> Result<Vec<Copy>> {
        let path = self.storage.path("");
        let listed = self.storage.list();
        let listed = listed.map_err(|e| Error::io("cannot list the directory", e).file(&path))?;
        let wanted = listed
            .into_iter()
            .map(|entry| entry.name)
            .filter(|name| parse_segment_name(name).is_some_and(|number| number != end.segment()));
        let open = |name: String| Ok(Copy::File { file: self.storage.open_read(&name)?, name });
        let copies: io::Result<Vec<Copy>> = wanted.map(open).collect();
        copies.map_err(|error| Error::io("cannot read a segment", error).file(path))
    }

    fn link_or_copy(&self, segment: &Arc<Segment>, to: &dyn Storage) -> io::Result<Vec<Copy>> {
        let (name, index) = (segment.name(), index_name(segment.file));
        if self.storage.link(&name, to).is_ok() {
            // It is made anew where it is missing.
            let _ = self.storage.link(&index, to);
            return Ok(Vec::new());
        }
        let mut copies = vec![self.copy_part(segment, None)?];
        if let Ok(file) = self.storage.open_read(&index) {
            copies.push(Copy::File { name: index, file });
        }
        Ok(copies)
    }

    /// A sealed segment up to its end, since what lies behind may be cut off at any moment; or the last one, up to where the
    /// log ends.
    fn copy_part(&self, segment: &Arc<Segment>, log_end: Option<u64>) -> io::Result<Copy> {
        let data = segment.data(&*self.storage)?;
        let end = log_end.unwrap_or(segment.end().into()).min(data.published());
        let len = log_end.and_then(|_| capacity(data)).unwrap_or(end).max(end);
        Ok(Copy::Part { segment: segment.clone(), end, len })
    }
}

impl Copy {
    fn name(&self) -> String {
        match self {
            Copy::File { name, .. } => name.clone(),
            Copy::Part { segment, .. } => segment.name(),
        }
    }

    fn run(self, to: &dyn Storage) -> io::Result<()> {
        match self {
            Copy::File { name, file } => {
                let len = file.len()?;
                write(to, &name, len, len, |at, piece| file.read_at(at, piece))
            }
            Copy::Part { segment, end, len } => {
                write(to, &segment.name(), len, end, |at, piece| {
                    piece.copy_from_slice(segment.bytes(at..at + piece.len() as u64));
                    Ok(())
                })
            }
        }
    }
}

/// Makes a file of `len` bytes, durable, the first `end` of which are what `read` gives.
fn write(
    to: &dyn Storage,
    name: &str,
    len: u64,
    end: u64,
    read: impl Fn(u64, &mut [u8]) -> io::Result<()>,
) -> io::Result<()> {
    let copy = to.create(name, len, Prepare::Reserve)?;
    let mut piece = vec![0; COPY_BYTES];
    let mut at = 0;
    while at < end {
        let count = (end - at).min(COPY_BYTES as u64) as usize;
        read(at, &mut piece[..count])?;
        copy.write_at(at, &piece[..count])?;
        at += count as u64;
    }
    copy.sync_data()
}

/// How long the file of a segment was made.
fn capacity(data: &Mapping) -> Option<u64> {
    match decode_start(data.get(0..FRAMES_START.into())?) {
        HeaderFound::Header { header, .. } => Some(header.capacity.into()),
        _ => None,
    }
}
