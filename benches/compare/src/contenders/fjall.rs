//! fjall: a log-structured merge tree. A queue is a keyspace, a message's key is its number, big-endian.
//!
//! A message that was got is marked in memory only, so that after a restart it is there again. [`Numbers`] is for
//! every store whose keys are given out by the adapter.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use ::fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Slice};

use crate::contender::{Card, Consumer, Contender, Durability, Producer, Supported};

/// The numbers of one queue: those that were given to messages, and the first that nobody has got.
pub(super) struct Numbers {
    next: AtomicU64,
    head: Mutex<u64>,
    /// Below it are the numbers of earlier runs, of which any may have been deleted.
    recovered: u64,
}

impl Numbers {
    /// `first` is the lowest number that the store holds, `end` is one above the highest.
    pub(super) fn new(first: u64, end: u64) -> Numbers {
        Numbers { next: AtomicU64::new(end), head: Mutex::new(first), recovered: end }
    }

    /// Numbers for `count` messages that are about to be inserted; the first of them.
    pub(super) fn take(&self, count: usize) -> u64 {
        self.next.fetch_add(count as u64, Ordering::Relaxed)
    }

    /// Gives the oldest message to the caller alone. A number that was taken and is not in the store yet ends the
    /// search: whoever took it is inserting it, and it must not be overtaken for good.
    pub(super) fn claim<V>(&self, mut get: impl FnMut(u64) -> Option<V>) -> Option<(u64, V)> {
        let mut head = self.head.lock().unwrap();
        while *head < self.next.load(Ordering::Relaxed) {
            let number = *head;
            match get(number) {
                Some(value) => {
                    *head += 1;
                    return Some((number, value));
                }
                None if number < self.recovered => *head += 1,
                None => return None,
            }
        }
        None
    }
}

pub struct Fjall {
    db: Database,
    persist: PersistMode,
    queues: Vec<Queue>,
}

struct Queue {
    keyspace: Keyspace,
    numbers: Numbers,
}

impl Queue {
    fn open(db: &Database, queue: usize) -> Queue {
        let keyspace = db.keyspace(&format!("q{queue}"), KeyspaceCreateOptions::default).unwrap();
        let number = |key: Slice| u64::from_be_bytes(key[..].try_into().unwrap());
        let first = keyspace.first_key_value().map_or(0, |entry| number(entry.key().unwrap()));
        let end = keyspace.last_key_value().map_or(0, |entry| number(entry.key().unwrap()) + 1);
        Queue { keyspace, numbers: Numbers::new(first, end) }
    }

    fn claim(&self) -> Option<(u64, Slice)> {
        self.numbers.claim(|number| self.keyspace.get(number.to_be_bytes()).unwrap())
    }
}

impl Contender for Fjall {
    fn card() -> Card {
        Card { name: "fjall", version: super::locked_version("fjall"), unequal: &[] }
    }

    fn open(dir: &Path, durability: Durability, queues: usize) -> Supported<Fjall> {
        let db = Database::builder(dir).open().unwrap();
        let persist = match durability {
            Durability::Process => PersistMode::Buffer,
            Durability::Sync => PersistMode::SyncData,
        };
        let queues = (0..queues).map(|queue| Queue::open(&db, queue)).collect();
        Ok(Fjall { db, persist, queues })
    }

    fn producer(&self, queue: usize) -> Supported<impl Producer + '_> {
        Ok(Handle { store: self, queue: &self.queues[queue] })
    }

    fn consumer(&self, queue: usize) -> Supported<impl Consumer + '_> {
        Ok(Handle { store: self, queue: &self.queues[queue] })
    }
}

struct Handle<'a> {
    store: &'a Fjall,
    queue: &'a Queue,
}

impl Handle<'_> {
    fn delete(&self, numbers: impl IntoIterator<Item = u64>) {
        let mut batch = self.store.db.batch().durability(Some(self.store.persist));
        for number in numbers {
            batch.remove(&self.queue.keyspace, number.to_be_bytes());
        }
        batch.commit().unwrap();
    }
}

impl Producer for Handle<'_> {
    fn insert(&mut self, payload: &[u8]) {
        self.insert_batch(&[payload]).unwrap();
    }

    /// A batch is applied after its sync, so nobody gets a message that a power cut could take back. (An insert
    /// outside of a batch, and a sync afterwards, costs as many syncs.)
    fn insert_batch(&mut self, payloads: &[&[u8]]) -> Supported<()> {
        let first = self.queue.numbers.take(payloads.len());
        let mut batch = self.store.db.batch().durability(Some(self.store.persist));
        for (number, payload) in (first..).zip(payloads) {
            batch.insert(&self.queue.keyspace, number.to_be_bytes(), *payload);
        }
        batch.commit().unwrap();
        Ok(())
    }
}

impl Consumer for Handle<'_> {
    fn pop(&mut self, look: &mut dyn FnMut(&[u8])) -> Supported<bool> {
        let Some((number, payload)) = self.queue.claim() else { return Ok(false) };
        look(&payload);
        self.delete([number]);
        Ok(true)
    }

    fn pop_batch(&mut self, max: usize, look: &mut dyn FnMut(&[u8])) -> Supported<usize> {
        let claimed: Vec<_> = std::iter::from_fn(|| self.queue.claim()).take(max).collect();
        claimed.iter().for_each(|(_, payload)| look(payload));
        self.delete(claimed.iter().map(|(number, _)| *number));
        Ok(claimed.len())
    }

    fn pop_out_of_order(
        &mut self,
        max: usize,
        order: &[usize],
        look: &mut dyn FnMut(&[u8]),
    ) -> Supported<usize> {
        let claimed: Vec<_> = std::iter::from_fn(|| self.queue.claim()).take(max).collect();
        claimed.iter().for_each(|(_, payload)| look(payload));
        for (number, _) in order.iter().filter_map(|&at| claimed.get(at)) {
            self.delete([*number]);
        }
        Ok(claimed.len())
    }
}
