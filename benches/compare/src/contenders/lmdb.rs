//! LMDB through heed: a memory-mapped B+ tree with one writer at a time. A queue is a database, a message's key is its
//! number, big-endian.
//!
//! A message that was got is marked in memory only, so that after a restart it is there again.

use std::ops::Bound;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use ::heed::byteorder::BigEndian;
use ::heed::types::{Bytes, U64};
use ::heed::{CommitOrAbort, Database, Env, EnvFlags, EnvOpenOptions, Error, PutFlags, RoTxn};

use crate::contender::{Card, Consumer, Contender, Durability, Producer, Supported};

/// Address space, not disk: the file is sparse.
const MAP_BYTES: usize = 32 << 30;

pub struct Lmdb {
    env: Env,
    queues: Vec<Queue>,
}

struct Queue {
    messages: Database<'static, U64<BigEndian>, Bytes>,
    /// The number of the next message. Changed by the write transaction alone, so that messages become visible in the
    /// order of their numbers.
    next: AtomicU64,
    /// Nobody has got the messages from this number on.
    head: Mutex<u64>,
}

impl Queue {
    fn open(env: &Env, queue: usize) -> Queue {
        let name = format!("q{queue}");
        let txn = env.write_txn().unwrap();
        let messages: Database<'static, U64<BigEndian>, Bytes> = env
            .create_databases_and_commit(txn, |opener, txn| {
                let database = opener.create_database(txn, Some(&name))?;
                Ok::<_, Error>(CommitOrAbort::<_, ()>::Commit(database))
            })
            .unwrap()
            .unwrap_commit();
        let txn = env.read_txn().unwrap();
        let next = messages.last(&txn).unwrap().map_or(0, |(last, _)| last + 1);
        Queue { messages, next: AtomicU64::new(next), head: Mutex::new(0) }
    }

    /// Gives up to `max` messages to the caller alone, and shows them where they lie in the map.
    fn claim(&self, txn: &RoTxn, max: usize, look: &mut dyn FnMut(&[u8])) -> Vec<u64> {
        let mut head = self.head.lock().unwrap();
        let mut claimed = Vec::with_capacity(max);
        let rest = self.messages.range(txn, &(Bound::Included(*head), Bound::Unbounded)).unwrap();
        for message in rest.take(max) {
            let (number, payload) = message.unwrap();
            look(payload);
            claimed.push(number);
            *head = number + 1;
        }
        claimed
    }
}

impl Contender for Lmdb {
    fn card() -> Card {
        let heed = super::locked_version("heed");
        Card { name: "LMDB", version: format!("heed {heed}"), unequal: &[] }
    }

    fn open(dir: &Path, durability: Durability, queues: usize) -> Supported<Lmdb> {
        let mut options = EnvOpenOptions::new();
        options.map_size(MAP_BYTES).max_dbs(queues as u32);
        // SAFETY: no other process touches the directory, and a system that goes down is not what these flags are
        // measured for: the death of the process does not harm a map that is written without a sync.
        let env = unsafe {
            if durability == Durability::Process {
                options.flags(EnvFlags::NO_SYNC | EnvFlags::WRITE_MAP);
            }
            options.open(dir).unwrap()
        };
        let queues = (0..queues).map(|queue| Queue::open(&env, queue)).collect();
        Ok(Lmdb { env, queues })
    }

    fn producer(&self, queue: usize) -> Supported<impl Producer + '_> {
        Ok(Handle { env: &self.env, queue: &self.queues[queue] })
    }

    fn consumer(&self, queue: usize) -> Supported<impl Consumer + '_> {
        Ok(Handle { env: &self.env, queue: &self.queues[queue] })
    }
}

struct Handle<'a> {
    env: &'a Env,
    queue: &'a Queue,
}

impl Handle<'_> {
    fn delete(&self, numbers: &[u64]) {
        if numbers.is_empty() {
            return;
        }
        let mut txn = self.env.write_txn().unwrap();
        for number in numbers {
            assert!(self.queue.messages.delete(&mut txn, number).unwrap());
        }
        txn.commit().unwrap();
    }

    fn get(&self, max: usize, look: &mut dyn FnMut(&[u8])) -> Vec<u64> {
        let txn = self.env.read_txn().unwrap();
        self.queue.claim(&txn, max, look)
    }
}

impl Producer for Handle<'_> {
    fn insert(&mut self, payload: &[u8]) {
        self.insert_batch(&[payload]).unwrap();
    }

    fn insert_batch(&mut self, payloads: &[&[u8]]) -> Supported<()> {
        let mut txn = self.env.write_txn().unwrap();
        for payload in payloads {
            // The write transaction is a lock, so this needs none.
            let number = self.queue.next.load(Ordering::Relaxed);
            self.queue.next.store(number + 1, Ordering::Relaxed);
            // Appending saves the search, as the numbers only rise.
            let messages = &self.queue.messages;
            messages.put_with_flags(&mut txn, PutFlags::APPEND, &number, payload).unwrap();
        }
        txn.commit().unwrap();
        Ok(())
    }
}

impl Consumer for Handle<'_> {
    fn pop(&mut self, look: &mut dyn FnMut(&[u8])) -> Supported<bool> {
        self.pop_batch(1, look).map(|count| count == 1)
    }

    fn pop_batch(&mut self, max: usize, look: &mut dyn FnMut(&[u8])) -> Supported<usize> {
        let claimed = self.get(max, look);
        self.delete(&claimed);
        Ok(claimed.len())
    }

    fn pop_out_of_order(
        &mut self,
        max: usize,
        order: &[usize],
        look: &mut dyn FnMut(&[u8]),
    ) -> Supported<usize> {
        let claimed = self.get(max, look);
        for number in order.iter().filter_map(|&at| claimed.get(at)) {
            self.delete(&[*number]);
        }
        Ok(claimed.len())
    }
}
