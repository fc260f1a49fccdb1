//! Which sealed segments are worth rewriting: a pure decision.
//!
//! A message that nobody deletes keeps its segment. Where little of a segment is left, what is left is copied, together
//! with that of its neighbours, into one segment at the same place in the log, and the rest of the disk is given back.
//!
//! The promise is about all segments together: what they take is at most twice what is live (an option), and some
//! constant. So nothing is rewritten while garbage is within that, and then what gives back most. A stretch is rewritten
//! only if more than that share of it is garbage: with twice, each byte that is copied has given back at least one.

use std::ops::Range;

use crate::format::header::SEGMENT_IDS_MAX;

/// A sealed segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Size {
    /// Up to its end.
    pub bytes: u64,
    /// What of it is frames of messages that are not deleted, in bytes.
    pub live: u64,
    /// Whether it may be rewritten now.
    pub free: bool,
    /// No message of it has a lower id.
    pub first_id: u64,
    /// No message of it has this id or a higher one.
    pub id_end: u64,
}

impl Size {
    fn garbage(&self) -> u64 {
        self.bytes.saturating_sub(self.live)
    }

    /// Whether one segment can hold the ids from the first one of `first` to the last one of this segment. Neighbours may
    /// be far apart: an unclean open skips ids, and segments between them are gone.
    fn is_in_reach_of(&self, first: &Size) -> bool {
        self.id_end.checked_sub(first.first_id).is_some_and(|ids| ids <= SEGMENT_IDS_MAX)
    }
}

/// So many segments are rewritten at once at most.
const STRETCH_MAX: usize = 256;

/// How much garbage there may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    pub segment_bytes: u64,
    /// In percent of what is live.
    pub garbage_percent: u64,
    /// What a copy may hold at most, where there is little space left.
    pub copy_bytes: Option<u64>,
}

impl Policy {
    /// Whether a copy of so much can be made.
    fn has_room(&self, live: u64) -> bool {
        self.copy_bytes.is_none_or(|most| live <= most)
    }

    fn is_too_much(&self, garbage: u64, live: u64) -> bool {
        garbage.saturating_mul(100) > live.saturating_mul(self.garbage_percent)
    }
}

/// Whether there is more garbage than is promised. Half a segment is left to the ones that are consumed at the moment.
pub(crate) fn is_due(segments: &[Size], policy: Policy) -> bool {
    let live: u64 = segments.iter().map(|size| size.live).sum();
    let garbage: u64 = segments.iter().map(Size::garbage).sum();
    policy.is_too_much(garbage.saturating_sub(policy.segment_bytes / 2), live)
}

/// The stretch of `segments`, which are in the order of the log, that is to be rewritten into one of at most
/// a segment's bytes and ids; None if none has to be, or can be.
pub(crate) fn choose(segments: &[Size], policy: Policy) -> Option<Range<usize>> {
    let segment_bytes = policy.segment_bytes;
    if !is_due(segments, policy) {
        return None;
    }
    let mut best: Option<(u64, Range<usize>)> = None;
    for start in 0..segments.len() {
        let (mut live, mut garbage) = (0, 0);
        for (at, size) in segments.iter().enumerate().skip(start).take(STRETCH_MAX) {
            live += size.live;
            garbage += size.garbage();
            if !size.free
                || (live > segment_bytes && at > start)
                || !policy.has_room(live)
                || !size.is_in_reach_of(&segments[start])
            {
                break;
            }
            if policy.is_too_much(garbage, live)
                && best.as_ref().is_none_or(|(most, _)| garbage > *most)
            {
                best = Some((garbage, start..at + 1));
            }
        }
    }
    let (_, chosen) = best?;
    Some(with_small_neighbours(segments, chosen, policy))
}

/// Takes in neighbours that are small beside what is rewritten anyway, so that the number of files stays small too.
fn with_small_neighbours(segments: &[Size], chosen: Range<usize>, policy: Policy) -> Range<usize> {
    let segment_bytes = policy.segment_bytes;
    let Range { mut start, mut end } = chosen;
    let mut live: u64 = segments[start..end].iter().map(|size| size.live).sum();
    let is_small = |size: &&Size, live: u64| {
        size.free
            && size.bytes <= live.max(segment_bytes / 16)
            && live + size.live <= segment_bytes
            && policy.has_room(live + size.live)
    };
    while let Some(size) = segments.get(end).filter(|size| is_small(size, live))
        && size.is_in_reach_of(&segments[start])
    {
        live += size.live;
        end += 1;
    }
    while let Some(size) = start.checked_sub(1).map(|at| &segments[at])
        && is_small(&size, live)
        && segments[end - 1].is_in_reach_of(size)
    {
        live += size.live;
        start -= 1;
    }
    start..end
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SEGMENT: u64 = 1 << 20;
    const POLICY: Policy =
        Policy { segment_bytes: SEGMENT, garbage_percent: 100, copy_bytes: None };

    /// Segments whose messages are all as large, each deleted or not.
    #[derive(Default)]
    struct Log {
        /// By segment, of each message whether it is still there.
        segments: Vec<Vec<bool>>,
        written: u64,
        copied: u64,
    }

    const MESSAGE: u64 = 1 << 10;

    impl Log {
        fn insert(&mut self) {
            if self.segments.last().is_none_or(|last| last.len() as u64 * MESSAGE >= SEGMENT) {
                self.segments.push(Vec::new());
            }
            self.segments.last_mut().unwrap().push(true);
            self.written += MESSAGE;
        }

        fn sizes(&self) -> Vec<Size> {
            let sealed = self.segments.len().saturating_sub(1);
            let size = |messages: &Vec<bool>| Size {
                bytes: messages.len() as u64 * MESSAGE,
                live: messages.iter().filter(|live| **live).count() as u64 * MESSAGE,
                free: true,
                ..Size::default()
            };
            self.segments[..sealed].iter().map(size).collect()
        }

        fn compact(&mut self) {
            // Segments without anything in them are dropped, not rewritten.
            let sealed = self.segments.len().saturating_sub(1);
            let segments = std::mem::take(&mut self.segments);
            for (at, segment) in segments.into_iter().enumerate() {
                if at >= sealed || segment.contains(&true) {
                    self.segments.push(segment);
                }
            }
            let mut rounds = 0;
            while let Some(chosen) = choose(&self.sizes(), POLICY) {
                let merged: Vec<bool> = self.segments[chosen.clone()]
                    .iter()
                    .flatten()
                    .filter(|live| **live)
                    .copied()
                    .collect();
                assert!(merged.len() as u64 * MESSAGE <= SEGMENT);
                self.copied += merged.len() as u64 * MESSAGE;
                self.segments.splice(chosen, [merged]);
                rounds += 1;
                assert!(rounds < 10_000, "it comes to an end");
            }
        }

        fn check(&self) {
            let sizes = self.sizes();
            let live: u64 = sizes.iter().map(|size| size.live).sum();
            let bytes: u64 = sizes.iter().map(|size| size.bytes).sum();
            assert!(bytes <= 2 * live + SEGMENT / 2, "{bytes} bytes, {live} live");
        }
    }

    /// Inserts, and deletes as `keep` says of each message with a random number; the copied share of what was written.
    fn run(messages: u64, mut delete: impl FnMut(&mut Log, u64)) -> f64 {
        let mut log = Log::default();
        for n in 0..messages {
            log.insert();
            delete(&mut log, n);
            if n % 97 == 0 {
                log.compact();
                log.check();
            }
        }
        log.copied as f64 / log.written as f64
    }

    fn delete_oldest(log: &mut Log, keep: impl Fn(usize) -> bool) {
        let mut n = 0;
        for segment in &mut log.segments {
            for live in segment.iter_mut() {
                n += 1;
                if *live && !keep(n) {
                    *live = false;
                    return;
                }
            }
        }
    }

    #[test]
    fn nothing_is_copied_where_messages_leave_in_order() {
        let copied = run(30_000, |log, n| {
            if n >= 5_000 {
                delete_oldest(log, |_| false);
            }
        });
        assert!(copied < 0.01, "{copied}");
    }

    #[test]
    fn one_old_message_costs_no_more_than_itself() {
        let mut first = true;
        let copied = run(30_000, |log, _| {
            if !std::mem::take(&mut first) {
                delete_oldest(log, |n| n == 1);
            }
        });
        assert!(copied < 0.1, "{copied}");
    }

    #[test]
    fn small_neighbours_are_rewritten_too() {
        let size = |bytes, live| Size { bytes, live, free: true, ..Size::default() };
        let holed = size(60_000, 10_000);
        // It makes the log due, and cannot be rewritten itself.
        let busy = Size { free: false, ..size(10 * SEGMENT, 0) };
        let [small, large] = [60_000, SEGMENT / 2].map(|bytes| size(bytes, bytes));
        assert_eq!(choose(&[small, holed, small, busy], POLICY), Some(0..3));
        assert_eq!(choose(&[large, holed, large, busy], POLICY), Some(1..2));
    }

    #[test]
    fn a_stretch_ends_before_ids_that_are_out_of_its_reach() {
        let size =
            |bytes, live, first_id, id_end| Size { bytes, live, free: true, first_id, id_end };
        let holed = |first_id, id_end| size(SEGMENT, 10_000, first_id, id_end);
        let last = SEGMENT_IDS_MAX;
        assert_eq!(choose(&[holed(0, 9), holed(9, last)], POLICY), Some(0..2));
        assert_eq!(choose(&[holed(0, 9), holed(9, last + 1)], POLICY), Some(0..1));
        let three = [holed(0, 9), holed(9, last + 1), holed(last + 1, last + 9)];
        assert_eq!(choose(&three, POLICY), Some(1..3));
        // It makes the log due, and cannot be rewritten itself.
        let busy = Size { free: false, ..size(10 * SEGMENT, 0, 0, 0) };
        let small = |first_id, id_end| size(20_000, 20_000, first_id, id_end);
        let holed = |first_id, id_end| size(60_000, 29_000, first_id, id_end);
        let between = |ids| [small(0, 9), holed(9, ids), small(ids, ids + 9), busy];
        assert_eq!(choose(&between(last - 9), POLICY), Some(0..3));
        assert_eq!(choose(&between(last), POLICY), Some(1..3));
        assert_eq!(choose(&between(last + 9), POLICY), Some(1..2));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20))]

        #[test]
        fn random_deletes_stay_within_the_bound(kept in 1u64..100, seed: u64) {
            let mut random = seed | 1;
            let mut next = move || {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random
            };
            let copied = run(20_000, |log, n| {
                if next() % 100 >= kept && n > 0 {
                    let at = (next() % log.segments.len() as u64) as usize;
                    let segment = &mut log.segments[at];
                    let m = (next() % segment.len().max(1) as u64) as usize;
                    if let Some(live) = segment.get_mut(m) {
                        *live = false;
                    }
                }
            });
            prop_assert!(copied < 2.0, "{}", copied);
        }

        #[test]
        fn what_is_chosen_fits_into_one_segment_and_is_mostly_garbage(
            sizes in prop::collection::vec(
                (0u64..SEGMENT, 0u64..=100, any::<bool>(), 0..=SEGMENT_IDS_MAX / 2), 0..40,
            ),
        ) {
            let mut first_id = 0;
            let sizes: Vec<Size> = sizes
                .into_iter()
                .map(|(bytes, share, free, ids)| {
                    let id_end = first_id + ids;
                    let live = bytes * share / 100;
                    let size = Size { bytes, live, free, first_id, id_end };
                    first_id = id_end;
                    size
                })
                .collect();
            if let Some(chosen) = choose(&sizes, POLICY) {
                let chosen = &sizes[chosen];
                prop_assert!(chosen.iter().all(|size| size.free));
                prop_assert!(chosen.iter().map(|size| size.live).sum::<u64>() <= SEGMENT);
                let ids = chosen[chosen.len() - 1].id_end - chosen[0].first_id;
                prop_assert!(ids <= SEGMENT_IDS_MAX);
            }
        }
    }
}
