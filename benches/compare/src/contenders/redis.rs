//! Redis with its append-only file. A queue is a stream with a consumer group; a handle is a connection.
//!
//! Streams, and not lists, because several consumers can get, delete in any order, and see again what they did not
//! delete.

use std::path::Path;
use std::thread;
use std::time::Duration;

use super::server::{Connection, Server, version_line};
use crate::contender::{Card, Consumer, Contender, Durability, Producer, Supported, Unsupported};

pub struct Redis {
    server: Server,
}

impl Redis {
    pub fn installed() -> bool {
        version_line("redis-server", "--version").is_some()
    }
}

impl Contender for Redis {
    fn card() -> Card {
        let line = version_line("redis-server", "--version").unwrap_or_default();
        let version = line.split(' ').find_map(|word| word.strip_prefix("v="));
        Card {
            name: "Redis",
            version: version.unwrap_or_default().to_owned(),
            unequal: &[
                "a server: every operation is a round trip over a Unix socket",
                "all waiting messages are held in memory too",
                "a get is written to its log as a delete is, and synced",
            ],
        }
    }

    fn open(dir: &Path, durability: Durability, queues: usize) -> Supported<Redis> {
        if !Redis::installed() {
            return Err(Unsupported("not installed"));
        }
        let fsync = match durability {
            // With `everysec` it holds back writes while a sync is under way, which its own death would lose.
            Durability::Process => "no",
            Durability::Sync => "always",
        };
        let server = Server::start("redis-server", dir, |socket, command| {
            command.args(["--port", "0", "--unixsocket"]).arg(socket);
            command.arg("--dir").arg(dir).args(["--save", ""]);
            command.args(["--appendonly", "yes", "--appendfsync", fsync]);
        });
        let mut client = Client::new(server.connect());
        client.wait_until_loaded();
        for queue in 0..queues {
            let stream = format!("q{queue}");
            // A new group gets everything that is in the stream, which is everything that was not deleted.
            client.ask(&[b"XGROUP", b"CREATE", stream.as_bytes(), b"g", b"0", b"MKSTREAM"]);
            client.ask(&[b"XGROUP", b"SETID", stream.as_bytes(), b"g", b"0"]);
        }
        Ok(Redis { server })
    }

    fn server_pid(&self) -> Option<u32> {
        Some(self.server.pid())
    }

    fn producer(&self, queue: usize) -> Supported<impl Producer + '_> {
        Ok(Stream { client: Client::new(self.server.connect()), name: format!("q{queue}") })
    }

    fn consumer(&self, queue: usize) -> Supported<impl Consumer + '_> {
        Ok(Stream { client: Client::new(self.server.connect()), name: format!("q{queue}") })
    }
}

/// An answer of the server.
#[derive(Debug)]
enum Answer {
    Nothing,
    /// A simple string or an integer, as it stands.
    Word(String),
    Bytes(Vec<u8>),
    List(Vec<Answer>),
    Error(String),
}

impl Answer {
    fn list(self) -> Vec<Answer> {
        match self {
            Answer::List(list) => list,
            other => panic!("not a list: {other:?}"),
        }
    }

    fn bytes(self) -> Vec<u8> {
        match self {
            Answer::Bytes(bytes) => bytes,
            other => panic!("not bytes: {other:?}"),
        }
    }

    fn pair(self) -> [Answer; 2] {
        self.list().try_into().expect("a list of two")
    }
}

/// Commands are collected and sent together.
struct Client {
    connection: Connection,
    request: Vec<u8>,
}

impl Client {
    fn new(connection: Connection) -> Client {
        Client { connection, request: Vec::new() }
    }

    fn command<'a>(
        &mut self,
        parts: impl IntoIterator<Item = &'a [u8], IntoIter: ExactSizeIterator>,
    ) {
        let parts = parts.into_iter();
        self.request.extend_from_slice(format!("*{}\r\n", parts.len()).as_bytes());
        for part in parts {
            self.request.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
            self.request.extend_from_slice(part);
            self.request.extend_from_slice(b"\r\n");
        }
    }

    fn send(&mut self) {
        self.connection.send(&self.request);
        self.request.clear();
    }

    fn ask(&mut self, parts: &[&[u8]]) -> Answer {
        self.command(parts.iter().copied());
        self.send();
        self.answer()
    }

    fn answer(&mut self) -> Answer {
        let line = self.connection.line();
        let (kind, rest) = line.split_at(1);
        let count = || rest.parse::<i64>().expect("a number");
        match kind {
            "+" | ":" => Answer::Word(rest.to_owned()),
            "-" => Answer::Error(rest.to_owned()),
            "$" => match usize::try_from(count()) {
                Ok(count) => Answer::Bytes(self.connection.bytes(count)),
                Err(_) => Answer::Nothing,
            },
            "*" => match usize::try_from(count()) {
                Ok(count) => Answer::List((0..count).map(|_| self.answer()).collect()),
                Err(_) => Answer::Nothing,
            },
            _ => panic!("not an answer: {line}"),
        }
    }

    /// It listens before it has read its log.
    fn wait_until_loaded(&mut self) {
        while let Answer::Error(error) = self.ask(&[b"PING"]) {
            assert!(error.starts_with("LOADING"), "{error}");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

struct Stream {
    client: Client,
    name: String,
}

impl Stream {
    fn add(&mut self, payload: &[u8]) {
        self.client.command([b"XADD", self.name.as_bytes(), b"*", b"m", payload]);
    }

    /// Gets up to `max` messages and shows them; their ids.
    fn get(&mut self, max: usize, look: &mut dyn FnMut(&[u8])) -> Vec<Vec<u8>> {
        let (stream, max) = (self.name.as_bytes(), max.to_string());
        let answer = self.client.ask(&[
            b"XREADGROUP",
            b"GROUP",
            b"g",
            b"c",
            b"COUNT",
            max.as_bytes(),
            b"STREAMS",
            stream,
            b">",
        ]);
        if matches!(answer, Answer::Nothing) {
            return Vec::new();
        }
        // By stream its name and the messages, by message its id and the fields.
        let [_, messages] = answer.list().remove(0).pair();
        let show = |message: Answer| {
            let [id, fields] = message.pair();
            let [_, payload] = fields.pair();
            look(&payload.bytes());
            id.bytes()
        };
        messages.list().into_iter().map(show).collect()
    }

    fn delete(&mut self, ids: &[Vec<u8>]) {
        if ids.is_empty() {
            return;
        }
        let stream = self.name.as_bytes();
        let ids = || ids.iter().map(Vec::as_slice);
        let acknowledge: [&[u8]; 3] = [b"XACK", stream, b"g"];
        self.client.command(acknowledge.into_iter().chain(ids()).collect::<Vec<_>>());
        let delete: [&[u8]; 2] = [b"XDEL", stream];
        self.client.command(delete.into_iter().chain(ids()).collect::<Vec<_>>());
        self.client.send();
        for _ in 0..2 {
            let Answer::Word(count) = self.client.answer() else { panic!("not deleted") };
            assert_eq!(count, ids().len().to_string());
        }
    }
}

impl Producer for Stream {
    fn insert(&mut self, payload: &[u8]) {
        self.add(payload);
        self.client.send();
        self.client.answer().bytes();
    }

    /// A transaction: it is executed, and synced, as one.
    fn insert_batch(&mut self, payloads: &[&[u8]]) -> Supported<()> {
        self.client.command([&b"MULTI"[..]]);
        for payload in payloads {
            self.add(payload);
        }
        self.client.command([&b"EXEC"[..]]);
        self.client.send();
        for _ in 0..payloads.len() + 1 {
            assert!(matches!(self.client.answer(), Answer::Word(_)));
        }
        assert_eq!(self.client.answer().list().len(), payloads.len());
        Ok(())
    }
}

impl Consumer for Stream {
    fn pop(&mut self, look: &mut dyn FnMut(&[u8])) -> Supported<bool> {
        self.pop_batch(1, look).map(|count| count == 1)
    }

    fn pop_batch(&mut self, max: usize, look: &mut dyn FnMut(&[u8])) -> Supported<usize> {
        let ids = self.get(max, look);
        self.delete(&ids);
        Ok(ids.len())
    }

    fn pop_out_of_order(
        &mut self,
        max: usize,
        order: &[usize],
        look: &mut dyn FnMut(&[u8]),
    ) -> Supported<usize> {
        let ids = self.get(max, look);
        for id in order.iter().filter_map(|&at| ids.get(at)) {
            self.delete(std::slice::from_ref(id));
        }
        Ok(ids.len())
    }
}
