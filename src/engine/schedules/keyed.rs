//! Inserts with the same deduplication key at the same time: one of them is the first, and nobody returns before that one
//! is durable.

use super::*;
use crate::message::Message;
use crate::sync::thread;

fn one_message_for_each_key(bytes: usize) {
    explore(move || {
        let disk = yielding(Disk::new());
        let store = open(&disk, settings(Durability::Sync));
        let queue = queue(&store, "q");
        let inserting = |_| {
            let (disk, queue) = (disk.clone(), queue.clone());
            thread::spawn(move || {
                ["a", "b"].map(|name| {
                    let message = Message::new(payload(name, bytes)).dedup_key(name.as_bytes());
                    let id = queue.insert(message).unwrap();
                    assert!(survives_a_power_cut(&disk, name), "{name} was acknowledged");
                    id
                })
            })
        };
        let threads: Vec<_> = (0..3).map(inserting).collect();
        let ids: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert!(ids.windows(2).all(|pair| pair[0] == pair[1]), "{ids:?}");
        for (name, id) in ["a", "b"].into_iter().zip(ids[0]) {
            let delivery = queue.get().unwrap();
            assert_eq!((name_of(delivery.payload()), delivery.id()), (name.to_owned(), id));
            delivery.delete().unwrap();
        }
        assert!(queue.try_get().unwrap().is_none());
        store.close().unwrap();
    });
}

#[test]
fn of_inserts_with_one_key_one_is_the_first_and_all_wait_for_it() {
    one_message_for_each_key(100);
}

#[test]
fn of_inserts_with_one_key_one_is_the_first_while_the_log_rolls() {
    one_message_for_each_key(2 * LARGE);
}
