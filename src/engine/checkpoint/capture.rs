//! What a cursor says, captured beside running work.
//!
//! The position is taken first; then each piece (a queue's touched messages by the thousand, a segment's deleted
//! ids) is captured under the dispatch lock alone, for as long as it takes to copy it.

use std::num::NonZeroU64;
use std::ops::Bound;

use super::super::Engine;
use super::super::lane::find;
use super::IDS_RESERVED;
use crate::dispatch::Entry;
use crate::error::Result;
use crate::format::cursor::sections::{
    self, DamageSection, LaneState, PausedSection, QueueSection, SegmentSection,
};
use crate::format::cursor::window::WindowSection;
use crate::format::cursor::{CursorEncoder, CursorHeader};
use crate::log::parse_segment_name;
use crate::planted::{Bug, planted};
use crate::report::Damage;

/// How many touched messages are captured under one hold of the lock.
const ENTRIES_PER_PIECE: usize = 1024;

/// Damage that a cursor remembers at most.
const DAMAGE_MAX: usize = 1000;

/// What is taken at the moment that the cursor is true of.
pub(super) struct Moment {
    pub header: CursorHeader,
    segments: Vec<SegmentSection>,
    queues: Vec<u32>,
    next_queue: u32,
    paused: Vec<PausedSection>,
    damage: Vec<Damage>,
    pub written_bytes: u64,
}

impl Engine {
    pub(super) fn moment(&self, generation: u64, clean: bool) -> Moment {
        let wall_ms = self.now().wall_ms;
        let mut state = self.lock_state();
        let mut tail = self.log.tail();
        state.absorb(&mut tail);
        if clean {
            tail.end_appending();
        }
        let position = tail.end();
        let header = CursorHeader {
            clean,
            store: self.store_id,
            generation,
            position,
            proof: position,
            id_ceiling: tail.next_id() + IDS_RESERVED,
            next_id: tail.next_id(),
            written_at: wall_ms,
        };
        let declared: Vec<u32> =
            state.queues.values().map(|entry| entry.declared_at.segment()).collect();
        for s in &mut state.segments {
            let needed =
                !s.segment.is_sealed() || s.live() > 0 || declared.contains(&s.segment.number);
            if !needed && s.dropped_in.is_none() {
                s.dropped_in = Some(generation);
            }
        }
        for retired in state.retired.iter_mut() {
            retired.dropped_in.get_or_insert(generation);
        }
        let named = state.segments.iter().filter(|s| s.dropped_in.is_none());
        let segments = named
            .map(|s| {
                let active = s.segment.number == position.segment();
                SegmentSection {
                    file: s.segment.file,
                    number: s.segment.number,
                    salt: s.segment.salt,
                    first_id: s.segment.first_id,
                    end: if active { position.offset() } else { s.segment.end() },
                    active,
                    messages: if active { tail.active_messages() } else { s.messages },
                    live_bytes: match active {
                        true => tail.active_message_bytes(),
                        false => *s.live_bytes().end(),
                    },
                    first_expiry: s
                        .first_expiry(&tail)
                        .and_then(|expiry| NonZeroU64::new(expiry.max(1))),
                }
            })
            .collect();
        let queues = state.queues.keys().copied().collect();
        let paused = state.queues.iter().filter_map(|(&queue, entry)| {
            Some(PausedSection { queue, failures: entry.pause?.failures() })
        });
        let paused = paused.filter(|_| !planted(Bug::PauseForgotten)).collect();
        let damage = state.damage.iter().rev().take(DAMAGE_MAX).cloned().collect();
        Moment {
            header,
            segments,
            queues,
            next_queue: state.next_queue,
            paused,
            damage,
            written_bytes: tail.written_bytes(),
        }
    }

    pub(super) fn encode_cursor(&self, moment: &Moment) -> Result<Vec<u8>> {
        let mut encoder = CursorEncoder::new(&moment.header);
        for segment in &moment.segments {
            encoder.segment(segment);
        }
        for &queue in &moment.queues {
            let Some(section) = self.queue_section(queue)? else { continue };
            encoder.queue(&section);
            let mut from = Bound::Unbounded;
            while let Some((piece, last)) = self.entries_piece(queue, from) {
                if !piece.is_empty() {
                    encoder.entries(queue, &piece);
                }
                from = Bound::Excluded(last);
            }
            self.forget_keys(queue);
            let mut behind = None;
            while let Some(piece) = self.window_piece(queue, behind) {
                encoder.window(&piece);
                behind = piece.keys.last().map(|seen| seen.id);
            }
        }
        for segment in &moment.segments {
            let acked = {
                let state = self.lock_state();
                find(&state.segments, segment.number)
                    .and_then(|at| state.segments[at].acks.section(segment.number))
            };
            if let Some(acked) = acked {
                encoder.acked(&acked);
            }
        }
        moment.paused.iter().for_each(|paused| encoder.paused(paused));
        encoder.next_queue(moment.next_queue);
        for section in moment.damage.iter().filter_map(damage_section) {
            encoder.damage(&section);
        }
        Ok(encoder.finish())
    }

    fn queue_section(&self, queue: u32) -> Result<Option<QueueSection>> {
        let mut state = self.lock_state();
        let mut tail = self.log.tail();
        state.absorb(&mut tail);
        // A queue that was removed since has the record of it behind the position.
        let Some(entry) = state.queues.get(&queue) else { return Ok(None) };
        Ok(Some(QueueSection {
            id: queue,
            name: entry.shared.name.as_bytes().to_vec(),
            declared_at: entry.declared_at,
            as_of: tail.end(),
            expires: entry.shared.has_expiring() && !planted(Bug::ExpiryForgotten),
            grouped: entry.shared.has_groups(),
            live: entry.live(&tail),
            options: entry.options.encode()?,
            lanes: entry
                .lanes
                .iter()
                .map(|lane| {
                    let priority = lane.priority();
                    // What was only passed over is not recorded, and is to be read again.
                    let passed_over = entry.touched.first_unrecorded(priority);
                    let passed_over = passed_over.filter(|_| !planted(Bug::PassedOverForgotten));
                    let next_id = passed_over.map_or(lane.next_id(), |id| id.min(lane.next_id()));
                    LaneState { priority, next_id }
                })
                .collect(),
        }))
    }

    /// The next touched messages of a queue, but for those that are not recorded, and where that has come to.
    fn entries_piece(&self, queue: u32, from: Bound<u64>) -> Option<(Vec<sections::Entry>, u64)> {
        let state = self.lock_state();
        let touched = &state.queues.get(&queue)?.touched;
        let mut last = None;
        let piece = touched
            .range((from, Bound::Unbounded))
            .take(ENTRIES_PER_PIECE)
            .inspect(|(id, _)| last = Some(*id))
            .filter(|(id, entry)| touched.is_recorded(*id, entry.priority))
            .map(|(id, entry)| stored_entry(id, entry))
            .collect();
        Some((piece, last?))
    }

    /// Forgets the keys that time has let go of, so that a queue that sees no more of them does not hold their memory.
    fn forget_keys(&self, queue: u32) {
        let window_ms = self.window_ms(self.now());
        let forget_some = || {
            let mut state = self.lock_state();
            let entry = state.queues.get_mut(&queue);
            entry.is_some_and(|entry| entry.window.forget_some(window_ms))
        };
        while forget_some() {}
    }

    /// The next deduplication keys of a queue, behind that of message `behind`.
    ///
    /// Their times become the wall clock's as it is now, so that it does not matter how it was set since they were seen.
    fn window_piece(&self, queue: u32, behind: Option<u64>) -> Option<WindowSection> {
        let now = self.now();
        let window_ms = self.window_ms(now);
        let (as_of, (first_id, mut keys)) = {
            let state = self.lock_state();
            let window = &state.queues.get(&queue)?.window;
            let piece = window.piece(behind, window_ms, ENTRIES_PER_PIECE)?;
            (self.log.tail().end(), piece)
        };
        for seen in &mut keys {
            let age_ms = window_ms.saturating_sub(seen.time_ms);
            seen.time_ms = now.wall_ms.saturating_sub(age_ms);
        }
        Some(WindowSection { queue, as_of, first_id, keys })
    }
}

fn stored_entry(id: u64, entry: &Entry) -> sections::Entry {
    sections::Entry {
        id,
        place: entry.recorded_place(),
        fresh: entry.fresh,
        attempts: entry.attempts,
        priority: entry.priority,
        due: entry.due_ms,
        reason: entry.reason.as_deref().unwrap_or_default().as_bytes().to_vec(),
    }
}

/// None for damage to something else than a segment.
fn damage_section(damage: &Damage) -> Option<DamageSection> {
    let name = damage.file.file_name()?.to_str()?;
    Some(DamageSection {
        segment: parse_segment_name(name)?,
        start: u32::try_from(damage.offset).ok()?,
        end: u32::try_from(damage.offset + damage.bytes).ok()?,
        first_id: damage.ids.start,
        last_id_exclusive: damage.ids.end,
    })
}
