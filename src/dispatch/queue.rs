//! The touched messages of one queue: what is in flight, given back, delayed or buried, or waits for its group.
//!
//! Invariants: an id is in `ready`, `delayed`, `leases` or `groups` exactly when its entry's place (and deadline) says
//! so; tokens are never reused, so an old delivery can be told from the present one.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::ops::{Bound, RangeBounds};
use std::time::{Duration, Instant};

use super::by_id::ById;
use super::entry::{Entry, Place};
use super::groups::{GroupKey, Groups};
use super::leases::Leases;
use super::streak::Streak;

/// The message was taken by somebody else, moved, or is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stale;

/// When it is the turn of a message that is ready: the highest priority first; of equals first what was given back, by
/// id, and then what had been delayed, by due time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Turn {
    priority: Reverse<u8>,
    /// 0 if it was not delayed.
    due_ms: u64,
    pub id: u64,
}

impl Turn {
    pub(super) fn of(id: u64, entry: &Entry) -> Turn {
        Turn { priority: Reverse(entry.priority), due_ms: entry.due_ms, id }
    }

    pub fn priority(&self) -> u8 {
        self.priority.0
    }
}

/// By what an entry is ordered.
#[derive(Clone, Copy)]
enum Order {
    InFlight(Option<Instant>),
    Ready(Turn),
    Waiting(Turn),
    Delayed(u64),
    Buried,
}

impl Order {
    fn of(id: u64, entry: &Entry) -> Order {
        match entry.place {
            Place::InFlight => Order::InFlight(entry.deadline),
            Place::GivenBack if entry.waits => Order::Waiting(Turn::of(id, entry)),
            Place::GivenBack => Order::Ready(Turn::of(id, entry)),
            Place::Delayed => Order::Delayed(entry.due_ms),
            Place::Buried => Order::Buried,
        }
    }
}

/// Messages that may go out since another one has left their group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Freed {
    #[default]
    None,
    One,
    /// As many as there are behind one that had to wait in its lane.
    More,
}

/// How many messages of one priority may wait for their groups. If more had to, their lane waits.
pub(crate) const WAITING_MAX: usize = 10_000;

#[derive(Debug, Default)]
pub(crate) struct QueueState {
    /// Every touched message, by id.
    entries: ById<Entry>,
    /// Given back, or due.
    ready: BTreeSet<Turn>,
    /// By due time.
    delayed: BTreeSet<(u64, u64)>,
    /// By end of lease.
    leases: Leases,
    in_flight: u64,
    buried: u64,
    groups: Groups,
    /// Those that the log knows nothing of, by priority and id: nobody has had them, they were passed over to wait for their
    /// groups, or are to be moved.
    unrecorded: BTreeSet<(u8, u64)>,
    freed: Freed,
    /// Attempts that failed; those whose leases ran out count when that is noticed.
    pub streak: Streak,
}

impl QueueState {
    pub fn get(&self, id: u64) -> Option<&Entry> {
        self.entries.get(id)
    }

    pub fn contains(&self, id: u64) -> bool {
        self.entries.contains(id)
    }

    /// How many are touched.
    pub fn len(&self) -> u64 {
        let rest = self.ready.len() + self.delayed.len() + self.groups.waiting();
        self.in_flight + self.buried + rest as u64
    }

    pub fn in_flight(&self) -> u64 {
        self.in_flight
    }

    pub fn delayed(&self) -> u64 {
        self.delayed.len() as u64
    }

    pub fn buried(&self) -> u64 {
        self.buried
    }

    /// Touched messages in the order of their ids.
    pub fn range(&self, ids: impl RangeBounds<u64> + Clone) -> impl Iterator<Item = (u64, &Entry)> {
        self.entries.range(ids)
    }

    /// Puts `id` into the state that `entry` says, whatever it was in before.
    ///
    /// It keeps the group that it holds, unless it is buried.
    pub fn put(&mut self, id: u64, mut entry: Entry) {
        entry.waits = false;
        let (order, priority) = (Order::of(id, &entry), entry.priority);
        if let Some(old) = self.entries.insert(id, entry) {
            self.unlink(id, Order::of(id, &old));
        }
        self.link(id, order);
        self.note_recorded(id, priority);
        if matches!(order, Order::Buried) && self.groups.has_members() {
            self.let_go(id);
        }
    }

    /// Forgets `id`: it was deleted.
    pub fn remove(&mut self, id: u64) -> Option<Entry> {
        let removed = self.entries.remove(id);
        if let Some(entry) = &removed {
            self.unlink(id, Order::of(id, entry));
            self.note_recorded(id, entry.priority);
        }
        if self.groups.has_members() {
            // It may be the one that its lane waits with.
            if removed.is_none() && self.groups.is_full() {
                self.freed = Freed::More;
            }
            self.let_go(id);
        }
        removed
    }

    #[inline]
    fn note_recorded(&mut self, id: u64, priority: u8) {
        if !self.unrecorded.is_empty() {
            self.unrecorded.remove(&(priority, id));
        }
    }

    /// Makes a message ready that nobody has touched, and of which nothing is recorded yet: a cursor leaves it out, and says
    /// of its lane that it is still to be read.
    pub fn touch(&mut self, id: u64, priority: u8) {
        self.put(id, Entry::fresh(priority));
        self.unrecorded.insert((priority, id));
    }

    /// Message `id` was [touched](QueueState::touch), and nothing is to be recorded of it: it is forgotten, but for the group
    /// that it holds. False if it is not so any more.
    pub fn untouch(&mut self, id: u64) -> bool {
        let Some(entry) = self.entries.get(id).filter(|entry| !entry.waits) else { return false };
        let (order, priority) = (Order::of(id, entry), entry.priority);
        if !self.unrecorded.remove(&(priority, id)) {
            return false;
        }
        self.entries.remove(id);
        self.unlink(id, order);
        true
    }

    /// Whether the log knows that message `id` was touched.
    pub fn is_recorded(&self, id: u64, priority: u8) -> bool {
        !self.unrecorded.contains(&(priority, id))
    }

    /// The first message of this priority that was touched and that the log knows nothing of.
    pub fn first_unrecorded(&self, priority: u8) -> Option<u64> {
        self.unrecorded.range((priority, 0)..=(priority, u64::MAX)).next().map(|&(_, id)| id)
    }

    /// Who holds a group though nobody has touched it: it was chosen, and could not go out.
    pub fn untouched_holders(&self) -> impl Iterator<Item = u64> {
        self.groups.holders().filter(|id| !self.entries.contains(*id))
    }

    /// Whether a message of this group, which is ready, may go out. If one that is less urgent was next and is not chosen
    /// yet, that one waits from now on.
    pub fn may_go(&mut self, id: u64, priority: u8, group: &GroupKey) -> bool {
        let Some(next) = self.groups.holder(group).filter(|holder| holder.id != id) else {
            return true;
        };
        let entry = self.entries.get(next.id);
        let is_ready = entry.is_none_or(|entry| entry.place == Place::GivenBack);
        if next.chosen || next.priority >= priority || !is_ready {
            return false;
        }
        let is_touched = entry.is_some();
        self.groups.hold_instead(id, priority, group);
        if is_touched {
            self.wait(next.id, next.priority, group);
        }
        true
    }

    /// Message `id` is chosen: until it is done with, no other one of its group goes out.
    pub fn hold(&mut self, id: u64, priority: u8, group: &GroupKey) {
        self.groups.hold(id, priority, group);
    }

    /// Message `id` was chosen and could not go out. If it never has, one of its group that is more urgent may come before
    /// it.
    pub fn take_back(&mut self, id: u64) {
        if self.entries.get(id).is_none_or(|entry| entry.fresh) {
            self.groups.take_back(id);
        }
    }

    /// Message `id`, which is ready, waits until no other one holds its group. False if it has to wait in its lane, since
    /// nobody has touched it and there are too many that wait already.
    pub fn wait(&mut self, id: u64, priority: u8, group: &GroupKey) -> bool {
        let turn = match self.entries.get_mut(id) {
            Some(entry) => {
                let turn = Turn::of(id, entry);
                self.ready.remove(&turn);
                entry.waits = true;
                turn
            }
            None if self.groups.waiting_of(priority) >= WAITING_MAX => return false,
            None => {
                let entry = Entry { waits: true, ..Entry::fresh(priority) };
                let turn = Turn::of(id, &entry);
                self.entries.insert(id, entry);
                self.unrecorded.insert((priority, id));
                turn
            }
        };
        self.groups.wait(turn, group);
        true
    }

    /// Message `id` does not hold its group any more: the next one may go.
    fn let_go(&mut self, id: u64) {
        let held = self.groups.held();
        let Some(next) = self.groups.let_go(id) else {
            // One of that group may be the one that its lane waits with.
            if self.groups.held() < held && self.groups.is_full() {
                self.freed = Freed::More;
            }
            return;
        };
        if let Some(entry) = self.entries.get_mut(next.id) {
            entry.waits = false;
            self.ready.insert(next);
        }
        self.note_freed(next, Freed::One);
    }

    /// A message that has waited does not any more.
    fn note_freed(&mut self, turn: Turn, freed: Freed) {
        let was_full = self.groups.waiting_of(turn.priority()) + 1 >= WAITING_MAX;
        self.freed = self.freed.max(if was_full { Freed::More } else { freed });
    }

    /// What may go out since this was last asked, and nobody was told of.
    #[inline]
    pub fn take_freed(&mut self) -> Freed {
        match self.freed {
            Freed::None => Freed::None,
            _ => std::mem::take(&mut self.freed),
        }
    }

    /// Puts `id` into the order that its place keeps.
    fn link(&mut self, id: u64, order: Order) {
        match order {
            Order::InFlight(deadline) => {
                self.in_flight += 1;
                if let Some(deadline) = deadline {
                    self.leases.insert(deadline, id);
                }
            }
            // Only `wait` makes a message wait.
            Order::Ready(turn) | Order::Waiting(turn) => {
                self.ready.insert(turn);
            }
            Order::Delayed(due_ms) => {
                self.delayed.insert((due_ms, id));
            }
            Order::Buried => self.buried += 1,
        }
    }

    /// Takes `id` out of the order that its place keeps.
    fn unlink(&mut self, id: u64, order: Order) {
        match order {
            Order::InFlight(deadline) => {
                self.in_flight -= 1;
                if let Some(deadline) = deadline {
                    self.leases.remove(deadline, id, |(end, id)| runs(&self.entries, end, id));
                }
            }
            Order::Ready(turn) => {
                self.ready.remove(&turn);
            }
            Order::Waiting(turn) => {
                self.groups.stop_waiting(turn);
                self.note_freed(turn, Freed::None);
            }
            Order::Delayed(due_ms) => {
                self.delayed.remove(&(due_ms, id));
            }
            Order::Buried => self.buried -= 1,
        }
    }

    /// Moves what has become due, and what has outlived its lease, back among the ready ones.
    ///
    /// A lease that ran out keeps its token: until somebody else takes the message, its delivery may still
    /// settle it. Its attempt stays counted. Neither needs a record: the log says "in flight, attempt n" or
    /// "delayed until", and both read the same after a restart.
    pub fn advance(&mut self, mono: Instant, wall_ms: u64) {
        while let Some(&(due_ms, id)) = self.delayed.first().filter(|(due, _)| *due <= wall_ms) {
            self.delayed.remove(&(due_ms, id));
            self.make_ready(id);
        }
        while self.leases.next_end().is_some_and(|end| end <= mono) {
            let over = self.leases.take_over(mono, |(end, id)| runs(&self.entries, end, id));
            // A lease that was renewed to the same end is there twice.
            let in_flight = |id: &u64| {
                self.entries.get(*id).is_some_and(|entry| entry.place == Place::InFlight)
            };
            if let Some(id) = over.filter(in_flight) {
                self.in_flight -= 1;
                self.streak.failed();
                self.make_ready(id);
            }
        }
    }

    fn make_ready(&mut self, id: u64) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.place = Place::GivenBack;
            entry.deadline = None;
            self.ready.insert(Turn::of(id, entry));
        }
    }

    #[cfg(test)]
    pub(super) fn groups_are_empty(&self) -> bool {
        self.groups.is_empty() && self.unrecorded.is_empty()
    }

    /// The message whose turn comes behind that one's, or before all others'.
    pub fn next_ready(&self, behind: Option<Turn>) -> Option<Turn> {
        let from = behind.map_or(Bound::Unbounded, Bound::Excluded);
        self.ready.range((from, Bound::Unbounded)).next().copied()
    }

    /// As [`next_ready`](QueueState::next_ready), of this priority, and also of those that wait for their groups.
    pub fn next_free_of(&self, priority: u8, behind: Option<Turn>) -> Option<Turn> {
        let first = Turn { priority: Reverse(priority), due_ms: 0, id: 0 };
        let from = behind.map_or(Bound::Included(first), Bound::Excluded);
        let ready = self.ready.range((from, Bound::Unbounded)).next().copied();
        let waiting = self.groups.first_waiting(from);
        let next = ready.into_iter().chain(waiting).min();
        next.filter(|turn| turn.priority() == priority)
    }

    /// When the next lease ends.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.leases.next_end()
    }

    /// When the next delayed message becomes ready.
    pub fn next_due_ms(&self) -> Option<u64> {
        self.delayed.first().map(|&(due, _)| due)
    }

    /// Whether the delivery `token` still holds `id`: nobody else has taken or moved it.
    pub fn holder(&self, id: u64, token: u64) -> Result<&Entry, Stale> {
        self.entries.get(id).filter(|e| token != 0 && e.token == token).ok_or(Stale)
    }

    /// Lets the lease of `token` end `lease` from now; one that has run out begins anew.
    pub fn extend(&mut self, id: u64, token: u64, deadline: Option<Instant>) -> Result<(), Stale> {
        let held = self.holder(id, token)?;
        let renewed = Entry::in_flight(held.priority, held.attempts, token, deadline);
        self.put(id, renewed);
        Ok(())
    }

    /// How long a waiting consumer may sleep before a message of this queue can have become ready by time
    /// alone. A due time is asked for again at least every minute, since the wall clock may be set.
    pub fn sleep_for(&self, mono: Instant, wall_ms: u64) -> Option<Duration> {
        const RECHECK: Duration = Duration::from_secs(60);
        let lease = self.next_deadline().map(|end| end.saturating_duration_since(mono));
        let due = self
            .next_due_ms()
            .map(|due| Duration::from_millis(due.saturating_sub(wall_ms)).min(RECHECK));
        match (lease, due) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }
}

/// Whether a message is in flight with a lease that ends at `end`.
fn runs(entries: &ById<Entry>, end: Instant, id: u64) -> bool {
    let entry = entries.get(id);
    entry.is_some_and(|e| e.place == Place::InFlight && e.deadline == Some(end))
}

#[cfg(test)]
mod tests;
