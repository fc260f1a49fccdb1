//! Files that belong to no state which can still be needed: removed, made spares of, or set aside.

use super::super::compact::COPY_NAME;
use super::super::maintenance::INDEX_BEING_WRITTEN;
use super::super::open::{read_header, used_of};
use super::super::{Engine, poisoned};
use super::PART_NAME;
use crate::cursor::{CURSOR_BEING_WRITTEN, parse_cursor_name};
use crate::error::Result;
use crate::format::header::{FRAMES_START, HeaderFound};
use crate::log::{index_name, parse_index_name, parse_segment_name, segment_name};
use crate::storage::{PROBE, Spare};

impl Engine {
    /// Removes, or sets aside, the files that belong to no state that can still be needed. They are not part of the log
    /// that the cursor names, and must not come back into it.
    pub(super) fn remove_strays(&self, files: &[(String, u64)], strays: &[u32]) -> Result<()> {
        let named: Vec<u32> = self.lock_state().segments.iter().map(|s| s.segment.file).collect();
        let generation = self.maintenance.lock().generation;
        let mut unused = Vec::new();
        for (name, _) in files {
            let unnamed = |number: u32| !named.contains(&number);
            if let Some(number) = parse_segment_name(name).filter(|&number| unnamed(number)) {
                let foreign = self.is_foreign(number);
                let aside = (foreign || strays.contains(&number))
                    && self.storage.create_dir("quarantine").is_ok()
                    && self.storage.rename(name, &format!("quarantine/{name}")).is_ok();
                if foreign && !aside {
                    // It cannot come into the log, and stays until there is a place for it.
                    continue;
                }
                let _ = self.storage.remove(&index_name(number));
                unused.push(name.clone());
            } else if parse_cursor_name(name).is_some_and(|found| found > generation) {
                // A bad one, which must not stand before those to come. The older ones are gone.
                let _ = match self.storage.create_dir("quarantine") {
                    Ok(()) => self.storage.rename(name, &format!("quarantine/{name}")),
                    Err(_) => self.storage.remove(name),
                };
            } else if name == COPY_NAME {
                self.space.put_back(Spare::Copy, name);
            } else if name == CURSOR_BEING_WRITTEN
                || name == PART_NAME
                || name == PROBE
                || name == INDEX_BEING_WRITTEN
                || parse_index_name(name).is_some_and(unnamed)
            {
                let _ = self.storage.remove(name);
            }
        }
        self.give_back_segments(&unused)?;
        self.space.freed();
        self.storage.sync_dir().map_err(|error| {
            let failed = self.log.poison(error);
            poisoned(Some(failed))
        })
    }

    /// Whether the file holds a segment of another store, or something that is no segment: not ours to delete.
    fn is_foreign(&self, number: u32) -> bool {
        let read = || -> std::io::Result<bool> {
            let file = self.storage.open_read(&segment_name(number))?;
            Ok(match read_header(&*file, file.len()?)? {
                HeaderFound::Header { header, .. } => header.store != self.store_id,
                HeaderFound::Unused => {
                    // Frames begin right behind the header. To read all of a file that was only reserved takes as long as
                    // the rest of the open.
                    used_of(&*self.storage, &segment_name(number), 1 << 20)? != FRAMES_START
                }
                HeaderFound::Bad | HeaderFound::Newer { .. } => true,
            })
        };
        read().unwrap_or(true)
    }
}
