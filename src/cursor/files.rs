//! The cursor files: publishing a new generation, and finding the newest that can be believed.
//!
//! A cursor is written under a temporary name, synced, renamed, and its directory synced. Crash windows: a
//! temporary file (removed by the next open), or the new name beside the old ones (either is a true state, since
//! the older one's segments are kept until two newer cursors stand). The newest two are kept.

use std::io;
use std::sync::Arc;

use crate::format::cursor::sections::Section;
use crate::format::cursor::{self, CursorFound, CursorHeader};
use crate::storage::{File, Prepare, Storage};

/// How many generations are kept.
const KEPT: usize = 2;

const TEMPORARY: &str = "cursor.tmp";

fn cursor_name(generation: u64) -> String {
    format!("cursor.{generation:010}")
}

/// The generation in a cursor's file name; None for a name that millpond does not write.
pub(crate) fn parse_cursor_name(name: &str) -> Option<u64> {
    let generation = name.strip_prefix("cursor.")?.parse().ok()?;
    (cursor_name(generation) == name).then_some(generation)
}

/// Why there is no new cursor.
#[derive(Debug)]
pub(crate) enum PublishFailed {
    /// Nothing has changed: it could not be written, for want of space perhaps.
    NotWritten(io::Error),
    /// A sync or the rename failed: what is on disk is not known, and the store must not go on.
    Sync(io::Error),
}

/// Makes `bytes` the newest cursor, durably, and removes those that are no longer needed.
pub(crate) fn publish(
    storage: &dyn Storage,
    generation: u64,
    bytes: &[u8],
) -> Result<(), PublishFailed> {
    let file = write_temporary(storage, bytes).map_err(PublishFailed::NotWritten)?;
    file.sync_data()
        .and_then(|()| storage.rename(TEMPORARY, &cursor_name(generation)))
        .and_then(|()| storage.sync_dir())
        .map_err(PublishFailed::Sync)?;
    let is_old =
        |name: &str| parse_cursor_name(name).is_some_and(|found| found + KEPT as u64 <= generation);
    for entry in storage.list().unwrap_or_default() {
        if is_old(&entry.name) {
            // One that stays is removed after the next cursor.
            let _ = storage.remove(&entry.name);
        }
    }
    Ok(())
}

fn write_temporary(storage: &dyn Storage, bytes: &[u8]) -> io::Result<Arc<dyn File>> {
    let _ = storage.remove(TEMPORARY);
    let file = storage.create(TEMPORARY, bytes.len() as u64, Prepare::Reserve)?;
    file.write_at(0, bytes)?;
    Ok(file)
}

/// A cursor file that cannot be believed.
#[derive(Clone, Debug)]
pub(crate) struct BadCursor {
    pub name: String,
    pub reason: &'static str,
    pub offset: u64,
}

/// What the directory's cursor files hold.
pub(crate) enum Loaded {
    /// A later version wrote it.
    Newer { name: String, version: u32 },
    /// The newest that can be believed, and those that are newer and cannot.
    Found { cursor: Option<(CursorHeader, Vec<Section>)>, bad: Vec<BadCursor>, newest: u64 },
}

/// Reads the newest cursor that can be believed among the file names of the directory.
pub(crate) fn load(storage: &dyn Storage, names: &[String]) -> io::Result<Loaded> {
    let mut generations: Vec<u64> =
        names.iter().filter_map(|name| parse_cursor_name(name)).collect();
    generations.sort_unstable_by(|a, b| b.cmp(a));
    let newest = generations.first().copied().unwrap_or(0);
    let mut bad = Vec::new();
    for generation in generations {
        let name = cursor_name(generation);
        let file = storage.open_read(&name)?;
        let mut bytes = vec![0; usize::try_from(file.len()?).map_err(io::Error::other)?];
        file.read_at(0, &mut bytes)?;
        match cursor::decode(&bytes) {
            CursorFound::Cursor { header, sections } if header.generation == generation => {
                return Ok(Loaded::Found { cursor: Some((header, sections)), bad, newest });
            }
            CursorFound::Cursor { .. } => {
                bad.push(BadCursor { name, reason: "it is another generation's", offset: 0 });
            }
            CursorFound::Newer { version } => return Ok(Loaded::Newer { name, version }),
            CursorFound::Bad { reason, offset } => {
                bad.push(BadCursor { name, reason, offset: offset as u64 });
            }
        }
    }
    Ok(Loaded::Found { cursor: None, bad, newest })
}
