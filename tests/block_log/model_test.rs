//! What the model must notice, and what it must let pass, on histories of a few steps.

use crate::history::History;
use crate::load::LOOSE;
use crate::observe::{Observed, Seen};
use crate::record::{Kind, Moment, Record};

const PLAIN: u8 = 1;

/// Notes of one thread. The device takes one write with each of them.
#[derive(Default)]
struct Notes(Vec<Record>);

impl Notes {
    /// A store that is open, and syncs both inserts and deletes.
    fn new() -> Notes {
        let mut notes = Notes::default();
        notes.note(Record::new(0, Kind::Opening));
        notes.note(Record { count: 3, ..Record::new(0, Kind::Opened) });
        notes
    }

    /// Where the device was then.
    fn note(&mut self, record: Record) -> u64 {
        let tick = self.0.len() as u64;
        self.0.push(Record { at: Moment { tick, position: tick }, ..record });
        tick
    }

    fn insert(&mut self, queue: u8, key: u64, count: u16) -> u64 {
        let record = Record { queue, key, count, ..Record::new(1, Kind::Inserting) };
        self.note(record);
        self.note(Record { kind: Kind::Inserted, id: key, ..record })
    }

    fn get(&mut self, queue: u8, key: u64, attempt: u32) {
        let record = Record { queue, key, id: key, attempt, ..Record::new(1, Kind::Getting) };
        self.note(record);
        self.note(Record { kind: Kind::Got, ..record });
        self.note(Record { kind: Kind::GotAll, ..record });
    }

    fn settle(&mut self, kind: Kind, queue: u8, key: u64) -> u64 {
        let record = Record { queue, key, id: key, ..Record::new(1, kind) };
        self.note(record);
        self.note(Record { kind: Kind::Settled, ..record })
    }

    fn history(&self) -> History {
        History::new(&self.0).unwrap()
    }

    fn end(&self) -> u64 {
        self.0.len() as u64
    }
}

/// A store in which these keys were found in a queue, each at its attempt.
fn found(queue: u8, messages: &[(u64, u32)]) -> Observed {
    let seen =
        |(key, attempt): &(u64, u32)| Seen { key: *key, id: *key, origin: *key, attempt: *attempt };
    let mut observed = Observed { first_new: 1000, ..Observed::default() };
    observed.queues[queue as usize] = messages.iter().map(seen).collect();
    observed
}

#[test]
fn an_insert_may_be_lost_until_it_has_returned() {
    let mut notes = Notes::new();
    let returned = notes.insert(PLAIN, 1, 1);
    let history = notes.history();
    history.check(&found(PLAIN, &[(1, 1)]), returned).unwrap();
    history.check(&found(PLAIN, &[]), returned - 1).unwrap();
    history.check(&found(PLAIN, &[]), returned).unwrap_err();
}

#[test]
fn a_message_that_nobody_has_begun_to_insert_is_noticed() {
    let mut notes = Notes::new();
    let returned = notes.insert(PLAIN, 1, 1);
    let history = notes.history();
    history.check(&found(PLAIN, &[(1, 1)]), returned - 2).unwrap_err();
    history.check(&found(PLAIN, &[(1, 1), (2, 1)]), returned).unwrap_err();
}

#[test]
fn half_a_batch_is_noticed() {
    let mut notes = Notes::new();
    let returned = notes.insert(LOOSE, 1, 2);
    let history = notes.history();
    history.check(&found(LOOSE, &[]), returned).unwrap();
    history.check(&found(LOOSE, &[(1, 1), (2, 1)]), returned).unwrap();
    history.check(&found(LOOSE, &[(1, 1)]), returned).unwrap_err();
    history.check(&found(LOOSE, &[(2, 1)]), returned).unwrap_err();
}

#[test]
fn a_hole_among_what_was_not_synced_is_noticed() {
    let mut notes = Notes::new();
    notes.insert(LOOSE, 1, 1);
    let returned = notes.insert(LOOSE, 2, 1);
    let history = notes.history();
    history.check(&found(LOOSE, &[]), returned).unwrap();
    history.check(&found(LOOSE, &[(1, 1)]), returned).unwrap();
    history.check(&found(LOOSE, &[(2, 1)]), returned).unwrap_err();
}

#[test]
fn a_message_whose_delete_has_returned_must_not_come_back() {
    let mut notes = Notes::new();
    notes.insert(PLAIN, 1, 1);
    notes.get(PLAIN, 1, 1);
    let returned = notes.settle(Kind::Deleting, PLAIN, 1);
    let history = notes.history();
    history.check(&found(PLAIN, &[]), returned).unwrap();
    history.check(&found(PLAIN, &[(1, 2)]), returned - 1).unwrap();
    history.check(&found(PLAIN, &[(1, 2)]), returned).unwrap_err();
}

#[test]
fn a_get_may_be_forgotten_but_not_by_what_came_after_it() {
    let mut notes = Notes::new();
    notes.insert(PLAIN, 1, 1);
    notes.get(PLAIN, 1, 1);
    let before = notes.end();
    let returned = notes.insert(PLAIN, 2, 1);
    let history = notes.history();
    history.check(&found(PLAIN, &[(1, 1)]), before).unwrap();
    history.check(&found(PLAIN, &[(1, 2)]), before).unwrap();
    history.check(&found(PLAIN, &[(1, 3)]), before).unwrap_err();
    history.check(&found(PLAIN, &[(1, 2), (2, 1)]), returned).unwrap();
    history.check(&found(PLAIN, &[(1, 1), (2, 1)]), returned).unwrap_err();
}

#[test]
fn messages_out_of_order_are_noticed() {
    let mut notes = Notes::new();
    notes.insert(PLAIN, 1, 1);
    let returned = notes.insert(PLAIN, 2, 1);
    let history = notes.history();
    history.check(&found(PLAIN, &[(1, 1), (2, 1)]), returned).unwrap();
    history.check(&found(PLAIN, &[(2, 1), (1, 1)]), returned).unwrap_err();
}

#[test]
fn an_id_that_is_given_out_again_is_noticed() {
    let mut notes = Notes::new();
    let returned = notes.insert(PLAIN, 1, 1);
    let again = Observed { first_new: 1, ..found(PLAIN, &[(1, 1)]) };
    notes.history().check(&again, returned).unwrap_err();
}
