//! A log by itself on a simulated disk, for the tests of its parts.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::appender::{Appended, Draft, Log, Purpose, Refused, Start};
use super::index::Lane;
use super::prepare::{LogSettings, PrepareFailed, prepare_file, sync_prepared};
use super::tail::Active;
use crate::format::header::FRAMES_START;
use crate::format::record::{RESUME, encode_queue};
use crate::random::Entropy;
use crate::storage::sim::Disk;
use crate::storage::{Prepare, Space, SpareBytes, Storage};

pub(super) const LANE: Lane = Lane { queue: 1, priority: 0 };

/// How long segments are, in bytes: small enough to be filled.
pub(super) const SEGMENT_BYTES: u32 = 64 << 10;

/// Ids that may be given out: 1 to 999.
pub(super) const ID_CEILING: u64 = 1000;

pub(super) struct World {
    pub disk: Disk,
    pub space: Arc<Space>,
    pub log: Log,
}

pub(super) fn settings(prepare: Prepare, segment_bytes: u32) -> LogSettings {
    LogSettings { store: [7; 16], segment_bytes, prepare, entropy: Entropy::default() }
}

/// A run of one message with `payload`.
pub(super) fn message(payload: &[u8]) -> Draft<'_> {
    Draft::insert(0, b"", payload, &[LANE])
}

impl World {
    /// A log of one segment of this length, which is number 1 and holds nothing.
    pub fn new(prepare: Prepare, segment_bytes: u32) -> World {
        let disk = Disk::new();
        let storage: Arc<dyn Storage> = Arc::new(disk.clone());
        let space = Arc::new(Space::new(storage.clone(), None));
        space.hold_back(SpareBytes { log: 0, cursor: 0, copy: 0 }).unwrap();
        let settings = settings(prepare, segment_bytes);
        let bytes = u64::from(segment_bytes);
        let first = prepare_file(&space, &settings, 1, bytes..=bytes, Purpose::Insert, 0).unwrap();
        sync_prepared(&disk, &first).unwrap();
        let active = Active::begin(first, 1).unwrap();
        let start = Start { active, next_id: 1, id_ceiling: ID_CEILING, next_number: 2 };
        let log = Log::new(storage, space.clone(), settings, start);
        World { disk, space, log }
    }

    pub fn insert(&self, run: &[Draft<'_>]) -> Result<Appended, Refused> {
        self.log.append(run, Purpose::Insert, None, None)
    }

    /// A record that is no message.
    pub fn record(&self) -> Result<Appended, Refused> {
        let mut body = Vec::new();
        encode_queue(1, &mut body);
        self.log.append(&[Draft::record(RESUME, &body)], Purpose::Settle, None, None)
    }

    pub fn prepare(&self) -> io::Result<()> {
        self.log.prepare(0, Purpose::Insert, 0).map_err(|failed| match failed {
            PrepareFailed::Create(error) => error,
            PrepareFailed::Sync(failed) => io::Error::other(failed.0),
        })
    }

    /// Fills what the active segment has room for, up to `end`, and needs an id for it.
    pub fn fill(&self, end: u32) {
        let start = self.log.tail().end().offset();
        let payload = vec![7; (end - start - 20) as usize];
        assert_eq!(self.insert(&[message(&payload)]).unwrap().end.offset(), end);
    }

    /// Goes on in a new segment.
    pub fn roll(&self) {
        self.prepare().unwrap();
        let segment = self.log.tail().end().segment();
        let room = super::frames_capacity(self.log.tail().active_bytes().1 as u32);
        self.fill(FRAMES_START + room as u32);
        assert!(self.record().unwrap().wake);
        assert!(self.log.tail().end().segment() > segment);
    }

    /// Frames of the active segment.
    pub fn bytes(&self, range: Range<u32>) -> Vec<u8> {
        let tail = self.log.tail();
        let segment = &tail.active().unwrap().segment;
        segment.bytes(range.start.into()..range.end.into()).to_vec()
    }
}
