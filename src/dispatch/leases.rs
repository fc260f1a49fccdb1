//! When the leases of one queue end.
//!
//! Almost all leases of a queue are equally long, and so end in the order in which they began: new ones go to the end of
//! a line. One that ends early, because its message was settled, stays in the line as a leftover until it comes to the
//! front, or until there are more leftovers than leases. The few that do not fit into the order (an extended lease, or
//! one that began after the queue's options were changed) are kept sorted beside the line.
//!
//! A lease is its end and its message. Which of those in the line still run, the caller says.

use std::collections::{BTreeSet, VecDeque};
use std::time::Instant;

/// So many leftovers are not worth the work of removing them.
const LEFTOVERS_KEPT: usize = 64;

type Lease = (Instant, u64);

#[derive(Debug, Default)]
pub(super) struct Leases {
    /// Ascending by end. The first one runs.
    line: VecDeque<Lease>,
    leftovers: usize,
    beside: BTreeSet<Lease>,
}

impl Leases {
    pub fn insert(&mut self, end: Instant, id: u64) {
        if self.line.back().is_none_or(|&(last, _)| last <= end) {
            self.line.push_back((end, id));
        } else {
            self.beside.insert((end, id));
        }
    }

    /// Ends a lease early; `runs` does not know it any more.
    pub fn remove(&mut self, end: Instant, id: u64, runs: impl Fn(Lease) -> bool) {
        // One that was renewed to the same end may be in both.
        let beside = !self.beside.is_empty() && self.beside.remove(&(end, id));
        if self.line.front() == Some(&(end, id)) {
            self.line.pop_front();
            self.drop_leftovers_in_front(runs);
        } else if !beside {
            self.leftovers += 1;
            if self.leftovers > LEFTOVERS_KEPT && self.leftovers > self.line.len() / 2 {
                self.line.retain(|&lease| runs(lease));
                self.leftovers = 0;
            }
        }
    }

    /// Takes out a message whose lease is over at `now`.
    pub fn take_over(&mut self, now: Instant, runs: impl Fn(Lease) -> bool) -> Option<u64> {
        if let Some(&(_, id)) = self.line.front().filter(|&&(end, _)| end <= now) {
            self.line.pop_front();
            self.drop_leftovers_in_front(runs);
            return Some(id);
        }
        let &(end, id) = self.beside.first().filter(|&&(end, _)| end <= now)?;
        self.beside.remove(&(end, id));
        Some(id)
    }

    /// When the next lease ends.
    pub fn next_end(&self) -> Option<Instant> {
        let line = self.line.front().map(|&(end, _)| end);
        let beside = self.beside.first().map(|&(end, _)| end);
        match (line, beside) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    fn drop_leftovers_in_front(&mut self, runs: impl Fn(Lease) -> bool) {
        while self.line.front().is_some_and(|&lease| !runs(lease)) {
            self.line.pop_front();
            self.leftovers = self.leftovers.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::time::Duration;

    #[derive(Clone, Debug)]
    enum Step {
        /// A message gets a lease of this many seconds, instead of the one that it may have.
        Lease(u64, u64),
        Settle(u64),
        Pass(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0u64..200, Just(30)).prop_map(|(id, secs)| Step::Lease(id, secs)),
            1 => (0u64..200, 0u64..60).prop_map(|(id, secs)| Step::Lease(id, secs)),
            4 => (0u64..200).prop_map(Step::Settle),
            1 => (0u64..20).prop_map(Step::Pass),
        ]
    }

    proptest! {
        #[test]
        fn leases_end_when_a_plain_list_says(steps in prop::collection::vec(step(), 0..600)) {
            let mut now = Instant::now();
            let mut leases = Leases::default();
            let mut running: BTreeMap<u64, Instant> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Lease(id, secs) => {
                        let end = now + Duration::from_secs(secs);
                        if let Some(old) = running.insert(id, end) {
                            leases.remove(old, id, |(end, id)| running.get(&id) == Some(&end));
                        }
                        leases.insert(end, id);
                    }
                    Step::Settle(id) => {
                        if let Some(end) = running.remove(&id) {
                            leases.remove(end, id, |(end, id)| running.get(&id) == Some(&end));
                        }
                    }
                    Step::Pass(secs) => {
                        now += Duration::from_secs(secs);
                        let mut over: Vec<u64> = Vec::new();
                        while let Some(id) =
                            leases.take_over(now, |(end, id)| running.get(&id) == Some(&end))
                        {
                            // One that was renewed to the same end may be in the line twice.
                            if running.remove(&id).is_some() {
                                over.push(id);
                            }
                        }
                        prop_assert!(running.values().all(|end| *end > now), "{over:?}");
                    }
                }
                prop_assert_eq!(leases.next_end(), running.values().min().copied());
                prop_assert!(leases.line.len() <= 3 * running.len() + 2 * LEFTOVERS_KEPT + 2);
            }
        }
    }

    fn secs(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    /// How many leftovers there are in a line of `length`, once so many leases behind its first one were settled.
    fn leftovers_after(length: u64, settled: u64) -> usize {
        let base = Instant::now();
        let mut leases = Leases::default();
        (0..length).for_each(|id| leases.insert(base + secs(id), id));
        for id in 1..=settled {
            leases.remove(base + secs(id), id, |(_, other)| other == 0 || other > id);
        }
        assert_eq!(leases.line.len(), length as usize - settled as usize + leases.leftovers);
        leases.leftovers
    }

    #[test]
    fn leftovers_are_removed_once_they_are_many_and_more_than_half_of_the_line() {
        let kept = LEFTOVERS_KEPT as u64;
        // Few, though more than half.
        assert_eq!(leftovers_after(kept + 7, kept), LEFTOVERS_KEPT);
        assert_eq!(leftovers_after(kept + 7, kept + 1), 0);
        // Many, but no more than half.
        assert_eq!(leftovers_after(4 * kept + 1, 2 * kept), 2 * LEFTOVERS_KEPT);
        assert_eq!(leftovers_after(4 * kept + 1, 2 * kept + 1), 0);
    }

    #[test]
    fn a_lease_beside_the_line_leaves_nothing_over() {
        let base = Instant::now();
        let mut leases = Leases::default();
        leases.insert(base + secs(20), 1);
        leases.insert(base + secs(10), 2);
        leases.remove(base + secs(10), 2, |_| true);
        assert_eq!((leases.leftovers, leases.beside.len(), leases.line.len()), (0, 0, 1));
    }
}
