//! Message groups: of each, one message at a time is out, and the others wait for it.
//!
//! The message that holds a group is the one that was chosen for delivery last and is not done with: in flight, given back
//! or held back for a retry. When it is, the next of those that wait holds the group. So whatever happens to a message
//! meanwhile, none of its group comes before it; only while it has not been chosen yet, one that is more urgent may.
//!
//! Invariants: whoever holds or waits is a member of that group alone; who waits is in `waiting` and in its group's; a
//! group is there for as long as it is held, and none has messages that wait without one that holds it.

use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use super::queue::{Turn, WAITING_MAX};
use crate::format::record::insert::PRIORITIES;

/// The name of a group.
pub(crate) type GroupKey = Arc<[u8]>;

#[derive(Debug, Default)]
pub(super) struct Groups {
    groups: HashMap<GroupKey, Group>,
    /// The groups of those that hold or wait.
    members: HashMap<u64, GroupKey>,
    /// All that wait.
    waiting: BTreeSet<Turn>,
    /// How many of each priority do.
    counts: [usize; PRIORITIES as usize],
}

#[derive(Debug)]
struct Group {
    holder: Holder,
    waiting: BTreeSet<Turn>,
}

/// Who holds a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Holder {
    pub id: u64,
    pub priority: u8,
    /// It was chosen for delivery, and not taken back.
    pub chosen: bool,
}

impl Groups {
    /// Who holds this group.
    pub fn holder(&self, key: &[u8]) -> Option<Holder> {
        self.groups.get(key).map(|group| group.holder)
    }

    /// Whether any message holds a group. None waits for one otherwise.
    #[inline]
    pub fn has_members(&self) -> bool {
        !self.members.is_empty()
    }

    /// All that hold a group.
    pub fn holders(&self) -> impl Iterator<Item = u64> {
        self.groups.values().map(|group| group.holder.id)
    }

    /// Lets a message hold this group that is chosen, if no other one does.
    pub fn hold(&mut self, id: u64, priority: u8, key: &GroupKey) {
        if let Some(group) = self.groups.get_mut(key) {
            group.holder.chosen |= group.holder.id == id;
            return;
        }
        let holder = Holder { id, priority, chosen: true };
        self.groups.insert(key.clone(), Group { holder, waiting: BTreeSet::new() });
        self.members.insert(id, key.clone());
    }

    /// Lets a message hold this group instead of the one that does.
    pub fn hold_instead(&mut self, id: u64, priority: u8, key: &GroupKey) {
        if let Some(group) = self.groups.get_mut(key) {
            self.members.remove(&group.holder.id);
            group.holder = Holder { id, priority, chosen: false };
            self.members.insert(id, key.clone());
        }
    }

    /// Message `id` was chosen, and taken back.
    pub fn take_back(&mut self, id: u64) {
        if let Some(key) = self.members.get(&id)
            && let Some(group) = self.groups.get_mut(key)
            && group.holder.id == id
        {
            group.holder.chosen = false;
        }
    }

    /// Lets a message wait for this group, which another one holds.
    pub fn wait(&mut self, turn: Turn, key: &GroupKey) {
        let Some(group) = self.groups.get_mut(key) else { return };
        debug_assert!(group.holder.id != turn.id, "a message waits for itself");
        if group.waiting.insert(turn) {
            self.waiting.insert(turn);
            self.members.insert(turn.id, key.clone());
            self.counts[usize::from(turn.priority())] += 1;
        }
    }

    /// A message does not wait any more; it is no member of its group.
    pub fn stop_waiting(&mut self, turn: Turn) {
        if let Some(key) = self.members.remove(&turn.id)
            && let Some(group) = self.groups.get_mut(&key)
            && group.waiting.remove(&turn)
        {
            self.waiting.remove(&turn);
            self.counts[usize::from(turn.priority())] -= 1;
        }
    }

    /// Message `id` lets go of the group that it holds, if it does. The next of those that waited holds it from then on,
    /// and is returned.
    pub fn let_go(&mut self, id: u64) -> Option<Turn> {
        let key = self.members.remove(&id)?;
        let group = self.groups.get_mut(&key)?;
        let Some(&next) = group.waiting.first() else {
            self.groups.remove(&key);
            return None;
        };
        group.waiting.remove(&next);
        group.holder = Holder { id: next.id, priority: next.priority(), chosen: false };
        self.waiting.remove(&next);
        self.counts[usize::from(next.priority())] -= 1;
        Some(next)
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        let counted: usize = self.counts.iter().sum();
        self.groups.is_empty() && self.members.is_empty() && self.waiting.is_empty() && counted == 0
    }

    /// Whether so many of a priority wait that others of it may have to wait in their lane.
    pub fn is_full(&self) -> bool {
        self.waiting.len() >= WAITING_MAX && self.counts.iter().any(|count| *count >= WAITING_MAX)
    }

    /// How many groups are held.
    pub fn held(&self) -> usize {
        self.groups.len()
    }

    /// How many of this priority wait.
    pub fn waiting_of(&self, priority: u8) -> usize {
        self.counts[usize::from(priority)]
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The first of those that wait whose turn comes behind `from`.
    pub fn first_waiting(&self, from: Bound<Turn>) -> Option<Turn> {
        self.waiting.range((from, Bound::Unbounded)).next().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Entry, Freed, QueueState};
    use super::*;

    fn key(name: &str) -> GroupKey {
        name.as_bytes().into()
    }

    /// Lets message `id` go out if its group allows it, or wait. Whether it went.
    fn try_take(q: &mut QueueState, id: u64, priority: u8, group: &str) -> bool {
        if !q.may_go(id, priority, &key(group)) {
            assert!(q.wait(id, priority, &key(group)));
            return false;
        }
        q.hold(id, priority, &key(group));
        q.put(id, Entry::in_flight(priority, 1, id + 100, None));
        true
    }

    fn ready(q: &QueueState) -> Vec<u64> {
        let mut ids = Vec::new();
        let mut behind = None;
        while let Some(turn) = q.next_ready(behind) {
            ids.push(turn.id);
            behind = Some(turn);
        }
        ids
    }

    #[test]
    fn the_next_of_a_group_goes_when_the_one_before_is_done_with() {
        let mut q = QueueState::default();
        assert!(try_take(&mut q, 1, 0, "a"));
        assert!(!try_take(&mut q, 2, 0, "a"));
        assert!(!try_take(&mut q, 3, 0, "a"));
        assert!(try_take(&mut q, 4, 0, "b"));
        assert_eq!((ready(&q), q.len(), q.take_freed()), (vec![], 4, Freed::None));
        q.put(1, Entry::given_back(0, 1));
        assert_eq!((ready(&q), q.take_freed()), (vec![1], Freed::None), "it keeps its group");
        q.put(1, Entry::delayed(0, 1, 50));
        assert_eq!((ready(&q), q.take_freed()), (vec![], Freed::None), "also until its retry");
        q.remove(1);
        assert_eq!((ready(&q), q.take_freed()), (vec![2], Freed::One));
        assert!(try_take(&mut q, 2, 0, "a"));
        q.put(2, Entry::buried(0, 1, "broken"));
        assert_eq!(
            (ready(&q), q.take_freed()),
            (vec![3], Freed::One),
            "who is buried is done with"
        );
        q.remove(3);
        q.remove(4);
        assert!(q.groups_are_empty(), "{q:?}");
    }

    #[test]
    fn of_those_that_wait_the_most_urgent_goes_first() {
        let mut q = QueueState::default();
        assert!(try_take(&mut q, 1, 0, "a"));
        for (id, priority) in [(2, 0), (3, 9), (4, 0)] {
            assert!(!try_take(&mut q, id, priority, "a"));
        }
        let mut order = Vec::new();
        let mut done = 1;
        loop {
            q.remove(done);
            let Some(&next) = ready(&q).first() else { break };
            order.push(next);
            done = next;
        }
        assert_eq!(order, [3, 2, 4]);
        assert!(q.groups_are_empty(), "{q:?}");
    }

    #[test]
    fn an_urgent_message_comes_before_one_that_is_next_and_was_not_chosen() {
        let mut q = QueueState::default();
        assert!(try_take(&mut q, 1, 0, "a"));
        assert!(!try_take(&mut q, 2, 0, "a"));
        assert!(!q.may_go(3, 9, &key("a")), "1 is out");
        q.remove(1);
        assert_eq!(ready(&q), [2]);
        assert!(!q.may_go(4, 0, &key("a")), "4 is not more urgent");
        assert!(q.may_go(3, 9, &key("a")));
        assert_eq!(ready(&q), [], "2 waits again");
        assert!(try_take(&mut q, 3, 9, "a"));
        q.put(3, Entry::given_back(9, 1));
        assert!(!q.may_go(5, 9, &key("a")), "3 was delivered");
        q.remove(3);
        assert_eq!(ready(&q), [2]);
        q.hold(2, 0, &key("a"));
        assert!(!q.may_go(6, 9, &key("a")), "2 is chosen");
        q.take_back(2);
        assert!(q.may_go(6, 9, &key("a")), "2 could not go out");
        q.remove(6);
        q.remove(2);
        assert!(q.groups_are_empty(), "{q:?}");
    }

    #[test]
    fn who_waits_and_is_deleted_is_passed_over() {
        let mut q = QueueState::default();
        assert!(try_take(&mut q, 1, 0, "a"));
        for id in 2..=4 {
            assert!(!try_take(&mut q, id, 0, "a"));
        }
        q.remove(2);
        q.remove(1);
        assert_eq!(ready(&q), [3]);
        q.remove(3);
        assert_eq!(ready(&q), [4], "also the one that is next");
        q.remove(4);
        assert!(q.groups_are_empty(), "{q:?}");
    }

    #[test]
    fn a_ready_message_that_was_touched_waits_too() {
        let mut q = QueueState::default();
        q.put(5, Entry::delayed(0, 0, 500));
        assert!(try_take(&mut q, 6, 0, "a"));
        q.advance(std::time::Instant::now(), 500);
        assert_eq!(ready(&q), [5]);
        assert!(!try_take(&mut q, 5, 0, "a"));
        assert_eq!(ready(&q), []);
        let order = |q: &QueueState| (q.next_free_of(0, None).map(|turn| turn.id), q.len());
        assert_eq!(order(&q), (Some(5), 2), "who has to make room does not wait");
        q.put(5, Entry::given_back(0, 0));
        assert_eq!(ready(&q), [5], "who is put somewhere else does not wait");
        q.remove(6);
        q.remove(5);
        assert!(q.groups_are_empty(), "{q:?}");
    }

    #[test]
    fn beyond_so_many_that_wait_the_lane_does() {
        let mut q = QueueState::default();
        let most = super::super::queue::WAITING_MAX as u64;
        assert!(try_take(&mut q, 0, 0, "a"));
        for id in 1..=most {
            assert!(q.wait(id, 0, &key("a")));
        }
        assert!(!q.wait(most + 1, 0, &key("a")));
        assert!(!q.contains(most + 1));
        assert!(q.wait(most + 1, 1, &key("a")), "another priority");
        q.take_freed();
        q.remove(7);
        assert_eq!(q.take_freed(), Freed::More, "more than one may be behind it");
        assert!(q.wait(most + 2, 0, &key("a")));
        q.remove(0);
        assert_eq!(q.take_freed(), Freed::One, "another priority was next");
        assert!(try_take(&mut q, most + 3, 0, "b"));
        q.remove(most + 3);
        assert_eq!(q.take_freed(), Freed::More, "one of that group may be the next of the lane");
        q.remove(most + 4);
        assert_eq!(q.take_freed(), Freed::More, "nobody had touched it, and it may be that one");
    }
}
