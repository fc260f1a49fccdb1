//! What reviewers have broken, each with its case.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use millpond::State;
use millpond::testing::{Clock, Disk, Fault, FaultKind, step};

use super::simulated::{take_all_space, used};
use super::small_store::{SEGMENT_BYTES, options, payload, settle};
use super::{NEVER, disk_with_slack, fill, get};

/// Ends the other thread, also if something fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A cursor that found no space was not tried again, since the log did not grow any more.
#[test]
fn inserts_work_again_after_a_cursor_that_found_no_space() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = options().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    for n in 0..300 {
        queue.insert(payload(n, 500)).unwrap();
        if n % 50 == 0 {
            settle(&store);
        }
    }
    settle(&store);
    take_all_space(&disk);
    fill(&queue, 300, 500);
    // Another program takes what becomes free at any moment, and removes what is held back.
    disk.on_operation(Some(Box::new(|disk, _| {
        let names = disk.file_names().into_iter().filter(|name| name.starts_with("spare."));
        names.for_each(|name| disk.remove_file(&name));
        take_all_space(disk);
    })));
    assert!(queue.purge(State::Ready).unwrap() >= 300);
    settle(&store);
    let before = used(&disk);
    assert!(before > 2 * SEGMENT_BYTES, "no cursor could be written, and nothing be given back");
    // It has ended, and leaves room for a cursor. Whoever is refused has maintenance look again.
    disk.on_operation(None);
    disk.set_capacity(Some(before + (8 << 10)));
    settle(&store);
    if queue.insert(payload(1, 500)).is_err() {
        settle(&store);
        queue.insert(payload(1, 500)).unwrap();
    }
}

/// Each failure left a file of the full length behind.
#[test]
fn a_segment_that_could_not_be_made_leaves_no_file() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = options().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    disk.fail(Fault { kind: FaultKind::Map, after: 0, sticky: true });
    let refused = (0..300).filter(|&n| queue.insert(payload(n, 500)).is_err()).count();
    assert!(refused > 100, "{refused}");
    disk.heal();
    settle(&store);
    assert!(used(&disk) < 6 * SEGMENT_BYTES, "{}", used(&disk));
}

/// A spare that had its new name already was lost by the write that failed.
#[test]
fn a_write_that_fails_while_a_spare_is_taken_costs_no_spare() {
    let (disk, clock) = (disk_with_slack(NEVER), Clock::new());
    let store = options().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    queue.insert(payload(0, 500)).unwrap();
    settle(&store);
    take_all_space(&disk);
    fill(&queue, 1, 500);
    disk.fail(Fault { kind: FaultKind::Write, after: 0, sticky: true });
    let mut failed = 0;
    while failed < 5 {
        let released = queue.try_get().and_then(|delivery| delivery.unwrap().release());
        failed += u32::from(released.is_err());
    }
    disk.heal();
    settle(&store);
    for _ in 0..5000 {
        get(&queue).release().unwrap();
    }
}

#[test]
fn a_store_opens_and_drains_under_a_limit_below_what_it_takes() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = options().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    for n in 0..2000 {
        queue.insert(payload(n, 500)).unwrap();
    }
    settle(&store);
    store.close().unwrap();
    let limited = options().max_bytes(4 * SEGMENT_BYTES);
    let store = limited.open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    assert!(queue.insert(payload(0, 500)).is_err() || used(&disk) > 4 * SEGMENT_BYTES);
    for _ in 0..2000 {
        get(&queue).delete().unwrap();
    }
    settle(&store);
    fill(&queue, 0, 500);
    settle(&store);
    assert!(used(&disk) <= 4 * SEGMENT_BYTES, "{}", used(&disk));
}

#[test]
fn a_large_message_leaves_no_large_spare() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = options().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    queue.insert(payload(0, 10_000_000)).unwrap();
    for n in 0..300 {
        queue.insert(payload(n, 500)).unwrap();
        settle(&store);
    }
    while let Some(delivery) = queue.try_get().unwrap() {
        delivery.delete().unwrap();
        settle(&store);
    }
    assert!(used(&disk) <= 4 * SEGMENT_BYTES, "{}", used(&disk));
}

/// What cursors left over became segments, until there was none left for a cursor.
#[test]
fn many_queues_do_not_use_up_what_is_held_back_for_cursors() {
    for (queues, slack) in [(20, 0), (50, 0), (80, 0), (80, NEVER)] {
        let (disk, clock) = (disk_with_slack(slack), Clock::new());
        let store = options().open_simulated(&disk, &clock).unwrap();
        for n in 0..queues {
            store.queue(&format!("tenant-{n:06}-outgoing-mail")).unwrap();
        }
        let queue = store.queue("q").unwrap();
        for n in 0..500 {
            queue.insert(payload(n, 500)).unwrap();
            if n % 100 == 0 {
                settle(&store);
            }
        }
        settle(&store);
        take_all_space(&disk);
        fill(&queue, 500, 500);
        for _ in 0..20_000 {
            get(&queue).release().unwrap();
        }
    }
}

/// Declarations that were carried on filled the next segment, which was dead too: cursors without end.
#[test]
fn declarations_do_not_go_round_for_ever() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = options().open_simulated(&disk, &clock).unwrap();
    for n in 0..500 {
        store.queue(&format!("queue-with-a-name-that-is-rather-long-{n:080}")).unwrap();
        if n % 50 == 0 {
            settle(&store);
        }
    }
    let queue = store.queue("q").unwrap();
    for n in 0..2000 {
        queue.insert(payload(n, 500)).unwrap();
        get(&queue).delete().unwrap();
        if n % 50 == 0 {
            settle(&store);
        }
    }
    // All of them are still found when every cursor is lost.
    let disk = disk.kill();
    for name in disk.file_names().iter().filter(|name| name.starts_with("cursor")) {
        disk.remove_file(name);
    }
    let store = options().open_simulated(&disk, &clock).unwrap();
    assert_eq!(store.queue_names().len(), 501);
}

/// Both looked at the limit before either had made its file.
#[test]
fn two_threads_keep_the_limit_together() {
    let limit = 10 * SEGMENT_BYTES;
    for _ in 0..5 {
        let (disk, clock) = (Disk::new(), Clock::new());
        let most = Arc::new(AtomicU64::new(0));
        let seen = most.clone();
        disk.on_operation(Some(Box::new(move |disk, _| {
            seen.fetch_max(used(disk), Ordering::SeqCst);
        })));
        let store = options().max_bytes(limit).open_simulated(&disk, &clock).unwrap();
        let queue = store.queue("q").unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    if !step(&store).unwrap() {
                        std::thread::sleep(Duration::from_micros(10));
                    }
                }
            });
            let _stop = Stop(&done);
            let mut kept = Vec::new();
            for n in 0..1500 {
                let _ = queue.insert(payload(n, 3000));
                match queue.try_get().unwrap() {
                    Some(delivery) if n % 7 == 0 => kept.push(delivery),
                    Some(delivery) if n % 3 > 0 => delivery.delete().unwrap(),
                    _ => {}
                }
                if kept.len() > 100 {
                    kept.drain(..).for_each(|delivery| delivery.delete().unwrap());
                }
            }
        });
        let most = most.load(Ordering::SeqCst);
        assert!(most <= limit, "{most} of {limit}");
    }
}

/// What was held back was known in memory alone, and each open lost some of it.
#[test]
fn a_store_beyond_its_limit_is_opened_again_and_again() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = options().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    for n in 0..700 {
        queue.insert(payload(n, 500)).unwrap();
    }
    store.close().unwrap();
    for _ in 0..100 {
        let limited = options().max_bytes(4 * SEGMENT_BYTES);
        let store = limited.open_simulated(&disk, &clock).unwrap();
        let queue = store.queue("q").unwrap();
        for _ in 0..100 {
            get(&queue).release().unwrap();
        }
        store.close().unwrap();
    }
}

/// Each refusal used up a number, of which there are four billion.
#[test]
fn refused_inserts_use_up_no_segment_numbers() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = options().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    queue.insert(payload(0, 500)).unwrap();
    settle(&store);
    take_all_space(&disk);
    for _ in 0..1000 {
        fill(&queue, 0, 500);
    }
    disk.set_capacity(None);
    for n in 0..500 {
        queue.insert(payload(n, 500)).unwrap();
    }
    let last = disk.file_names().into_iter().filter(|name| name.ends_with(".seg")).max().unwrap();
    assert!(last.as_str() < "0000000050.seg", "{last}");
}
