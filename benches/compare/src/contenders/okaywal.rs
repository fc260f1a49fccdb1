//! okaywal: a write-ahead log, so appends only. A queue is a log.

use std::io;
use std::path::Path;

use ::okaywal::{Entry, EntryId, LogManager, SegmentReader, WriteAheadLog};

use crate::contender::{Card, Consumer, Contender, Durability, Producer, Supported, Unsupported};

pub struct OkayWal {
    logs: Vec<WriteAheadLog>,
}

/// Keeps nothing of what the log hands over before it uses a segment again.
#[derive(Debug)]
struct Forget;

impl LogManager for Forget {
    fn recover(&mut self, _: &mut Entry<'_>) -> io::Result<()> {
        Ok(())
    }

    fn checkpoint_to(
        &mut self,
        _: EntryId,
        _: &mut SegmentReader,
        _: &WriteAheadLog,
    ) -> io::Result<()> {
        Ok(())
    }
}

impl Contender for OkayWal {
    fn card() -> Card {
        Card {
            name: "okaywal",
            version: super::locked_version("okaywal"),
            unequal: &[
                "a log without a queue: no get and no delete",
                "hands full segments over to be stored elsewhere, which would cost as much again and is not done here",
                "syncs every commit, also where no power cut is to be survived",
            ],
        }
    }

    fn open(dir: &Path, _: Durability, queues: usize) -> Supported<OkayWal> {
        let open = |queue| WriteAheadLog::recover(dir.join(format!("q{queue}")), Forget).unwrap();
        Ok(OkayWal { logs: (0..queues).map(open).collect() })
    }

    fn producer(&self, queue: usize) -> Supported<impl Producer + '_> {
        Ok(Appender(&self.logs[queue]))
    }

    fn consumer(&self, _: usize) -> Supported<impl Consumer + '_> {
        Err::<Nobody, _>(Unsupported("appends only"))
    }

    fn close(self) {
        for log in self.logs {
            log.shutdown().unwrap();
        }
    }
}

struct Appender<'a>(&'a WriteAheadLog);

impl Producer for Appender<'_> {
    fn insert(&mut self, payload: &[u8]) {
        self.insert_batch(&[payload]).unwrap();
    }

    fn insert_batch(&mut self, payloads: &[&[u8]]) -> Supported<()> {
        let mut entry = self.0.begin_entry().unwrap();
        for payload in payloads {
            entry.write_chunk(payload).unwrap();
        }
        entry.commit().unwrap();
        Ok(())
    }
}

/// The consumer that there is none of.
enum Nobody {}

impl Consumer for Nobody {
    fn pop(&mut self, _: &mut dyn FnMut(&[u8])) -> Supported<bool> {
        match *self {}
    }

    fn pop_batch(&mut self, _: usize, _: &mut dyn FnMut(&[u8])) -> Supported<usize> {
        match *self {}
    }

    fn pop_out_of_order(
        &mut self,
        _: usize,
        _: &[usize],
        _: &mut dyn FnMut(&[u8]),
    ) -> Supported<usize> {
        match *self {}
    }
}
