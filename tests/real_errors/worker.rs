//! A process that meets an error, or dies of it, and says what it was told.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use millpond::{Durability, Error, Queue, Store};

use super::{Told, number, options, payload};

const ORDERS: &str = "MILLPOND_REAL_ERRORS_WORKER";

/// Of so many messages one is got and deleted.
const DELETED_EVERY: u64 = 4;

/// How often an insert is tried that is refused.
const TRIES: usize = 3;

#[derive(Clone, Debug)]
pub struct Orders {
    pub dir: PathBuf,
    pub durability: Durability,
    pub segment_bytes: u64,
    /// Messages to insert before it waits for a word.
    pub before: u64,
    /// And from then on.
    pub after: u64,
    pub task: Task,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    Insert,
    /// To get all that there is.
    Get,
    /// To verify the store again and again, without opening it.
    Verify,
}

impl Orders {
    fn encode(&self) -> String {
        let Orders { dir, durability, segment_bytes, before, after, task } = self;
        let sync = *durability == Durability::Sync;
        format!("{sync} {segment_bytes} {before} {after} {task:?} {}", dir.display())
    }

    fn decode(text: &str) -> Option<Orders> {
        let mut words = text.splitn(6, ' ');
        let durability = match words.next()? {
            "true" => Durability::Sync,
            _ => Durability::Process,
        };
        let mut number = || words.next()?.parse().ok();
        let (segment_bytes, before, after) = (number()?, number()?, number()?);
        let task = match words.next()? {
            "Get" => Task::Get,
            "Verify" => Task::Verify,
            _ => Task::Insert,
        };
        let dir = words.next()?.into();
        Some(Orders { dir, durability, segment_bytes, before, after, task })
    }
}

/// A worker that has begun.
pub struct Worker {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
    pub told: Told,
    pub errors: Vec<String>,
}

/// Starts a worker by a shell, which sets limits first.
pub fn start(orders: &Orders, limits: &str) -> Worker {
    let mut child = Command::new("sh")
        .args(["-c", &format!("{limits} exec \"$0\" \"$@\"")])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "worker", "--ignored", "--nocapture"])
        .env(ORDERS, orders.encode())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    Worker { child, lines, told: Told::default(), errors: Vec::new() }
}

impl Worker {
    /// Reads what it says until it waits. False if it has ended.
    pub fn wait_until_ready(&mut self) -> bool {
        while let Some(Ok(line)) = self.lines.next() {
            // The harness writes the name of the test in front of the first line.
            let line = line.split(" ... ").last().unwrap_or_default();
            let mut words = line.split(' ');
            let (word, n) = (words.next(), words.next().and_then(|n| n.parse::<u64>().ok()));
            match (word, n) {
                (Some("ready"), _) => return true,
                (Some("inserting"), Some(n)) => drop(self.told.uncertain.insert(n)),
                (Some("inserted"), Some(n)) => {
                    self.told.uncertain.remove(&n);
                    self.told.inserted.insert(n);
                }
                (Some("deleting"), Some(n)) => drop(self.told.deleting.insert(n)),
                (Some("deleted"), Some(n)) => drop(self.told.deleted.insert(n)),
                (Some("error"), _) => self.errors.push(line.to_owned()),
                _ => {}
            }
        }
        false
    }

    /// Lets it go on, and reads all that it says to its end.
    pub fn finish(mut self) -> (ExitStatus, Told, Vec<String>) {
        let _ = self.child.stdin.take().unwrap().write_all(b"g");
        while self.wait_until_ready() {}
        (self.child.wait().unwrap(), self.told, self.errors)
    }

    pub fn has_died_of(status: ExitStatus, signal: i32) -> bool {
        status.signal() == Some(signal)
    }
}

pub fn run_if_started() {
    let Ok(text) = std::env::var(ORDERS) else { return };
    let orders = Orders::decode(&text).expect("orders that this binary has written");
    match orders.task {
        Task::Verify => verify(&orders.dir),
        task => {
            let outcome = use_store(&orders, task);
            outcome.unwrap_or_else(|error| say_error("store", &error));
        }
    }
    // Without a close, as a process that dies of it.
    std::process::exit(0);
}

fn say_error(what: &str, error: &Error) {
    println!("error {what} {:?} {}: {error}", error.kind(), error.is_indeterminate());
}

fn wait() {
    println!("ready");
    let _ = std::io::stdin().read(&mut [0]);
}

fn use_store(orders: &Orders, task: Task) -> millpond::Result<()> {
    let store = options(orders.durability, orders.segment_bytes).open(&orders.dir)?;
    let queue = store.queue("q")?;
    insert(&queue, 0..orders.before);
    if task == Task::Get {
        return get_all(&queue);
    }
    wait();
    insert(&queue, orders.before..orders.before + orders.after);
    Ok(())
}

/// Gets everything, and holds all of it until it dies: what is dropped would come back only after a backoff.
fn get_all(queue: &Queue) -> millpond::Result<()> {
    // The segment that it is in is mapped from now on.
    let mut held: Vec<_> = queue.try_get()?.into_iter().collect();
    wait();
    while let Some(delivery) = queue.try_get()? {
        println!("got {}", number(delivery.payload()));
        held.push(delivery);
    }
    Ok(())
}

/// Inserts until nothing goes on any more.
fn insert(queue: &Queue, numbers: std::ops::Range<u64>) {
    let mut refused = 0;
    for n in numbers {
        println!("inserting {n}");
        match queue.insert(payload(n)) {
            Ok(_) => println!("inserted {n}"),
            Err(error) => {
                say_error("insert", &error);
                refused += 1;
            }
        }
        if refused > 0 || n % DELETED_EVERY == 0 {
            delete_one(queue);
        }
        if refused == TRIES {
            return;
        }
    }
}

fn delete_one(queue: &Queue) {
    match queue.try_get() {
        Ok(None) => {}
        Err(error) => say_error("get", &error),
        Ok(Some(delivery)) => {
            let n = number(delivery.payload());
            println!("deleting {n}");
            match delivery.delete() {
                Ok(()) => println!("deleted {n}"),
                Err(error) => say_error("delete", &error),
            }
        }
    }
}

fn verify(dir: &Path) {
    println!("ready");
    let began = std::time::Instant::now();
    while began.elapsed() < std::time::Duration::from_secs(2) {
        // Whatever it says of a file that changes under it.
        let _ = Store::verify(dir);
    }
    println!("verified 0");
}
