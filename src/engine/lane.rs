//! Reading a lane: the messages of one queue and priority that nobody has touched, in the order of the log.
//!
//! A reader's place is an id, not an offset: every message of the lane below `next_id` is deleted or among the
//! touched ones. So it means the same in whatever segment the message lies. What has been read ahead names
//! offsets, and is thrown away when the reader is set back.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::Arc;

use super::choose::Candidate;
use super::segment_state::SegmentState;
use super::take::Few;
use crate::cursor::AckSet;
use crate::dispatch::QueueState;
use crate::format::position::Position;
use crate::log::{Lane, Log, Segment, Tail};
use crate::planted::{Bug, planted};

/// How many messages are taken from an index at once.
const AHEAD: usize = 64;

#[derive(Debug)]
pub(super) struct LaneReader {
    lane: Lane,
    next_id: u64,
    /// The segment that is read, and how many of its messages of this lane have been.
    place: Option<(u32, usize)>,
    ahead: VecDeque<(u64, u32)>,
    ahead_in: Option<Arc<Segment>>,
    /// When it was last found empty.
    empty_at: Option<Moment>,
}

/// What a lane's content depends on: how many appends there were of messages with a priority, and before which position
/// they may be seen.
pub(super) type Moment = (u64, Position);

/// What comes next in a lane.
pub(super) enum Head {
    Message {
        id: u64,
        offset: u32,
        segment: Arc<Segment>,
    },
    /// Nothing that may be seen yet.
    Empty,
    /// The index of this segment must be loaded first, outside of the locks.
    NeedsIndex(Arc<Segment>),
    /// The log has rolled on: the list of segments must be brought up to date.
    Rolled,
}

impl LaneReader {
    pub fn new(lane: Lane, next_id: u64) -> LaneReader {
        let (place, ahead, ahead_in) = (None, VecDeque::new(), None);
        LaneReader { lane, next_id, place, ahead, ahead_in, empty_at: None }
    }

    pub fn priority(&self) -> u8 {
        self.lane.priority
    }

    pub fn next_id(&self) -> u64 {
        self.next_id
    }

    /// Whether nothing can have come since it was found empty.
    #[inline]
    pub fn is_empty_since(&self, moment: Moment) -> bool {
        self.empty_at == Some(moment)
    }

    /// It was empty at that moment, or later.
    pub fn note_empty(&mut self, moment: Moment) {
        self.empty_at = Some(moment);
    }

    /// Goes back to `id`: it and what comes after it is read again.
    pub fn rewind(&mut self, id: u64) {
        *self = LaneReader::new(self.lane, id.min(self.next_id));
    }

    /// Segments `numbers` are not there any more as they were. What was read ahead from them is read again.
    pub fn forget(&mut self, numbers: RangeInclusive<u32>) {
        let reads = self.place.is_some_and(|(number, _)| numbers.contains(&number));
        let has = self.ahead_in.as_ref().is_some_and(|s| numbers.contains(&s.number));
        if reads || has {
            *self = LaneReader::new(self.lane, self.next_id);
        }
    }

    /// What has been read ahead: ids and offsets, in this segment.
    pub fn ahead(&self) -> Option<(&Arc<Segment>, impl Iterator<Item = (u64, u32)>)> {
        self.ahead_in.as_ref().map(|segment| (segment, self.ahead.iter().copied()))
    }

    /// The message at the head was taken.
    pub fn consume(&mut self) {
        if let Some((id, _)) = self.ahead.pop_front() {
            self.next_id = id + 1;
        }
    }

    /// The next untouched message that lies before `visible`.
    pub fn head(
        &mut self,
        segments: &[SegmentState],
        touched: &QueueState,
        log: &Log,
        visible: Position,
    ) -> Head {
        loop {
            if let Some(head) = self.head_of_ahead(segments, touched, visible) {
                return head;
            }
            let Some(at) = self.segment_to_read(segments) else { return Head::Empty };
            let segment = &segments[at].segment;
            let more = if segment.is_sealed() {
                let Some(more) = self.read_sealed(segment, visible) else {
                    return Head::NeedsIndex(segment.clone());
                };
                more
            } else {
                let Some(more) = self.read_active(segment, &log.tail(), visible) else {
                    return Head::Rolled;
                };
                more
            };
            if more {
                continue;
            }
            // A sealed segment is done with when nothing in it is left, not when the rest may not be seen yet.
            if !segment.is_sealed() || self.has_more(segment) {
                return Head::Empty;
            }
            let Some(next) = segments.get(at + 1) else { return Head::Rolled };
            self.place = Some((next.segment.number, 0));
        }
    }

    /// The first message read ahead that is neither deleted nor touched. Who has read ahead may have seen more than
    /// `visible`: inserts and purges look at everything.
    fn head_of_ahead(
        &mut self,
        segments: &[SegmentState],
        touched: &QueueState,
        visible: Position,
    ) -> Option<Head> {
        let segment = self.ahead_in.as_ref()?;
        let Some(at) = find(segments, segment.number) else {
            // It was reclaimed: nothing of what was read ahead is left.
            self.next_id = self.ahead.back().map_or(self.next_id, |(id, _)| id + 1);
            self.ahead.clear();
            return None;
        };
        let acks = &segments[at].acks;
        while let Some(&(id, offset)) = self.ahead.front() {
            if !may_be_seen(segment, offset, visible) {
                return Some(Head::Empty);
            }
            if is_untouched(id, segment, acks, touched) {
                return Some(Head::Message { id, offset, segment: segment.clone() });
            }
            self.ahead.pop_front();
            self.next_id = id + 1;
        }
        None
    }

    /// Adds what has been read ahead to `chosen`, up to `max`, as if each was the [head](LaneReader::head) and consumed.
    /// Whether there was anything.
    #[inline]
    pub fn take_ahead(
        &mut self,
        segments: &[SegmentState],
        touched: &QueueState,
        visible: Position,
        max: usize,
        chosen: &mut Few<Candidate>,
    ) -> bool {
        let Some(segment) = &self.ahead_in else { return false };
        let Some(at) = find(segments, segment.number) else { return false };
        let acks = &segments[at].acks;
        let before = chosen.len();
        while chosen.len() < max
            && let Some(&(id, offset)) = self.ahead.front()
            && may_be_seen(segment, offset, visible)
        {
            self.ahead.pop_front();
            self.next_id = id + 1;
            if is_untouched(id, segment, acks, touched) {
                let segment = segment.clone();
                chosen.push(Candidate::untouched(id, self.lane.priority, segment, offset));
            }
        }
        chosen.len() > before
    }

    /// The segment to read from; the first time it is found by id.
    fn segment_to_read(&mut self, segments: &[SegmentState]) -> Option<usize> {
        if let Some((number, _)) = self.place {
            if let Some(at) = find(segments, number) {
                return Some(at);
            }
            // It was reclaimed: nothing of it was left.
            let at = segments.partition_point(|s| s.segment.number < number);
            let next = segments.get(at)?;
            self.place = Some((next.segment.number, 0));
            return Some(at);
        }
        let behind = segments.partition_point(|s| s.segment.first_id <= self.next_id);
        let mut at = behind.saturating_sub(1);
        // Of several that begin with the same id only the last has messages; the search finds that one.
        let segment = &segments.get(at)?.segment;
        let delta = self.next_id.saturating_sub(segment.first_id);
        let Ok(delta) = u32::try_from(delta) else {
            at += 1;
            self.place = Some((segments.get(at)?.segment.number, 0));
            return Some(at);
        };
        self.place = Some((segment.number, usize::MAX));
        if delta == 0 {
            self.place = Some((segment.number, 0));
        }
        Some(at)
    }

    /// Whether anything was read; None if the index is not there.
    fn read_sealed(&mut self, segment: &Arc<Segment>, visible: Position) -> Option<bool> {
        let index = segment.index()?;
        let read = match self.place? {
            (_, usize::MAX) => index.lower_bound(self.lane, self.delta(segment)),
            (_, read) => read,
        };
        let slots = (read..).map_while(|k| index.entry(self.lane, k)).take(AHEAD);
        let seen = |slot: &(u32, u32)| Position::new(segment.number, slot.1) < visible;
        let slots: Vec<(u32, u32)> = slots.take_while(seen).collect();
        Some(self.take_in(segment, read, &slots))
    }

    /// None if the segment is not active any more.
    fn read_active(
        &mut self,
        segment: &Arc<Segment>,
        tail: &Tail,
        visible: Position,
    ) -> Option<bool> {
        let read = match self.place? {
            (_, usize::MAX) => tail.lower_bound(segment.number, self.lane, self.delta(segment))?,
            (_, read) => read,
        };
        let slots = tail.read_lane(segment.number, self.lane, read, visible, AHEAD)?;
        Some(self.take_in(segment, read, &slots))
    }

    fn take_in(&mut self, segment: &Arc<Segment>, read: usize, slots: &[(u32, u32)]) -> bool {
        self.place = Some((segment.number, read + slots.len()));
        if slots.is_empty() {
            return false;
        }
        self.ahead.extend(
            slots.iter().map(|(delta, offset)| (segment.first_id + u64::from(*delta), *offset)),
        );
        self.ahead_in = Some(segment.clone());
        true
    }

    fn delta(&self, segment: &Segment) -> u32 {
        u32::try_from(self.next_id.saturating_sub(segment.first_id)).unwrap_or(u32::MAX)
    }

    fn has_more(&self, segment: &Segment) -> bool {
        let read = self.place.map_or(0, |(_, read)| read);
        segment.index().is_some_and(|index| index.len(self.lane) > read)
    }
}

/// Whether a message that lies there is one of those before `visible`.
#[inline]
fn may_be_seen(segment: &Segment, offset: u32, visible: Position) -> bool {
    Position::new(segment.number, offset) < visible || planted(Bug::ReadAheadDelivered)
}

/// Whether a message that lies in this segment is neither deleted nor touched.
fn is_untouched(id: u64, segment: &Segment, acks: &AckSet, touched: &QueueState) -> bool {
    !acks.contains((id - segment.first_id) as u32) && !touched.contains(id)
}

/// The place of segment `number` in the list.
pub(super) fn find(segments: &[SegmentState], number: u32) -> Option<usize> {
    segments.binary_search_by_key(&number, |s| s.segment.number).ok()
}
