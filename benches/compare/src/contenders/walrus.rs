//! walrus-rust: a write-ahead log by topics with a read position for each. A queue is a topic.
//!
//! The position is the only delete there is, and a read that does not move it sees the same message again. So a
//! consumer looks at the head, and then reads it once more to move on, under a lock that keeps other consumers away.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Mutex, OnceLock};
use std::thread;

use ::walrus_rust::{FsyncSchedule, ReadConsistency, Walrus as Log};

use crate::contender::{Card, Consumer, Contender, Durability, Producer, Supported, Unsupported};

/// What it takes in one batch.
const BATCH_MAX: usize = 2000;

pub struct Walrus {
    log: Log,
    queues: Vec<Queue>,
}

struct Queue {
    topic: String,
    consumer: Mutex<()>,
}

impl Contender for Walrus {
    fn card() -> Card {
        Card {
            name: "walrus-rust",
            version: super::locked_version("walrus-rust"),
            unequal: &[
                "a queue serves one consumer at a time",
                "a consumer beside a producer loses messages where a block of 10 MB ends",
                "what was deleted comes back after the second restart",
                "syncs its read position with every delete, also where no power cut is to be survived",
                "syncs every batch of inserts, also where no power cut is to be survived",
            ],
        }
    }

    fn open(dir: &Path, durability: Durability, queues: usize) -> Supported<Walrus> {
        // The first schedule of a process says for all of its stores whether files are opened with O_SYNC.
        static FIRST: OnceLock<Durability> = OnceLock::new();
        let first = *FIRST.get_or_init(|| durability);
        if first == Durability::Sync && durability == Durability::Process {
            return Err(Unsupported("cannot stop syncing once it has begun in a process"));
        }
        // SAFETY: Rust's own readers of the environment are locked out, and there is no other thread of this program
        // that reads it from C while a contender is being opened.
        unsafe {
            // There is no other way to say where the store is, nor to keep it from printing every operation.
            std::env::set_var("WALRUS_DATA_DIR", dir);
            std::env::set_var("WALRUS_QUIET", "1");
        }
        let schedule = match durability {
            Durability::Process => FsyncSchedule::NoFsync,
            Durability::Sync => FsyncSchedule::SyncEach,
        };
        let consistency = ReadConsistency::StrictlyAtOnce;
        let log = Log::with_consistency_and_schedule(consistency, schedule).unwrap();
        let queue = |queue| Queue { topic: format!("q{queue}"), consumer: Mutex::new(()) };
        Ok(Walrus { log, queues: (0..queues).map(queue).collect() })
    }

    fn producer(&self, queue: usize) -> Supported<impl Producer + '_> {
        Ok(Handle { log: &self.log, queue: &self.queues[queue] })
    }

    fn consumer(&self, queue: usize) -> Supported<impl Consumer + '_> {
        Ok(Handle { log: &self.log, queue: &self.queues[queue] })
    }
}

struct Handle<'a> {
    log: &'a Log,
    queue: &'a Queue,
}

/// An append fails while another thread's batch is under way, and is to be tried again.
fn until_it_is_free(mut append: impl FnMut() -> std::io::Result<()>) {
    loop {
        match append() {
            Ok(()) => return,
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
}

impl Producer for Handle<'_> {
    fn insert(&mut self, payload: &[u8]) {
        until_it_is_free(|| self.log.append_for_topic(&self.queue.topic, payload));
    }

    fn insert_batch(&mut self, payloads: &[&[u8]]) -> Supported<()> {
        for part in payloads.chunks(BATCH_MAX) {
            until_it_is_free(|| self.log.batch_append_for_topic(&self.queue.topic, part));
        }
        Ok(())
    }
}

impl Consumer for Handle<'_> {
    fn pop(&mut self, look: &mut dyn FnMut(&[u8])) -> Supported<bool> {
        let _alone = self.queue.consumer.lock().unwrap();
        let Some(message) = self.log.read_next(&self.queue.topic, false).unwrap() else {
            return Ok(false);
        };
        look(&message.data);
        let deleted = self.log.read_next(&self.queue.topic, true).unwrap();
        // A read beside a producer that changes to its next block skips what is left in the last one.
        assert!(deleted.is_some_and(|d| d.data == message.data), "another message was deleted");
        Ok(true)
    }

    /// A batch that begins in a full block goes on in the newest one, whatever is left between them.
    fn pop_batch(&mut self, _: usize, _: &mut dyn FnMut(&[u8])) -> Supported<usize> {
        Err(Unsupported("its batches skip messages"))
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
