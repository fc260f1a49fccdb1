//! One segment file: its identity, its bytes once they are mapped, its index once it is sealed.

use std::io::{self, ErrorKind};
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use super::index::LaneIndex;
use crate::format::checksum::Seed;
use crate::format::frame::{self, Found};
use crate::format::header::Header;
use crate::format::position::Position;
use crate::lock::Lock;
use crate::storage::{Hold, Mapping, Storage};
use crate::sync::atomic::{AtomicU32, Ordering};

pub(crate) fn segment_name(number: u32) -> String {
    format!("{number:010}.seg")
}

pub(crate) fn index_name(number: u32) -> String {
    format!("{number:010}.idx")
}

/// The number in a segment's file name; None for a name that millpond does not write.
pub(crate) fn parse_segment_name(name: &str) -> Option<u32> {
    parse(name, segment_name)
}

/// The number in an index file's name.
pub(crate) fn parse_index_name(name: &str) -> Option<u32> {
    parse(name, index_name)
}

fn parse(name: &str, written: fn(u32) -> String) -> Option<u32> {
    let number = name.split('.').next()?.parse().ok().filter(|number| *number > 0)?;
    (written(number) == name).then_some(number)
}

/// A segment that is or was part of the log. Shared by whoever reads from it, also after its file is removed.
#[derive(Debug)]
pub(crate) struct Segment {
    /// In its file's name and in its header.
    pub file: u32,
    /// In its positions, and what segments are in order of: its own, or if it was rewritten, the highest number that it
    /// takes the place of.
    pub number: u32,
    /// No message of the segment has a lower id.
    pub first_id: u64,
    pub salt: u64,
    pub seed: Seed,
    /// Behind its last frame; 0 while it is active.
    end: AtomicU32,
    data: OnceLock<Mapping>,
    /// Its file is held for as long as somebody has this.
    hold: OnceLock<Hold>,
    index: Lock<Option<Arc<LaneIndex>>>,
}

impl Segment {
    /// A sealed segment whose file is opened when somebody reads from it; `number` is that of its place.
    pub fn sealed(file: u32, number: u32, first_id: u64, salt: u64, end: u32) -> Segment {
        Segment {
            file,
            number,
            first_id,
            salt,
            seed: Seed::new(salt),
            end: AtomicU32::new(end),
            data: OnceLock::new(),
            hold: OnceLock::new(),
            index: Lock::default(),
        }
    }

    /// The active segment, with the memory that the appender writes to.
    pub fn active(header: &Header, data: Mapping) -> Segment {
        let Header { number, first_id, salt, .. } = *header;
        let segment = Segment::sealed(number, number, first_id, salt, 0);
        segment.data.get_or_init(|| data);
        segment
    }

    /// Gives the segment up. Whether nobody else has it, or its bytes, so that its file may change.
    pub fn give_up(self: Arc<Self>) -> bool {
        let segment = Arc::into_inner(self);
        segment.is_some_and(|segment| segment.data.into_inner().is_none_or(Mapping::give_up))
    }

    /// Holds the file until nobody has the segment, since the directory is not locked for as long.
    pub fn hold(&self, storage: &dyn Storage) -> io::Result<()> {
        match storage.hold(&self.name()) {
            Ok(hold) => self.hold_by(hold),
            // Nobody can find it, or change it.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// As [`hold`](Segment::hold), by something else that keeps everybody off.
    pub fn hold_by(&self, hold: Hold) {
        let _ = self.hold.set(hold);
    }

    pub fn name(&self) -> String {
        segment_name(self.file)
    }

    pub fn is_sealed(&self) -> bool {
        self.end() != 0
    }

    /// Behind its last frame; 0 while it is active.
    pub fn end(&self) -> u32 {
        self.end.load(Ordering::Acquire)
    }

    pub fn end_position(&self) -> Position {
        Position::new(self.number, self.end())
    }

    /// From now on nothing is appended. The index must be there before anybody can see the end.
    pub fn seal(&self, end: u32, index: LaneIndex) {
        self.set_index(index);
        self.end.store(end, Ordering::Release);
    }

    /// The segment's bytes; opens and maps the file the first time.
    pub fn data(&self, storage: &dyn Storage) -> io::Result<&Mapping> {
        if let Some(data) = self.data.get() {
            return Ok(data);
        }
        let mapping = storage.open_read(&self.name())?.map_read()?;
        Ok(self.data.get_or_init(|| mapping))
    }

    /// Bytes of the segment once it is mapped; empty before, or beyond what is published.
    pub fn bytes(&self, range: Range<u64>) -> &[u8] {
        self.data.get().and_then(|data| data.get(range)).unwrap_or_default()
    }

    /// The frame at `offset`, verified. Memory only, once the segment is mapped.
    pub fn frame<'a>(&self, data: &'a Mapping, offset: u32) -> Found<'a> {
        frame::read(data.bytes(0..data.published()), offset, &self.seed)
    }

    pub fn index(&self) -> Option<Arc<LaneIndex>> {
        self.index.lock().clone()
    }

    pub fn set_index(&self, index: LaneIndex) {
        *self.index.lock() = Some(Arc::new(index));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Prepare;
    use crate::storage::sim::Disk;

    #[test]
    fn only_names_that_millpond_writes_are_taken_for_its_own() {
        assert_eq!(parse_segment_name("0000000007.seg"), Some(7));
        assert_eq!(parse_segment_name("4294967295.seg"), Some(u32::MAX));
        for foreign in ["7.seg", "0000000000.seg", "0000000007.idx", "x.seg", "0000000007.seg~", ""]
        {
            assert_eq!(parse_segment_name(foreign), None, "{foreign}");
        }
        assert_eq!(parse_index_name("0000000007.idx"), Some(7));
    }

    #[test]
    fn a_sealed_segment_ends_in_its_place_in_the_log() {
        let segment = Segment::sealed(9, 7, 1, 42, 5000);
        assert_eq!(segment.end_position(), Position::new(7, 5000));
        assert_eq!((segment.name(), segment.is_sealed()), (segment_name(9), true));
    }
    #[test]
    fn a_segment_that_somebody_has_is_not_given_up() {
        let disk = Disk::new();
        disk.create(&segment_name(9), 100, Prepare::Reserve).unwrap();
        let segment = Arc::new(Segment::sealed(9, 7, 1, 42, 5000));
        segment.data(&disk).unwrap();
        let reading = segment.clone();
        assert!(!segment.give_up());
        assert!(reading.give_up());
    }
}
