//! The process that is killed: it plays the script on a store, and writes down how far it has come.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use millpond::{Delivery, Durability, Error, ErrorKind, Fate, Queue, Store, testing};

use crate::content::{Content, DEAD, payload};
use crate::script::{Answer, Expected, Script, Step};

/// What the parent tells its child, through the environment.
#[derive(Clone, Debug)]
pub struct Orders {
    /// Where the store lies, in `store`, and what the child writes down, in `journal`.
    pub base: PathBuf,
    pub durability: Durability,
    pub task: Task,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// To play the script.
    Play { seed: u64, acts: usize, steps: usize },
    /// To open the store that is there, and close it.
    Open,
}

const ORDERS: &str = "MILLPOND_SYSCALLS_CHILD";

/// The child has begun, and waits to be told to go on.
pub const READY: &str = "ready";

/// Nothing that is there takes longer to get.
const GET_MAX: Duration = Duration::from_secs(10);

impl Orders {
    pub fn encode(&self) -> (&'static str, String) {
        let sync = self.durability == Durability::Sync;
        let (seed, acts, steps) = match self.task {
            Task::Play { seed, acts, steps } => (seed, acts, steps),
            Task::Open => (0, 0, 0),
        };
        (ORDERS, format!("{sync} {seed} {acts} {steps} {}", self.base.display()))
    }

    fn decode(text: &str) -> Option<Orders> {
        let mut words = text.splitn(5, ' ');
        let durability = match words.next()? {
            "true" => Durability::Sync,
            _ => Durability::Process,
        };
        let mut number = || words.next()?.parse::<u64>().ok();
        let (seed, acts, steps) = (number()?, number()? as usize, number()? as usize);
        let task = if acts == 0 { Task::Open } else { Task::Play { seed, acts, steps } };
        Some(Orders { base: words.next()?.into(), durability, task })
    }

    pub fn store(&self) -> PathBuf {
        self.base.join("store")
    }

    pub fn backup(&self) -> PathBuf {
        self.base.join("backup")
    }

    pub fn journal(&self) -> PathBuf {
        self.base.join("journal")
    }
}

pub fn open(dir: &Path, durability: Durability) -> millpond::Result<Store> {
    Store::options()
        .durability(durability)
        .delete_durability(durability)
        .segment_bytes(64 << 10)
        .open(dir)
}

/// What the child writes down, a byte each: a call of the system, and so a place to be killed at, as all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    Begun = b'b' as isize,
    Returned = b'r' as isize,
    /// The step has failed, and was not done; it is tried again.
    Refused = b'f' as isize,
    /// The step has failed, and whether it was done is not known. The store is poisoned, and shows it.
    Poisoned = b'p' as isize,
    /// Any other error. The child has given up.
    GaveUp = b'g' as isize,
    /// It was played to the end.
    Ended = b'e' as isize,
}

const NOTES: [Note; 6] =
    [Note::Begun, Note::Returned, Note::Refused, Note::Poisoned, Note::GaveUp, Note::Ended];

pub fn read_notes(orders: &Orders) -> Vec<Note> {
    let bytes = fs::read(orders.journal()).unwrap_or_default();
    let decode = |byte: &u8| NOTES.into_iter().find(|note| *note as u8 == *byte);
    bytes.iter().map(|byte| decode(byte).expect("a note that the child has written")).collect()
}

pub fn run_if_started() {
    let Ok(text) = std::env::var(ORDERS) else { return };
    let orders = Orders::decode(&text).expect("orders that this binary has written");
    // A thread that fails must not leave the others running as if nothing had happened.
    std::panic::set_hook(Box::new(|info| {
        eprintln!("{info}");
        std::process::exit(101);
    }));
    println!("{READY}");
    let _ = std::io::stdout().flush();
    // It goes on when the parent has taken hold of all of its threads.
    if std::io::stdin().read(&mut [0]).unwrap() == 0 {
        std::process::exit(1);
    }
    match orders.task {
        Task::Open => open(&orders.store(), orders.durability).unwrap().close().unwrap(),
        Task::Play { seed, acts, steps } => {
            Player::new(&orders).run(Script::new(seed, acts, steps))
        }
    }
    std::process::exit(0);
}

struct Player<'a> {
    orders: &'a Orders,
    journal: File,
    store: Option<Store>,
    queues: HashMap<&'static str, Queue>,
    held: HashMap<u64, Delivery>,
}

impl Player<'_> {
    fn new(orders: &Orders) -> Player<'_> {
        Player {
            orders,
            journal: File::create_new(orders.journal()).unwrap(),
            store: None,
            queues: HashMap::new(),
            held: HashMap::new(),
        }
    }

    fn note(&mut self, note: Note) {
        self.journal.write_all(&[note as u8]).unwrap();
    }

    fn run(&mut self, mut script: Script) {
        self.open();
        while let Some(step) = script.next() {
            let expected = script.play(&step).answer;
            self.note(Note::Begun);
            match self.try_until_done(&step, &expected) {
                Ok(answer) => {
                    assert_eq!(answer, expected, "{step:?}");
                    self.note(Note::Returned);
                }
                Err(error) => self.give_up(&step, &error),
            }
        }
        self.note(Note::Ended);
    }

    /// An open that fails may be tried again; ids go on from elsewhere then, and the script is over.
    fn open(&mut self) {
        let mut opened = open(&self.orders.store(), self.orders.durability);
        if let Err(error) = &opened {
            eprintln!("open: {error}");
            opened = open(&self.orders.store(), self.orders.durability);
            assert!(opened.is_ok(), "after an open that has failed: {opened:?}");
            self.note(Note::GaveUp);
            std::process::exit(0);
        }
        let store = opened.unwrap();
        assert!(store.recovery().damaged.is_empty(), "{:?}", store.recovery());
        self.store = Some(store);
    }

    /// What is refused, and is not poisoned, may be tried again if it is an insert.
    fn try_until_done(&mut self, step: &Step, expected: &Answer) -> millpond::Result<Answer> {
        let first = self.perform(step, expected);
        match (&first, step) {
            (Err(error), Step::Insert { .. } | Step::Declare { .. })
                if *error.kind() != ErrorKind::Poisoned =>
            {
                eprintln!("{step:?}: {error}");
                assert!(!error.is_indeterminate(), "{error}");
                self.note(Note::Refused);
                self.perform(step, expected)
            }
            _ => first,
        }
    }

    fn give_up(&mut self, step: &Step, error: &Error) {
        eprintln!("{step:?}: {error}");
        if *error.kind() == ErrorKind::Poisoned {
            if !matches!(step, Step::Reopen) {
                self.check_that_nothing_goes_on();
            }
            self.note(Note::Poisoned);
        } else {
            self.note(Note::GaveUp);
        }
        // As a process that dies of it.
        std::process::exit(0);
    }

    /// A poisoned store accepts nothing and promises nothing.
    fn check_that_nothing_goes_on(&mut self) {
        let is_poisoned = |result: millpond::Result<()>, what: &str| {
            let kind = result.map_err(|error| error.kind().clone());
            assert_eq!(kind, Err(ErrorKind::Poisoned), "{what} of a poisoned store");
        };
        for queue in self.queues.values() {
            is_poisoned(queue.insert("too late").map(drop), "an insert");
            is_poisoned(queue.try_get().map(drop), "a get");
        }
        if let Some((_, delivery)) = self.held.drain().next() {
            is_poisoned(delivery.delete(), "a delete");
        }
        is_poisoned(self.store().sync(), "a sync");
        is_poisoned(self.store().close(), "a close");
    }

    fn store(&self) -> &Store {
        self.store.as_ref().expect("the store is open between steps")
    }

    fn perform(&mut self, step: &Step, expected: &Answer) -> millpond::Result<Answer> {
        match step {
            Step::Declare { queue, rules } => {
                let declared = self.store().declare(queue, rules.options())?;
                self.queues.insert(queue, declared);
            }
            Step::Insert { queue, messages } => return self.insert(queue, messages),
            Step::Get { queue, .. } => return self.get(queue, expected),
            Step::Delete(id) => self.take(*id).delete()?,
            Step::DeleteBatch { queue, ids } => {
                let deliveries: Vec<Delivery> = ids.iter().map(|id| self.take(*id)).collect();
                let deleted = self.queues[queue].delete_batch(deliveries)?;
                assert_eq!((deleted.deleted, deleted.stale), (ids.len() as u64, 0));
            }
            Step::Release(id) => self.take(*id).release()?,
            Step::Fail(id) => {
                let fate = self.take(*id).fail("no")?;
                return Ok(Answer::Failed { again: matches!(fate, Fate::RetryAt(_)) });
            }
            Step::Bury(id) => self.take(*id).bury("no")?,
            Step::Purge { queue, which } => {
                return Ok(Answer::Purged(self.queues[queue].purge(*which)?));
            }
            Step::Remove { queue } => self.store().remove(queue)?,
            Step::Sync => self.store().sync()?,
            Step::Maintain => while testing::step(self.store())? {},
            Step::Backup => self.back_up()?,
            Step::Reopen => self.reopen()?,
        }
        Ok(Answer::Nothing)
    }

    fn insert(&self, queue: &str, messages: &[(u64, usize)]) -> millpond::Result<Answer> {
        let mut payloads = messages.iter().map(|(tag, len)| payload(*tag, *len));
        let queue = &self.queues[queue];
        let first = match messages.len() {
            1 => queue.insert(payloads.next().unwrap())?,
            _ => queue.insert_batch(payloads.collect::<Vec<_>>())?[0],
        };
        Ok(Answer::Inserted(first.as_u64()))
    }

    /// As many as there must be: a get may take fewer at a time.
    fn get(&mut self, queue: &'static str, expected: &Answer) -> millpond::Result<Answer> {
        let Answer::Got(expected) = expected else { panic!("a get gets") };
        if queue == DEAD {
            // What was moved there is seen once a sync has covered it.
            self.store().sync()?;
        }
        let until = Instant::now() + GET_MAX;
        let mut got: Vec<Expected> = Vec::new();
        loop {
            let max = expected.len().saturating_sub(got.len()).max(1);
            for delivery in self.queues[queue].get_batch(max, Duration::ZERO)? {
                let (id, origin) = (delivery.id().as_u64(), delivery.origin_id().as_u64());
                got.push((id, origin, delivery.attempt(), Content::of(delivery.payload())));
                self.held.insert(id, delivery);
            }
            if got.len() >= expected.len() || Instant::now() > until {
                return Ok(Answer::Got(got));
            }
        }
    }

    fn take(&mut self, id: u64) -> Delivery {
        self.held.remove(&id).expect("the child holds what the script holds")
    }

    /// What has the name of a backup is one, at any moment; so the last one does not lose its files first.
    fn back_up(&self) -> millpond::Result<()> {
        let outdated = self.orders.base.join("outdated");
        let _ = fs::rename(self.orders.backup(), &outdated);
        let _ = fs::remove_dir_all(&outdated);
        self.store().backup(self.orders.backup())
    }

    fn reopen(&mut self) -> millpond::Result<()> {
        self.store().close()?;
        self.queues.clear();
        self.held.clear();
        self.store = None;
        self.open();
        let recovery = self.store().recovery();
        assert!(recovery.clean && recovery.redelivered == 0, "{recovery:?}");
        for name in ["a", "b", DEAD, "t"] {
            if let Some(queue) = self.store().find(name)? {
                self.queues.insert(name, queue);
            }
        }
        Ok(())
    }
}
