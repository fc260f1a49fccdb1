//! Consumers of messages that belong to groups: one of each is out at a time, in order, and nobody sleeps while one may
//! go out.

use std::collections::HashMap;

use super::*;
use crate::message::Message;
use crate::sync::thread;

/// What the consumers have seen: of each group, how many are done with, and whether one is out.
#[derive(Default)]
struct Seen(Mutex<HashMap<char, (u32, bool)>>);

impl Seen {
    fn out(&self, name: &str) {
        let mut seen = self.0.lock().unwrap();
        let (done, is_out) = seen.entry(name.chars().next().unwrap()).or_default();
        assert!(!*is_out, "{name} is out beside another one");
        assert_eq!(name[1..].parse(), Ok(*done), "{name} is out of order");
        *is_out = true;
    }

    fn done(&self, name: &str) {
        let mut seen = self.0.lock().unwrap();
        let (done, is_out) = seen.entry(name.chars().next().unwrap()).or_default();
        (*done, *is_out) = (*done + 1, false);
    }
}

#[test]
fn of_a_group_one_is_out_at_a_time_and_who_waits_for_it_is_woken() {
    explore(|| {
        let disk = yielding(Disk::new());
        let store = open(&disk, settings(Durability::Process));
        let queue = queue(&store, "q");
        let seen = Arc::new(Seen::default());
        let consumers: Vec<_> = (0..2)
            .map(|_| {
                let (queue, seen) = (queue.clone(), seen.clone());
                thread::spawn(move || {
                    for _ in 0..2 {
                        let delivery = queue.get().unwrap();
                        let name = name_of(delivery.payload());
                        seen.out(&name);
                        seen.done(&name);
                        delivery.delete().unwrap();
                    }
                })
            })
            .collect();
        for name in ["a0", "a1", "b0", "a2"] {
            let group = name[..1].as_bytes();
            queue.insert(Message::new(payload(name, 50)).group(group)).unwrap();
        }
        consumers.into_iter().for_each(|consumer| consumer.join().unwrap());
        assert!(queue.try_get().unwrap().is_none());
        store.close().unwrap();
    });
}
