//! A map of messages by id that costs little while ids come in order.
//!
//! Messages are taken in the order of their ids, nearly always, and settled in nearly that order. So new ones go to the
//! end of a line, where one is found by counting from the front, or by halving. One that is removed leaves a gap, until
//! it comes to an end of the line, or there are more gaps than messages. The few that come out of order are kept in a
//! tree beside the line.

use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeBounds;

/// So many gaps are not worth the work of closing them.
const GAPS_KEPT: usize = 64;

#[derive(Debug)]
pub(super) struct ById<T> {
    /// Ascending by id; a gap is None. There is none at either end.
    line: VecDeque<(u64, Option<T>)>,
    gaps: usize,
    /// No id is both here and in the line, but for gaps.
    beside: BTreeMap<u64, T>,
}

impl<T> Default for ById<T> {
    fn default() -> ById<T> {
        ById { line: VecDeque::new(), gaps: 0, beside: BTreeMap::new() }
    }
}

impl<T> ById<T> {
    #[inline]
    pub fn get(&self, id: u64) -> Option<&T> {
        match self.place(id) {
            Some(at) => self.line[at].1.as_ref(),
            None => self.beside.get(&id),
        }
    }

    pub fn get_mut(&mut self, id: u64) -> Option<&mut T> {
        match self.place(id) {
            Some(at) => self.line[at].1.as_mut(),
            None => self.beside.get_mut(&id),
        }
    }

    #[inline]
    pub fn contains(&self, id: u64) -> bool {
        self.get(id).is_some()
    }

    /// Puts `value` in the place of what was there, which is returned.
    #[inline]
    pub fn insert(&mut self, id: u64, value: T) -> Option<T> {
        if self.line.back().is_none_or(|(last, _)| *last < id) && !self.beside.contains_key(&id) {
            self.line.push_back((id, Some(value)));
            return None;
        }
        match self.place(id) {
            Some(at) => {
                let old = self.line[at].1.replace(value);
                self.gaps -= usize::from(old.is_none());
                old
            }
            None => self.beside.insert(id, value),
        }
    }

    #[inline]
    pub fn remove(&mut self, id: u64) -> Option<T> {
        let Some(at) = self.place(id) else { return self.beside.remove(&id) };
        let old = self.line[at].1.take()?;
        self.gaps += 1;
        while self.line.front().is_some_and(|(_, value)| value.is_none()) {
            self.line.pop_front();
            self.gaps -= 1;
        }
        while self.line.back().is_some_and(|(_, value)| value.is_none()) {
            self.line.pop_back();
            self.gaps -= 1;
        }
        if self.gaps > GAPS_KEPT && self.gaps > self.line.len() / 2 {
            self.line.retain(|(_, value)| value.is_some());
            self.gaps = 0;
        }
        Some(old)
    }

    /// Those whose id lies in `ids`, ascending.
    pub fn range(&self, ids: impl RangeBounds<u64> + Clone) -> impl Iterator<Item = (u64, &T)> {
        let start = match ids.start_bound() {
            std::ops::Bound::Included(&id) => self.line.partition_point(|(at, _)| *at < id),
            std::ops::Bound::Excluded(&id) => self.line.partition_point(|(at, _)| *at <= id),
            std::ops::Bound::Unbounded => 0,
        };
        let within = ids.clone();
        let line = self.line.range(start..).take_while(move |(id, _)| within.contains(id));
        let mut line = line.filter_map(|(id, value)| Some((*id, value.as_ref()?))).peekable();
        let mut beside = self.beside.range(ids).map(|(&id, value)| (id, value)).peekable();
        std::iter::from_fn(move || match (line.peek(), beside.peek()) {
            (Some((a, _)), Some((b, _))) if b < a => beside.next(),
            (Some(_), _) => line.next(),
            (None, _) => beside.next(),
        })
    }

    /// Where in the line `id` is, or was.
    #[inline]
    fn place(&self, id: u64) -> Option<usize> {
        let distance = id.checked_sub(self.line.front()?.0)?;
        // Without another queue's ids between them, and without what was never touched, it stands right there.
        if let Some((found, _)) = self.line.get(distance as usize)
            && *found == id
        {
            return Some(distance as usize);
        }
        if self.line.back()?.0 < id {
            return None;
        }
        self.line.binary_search_by_key(&id, |(id, _)| *id).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        /// The next id, so many behind the highest.
        Next(u64),
        Insert(u64),
        Remove(u64),
        RemoveFirst,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (1u64..4).prop_map(Step::Next),
            1 => (0u64..700).prop_map(Step::Insert),
            4 => (0u64..700).prop_map(Step::Remove),
            2 => Just(Step::RemoveFirst),
        ]
    }

    proptest! {
        #[test]
        fn it_holds_what_a_plain_map_holds(
            steps in prop::collection::vec(step(), 0..500),
            from in 0u64..700,
        ) {
            let mut map: ById<usize> = ById::default();
            let mut plain: BTreeMap<u64, usize> = BTreeMap::new();
            let mut highest = 0;
            for (n, step) in steps.into_iter().enumerate() {
                let removed = match step {
                    Step::Next(distance) => {
                        highest += distance;
                        prop_assert_eq!(map.insert(highest, n), plain.insert(highest, n));
                        continue;
                    }
                    Step::Insert(id) => {
                        highest = highest.max(id);
                        prop_assert_eq!(map.insert(id, n), plain.insert(id, n));
                        continue;
                    }
                    Step::Remove(id) => id,
                    Step::RemoveFirst => plain.keys().next().copied().unwrap_or(0),
                };
                prop_assert_eq!(map.remove(removed), plain.remove(&removed));
                prop_assert!(!map.contains(removed));
                prop_assert!(map.line.len() <= 2 * plain.len() + GAPS_KEPT + 1);
                let gaps = map.line.iter().filter(|(_, value)| value.is_none()).count();
                prop_assert_eq!(map.gaps, gaps);
            }
            let all: Vec<_> = plain.iter().map(|(&id, n)| (id, n)).collect();
            prop_assert!(map.range(..).eq(all.iter().copied()));
            prop_assert!(map.range(from..).eq(plain.range(from..).map(|(&id, n)| (id, n))));
            let behind = (std::ops::Bound::Excluded(from), std::ops::Bound::Unbounded);
            prop_assert!(map.range(behind).eq(plain.range(behind).map(|(&id, n)| (id, n))));
            for id in 0..=highest + 1 {
                prop_assert_eq!(map.contains(id), plain.contains_key(&id));
                prop_assert_eq!(map.get(id), plain.get(&id));
                prop_assert_eq!(map.get_mut(id), plain.get_mut(&id));
            }
        }
    }

    /// How many gaps there are in a line of `length`, once so many behind its first one were removed.
    fn gaps_after(length: u64, removed: u64) -> usize {
        let mut map: ById<()> = ById::default();
        (0..length).for_each(|id| assert!(map.insert(id, ()).is_none()));
        (1..=removed).for_each(|id| assert!(map.remove(id).is_some()));
        assert_eq!(map.line.len(), length as usize - removed as usize + map.gaps);
        map.gaps
    }

    #[test]
    fn gaps_are_closed_once_they_are_many_and_more_than_half_of_the_line() {
        let kept = GAPS_KEPT as u64;
        // Few, though more than half.
        assert_eq!(gaps_after(kept + 7, kept), GAPS_KEPT);
        assert_eq!(gaps_after(kept + 7, kept + 1), 0);
        // Many, but no more than half.
        assert_eq!(gaps_after(4 * kept + 1, 2 * kept), 2 * GAPS_KEPT);
        assert_eq!(gaps_after(4 * kept + 1, 2 * kept + 1), 0);
    }

    #[test]
    fn a_message_that_comes_back_fills_the_gap_that_it_left() {
        let mut map: ById<u64> = ById::default();
        (0..3).for_each(|id| assert!(map.insert(id, id).is_none()));
        assert_eq!((map.remove(1), map.gaps), (Some(1), 1));
        assert_eq!((map.insert(1, 7), map.gaps, map.get(1)), (None, 0, Some(&7)));
    }
}
