//! Damage is reported with the ids that it cost, whenever it is found, and costs nothing beside.

use millpond::testing::{Clock, Disk};
use millpond::{QueueOptions, Store};

use super::{drain, find, opts, proc_opts, steps};

/// Flips a bit of what `file` holds.
fn damage(disk: &Disk, file: &str, content: &str) {
    let mut bytes = disk.read_file(file).unwrap();
    let at = find(&bytes, content.as_bytes());
    bytes[at] ^= 1;
    disk.write_file(file, bytes);
}

fn remove_all(disk: &Disk, is_meant: impl Fn(&str) -> bool) {
    let names = disk.file_names().into_iter().filter(|name| is_meant(name));
    names.for_each(|name| disk.remove_file(&name));
}

/// The two make one stretch, which begins where the first did, and that was known.
#[test]
fn damage_beside_known_damage_is_reported() {
    let (mut disk, clock) = (Disk::new(), Clock::new());
    let store = proc_opts().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    let ids: Vec<u64> =
        (0..10).map(|n| queue.insert(format!("message {n}")).unwrap().as_u64()).collect();
    for n in [4, 5] {
        disk = disk.kill();
        damage(&disk, "0000000001.seg", &format!("message {n}"));
        let store = proc_opts().open_simulated(&disk, &clock).unwrap();
        let found = &store.recovery().damaged;
        assert!(found.iter().any(|damage| damage.ids.contains(&ids[n])), "{n}: {found:?}");
        assert_eq!(&store.stats().damage, found);
    }
    disk = disk.kill();
    let store = proc_opts().open_simulated(&disk, &clock).unwrap();
    assert_eq!(store.recovery().damaged, []);
    let queue = store.queue("q").unwrap();
    assert_eq!(drain(&queue).len(), 8);
    assert_eq!(queue.stats().unwrap().ready, 0);
}

/// The new index was there, without the message, before a cursor that knew of the damage.
#[test]
fn damage_found_before_a_kill_is_found_again() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = proc_opts().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    let message = |n| format!("message {n:02}{}", "x".repeat(5000));
    let ids: Vec<u64> = (0..30).map(|n| queue.insert(message(n)).unwrap().as_u64()).collect();
    store.close().unwrap();
    remove_all(&disk, |name| name.ends_with(".idx"));
    damage(&disk, "0000000001.seg", "message 04");
    let store = proc_opts().open_simulated(&disk, &clock).unwrap();
    store.queue("q").unwrap().try_get().unwrap().unwrap().release().unwrap();
    steps(&store);
    assert_eq!(store.stats().damage.len(), 1);
    let disk = disk.kill();
    assert!(disk.read_file("0000000001.idx").is_some());
    let store = proc_opts().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    assert_eq!(drain(&queue).len(), 29);
    assert_eq!(queue.stats().unwrap().ready, 0);
    let found = store.stats().damage;
    assert!(found.iter().any(|damage| damage.ids.contains(&ids[4])), "{found:?}");
    store.remove("q").unwrap();
}

/// The segment that the log went on in is lost. The number of another one was below that which the last frame names: a
/// walk of the whole log went by the frame, and set the segment with the lower number aside.
#[test]
fn a_segment_that_was_named_before_it_was_lost_costs_none_that_come_after_it() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = proc_opts().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    for n in 0..8 {
        queue.insert(vec![n; 5000]).unwrap();
        steps(&store);
    }
    store.close().unwrap();
    let names = disk.file_names().into_iter();
    disk.remove_file(&names.filter(|name| name.ends_with(".seg")).max().unwrap());
    let store = proc_opts().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    for n in 8..50 {
        queue.insert(vec![n; 5000]).unwrap();
        steps(&store);
    }
    store.close().unwrap();
    remove_all(&disk, |name| name.starts_with("cursor."));
    let store = proc_opts().open_simulated(&disk, &clock).unwrap();
    assert_eq!(drain(&store.queue("q").unwrap()).len(), 50);
}

/// A new segment had the number of the lost one, and damage in it was taken for what was known of that.
#[test]
fn damage_of_a_lost_segment_is_not_known_of_another() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = proc_opts().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    for n in 0..10 {
        queue.insert(format!("message {n}")).unwrap();
    }
    let disk = disk.kill();
    damage(&disk, "0000000001.seg", "message 0");
    drop(proc_opts().open_simulated(&disk, &clock).unwrap());
    disk.remove_file("0000000001.seg");
    // As long as the declaration that the first one began with makes the first message of the next one begin there.
    for length in 0..80 {
        let disk = disk.kill();
        let store = proc_opts().open_simulated(&disk, &clock).unwrap();
        let queue = store.queue("q").unwrap();
        queue.insert("x".repeat(length)).unwrap();
        let id = queue.insert("the second").unwrap().as_u64();
        queue.insert("the third").unwrap();
        let disk = disk.kill();
        let is_in = |name: &String| name.ends_with(".seg");
        let newest = disk.file_names().into_iter().filter(is_in).max().unwrap();
        damage(&disk, &newest, "the second");
        let store = proc_opts().open_simulated(&disk, &clock).unwrap();
        let found = &store.recovery().damaged;
        assert!(found.iter().any(|damage| damage.ids.contains(&id)), "{length}: {found:?}");
    }
}

/// The cursor was true of the very start of that segment, and ids had been left out behind it.
#[test]
fn damage_to_the_first_message_of_a_segment_is_reported_with_its_id() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = opts().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    for n in 0..8 {
        queue.insert(vec![n; 5000]).unwrap();
    }
    // The log goes on in an empty segment.
    store.close().unwrap();
    let unclean = opts().open_simulated(&disk, &clock).unwrap();
    let disk = disk.kill();
    drop(unclean);
    let store = opts().open_simulated(&disk, &clock).unwrap();
    let queue = store.queue("q").unwrap();
    let id = queue.insert("the first").unwrap().as_u64();
    queue.pause().unwrap();
    let disk = disk.kill();
    let holds = |name: &String| {
        let bytes = disk.read_file(name).unwrap();
        name.ends_with(".seg") && bytes.windows(9).any(|window| window == b"the first")
    };
    let name = disk.file_names().into_iter().find(holds).unwrap();
    damage(&disk, &name, "the first");
    let store = opts().open_simulated(&disk, &clock).unwrap();
    let found = &store.recovery().damaged;
    assert!(found.iter().any(|damage| damage.ids.contains(&id)), "{id}: {found:?}");
}

/// The cursors still knew the queue by its name; when they were lost too, nothing did.
#[test]
fn a_queue_whose_declaration_is_lost_is_declared_again() {
    let (disk, clock) = (Disk::new(), Clock::new());
    let store = proc_opts().open_simulated(&disk, &clock).unwrap();
    let options = QueueOptions::new().max_messages(1000);
    let fill = |store: &Store| {
        let queue = store.declare("orders", options.clone()).unwrap();
        for n in 0..30 {
            queue.insert(vec![n; 5000]).unwrap();
            steps(store);
        }
    };
    fill(&store);
    store.close().unwrap();
    disk.remove_file("0000000001.seg");
    let store = proc_opts().open_simulated(&disk, &clock).unwrap();
    fill(&store);
    store.close().unwrap();
    remove_all(&disk, |name| name.starts_with("cursor."));
    let store = proc_opts().open_simulated(&disk, &clock).unwrap();
    assert_eq!(store.queue_names(), ["orders"]);
}
