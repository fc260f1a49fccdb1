//! beanstalkd with its binlog: a work queue server. A queue is a tube; a handle is a connection.
//!
//! What a connection has reserved goes back to the tube when the connection or the server ends.

use std::io::Write;
use std::path::Path;

use super::server::{Connection, Server, path_argument, version_line};
use crate::contender::{Card, Consumer, Contender, Durability, Producer, Supported, Unsupported};

pub struct Beanstalkd {
    server: Server,
}

impl Beanstalkd {
    pub fn installed() -> bool {
        version_line("beanstalkd", "-v").is_some()
    }
}

impl Contender for Beanstalkd {
    fn card() -> Card {
        let version = version_line("beanstalkd", "-v").unwrap_or_default();
        Card {
            name: "beanstalkd",
            version: version.trim_start_matches("beanstalkd ").to_owned(),
            unequal: &[
                "a server: every operation is a round trip over a Unix socket",
                "all waiting messages are held in memory too",
                "no batches: a round trip, and a sync, for each message of one",
            ],
        }
    }

    fn open(dir: &Path, durability: Durability, _: usize) -> Supported<Beanstalkd> {
        if !Beanstalkd::installed() {
            return Err(Unsupported("not installed"));
        }
        let server = Server::start("beanstalkd", dir, |socket, command| {
            command.arg("-l").arg(path_argument("unix:", socket)).arg("-b").arg(dir);
            // The largest job: its default is 64 KiB, and it must fit in a file of the binlog, of 10 MB.
            command.args(["-z", "8388608"]);
            match durability {
                Durability::Process => command.arg("-F"),
                Durability::Sync => command.args(["-f", "0"]),
            };
        });
        Ok(Beanstalkd { server })
    }

    fn server_pid(&self) -> Option<u32> {
        Some(self.server.pid())
    }

    fn producer(&self, queue: usize) -> Supported<impl Producer + '_> {
        Ok(Tube::open(self.server.connect(), queue))
    }

    fn consumer(&self, queue: usize) -> Supported<impl Consumer + '_> {
        Ok(Tube::open(self.server.connect(), queue))
    }
}

struct Tube {
    connection: Connection,
    request: Vec<u8>,
}

impl Tube {
    fn open(mut connection: Connection, queue: usize) -> Tube {
        let request = format!("use q{queue}\r\nwatch q{queue}\r\nignore default\r\n");
        connection.send(request.as_bytes());
        assert_eq!(connection.line(), format!("USING q{queue}"));
        assert_eq!(connection.line(), "WATCHING 2");
        assert_eq!(connection.line(), "WATCHING 1");
        Tube { connection, request: Vec::new() }
    }

    /// Reserves up to `max` jobs and shows them; their ids.
    fn reserve(&mut self, max: usize, look: &mut dyn FnMut(&[u8])) -> Vec<u64> {
        let mut ids = Vec::with_capacity(max);
        while ids.len() < max {
            self.connection.send(b"reserve-with-timeout 0\r\n");
            let answer = self.connection.line();
            if answer == "TIMED_OUT" {
                break;
            }
            let job = answer.strip_prefix("RESERVED ").expect(answer);
            let (id, len) = job.split_once(' ').expect(answer);
            let (id, len) = (id.parse().unwrap(), len.parse().unwrap());
            look(&self.connection.bytes(len));
            ids.push(id);
        }
        ids
    }

    fn delete(&mut self, id: u64) {
        self.connection.send(format!("delete {id}\r\n").as_bytes());
        assert_eq!(self.connection.line(), "DELETED");
    }
}

impl Producer for Tube {
    fn insert(&mut self, payload: &[u8]) {
        self.request.clear();
        // Priority 0, no delay, and an hour for the consumer.
        write!(self.request, "put 0 0 3600 {}\r\n", payload.len()).unwrap();
        self.request.extend_from_slice(payload);
        self.request.extend_from_slice(b"\r\n");
        self.connection.send(&self.request);
        let answer = self.connection.line();
        assert!(answer.starts_with("INSERTED "), "{answer}");
    }

    /// One after another: commands that are sent before the answers are read make it hang for good.
    fn insert_batch(&mut self, payloads: &[&[u8]]) -> Supported<()> {
        payloads.iter().for_each(|payload| self.insert(payload));
        Ok(())
    }
}

impl Consumer for Tube {
    fn pop(&mut self, look: &mut dyn FnMut(&[u8])) -> Supported<bool> {
        self.pop_batch(1, look).map(|count| count == 1)
    }

    fn pop_batch(&mut self, max: usize, look: &mut dyn FnMut(&[u8])) -> Supported<usize> {
        let ids = self.reserve(max, look);
        ids.iter().for_each(|&id| self.delete(id));
        Ok(ids.len())
    }

    fn pop_out_of_order(
        &mut self,
        max: usize,
        order: &[usize],
        look: &mut dyn FnMut(&[u8]),
    ) -> Supported<usize> {
        let ids = self.reserve(max, look);
        order.iter().filter_map(|&at| ids.get(at)).for_each(|&id| self.delete(id));
        Ok(ids.len())
    }
}
