//! The cursor files: publishing a new generation, and finding the newest that can be believed.
//!
//! A cursor is written under a temporary name, synced, renamed, and its directory synced. The newest two are kept.
//!
//! Crash windows:
//! - a temporary file: the next open removes it;
//! - the new name beside the old ones: either is a true state, since the older one's segments are kept until two newer
//!   cursors stand;
//! - what is given back, removed or not, or already a spare by a rename: see `storage/space/spares.rs`. Under its old name
//!   it is a true cursor still, and older than the two that are kept.

use std::io;
use std::sync::Arc;

use crate::format::cursor::sections::Section;
use crate::format::cursor::{self, CursorFound, CursorHeader};
use crate::planted::{Bug, planted};
use crate::storage::{File, Prepare, Space, Spare, Storage};

/// How many generations are kept.
const KEPT: u64 = 2;

/// The name of a cursor that is being written.
pub(crate) const CURSOR_BEING_WRITTEN: &str = "cursor.tmp";

/// The name of the cursor of a generation.
pub(crate) fn cursor_name(generation: u64) -> String {
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

/// Makes `bytes` the newest cursor, durably, and gives back those that are no longer needed.
pub(crate) fn publish(
    storage: &dyn Storage,
    space: &Space,
    generation: u64,
    bytes: &[u8],
) -> Result<(), PublishFailed> {
    let file = write_temporary(space, bytes).map_err(PublishFailed::NotWritten)?;
    let synced = if planted(Bug::CursorNotSynced) { Ok(()) } else { file.sync_data() };
    synced
        .and_then(|()| storage.rename(CURSOR_BEING_WRITTEN, &cursor_name(generation)))
        .and_then(|()| storage.sync_dir())
        .map_err(PublishFailed::Sync)?;
    let newest_old = generation.checked_sub(KEPT);
    let is_old =
        |name: &str| parse_cursor_name(name).is_some_and(|found| newest_old >= Some(found));
    let names = storage.list().unwrap_or_default().into_iter().map(|entry| entry.name);
    let old: Vec<String> = names.filter(|name| is_old(name)).collect();
    // One that stays goes after the next cursor.
    space.give_back(Spare::Cursor, &old).map_err(PublishFailed::Sync)
}

/// Removes all cursors before that of a generation, durably.
pub(crate) fn remove_before(storage: &dyn Storage, generation: u64) -> io::Result<()> {
    let names = storage.list()?.into_iter().map(|entry| entry.name);
    for name in names.filter(|name| parse_cursor_name(name).is_some_and(|n| n < generation)) {
        storage.remove(&name)?;
    }
    storage.sync_dir()
}

fn write_temporary(space: &Space, bytes: &[u8]) -> io::Result<Arc<dyn File>> {
    space.put_back(Spare::Cursor, CURSOR_BEING_WRITTEN);
    let len = bytes.len() as u64;
    let file =
        space.create_or_take(Spare::Cursor, CURSOR_BEING_WRITTEN, len..=len, Prepare::Reserve)?;
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
    Found { cursor: Option<(CursorHeader, Vec<Section>)>, bad: Vec<BadCursor> },
}

/// Reads the newest cursor that can be believed among the file names of the directory: of `store`, if any of them is.
pub(crate) fn load(
    storage: &dyn Storage,
    names: &[String],
    store: Option<[u8; 16]>,
) -> io::Result<Loaded> {
    let mut generations: Vec<u64> =
        names.iter().filter_map(|name| parse_cursor_name(name)).collect();
    generations.sort_unstable_by(|a, b| b.cmp(a));
    let mut bad = Vec::new();
    let mut foreign = None;
    for generation in generations {
        let name = cursor_name(generation);
        match cursor::decode(&read_cursor(storage, &name)?) {
            CursorFound::Cursor { header, sections } if header.generation == generation => {
                if store.is_none_or(|store| store == header.store) {
                    return Ok(Loaded::Found { cursor: Some((header, sections)), bad });
                }
                if foreign.is_none() {
                    foreign = Some(((header, sections), bad.clone()));
                }
                bad.push(BadCursor { name, reason: "it is another store's", offset: 0 });
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
    Ok(match foreign {
        // No file agrees with another: then the cursor says whose they should be.
        Some((cursor, bad)) => Loaded::Found { cursor: Some(cursor), bad },
        None => Loaded::Found { cursor: None, bad },
    })
}

/// The content of a cursor file; not that of a hole at its end, which no cursor has, and which a damaged length may have
/// made larger than any memory.
pub(crate) fn read_cursor(storage: &dyn Storage, name: &str) -> io::Result<Vec<u8>> {
    let file = storage.open_read(name)?;
    let len = file.len()?.min(file.data_end()?);
    let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
    file.read_at(0, &mut bytes)?;
    Ok(bytes)
}

/// The cursors before that of a generation that cannot be believed. One that cannot be read may have been removed.
pub(crate) fn unreadable_before(
    storage: &dyn Storage,
    names: &[String],
    generation: u64,
) -> Vec<String> {
    let older = names.iter().filter_map(|name| parse_cursor_name(name));
    let older = older.filter(|found| *found < generation).map(cursor_name);
    let is_bad = |name: &String| {
        let bytes = read_cursor(storage, name);
        bytes.is_ok_and(|bytes| matches!(cursor::decode(&bytes), CursorFound::Bad { .. }))
    };
    older.filter(is_bad).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::cursor::CursorEncoder;
    use crate::format::position::Position;
    use crate::storage::sim::Disk;

    const STORE: [u8; 16] = [7; 16];

    fn bytes_of(store: [u8; 16], generation: u64) -> Vec<u8> {
        let position = Position::new(1, 4096);
        let header = CursorHeader {
            clean: false,
            store,
            generation,
            position,
            proof: position,
            id_ceiling: 1000,
            next_id: 1,
            written_at: 0,
        };
        CursorEncoder::new(&header).finish()
    }

    /// Generation and store.
    type Believed = Option<(u64, [u8; 16])>;

    /// Name and reason.
    type Bad = Vec<(String, &'static str)>;

    fn load_from(disk: &Disk, store: Option<[u8; 16]>) -> (Believed, Bad) {
        let names = disk.file_names();
        let Ok(Loaded::Found { cursor, bad }) = load(disk, &names, store) else {
            panic!("there is none of a newer version");
        };
        let bad = bad.into_iter().map(|bad| (bad.name, bad.reason)).collect();
        (cursor.map(|(header, _)| (header.generation, header.store)), bad)
    }

    #[test]
    fn only_names_that_millpond_writes_are_taken_for_its_own() {
        assert_eq!(parse_cursor_name("cursor.0000000007"), Some(7));
        assert_eq!(parse_cursor_name(&cursor_name(u64::MAX)), Some(u64::MAX));
        for foreign in ["cursor.7", "cursor.tmp", "0000000007", "cursor.0000000007~", ""] {
            assert_eq!(parse_cursor_name(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn the_newest_two_cursors_are_kept_and_are_durable() {
        let disk = Disk::new();
        let space = Space::new(Arc::new(disk.clone()), None);
        for generation in 1..=5 {
            publish(&disk, &space, generation, &bytes_of(STORE, generation)).unwrap();
            let newest = Some((generation, STORE));
            assert_eq!(load_from(&disk.power_cut(0), Some(STORE)), (newest, Vec::new()));
        }
        let names = disk.file_names().into_iter().filter(|name| parse_cursor_name(name).is_some());
        assert_eq!(names.collect::<Vec<_>>(), [4, 5].map(cursor_name));
    }

    #[test]
    fn a_cursor_under_the_name_of_another_generation_is_not_believed() {
        let disk = Disk::new();
        disk.write_file(&cursor_name(3), bytes_of(STORE, 3));
        disk.write_file(&cursor_name(9), bytes_of(STORE, 3));
        let bad = vec![(cursor_name(9), "it is another generation's")];
        assert_eq!(load_from(&disk, Some(STORE)), (Some((3, STORE)), bad));
    }

    #[test]
    fn a_cursor_of_another_store_is_believed_only_if_no_file_agrees_with_another() {
        let disk = Disk::new();
        disk.write_file(&cursor_name(3), bytes_of(STORE, 3));
        disk.write_file(&cursor_name(9), bytes_of([8; 16], 9));
        let bad = vec![(cursor_name(9), "it is another store's")];
        assert_eq!(load_from(&disk, Some(STORE)), (Some((3, STORE)), bad));
        assert_eq!(load_from(&disk, Some([6; 16])), (Some((9, [8; 16])), Vec::new()));
        assert_eq!(load_from(&disk, None), (Some((9, [8; 16])), Vec::new()));
    }

    #[test]
    fn of_the_cursors_before_one_those_are_named_that_cannot_be_read() {
        let disk = Disk::new();
        disk.write_file(&cursor_name(3), bytes_of(STORE, 3));
        for damaged in [2, 4, 5, 6] {
            disk.write_file(&cursor_name(damaged), vec![7; 200]);
        }
        let names = disk.file_names();
        assert_eq!(unreadable_before(&disk, &names, 5), [2, 4].map(cursor_name));
        // One that was removed meanwhile is not bad.
        disk.remove_file(&cursor_name(2));
        assert_eq!(unreadable_before(&disk, &names, 5), [4].map(cursor_name));
    }
}
