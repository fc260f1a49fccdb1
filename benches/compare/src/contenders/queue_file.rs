//! queue-file: a ring of messages in one file. A queue is a file.
//!
//! Everything is done under one lock, as its documentation says; a consumer holds it until the message is deleted, for
//! two that read the head would get the same message.

use std::path::Path;
use std::sync::Mutex;

use ::queue_file::QueueFile as Ring;

use crate::contender::{Card, Consumer, Contender, Durability, Producer, Supported, Unsupported};

/// The file grows by doubling and shrinks to this when the queue becomes empty; both cost syncs that no durability
/// asks for.
const CAPACITY: u64 = 64 << 20;

pub struct QueueFile {
    queues: Vec<Mutex<Ring>>,
}

impl Contender for QueueFile {
    fn card() -> Card {
        Card {
            name: "queue-file",
            version: super::locked_version("queue-file"),
            unequal: &["a queue serves one thread at a time"],
        }
    }

    fn open(dir: &Path, durability: Durability, queues: usize) -> Supported<QueueFile> {
        let open = |queue| {
            let path = dir.join(format!("q{queue}"));
            let mut ring = Ring::with_capacity(path, CAPACITY).unwrap();
            ring.set_sync_writes(durability == Durability::Sync);
            // Or what is removed is overwritten with zeros: for secrets, not for safety.
            ring.set_overwrite_on_remove(false);
            Mutex::new(ring)
        };
        Ok(QueueFile { queues: (0..queues).map(open).collect() })
    }

    fn producer(&self, queue: usize) -> Supported<impl Producer + '_> {
        Ok(Handle { ring: &self.queues[queue], buffer: Vec::new() })
    }

    fn consumer(&self, queue: usize) -> Supported<impl Consumer + '_> {
        Ok(Handle { ring: &self.queues[queue], buffer: Vec::new() })
    }
}

struct Handle<'a> {
    ring: &'a Mutex<Ring>,
    buffer: Vec<u8>,
}

impl Producer for Handle<'_> {
    fn insert(&mut self, payload: &[u8]) {
        self.ring.lock().unwrap().add(payload).unwrap();
    }

    fn insert_batch(&mut self, payloads: &[&[u8]]) -> Supported<()> {
        self.ring.lock().unwrap().add_n(payloads).unwrap();
        Ok(())
    }
}

impl Consumer for Handle<'_> {
    fn pop(&mut self, look: &mut dyn FnMut(&[u8])) -> Supported<bool> {
        let mut ring = self.ring.lock().unwrap();
        if !ring.peek_into(&mut self.buffer).unwrap() {
            return Ok(false);
        }
        look(&self.buffer);
        ring.remove().unwrap();
        Ok(true)
    }

    fn pop_batch(&mut self, max: usize, look: &mut dyn FnMut(&[u8])) -> Supported<usize> {
        let mut ring = self.ring.lock().unwrap();
        let count = max.min(ring.size());
        let mut messages = ring.iter();
        for _ in 0..count {
            look(messages.borrowed_next().expect("a message that can be read"));
        }
        ring.remove_n(count).unwrap();
        Ok(count)
    }

    fn pop_out_of_order(
        &mut self,
        _: usize,
        _: &[usize],
        _: &mut dyn FnMut(&[u8]),
    ) -> Supported<usize> {
        Err(Unsupported("deletes from the front only"))
    }
}
