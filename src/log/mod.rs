//! The write-ahead log: segments, the appender, group commit, indexes, and surveys of damaged segments.
//!
//! It knows frames, ids and lanes (which message belongs to which queue and priority), but not what became of a
//! message: deletes, attempts and places are records like any other here.

mod appender;
mod commit;
#[cfg(test)]
mod fixture;
mod index;
mod prepare;
mod recovery;
mod segment;
mod survey;
mod tail;

pub(crate) use appender::{Appended, Draft, Log, Purpose, Refused, Start};
pub(crate) use commit::SyncFailed;
pub(crate) use index::{Lane, LaneIndex, MemoryIndex, Slot, earlier};
pub(crate) use prepare::{
    LogSettings, PrepareFailed, ROLL_RESERVE, SEGMENT_OVERHEAD, file_bytes, frames_capacity,
    no_number_left, prepare_file, reuse_file, sync_prepared,
};
pub(crate) use recovery::{DamagedSpan, Surveyed, Verdict, verdict};
pub(crate) use segment::{Segment, index_name, parse_index_name, parse_segment_name, segment_name};
pub(crate) use survey::{BadSpan, Survey, frames, survey, survey_data, used_bytes};
pub(crate) use tail::{Active, Sealed, Tail};
