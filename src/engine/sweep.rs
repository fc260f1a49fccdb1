//! Looking through segments for messages that have expired, so that their space comes back though nobody gets to them.
//!
//! Of each segment it is known before which time none of its messages expires. Once that has come the segment is swept: the
//! frames of all messages that are not deleted are looked at, a piece at a time. So a sweep finds everything that has
//! expired by then, and when the next one is due. All sweeps together take at most a twentieth of the time, however many
//! messages expire one after the other.
//!
//! A crash in the middle forgets nothing: a cursor has the earlier time until the sweep is over.

use std::sync::Arc;
use std::time::Duration;

use super::compact::place;
use super::expire::Unheld;
use super::maintenance::Maintenance;
use super::segment_state::SegmentState;
use super::usage::message_bytes;
use super::{Engine, QueueShared};
use crate::clock::Now;
use crate::error::Result;
use crate::format::frame::{Found, HeaderOnly, read_header};
use crate::format::position::Position;
use crate::format::record::INSERT;
use crate::format::record::insert::{decode_insert, expires};
use crate::log::{Lane, Segment, Slot, earlier};
use crate::storage::Mapping;

/// Messages that are looked at in one piece.
const PIECE: usize = 1024;

/// For each unit of time that sweeping has taken there are so many without it.
const REST: u32 = 19;

/// After an error, and for messages that somebody holds though they have expired.
const LATER: Duration = Duration::from_secs(60);

/// How long the background sleeps at most while messages may expire: the wall clock may be set.
const RECHECK: Duration = Duration::from_secs(60);

/// A sweep through one segment.
pub(super) struct Sweep {
    segment: Arc<Segment>,
    /// Its lanes that are still to be looked through, and how far that has come in the last one. None before its index
    /// was loaded.
    lanes: Option<Vec<Lane>>,
    done: usize,
    /// When the first of the messages expires that are left, in milliseconds since the epoch.
    next: Option<u64>,
    took: Duration,
}

impl Sweep {
    /// Not all was done that could have been.
    fn again_later(&mut self, now: Now) {
        let later = now.wall_ms.saturating_add(LATER.as_millis() as u64);
        self.next = earlier(self.next, Some(later));
    }
}

impl Engine {
    /// The sweep that has begun, or one that is due.
    pub(super) fn next_sweep(&self, maintenance: &mut Maintenance) -> Option<Sweep> {
        maintenance.sweep.take().or_else(|| {
            let now = self.now();
            let rests = maintenance.sweep_after.is_some_and(|after| after > now.mono);
            if rests { None } else { self.begin_sweep(now) }
        })
    }

    /// Does a piece of a sweep. To be called without the maintenance lock, since whatever appends may have to take it.
    pub(super) fn sweep(&self, mut sweep: Sweep) {
        let now = self.now();
        let more = self.sweep_piece(&mut sweep, now);
        let end = self.now().mono;
        sweep.took += end.saturating_duration_since(now.mono);
        let mut maintenance = self.maintenance.lock();
        match more {
            Ok(true) => {
                maintenance.sweep = Some(sweep);
                return;
            }
            Ok(false) => {}
            // Whatever it was, it must not keep the rest from being done, nor other segments from being swept.
            Err(_) => sweep.again_later(now),
        }
        maintenance.sweep_after = end.checked_add(sweep.took * REST);
        self.end_sweep(&sweep);
    }

    /// How long it is until a sweep is due. None for ever.
    pub(super) fn sleep_until_sweep(&self) -> Option<Duration> {
        let after = self.maintenance.lock().sweep_after;
        let now = self.now();
        let first_expiry = {
            let state = self.lock_state();
            let tail = self.log.tail();
            let kept = state.segments.iter().filter(|s| s.dropped_in.is_none());
            kept.map(|s| s.first_expiry(&tail)).fold(None, earlier)?
        };
        let until_due = Duration::from_millis(first_expiry.saturating_sub(now.wall_ms));
        let rest = after.map_or(Duration::ZERO, |t| t.saturating_duration_since(now.mono));
        Some(until_due.min(RECHECK).max(rest))
    }

    fn begin_sweep(&self, now: Now) -> Option<Sweep> {
        let mut state = self.lock_state();
        let mut tail = self.log.tail();
        state.absorb(&mut tail);
        let due = |s: &SegmentState| {
            let expiry = s.first_expiry(&tail).filter(|expiry| *expiry <= now.wall_ms);
            expiry.filter(|_| s.dropped_in.is_none() && s.sweeping.is_none())
        };
        let due = |(at, s)| due(s).map(|expiry| (expiry, at));
        // The one that has waited for longest: the first one could have something for each sweep.
        let (_, at) = state.segments.iter().enumerate().filter_map(due).min()?;
        let s = &mut state.segments[at];
        let lanes = tail.is_active(s.segment.number).then(|| tail.lanes());
        if lanes.is_some() {
            s.note_expiry(tail.take_first_expiry());
        }
        s.sweeping = s.sweep_at.take();
        let segment = s.segment.clone();
        Some(Sweep { segment, lanes, done: 0, next: None, took: Duration::ZERO })
    }

    /// Messages that came meanwhile have been noted beside it.
    fn end_sweep(&self, sweep: &Sweep) {
        let mut state = self.lock_state();
        if let Some(at) = place(&state, &sweep.segment) {
            state.segments[at].sweeping = None;
            state.segments[at].note_expiry(sweep.next);
        }
    }

    /// Whether there is more.
    fn sweep_piece(&self, sweep: &mut Sweep, now: Now) -> Result<bool> {
        let segment = sweep.segment.clone();
        if sweep.lanes.is_none() {
            self.load_index(&segment)?;
        }
        let lanes = sweep.lanes.get_or_insert_with(|| match segment.index() {
            Some(index) => index.lanes().into_iter().map(|(lane, _)| lane).collect(),
            None => Vec::new(),
        });
        let Some(&lane) = lanes.last() else { return Ok(false) };
        let Some((queue, slots)) = self.slots_to_sweep(sweep, lane) else {
            if let Some(lanes) = &mut sweep.lanes {
                lanes.pop();
            }
            sweep.done = 0;
            return Ok(true);
        };
        let Some(data) = self.data_of(&segment)? else { return Ok(false) };
        let mut expired = Vec::new();
        for (delta, offset) in slots {
            match expiry_at(&segment, data, offset, now) {
                Some((expiry, bytes)) if expiry <= now.wall_ms => {
                    let (id, priority) = (segment.first_id + u64::from(delta), lane.priority);
                    expired.push(Unheld { id, priority, bytes: Some(bytes) });
                }
                other => sweep.next = earlier(sweep.next, other.map(|(expiry, _)| expiry)),
            }
        }
        if self.expire(&queue, &expired)? {
            sweep.again_later(now);
        }
        Ok(true)
    }

    /// The next messages of a lane that are not deleted, and their queue. None if there are no more, also because the
    /// segment was rewritten or dropped meanwhile, or the queue removed.
    fn slots_to_sweep(
        &self,
        sweep: &mut Sweep,
        lane: Lane,
    ) -> Option<(Arc<QueueShared>, Vec<Slot>)> {
        let state = self.lock_state();
        let at = place(&state, &sweep.segment)?;
        let queue = state.queues.get(&lane.queue)?.shared.clone();
        let mut slots = loop {
            if sweep.segment.is_sealed() {
                let index = sweep.segment.index()?;
                let slots = (sweep.done..).map_while(|k| index.entry(lane, k));
                break slots.take(PIECE).collect::<Vec<_>>();
            }
            let everything = Position::from_u64(u64::MAX);
            let (number, done) = (sweep.segment.number, sweep.done);
            let tail = self.log.tail();
            tail.active()?;
            if let Some(slots) = tail.read_lane(number, lane, done, everything, PIECE) {
                break slots;
            }
        };
        if slots.is_empty() {
            return None;
        }
        sweep.done += slots.len();
        slots.retain(|(delta, _)| !state.segments[at].acks.contains(*delta));
        Some((queue, slots))
    }
}

/// When the message at `offset` expires, if it does, and what it takes. Verified if that has come: nothing is deleted for what damage says.
fn expiry_at(segment: &Segment, data: &Mapping, offset: u32, now: Now) -> Option<(u64, u64)> {
    let bytes = data.get(0..data.published())?;
    let HeaderOnly::Frame(envelope) = read_header(bytes, offset, &segment.seed) else {
        return None;
    };
    if envelope.kind != INSERT || !expires(envelope.info) {
        return None;
    }
    let start = offset as usize + envelope.size();
    let body = bytes.get(start..start + envelope.length as usize)?;
    let expiry = decode_insert(envelope.info, body).ok()?.0.expiry?;
    let believed = expiry > now.wall_ms || matches!(segment.frame(data, offset), Found::Frame(_));
    believed.then(|| (expiry, message_bytes(envelope.length.into())))
}

#[cfg(not(any(loom, shuttle)))]
#[cfg(test)]
mod tests {
    use super::super::fixture::open;
    use super::*;
    use crate::clock::Clock;
    use crate::message::Message;
    use crate::options::Durability;
    use crate::storage::sim::Disk;

    const SECOND: Duration = Duration::from_secs(1);

    /// To its end; it rests for 19 seconds.
    fn sweep_for_a_second(engine: &Engine, mut sweep: Sweep) {
        sweep.took = SECOND;
        engine.sweep(sweep);
        loop {
            let more = engine.maintenance.lock().sweep.take();
            let Some(sweep) = more else { break };
            engine.sweep(sweep);
        }
    }

    #[test]
    fn sweeps_rest_nineteen_times_as_long_as_they_took() {
        let clock = Clock::new();
        let store = open(&Disk::new(), &clock, Durability::Process);
        let queue = store.queue("q").unwrap();
        let engine = store.engine();
        let next_sweep = || engine.next_sweep(&mut engine.maintenance.lock());
        queue.insert(Message::new("first").ttl(SECOND)).unwrap();
        queue.insert(Message::new("second").ttl(3 * SECOND)).unwrap();
        clock.advance(SECOND);
        sweep_for_a_second(engine, next_sweep().expect("the first is due"));
        assert_eq!(store.stats().messages, 1);
        clock.advance(18 * SECOND);
        assert!(next_sweep().is_none(), "the second is due, and has to wait");
        assert_eq!(engine.sleep_until_sweep(), Some(SECOND));
        clock.advance(SECOND);
        assert!(next_sweep().is_some());
    }

    /// Though the first one has something for each of them.
    #[test]
    fn all_segments_have_their_sweeps() {
        let clock = Clock::new();
        let store = open(&Disk::new(), &clock, Durability::Process);
        let (a, b) = (store.queue("a").unwrap(), store.queue("b").unwrap());
        for n in 1..=360 {
            a.insert(Message::new("x").ttl(10 * n * SECOND)).unwrap();
        }
        for _ in 0..500 {
            b.insert(Message::new(vec![0; 500]).ttl(SECOND)).unwrap();
        }
        let engine = store.engine();
        for _ in 0..60 {
            clock.advance(20 * SECOND);
            let next = engine.next_sweep(&mut engine.maintenance.lock());
            if let Some(sweep) = next {
                sweep_for_a_second(engine, sweep);
            }
        }
        assert_eq!(b.stats().unwrap().ready, 0);
    }
}
