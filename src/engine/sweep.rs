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
use super::limits::message_bytes;
use super::maintenance::Maintenance;
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
    /// Its lanes that are still to be looked through, and how far that has come in the last one.
    lanes: Vec<Lane>,
    done: usize,
    /// When the first of the messages expires that are left, in milliseconds since the epoch.
    next: Option<u64>,
    took: Duration,
}

impl Engine {
    /// Does a piece of a sweep, if one is due. Whether there may be more.
    pub(super) fn sweep(&self, maintenance: &mut Maintenance) -> Result<bool> {
        let now = self.now();
        if maintenance.sweep.is_none() && maintenance.sweep_after.is_none_or(|t| t <= now.mono) {
            maintenance.sweep = self.begin_sweep(now)?;
        }
        let Some(mut sweep) = maintenance.sweep.take() else { return Ok(false) };
        let more = self.sweep_piece(&mut sweep, now);
        let end = self.now().mono;
        sweep.took += end.saturating_duration_since(now.mono);
        match more {
            Ok(true) => maintenance.sweep = Some(sweep),
            Ok(false) => {
                maintenance.sweep_after = end.checked_add(sweep.took * REST);
                self.end_sweep(&sweep);
            }
            Err(_) => {
                // Whatever it was, it must not keep the rest from being done.
                maintenance.sweep_after = end.checked_add(LATER);
                sweep.next = earlier(sweep.next, Some(now.wall_ms));
                self.end_sweep(&sweep);
            }
        }
        Ok(true)
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

    fn begin_sweep(&self, now: Now) -> Result<Option<Sweep>> {
        let due = {
            let mut state = self.lock_state();
            let mut tail = self.log.tail();
            state.absorb(&mut tail);
            let is_due = |at: u64| at <= now.wall_ms;
            let mut kept = state.segments.iter().filter(|s| s.dropped_in.is_none());
            let found = kept.find(|s| s.first_expiry(&tail).is_some_and(is_due));
            found.map(|s| s.segment.clone())
        };
        let Some(segment) = due else { return Ok(None) };
        if segment.is_sealed() && segment.index().is_none() {
            self.load_index(&segment)?;
        }
        let mut state = self.lock_state();
        let mut tail = self.log.tail();
        let Some(at) = place(&state, &segment) else { return Ok(None) };
        let lanes = if tail.is_active(segment.number) {
            let noted = tail.take_first_expiry();
            state.segments[at].note_expiry(noted);
            tail.lanes()
        } else {
            let index = segment.index();
            index.map_or(Vec::new(), |index| index.lanes().into_iter().map(|(l, _)| l).collect())
        };
        let s = &mut state.segments[at];
        s.sweeping = s.sweep_at.take();
        Ok(Some(Sweep { segment, lanes, done: 0, next: None, took: Duration::ZERO }))
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
        let Some(&lane) = sweep.lanes.last() else { return Ok(false) };
        let Some((queue, slots)) = self.slots_to_sweep(sweep, lane) else {
            sweep.lanes.pop();
            sweep.done = 0;
            return Ok(true);
        };
        let segment = sweep.segment.clone();
        let Ok(data) = segment.data(&*self.storage) else { return Ok(false) };
        let mut expired = Vec::new();
        for (delta, offset) in slots {
            match expiry_at(&segment, data, offset, now) {
                Some((expiry, bytes)) if expiry <= now.wall_ms => {
                    let (id, priority) = (segment.first_id + u64::from(delta), lane.priority);
                    expired.push(Unheld { id, priority, bytes });
                }
                other => sweep.next = earlier(sweep.next, other.map(|(expiry, _)| expiry)),
            }
        }
        if self.expire(&queue, &expired)? {
            let later = now.wall_ms.saturating_add(LATER.as_millis() as u64);
            sweep.next = earlier(sweep.next, Some(later));
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
