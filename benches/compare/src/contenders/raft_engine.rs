//! raft-engine: the log store of TiKV. A queue is a group, a message is a key-value pair of it, by its number.
//!
//! Its key-value pairs are used and not its log entries: entries must have consecutive numbers and can be deleted from
//! the front only, which rules out several producers with a shared sync, several consumers, and deletes out of order.

use std::path::Path;

use ::raft_engine::{Config, Engine, LogBatch};

use super::fjall::Numbers;
use crate::contender::{Card, Consumer, Contender, Durability, Producer, Supported};

pub struct RaftEngine {
    engine: Engine,
    sync: bool,
    queues: Vec<Numbers>,
}

/// Groups are numbered from 1 in the Raft world.
fn group(queue: usize) -> u64 {
    queue as u64 + 1
}

fn recovered(engine: &Engine, queue: usize) -> Numbers {
    let edge = |reverse| {
        let mut edge = None;
        let visit = |key: &[u8], _: &[u8]| {
            edge = Some(u64::from_be_bytes(key.try_into().unwrap()));
            false
        };
        engine.scan_raw_messages(group(queue), None, None, reverse, visit).unwrap();
        edge
    };
    Numbers::new(edge(false).unwrap_or(0), edge(true).map_or(0, |last| last + 1))
}

impl Contender for RaftEngine {
    fn card() -> Card {
        Card {
            name: "raft-engine",
            version: super::locked_version("raft-engine"),
            unequal: &[
                "all waiting messages are held in memory too",
                "its garbage collection begins at 10 GB by default, and so has no part in the figures",
            ],
        }
    }

    fn open(dir: &Path, durability: Durability, queues: usize) -> Supported<RaftEngine> {
        let dir = dir.to_str().expect("a path in UTF-8").to_owned();
        let engine = Engine::open(Config { dir, ..Config::default() }).unwrap();
        let queues = (0..queues).map(|queue| recovered(&engine, queue)).collect();
        Ok(RaftEngine { engine, sync: durability == Durability::Sync, queues })
    }

    fn producer(&self, queue: usize) -> Supported<impl Producer + '_> {
        Ok(self.handle(queue))
    }

    fn consumer(&self, queue: usize) -> Supported<impl Consumer + '_> {
        Ok(self.handle(queue))
    }
}

impl RaftEngine {
    fn handle(&self, queue: usize) -> Handle<'_> {
        let batch = LogBatch::default();
        Handle { store: self, numbers: &self.queues[queue], group: group(queue), batch }
    }
}

struct Handle<'a> {
    store: &'a RaftEngine,
    numbers: &'a Numbers,
    group: u64,
    /// Kept for its buffers; a write leaves it empty.
    batch: LogBatch,
}

impl Handle<'_> {
    fn claim(&self) -> Option<(u64, Vec<u8>)> {
        self.numbers.claim(|number| self.store.engine.get(self.group, &number.to_be_bytes()))
    }

    fn claim_many(&self, max: usize, look: &mut dyn FnMut(&[u8])) -> Vec<u64> {
        let claimed: Vec<_> = std::iter::from_fn(|| self.claim()).take(max).collect();
        claimed.iter().for_each(|(_, payload)| look(payload));
        claimed.into_iter().map(|(number, _)| number).collect()
    }

    fn delete(&mut self, numbers: &[u64]) {
        for number in numbers {
            self.batch.delete(self.group, number.to_be_bytes().to_vec());
        }
        self.store.engine.write(&mut self.batch, self.store.sync).unwrap();
    }
}

impl Producer for Handle<'_> {
    fn insert(&mut self, payload: &[u8]) {
        self.insert_batch(&[payload]).unwrap();
    }

    fn insert_batch(&mut self, payloads: &[&[u8]]) -> Supported<()> {
        let first = self.numbers.take(payloads.len());
        for (number, payload) in (first..).zip(payloads) {
            let key = number.to_be_bytes().to_vec();
            self.batch.put(self.group, key, payload.to_vec()).unwrap();
        }
        self.store.engine.write(&mut self.batch, self.store.sync).unwrap();
        Ok(())
    }
}

impl Consumer for Handle<'_> {
    fn pop(&mut self, look: &mut dyn FnMut(&[u8])) -> Supported<bool> {
        let Some((number, payload)) = self.claim() else { return Ok(false) };
        look(&payload);
        self.delete(&[number]);
        Ok(true)
    }

    fn pop_batch(&mut self, max: usize, look: &mut dyn FnMut(&[u8])) -> Supported<usize> {
        let claimed = self.claim_many(max, look);
        self.delete(&claimed);
        Ok(claimed.len())
    }

    fn pop_out_of_order(
        &mut self,
        max: usize,
        order: &[usize],
        look: &mut dyn FnMut(&[u8]),
    ) -> Supported<usize> {
        let claimed = self.claim_many(max, look);
        for number in order.iter().filter_map(|&at| claimed.get(at)) {
            self.delete(&[*number]);
        }
        Ok(claimed.len())
    }
}
