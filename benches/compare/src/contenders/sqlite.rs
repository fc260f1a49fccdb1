//! SQLite: a table for each queue in a database in WAL mode.
//!
//! The rowid is the message's place in its queue, so the table is its own index. SQLite has one writer at a time, and
//! those that wait for it poll: the threads share one writing connection under a lock instead, which is faster. Each
//! consumer reads by a connection of its own. A claim is a place kept in memory: the store is that of one process, and
//! what was got and not deleted comes back when it is opened again.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use rusqlite::{Connection, OptionalExtension, params};

use super::locked_version;
use crate::contender::{Card, Consumer, Contender, Durability, Producer, Supported};

pub struct Sqlite {
    path: PathBuf,
    durability: Durability,
    writer: Mutex<Writer>,
    /// By queue: the last message that was got.
    claimed: Vec<Mutex<i64>>,
}

struct Writer {
    connection: Connection,
    /// By queue: the place of the next message.
    next: Vec<i64>,
}

fn connect(path: &Path, durability: Durability) -> Connection {
    let connection = Connection::open(path).unwrap();
    let synchronous = match durability {
        Durability::Process => "NORMAL",
        Durability::Sync => "FULL",
    };
    let settings = format!(
        "PRAGMA journal_mode = WAL;
         PRAGMA synchronous = {synchronous};
         PRAGMA cache_size = -65536;
         PRAGMA mmap_size = 268435456;
         PRAGMA temp_store = MEMORY;
         PRAGMA busy_timeout = 10000;"
    );
    connection.execute_batch(&settings).unwrap();
    connection.set_prepared_statement_cache_capacity(64);
    connection
}

impl Contender for Sqlite {
    fn card() -> Card {
        let version = format!("{} (rusqlite {})", rusqlite::version(), locked_version("rusqlite"));
        Card { name: "SQLite", version, unequal: &[] }
    }

    fn open(dir: &Path, durability: Durability, queues: usize) -> Supported<Sqlite> {
        let path = dir.join("queue.db");
        let connection = connect(&path, durability);
        let next = (0..queues).map(|queue| {
            let table = format!(
                "CREATE TABLE IF NOT EXISTS q{queue} (id INTEGER PRIMARY KEY, payload BLOB)"
            );
            connection.execute_batch(&table).unwrap();
            let last = format!("SELECT max(id) FROM q{queue}");
            let last: Option<i64> = connection.query_row(&last, [], |row| row.get(0)).unwrap();
            last.unwrap_or(0) + 1
        });
        let next = next.collect();
        let claimed = (0..queues).map(|_| Mutex::new(0)).collect();
        Ok(Sqlite { path, durability, writer: Mutex::new(Writer { connection, next }), claimed })
    }

    fn producer(&self, queue: usize) -> Supported<impl Producer + '_> {
        let insert = format!("INSERT INTO q{queue} (id, payload) VALUES (?1, ?2)");
        Ok(Sender { store: self, queue, insert })
    }

    fn consumer(&self, queue: usize) -> Supported<impl Consumer + '_> {
        Ok(Receiver {
            store: self,
            queue,
            reader: connect(&self.path, self.durability),
            next: format!("SELECT id, payload FROM q{queue} WHERE id > ?1 ORDER BY id LIMIT 1"),
            some: format!("SELECT id, payload FROM q{queue} WHERE id > ?1 ORDER BY id LIMIT ?2"),
            delete: format!("DELETE FROM q{queue} WHERE id = ?1"),
            delete_range: format!("DELETE FROM q{queue} WHERE id BETWEEN ?1 AND ?2"),
        })
    }

    fn close(self) {
        let Writer { connection, .. } = self.writer.into_inner().unwrap();
        connection.close().unwrap();
    }
}

impl Sqlite {
    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap()
    }
}

struct Sender<'a> {
    store: &'a Sqlite,
    queue: usize,
    insert: String,
}

impl Producer for Sender<'_> {
    fn insert(&mut self, payload: &[u8]) {
        let mut writer = self.store.writer();
        let id = writer.next[self.queue];
        writer.next[self.queue] += 1;
        // A statement outside of a transaction is one of its own.
        let mut insert = writer.connection.prepare_cached(&self.insert).unwrap();
        insert.execute(params![id, payload]).unwrap();
    }

    fn insert_batch(&mut self, payloads: &[&[u8]]) -> Supported<()> {
        let mut writer = self.store.writer();
        let first = writer.next[self.queue];
        writer.next[self.queue] += payloads.len() as i64;
        let transaction = writer.connection.transaction().unwrap();
        {
            let mut insert = transaction.prepare_cached(&self.insert).unwrap();
            for (id, payload) in (first..).zip(payloads) {
                insert.execute(params![id, payload]).unwrap();
            }
        }
        transaction.commit().unwrap();
        Ok(())
    }
}

struct Receiver<'a> {
    store: &'a Sqlite,
    queue: usize,
    reader: Connection,
    next: String,
    some: String,
    delete: String,
    delete_range: String,
}

impl Receiver<'_> {
    /// Gets up to `max`: the first and the last place, and how many.
    fn claim(&mut self, max: usize, look: &mut dyn FnMut(&[u8]), ids: &mut Vec<i64>) {
        let mut claimed = self.store.claimed[self.queue].lock().unwrap();
        let mut some = self.reader.prepare_cached(&self.some).unwrap();
        let mut rows = some.query(params![*claimed, max as i64]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            look(row.get_ref(1).unwrap().as_blob().unwrap());
            ids.push(row.get(0).unwrap());
        }
        *claimed = ids.last().copied().unwrap_or(*claimed);
    }

    fn delete(&self, id: i64) {
        let writer = self.store.writer();
        let mut delete = writer.connection.prepare_cached(&self.delete).unwrap();
        assert_eq!(delete.execute([id]).unwrap(), 1);
    }
}

impl Consumer for Receiver<'_> {
    fn pop(&mut self, look: &mut dyn FnMut(&[u8])) -> Supported<bool> {
        let mut claimed = self.store.claimed[self.queue].lock().unwrap();
        let mut next = self.reader.prepare_cached(&self.next).unwrap();
        let found = next.query_row([*claimed], |row| {
            look(row.get_ref(1)?.as_blob()?);
            row.get(0)
        });
        let Some(id) = found.optional().unwrap() else {
            return Ok(false);
        };
        *claimed = id;
        drop((claimed, next));
        self.delete(id);
        Ok(true)
    }

    fn pop_batch(&mut self, max: usize, look: &mut dyn FnMut(&[u8])) -> Supported<usize> {
        let mut ids = Vec::with_capacity(max);
        self.claim(max, look, &mut ids);
        let (Some(first), Some(last)) = (ids.first(), ids.last()) else {
            return Ok(0);
        };
        let writer = self.store.writer();
        let mut delete = writer.connection.prepare_cached(&self.delete_range).unwrap();
        // What others have claimed lies before or behind.
        assert_eq!(delete.execute([first, last]).unwrap(), ids.len());
        Ok(ids.len())
    }

    fn pop_out_of_order(
        &mut self,
        max: usize,
        order: &[usize],
        look: &mut dyn FnMut(&[u8]),
    ) -> Supported<usize> {
        let mut ids = Vec::with_capacity(max);
        self.claim(max, look, &mut ids);
        order.iter().filter_map(|&at| ids.get(at)).for_each(|&id| self.delete(id));
        Ok(ids.len())
    }
}
