//! Group commit: one fdatasync for everybody who waits, and the end of the store when one fails.
//!
//! Whoever waits joins the open group. The first of it leads: it closes the group, takes the end of the log, syncs
//! outside of every lock, publishes how far the log is durable, and wakes its group at one stroke. Who came meanwhile
//! forms the next group. A failed sync is never tried again: the kernel has marked the pages clean and forgotten them,
//! so a second sync would succeed without the data.
//!
//! Threads that insert in a loop come back a moment after they were woken. A leader that synced at once would find
//! half of them, and the next one the other half; so it waits for as many as there were of late, for at most half
//! the time that a sync takes.

#[cfg(all(test, loom))]
mod models;

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::clock::real_now;
use crate::format::position::Position;
use crate::lock::Gate;
use crate::planted::{Bug, planted};
use crate::storage::File;
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// No leader waits longer than this for others, however slow the disk.
const GATHERING_MAX: Duration = Duration::from_millis(1);

/// The log is poisoned: a sync failed, now or earlier.
#[derive(Clone, Debug)]
pub(crate) struct SyncFailed(pub Arc<io::Error>);

/// What a sync has to cover: every file with bytes before `end` that no sync has covered yet.
pub(crate) struct Unsynced {
    pub end: Position,
    pub files: Vec<Arc<dyn File>>,
}

#[derive(Debug)]
pub(super) struct Commit {
    /// All before this position is durable.
    through: AtomicU64,
    /// Some thread leads.
    leading: AtomicBool,
    /// The group that whoever comes now belongs to. Its members wait at `gates[open % 2]`; those of the one before, which
    /// is being synced, at the other.
    open: AtomicUsize,
    gates: [Gate; 2],
    /// How many have come to the open group; a hint.
    came: AtomicUsize,
    /// How many the next leader may expect, itself included; a hint.
    expected: AtomicUsize,
    /// What the last sync took, in nanoseconds; a hint.
    last_sync_ns: AtomicU64,
    failure: OnceLock<Arc<io::Error>>,
}

impl Commit {
    pub fn new(through: Position) -> Commit {
        Commit {
            through: AtomicU64::new(through.as_u64()),
            leading: AtomicBool::new(false),
            open: AtomicUsize::new(0),
            gates: Default::default(),
            came: AtomicUsize::new(0),
            expected: AtomicUsize::new(0),
            last_sync_ns: AtomicU64::new(0),
            failure: OnceLock::new(),
        }
    }

    #[inline]
    pub fn through(&self) -> Position {
        Position::from_u64(self.through.load(Ordering::SeqCst))
    }

    #[inline]
    pub fn is_poisoned(&self) -> bool {
        self.failure.get().is_some() && !planted(Bug::PoisonForgotten)
    }

    pub fn failure(&self) -> Option<SyncFailed> {
        self.failure.get().filter(|_| !planted(Bug::PoisonForgotten)).cloned().map(SyncFailed)
    }

    /// Returns when all before `target` is durable. The caller has appended what it waits for.
    ///
    /// Ensures:
    /// 1. `collect` and the syncs run outside of every lock, by one thread at a time.
    /// 2. Whoever waits is woken when its group is done, when it has failed, or when nobody leads its group.
    /// 3. After a failure nobody is told that anything became durable.
    pub fn wait(
        &self,
        target: Position,
        collect: impl FnOnce() -> Unsynced,
    ) -> Result<(), SyncFailed> {
        if self.through() >= target {
            return Ok(());
        }
        self.came.fetch_add(1, Ordering::Relaxed);
        let mut woken_in = None;
        loop {
            // Read before the looks below: if one of them misses a change, the gate has moved too.
            let group = self.open.load(Ordering::SeqCst);
            let gate = &self.gates[group % 2];
            let ticket = gate.ticket();
            if self.through() >= target {
                if woken_in == Some(group) {
                    // Woken to lead, but served already by the sync before. Another one must lead this group.
                    gate.let_one();
                }
                return Ok(());
            }
            if let Some(failure) = self.failure() {
                return Err(failure);
            }
            if !self.leading.swap(true, Ordering::SeqCst) {
                return self.lead(target, collect);
            }
            gate.wait(ticket);
            woken_in = Some(group);
        }
    }

    fn lead(&self, target: Position, collect: impl FnOnce() -> Unsynced) -> Result<(), SyncFailed> {
        let mut turn = Turn { commit: self, group: self.open.load(Ordering::SeqCst), size: 0 };
        // The leader before may have ended between the look and the lead.
        if self.through() >= target {
            return Ok(());
        }
        if let Some(failure) = self.failure() {
            return Err(failure);
        }
        self.gather();
        turn.size = self.came.swap(0, Ordering::Relaxed);
        // Closed before the end is taken: whoever belongs to the group has appended before, and is covered.
        self.open.fetch_add(1, Ordering::SeqCst);
        let unsynced = collect();
        let began = real_now();
        if planted(Bug::AcknowledgedBeforeTheSync) {
            self.through.fetch_max(unsynced.end.as_u64(), Ordering::SeqCst);
        }
        let files = if planted(Bug::SyncLeftOut) { &[] } else { &*unsynced.files };
        let mut outcome = files.iter().try_for_each(|file| file.sync_data());
        if planted(Bug::FailedSyncRetried) && outcome.is_err() {
            outcome = files.iter().try_for_each(|file| file.sync_data());
        }
        let took = (real_now() - began).as_nanos();
        self.last_sync_ns.store(u64::try_from(took).unwrap_or(u64::MAX), Ordering::Relaxed);
        if let Err(error) = outcome {
            return Err(self.fail(error));
        }
        // Another failure (of a cursor, say) may have come in between: nothing is proven after it.
        if let Some(failure) = self.failure() {
            return Err(failure);
        }
        self.through.fetch_max(unsynced.end.as_u64(), Ordering::SeqCst);
        Ok(())
    }

    /// Waits for those who are expected.
    fn gather(&self) {
        let came = || self.came.load(Ordering::Relaxed);
        let expected = self.expected.load(Ordering::Relaxed);
        if came() >= expected {
            return;
        }
        let last_sync = Duration::from_nanos(self.last_sync_ns.load(Ordering::Relaxed));
        let limit = patience(last_sync);
        let began = real_now();
        while came() < expected && real_now() - began < limit {
            crate::sync::thread::yield_now();
        }
    }

    /// Ends the store: nothing is accepted or promised from now on.
    pub fn poison(&self, cause: io::Error) -> SyncFailed {
        let failure = self.fail(cause);
        self.gates.iter().for_each(Gate::open);
        failure
    }

    /// The first failure is the one that is kept.
    fn fail(&self, cause: io::Error) -> SyncFailed {
        SyncFailed(self.failure.get_or_init(|| Arc::new(cause)).clone())
    }
}

/// How long a leader waits for others.
fn patience(last_sync: Duration) -> Duration {
    (last_sync / 2).min(GATHERING_MAX)
}

/// A turn as the leader of a group. However it ends, the group is woken, and another may lead: nobody waits for ever.
struct Turn<'a> {
    commit: &'a Commit,
    group: usize,
    /// How many the group has; 0 if it was not closed.
    size: usize,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let commit = self.commit;
        if std::thread::panicking() {
            commit.fail(io::Error::other("a thread panicked while it synced"));
        }
        if self.size > 0 {
            // Whoever came during the sync may come again, and so may those who are woken now.
            let came = commit.came.load(Ordering::Relaxed);
            commit.expected.store(self.size + came, Ordering::Relaxed);
        }
        // Swapped, not stored: a checker of interleavings may order a store before a swap that has seen it.
        commit.leading.swap(false, Ordering::SeqCst);
        commit.gates[self.group % 2].open();
        if commit.is_poisoned() {
            commit.gates[(self.group + 1) % 2].open();
        } else if !planted(Bug::NextLeaderNotWoken) {
            commit.gates[(self.group + 1) % 2].let_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit() -> Commit {
        Commit::new(Position::new(1, 4096))
    }

    #[test]
    fn a_leader_waits_half_as_long_as_a_sync_takes_and_a_millisecond_at_most() {
        let micros = Duration::from_micros;
        assert_eq!(patience(Duration::ZERO), Duration::ZERO);
        assert_eq!(patience(micros(120)), micros(60));
        assert_eq!(patience(micros(50_000)), GATHERING_MAX);
    }

    #[test]
    fn a_leader_gives_those_who_are_expected_time_to_come() {
        let commit = commit();
        commit.expected.store(2, Ordering::Relaxed);
        commit.came.store(1, Ordering::Relaxed);
        commit.last_sync_ns.store(1_000_000_000, Ordering::Relaxed);
        let began = real_now();
        commit.gather();
        assert!(real_now() - began >= GATHERING_MAX);
    }

    #[test]
    fn as_many_are_expected_as_were_there_and_came_meanwhile() {
        let commit = commit();
        commit.came.store(2, Ordering::Relaxed);
        let expected = |size| {
            drop(Turn { commit: &commit, group: 0, size });
            commit.expected.load(Ordering::Relaxed)
        };
        assert_eq!(expected(3), 5);
        assert_eq!(expected(0), 5, "no group was closed");
        assert_eq!(expected(1), 3);
    }

    #[test]
    fn the_first_failure_is_kept_and_nothing_is_durable_after_it() {
        let commit = commit();
        assert!(!commit.is_poisoned());
        commit.poison(io::Error::other("first"));
        commit.poison(io::Error::other("second"));
        assert!(commit.is_poisoned());
        assert_eq!(commit.failure().unwrap().0.to_string(), "first");
        let nothing = || Unsynced { end: Position::new(9, 0), files: Vec::new() };
        assert!(commit.wait(Position::new(1, 5000), nothing).is_err());
        assert_eq!(commit.through(), Position::new(1, 4096));
    }

    #[test]
    fn the_end_of_a_turn_lets_both_groups_go_on() {
        for (group, poisoned) in [(0, false), (1, false), (0, true), (1, true)] {
            let commit = commit();
            if poisoned {
                commit.fail(io::Error::other("the disk is gone"));
            }
            let tickets = || [0, 1].map(|gate: usize| commit.gates[gate].ticket());
            let before = tickets();
            drop(Turn { commit: &commit, group, size: 0 });
            assert!(tickets().iter().zip(before).all(|(now, before)| *now != before), "{group}");
        }
    }
}
