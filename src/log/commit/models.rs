//! All interleavings of small groups of threads that append, and wait for the sync that covers it.
//!
//! loom calls a state in which everybody waits a deadlock, so a lost wakeup and a group without a leader fail every test
//! here.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};

use super::*;
use crate::storage::{MapWriter, Mapping, Writing};

/// A log of which only the length is known. Its atomics are the standard library's: loom does not see them, runs one
/// thread at a time, and so they hold the truth.
struct Log {
    commit: Commit,
    /// The append lock, around the end.
    end: loom::sync::Mutex<u64>,
    disk: Arc<Disk>,
}

#[derive(Default)]
struct Disk {
    /// What a sync that begins now covers.
    written: AtomicU64,
    /// What a sync that has succeeded covered.
    durable: AtomicU64,
    /// How many syncs run at the moment; how many have begun.
    running: AtomicUsize,
    begun: AtomicUsize,
    /// The sync that fails, counted from 0, and all after it.
    fails_from: Option<usize>,
    failed: AtomicBool,
    /// Where a sync lets others run.
    turn: Option<loom::sync::atomic::AtomicBool>,
}

impl File for Disk {
    fn len(&self) -> io::Result<u64> {
        unreachable!("only synced")
    }

    fn read_at(&self, _offset: u64, _buf: &mut [u8]) -> io::Result<()> {
        unreachable!("only synced")
    }

    fn write_at(&self, _offset: u64, _bytes: &[u8]) -> io::Result<()> {
        unreachable!("only synced")
    }

    fn lengthen(&self, _len: u64) -> io::Result<()> {
        unreachable!("only synced")
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        unreachable!("only synced")
    }

    fn map_read(&self) -> io::Result<Mapping> {
        unreachable!("only synced")
    }

    fn map_write(&self, _writing: Writing) -> io::Result<MapWriter> {
        unreachable!("only synced")
    }

    fn sync_data(&self) -> io::Result<()> {
        assert_eq!(self.running.fetch_add(1, SeqCst), 0, "two syncs at a time");
        let number = self.begun.fetch_add(1, SeqCst);
        let covers = self.written.load(SeqCst);
        if let Some(turn) = &self.turn {
            turn.store(true, SeqCst);
        }
        self.running.fetch_sub(1, SeqCst);
        if self.fails_from.is_some_and(|from| number >= from) {
            assert!(!self.failed.swap(true, SeqCst), "a sync after a failed one");
            return Err(io::Error::other("told to fail"));
        }
        self.durable.fetch_max(covers, SeqCst);
        Ok(())
    }
}

impl Log {
    fn new(fails_from: Option<usize>) -> Arc<Log> {
        let turn = Some(loom::sync::atomic::AtomicBool::new(false));
        Arc::new(Log {
            commit: Commit::new(Position::from_u64(0)),
            end: loom::sync::Mutex::new(0),
            disk: Arc::new(Disk { fails_from, turn, ..Disk::default() }),
        })
    }

    fn append(&self) -> u64 {
        let mut end = self.end.lock().unwrap();
        *end += 1;
        self.disk.written.store(*end, SeqCst);
        *end
    }

    fn sync_to(&self, target: u64) -> Result<(), SyncFailed> {
        self.commit.wait(Position::from_u64(target), || {
            let end = *self.end.lock().unwrap();
            Unsynced { end: Position::from_u64(end), files: vec![self.disk.clone()] }
        })
    }

    /// Appends, waits, and holds the answer against the truth.
    fn insert(&self) -> bool {
        let target = self.append();
        let told = self.sync_to(target).is_ok();
        if told {
            assert!(self.disk.durable.load(SeqCst) >= target, "told that {target} is durable");
        } else {
            assert!(self.commit.is_poisoned(), "an error without a failure");
        }
        assert!(self.commit.through().as_u64() <= self.disk.durable.load(SeqCst));
        told
    }
}

/// Runs `inserts[n]` inserts in the n-th thread, the first one being the main thread.
fn run(log: &Arc<Log>, inserts: &[usize]) {
    let threads: Vec<_> = inserts[1..]
        .iter()
        .map(|&count| {
            let log = log.clone();
            loom::thread::spawn(move || {
                (0..count).for_each(|_| {
                    log.insert();
                })
            })
        })
        .collect();
    (0..inserts[0]).for_each(|_| {
        log.insert();
    });
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// All interleavings with at most `few` switches away from a thread that could go on; with `MILLPOND_MODELS=all`, which
/// takes minutes, with at most `many`, or all there are.
fn explore(few: usize, many: Option<usize>, model: impl Fn() + Send + Sync + 'static) {
    let all = std::env::var("MILLPOND_MODELS").is_ok_and(|value| value == "all");
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = if all { many } else { Some(few) };
    builder.max_branches = 20_000;
    builder.check(model);
}

#[test]
fn two_threads() {
    explore(2, None, || {
        let log = Log::new(None);
        run(&log, &[1, 1]);
        assert_eq!(log.disk.durable.load(SeqCst), 2);
    });
}

#[test]
fn two_threads_that_come_again() {
    explore(2, Some(4), || {
        let log = Log::new(None);
        run(&log, &[2, 2]);
        assert_eq!(log.disk.durable.load(SeqCst), 4);
    });
}

#[test]
fn three_threads() {
    explore(2, Some(3), || {
        let log = Log::new(None);
        run(&log, &[1, 1, 1]);
        assert_eq!(log.disk.durable.load(SeqCst), 3);
    });
}

#[test]
fn three_threads_of_which_two_come_again() {
    explore(1, Some(2), || {
        let log = Log::new(None);
        run(&log, &[2, 1, 2]);
        assert_eq!(log.disk.durable.load(SeqCst), 5);
    });
}

/// One is woken to lead and finds itself served by the sync before; the group that it leaves must get another leader.
#[test]
fn four_threads() {
    explore(1, Some(2), || {
        let log = Log::new(None);
        run(&log, &[1, 1, 1, 1]);
        assert_eq!(log.disk.durable.load(SeqCst), 4);
    });
}

#[test]
fn the_first_sync_fails() {
    explore(2, Some(3), || {
        let log = Log::new(Some(0));
        run(&log, &[1, 1, 1]);
        assert_eq!(log.disk.durable.load(SeqCst), 0);
        assert_eq!(log.disk.begun.load(SeqCst), 1);
    });
}

#[test]
fn the_second_sync_fails() {
    explore(2, Some(3), || {
        let log = Log::new(Some(1));
        run(&log, &[1, 1, 1]);
        assert!(log.disk.begun.load(SeqCst) <= 2);
    });
}

#[test]
fn two_threads_and_a_failing_second_sync() {
    explore(2, Some(4), || {
        let log = Log::new(Some(1));
        run(&log, &[2, 2]);
    });
}

/// Something else fails meanwhile: a cursor, or the directory.
#[test]
fn somebody_poisons_meanwhile() {
    explore(2, Some(3), || {
        let log = Log::new(None);
        let other = log.clone();
        let poisoner = loom::thread::spawn(move || {
            other.commit.poison(io::Error::other("a cursor failed"));
        });
        run(&log, &[1, 1]);
        poisoner.join().unwrap();
        assert!(log.sync_to(log.append()).is_err());
    });
}
