//! redb: a table for each queue, keyed by the message's place.
//!
//! Its commits are synced or lost with the process; there is nothing between. For `Process` it therefore runs over a
//! file whose sync does nothing, which is faster than what its own file would give. A claim is a place kept in memory.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;

use redb::{
    Builder, Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition,
    WriteTransaction,
};

use super::locked_version;
use crate::contender::{Card, Consumer, Contender, Durability, Producer, Supported};

pub struct Redb {
    database: Database,
    queues: Vec<Places>,
}

struct Places {
    name: String,
    /// The place of the next message. Taken inside of the write transaction, so that the places are committed in order.
    next: Mutex<u64>,
    /// Messages before this place were got.
    claimed: Mutex<u64>,
}

impl Places {
    fn table(&self) -> TableDefinition<'_, u64, &'static [u8]> {
        TableDefinition::new(&self.name)
    }
}

#[derive(Debug)]
struct Backend {
    file: File,
    synced: bool,
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.synced { self.file.sync_data() } else { Ok(()) }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }
}

impl Contender for Redb {
    fn card() -> Card {
        Card {
            name: "redb",
            version: locked_version("redb"),
            unequal: &[
                "has no durability between none and a sync; where no power cut is to be survived, it runs \
                        over a file whose sync does nothing",
            ],
        }
    }

    fn open(dir: &Path, durability: Durability, queues: usize) -> Supported<Redb> {
        let path = dir.join("queue.redb");
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let backend = Backend { file: file.unwrap(), synced: durability == Durability::Sync };
        let database = Builder::new().create_with_backend(backend).unwrap();
        let queues = (0..queues).map(|n| places(&database, format!("q{n}"))).collect();
        Ok(Redb { database, queues })
    }

    fn producer(&self, queue: usize) -> Supported<impl Producer + '_> {
        Ok(Handle { database: &self.database, places: &self.queues[queue] })
    }

    fn consumer(&self, queue: usize) -> Supported<impl Consumer + '_> {
        Ok(Handle { database: &self.database, places: &self.queues[queue] })
    }
}

/// Makes the table if there is none, and finds its ends.
fn places(database: &Database, name: String) -> Places {
    let places = Places { name, next: Mutex::new(0), claimed: Mutex::new(0) };
    let transaction = database.begin_write().unwrap();
    {
        let table = transaction.open_table(places.table()).unwrap();
        if let Some((last, _)) = table.last().unwrap() {
            *places.next.lock().unwrap() = last.value() + 1;
        }
    }
    transaction.commit().unwrap();
    places
}

struct Handle<'a> {
    database: &'a Database,
    places: &'a Places,
}

impl Handle<'_> {
    fn write(&self) -> WriteTransaction {
        self.database.begin_write().unwrap()
    }

    /// Gets up to `max`, and returns their places.
    fn claim(&self, max: usize, look: &mut dyn FnMut(&[u8])) -> Vec<u64> {
        let mut claimed = self.places.claimed.lock().unwrap();
        let transaction = self.database.begin_read().unwrap();
        let table = transaction.open_table(self.places.table()).unwrap();
        let mut ids = Vec::with_capacity(max);
        for found in table.range(*claimed..).unwrap().take(max) {
            let (id, payload) = found.unwrap();
            look(payload.value());
            ids.push(id.value());
        }
        *claimed = ids.last().map_or(*claimed, |last| last + 1);
        ids
    }

    fn delete(&self, ids: &[u64]) {
        let transaction = self.write();
        {
            let mut table = transaction.open_table(self.places.table()).unwrap();
            for id in ids {
                assert!(table.remove(id).unwrap().is_some());
            }
        }
        transaction.commit().unwrap();
    }
}

impl Producer for Handle<'_> {
    fn insert(&mut self, payload: &[u8]) {
        let Ok(()) = self.insert_batch(&[payload]) else { unreachable!("it takes batches") };
    }

    fn insert_batch(&mut self, payloads: &[&[u8]]) -> Supported<()> {
        let transaction = self.write();
        {
            let mut next = self.places.next.lock().unwrap();
            let mut table = transaction.open_table(self.places.table()).unwrap();
            for payload in payloads {
                table.insert(*next, *payload).unwrap();
                *next += 1;
            }
        }
        transaction.commit().unwrap();
        Ok(())
    }
}

impl Consumer for Handle<'_> {
    fn pop(&mut self, look: &mut dyn FnMut(&[u8])) -> Supported<bool> {
        Ok(self.pop_batch(1, look)? == 1)
    }

    fn pop_batch(&mut self, max: usize, look: &mut dyn FnMut(&[u8])) -> Supported<usize> {
        let ids = self.claim(max, look);
        if !ids.is_empty() {
            self.delete(&ids);
        }
        Ok(ids.len())
    }

    fn pop_out_of_order(
        &mut self,
        max: usize,
        order: &[usize],
        look: &mut dyn FnMut(&[u8]),
    ) -> Supported<usize> {
        let ids = self.claim(max, look);
        order.iter().filter_map(|&at| ids.get(at)).for_each(|&id| self.delete(&[id]));
        Ok(ids.len())
    }
}
