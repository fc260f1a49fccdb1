//! The order in which the one consumer of a queue gets its messages.

use std::collections::BTreeSet;

use crate::journal::{Kind, Record};
use crate::load::{PRODUCERS, producer};

/// Checks all that the only consumer of the single queue wrote in a round: what was given back comes first, in the
/// order of its ids; everything else in the order of its inserts, each producer's as it made them.
///
/// The round began with `given_back`, and with `highest` as the last message that was delivered for the first time.
pub fn check(
    journal: &[Record],
    mut given_back: BTreeSet<u64>,
    mut highest: u64,
) -> Result<(), String> {
    let mut last_keys = [None; PRODUCERS as usize];
    for record in journal {
        match record.kind {
            Kind::Got => match given_back.pop_first() {
                Some(first) if first != record.id => {
                    return Err(format!("{first} was given back and overtaken: {record:?}"));
                }
                Some(_) => {}
                None if record.id <= highest => {
                    return Err(format!("{highest} was delivered before: {record:?}"));
                }
                None => {
                    highest = record.id;
                    let last = &mut last_keys[producer(record.key) as usize];
                    if Some(record.key) <= *last {
                        return Err(format!("{last:?} was delivered before: {record:?}"));
                    }
                    *last = Some(record.key);
                }
            },
            // The same thread gets the next message only after this has returned.
            Kind::Releasing | Kind::Failing => {
                given_back.insert(record.id);
            }
            _ => {}
        }
    }
    Ok(())
}
