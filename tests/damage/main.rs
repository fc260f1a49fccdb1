//! What damage does to a store: it opens, delivers nothing that is not whole, loses nothing that was not hit, and says
//! what is missing.
//!
//! Every file of a small store is damaged in every place, once for each way in which the store may have been left.
//! The gate takes every byte that means something with one bit of it, and some pairs of places; `MILLPOND_DAMAGE=all` takes
//! every bit and all pairs, `MILLPOND_DAMAGE_PAIRS=n` one pair in n.

mod check;
mod fixture;
mod frames;
mod pairs;
mod random;
mod rounds;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use check::{Case, What, run};
use fixture::{Fixture, Left};
use random::World;

const ALL_WAYS: [Left; 4] = [Left::Closed, Left::Killed, Left::PowerCut, Left::Reopened];

/// Every how-manieth byte is taken of those that are like their neighbours: payloads and unused space.
const SPARSE: usize = 509;

fn all_bits() -> bool {
    std::env::var("MILLPOND_DAMAGE").is_ok_and(|value| value == "all")
}

/// Runs all cases on all processors, prints how many there were, and fails with the first few that failed.
fn run_all(fixture: &Fixture, name: &str, cases: Vec<Case>) {
    let run = |n: usize| run(fixture, &[cases.get(n)?], n.is_multiple_of(7)).err();
    on_all_processors(&format!("{:?}, {name}", fixture.left), cases.len(), run);
}

fn on_all_processors(what: &str, cases: usize, run: impl Fn(usize) -> Option<String> + Sync) {
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= cases {
                        break;
                    }
                    failures.lock().unwrap().extend(run(n));
                }
            });
        }
    });
    println!("{what}: {cases} damaged stores");
    let failures = failures.into_inner().unwrap();
    let shown: Vec<&String> = failures.iter().take(20).collect();
    assert!(failures.is_empty(), "{} of {cases} cases: {shown:#?}", failures.len());
}

/// The places of a file to damage: every byte that means something, and some of the others.
fn places(fixture: &Fixture, name: &str) -> Vec<usize> {
    let bytes = &fixture.files[name];
    let is_segment = name.ends_with(".seg");
    let frames = fixture.frames.get(name).map(Vec::as_slice).unwrap_or_default();
    let end = frames.last().map_or(4096, |frame| frame.end);
    let dense = |at: usize| {
        let in_frame = frames.iter().any(|frame| {
            let payload = frame.start + 64..frame.end.saturating_sub(8);
            // With its padding, which may be cut off without a loss.
            let whole = frame.start..frame.end.next_multiple_of(8) + 1;
            whole.contains(&at) && !payload.contains(&at)
        });
        let header = at < 128 || (2048..2048 + 128).contains(&at);
        !(is_segment || name.starts_with("spare."))
            || in_frame
            || header
            || (end..end + 24).contains(&at)
    };
    (0..bytes.len()).filter(|&at| dense(at) || at % SPARSE == 0 || all_bits()).collect()
}

fn flips(fixture: &Fixture, name: &str) -> Vec<Case> {
    let bits = |at: usize| if all_bits() { 0..8 } else { (at % 8) as u8..(at % 8) as u8 + 1 };
    let places = places(fixture, name).into_iter();
    let flips = places.flat_map(|at| bits(at).map(move |bit| What::Flip { at, bit }));
    flips.map(|what| Case { file: name.to_owned(), what }).collect()
}

fn truncations(fixture: &Fixture, name: &str) -> Vec<Case> {
    let places = places(fixture, name).into_iter();
    places.map(|len| Case { file: name.to_owned(), what: What::Truncate { len } }).collect()
}

fn every_file(make: impl Fn(&Fixture, &str) -> Vec<Case>) {
    for left in ALL_WAYS {
        let fixture = Fixture::new(left);
        for name in fixture.files.keys() {
            run_all(&fixture, name, make(&fixture, name));
        }
    }
}

#[test]
fn the_store_that_is_damaged_has_a_bit_of_everything() {
    for left in ALL_WAYS {
        let fixture = Fixture::new(left);
        let sizes: Vec<_> = fixture.files.iter().map(|(name, bytes)| (name, bytes.len())).collect();
        assert_eq!(fixture.names("cursor.").len(), 2, "{sizes:?}");
        assert!(fixture.names(".idx").len() >= 2, "{sizes:?}");
        assert!(fixture.names(".seg").len() >= 4, "{sizes:?}");
        let deletes = fixture.frames.values().flatten().filter(|frame| frame.is_delete());
        assert!(deletes.count() >= 5);
        // Damage nothing: all of it is there.
        let intact = Case { file: "LOCK".to_owned(), what: What::Zero { range: 0..0 } };
        run(&fixture, &[&intact], true).unwrap();
    }
}

#[test]
fn a_flipped_bit_costs_at_most_the_message_that_it_hit() {
    every_file(flips);
}

#[test]
fn a_truncated_file_costs_at_most_the_messages_that_were_cut_off() {
    every_file(truncations);
}

#[test]
fn a_missing_or_zeroed_file_costs_at_most_the_messages_in_it() {
    every_file(|fixture, name| {
        let len = fixture.files[name].len();
        let whats = [What::Missing, What::Zero { range: 0..len }, What::Truncate { len: 0 }];
        whats.into_iter().map(|what| Case { file: name.to_owned(), what }).collect()
    });
}

/// Of so many pairs the gate takes one. It is prime, so that every place is taken with others all over the store.
const PAIRS: u64 = 397;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |value| value.parse().unwrap())
}

#[test]
fn two_damages_at_once_cost_at_most_what_each_of_them_hit() {
    let every = number("MILLPOND_DAMAGE_PAIRS", if all_bits() { 1 } else { PAIRS });
    for left in ALL_WAYS {
        let fixture = Fixture::new(left);
        let places = pairs::places(&fixture);
        let pairs = places.iter().enumerate();
        let pairs =
            pairs.flat_map(|(n, one)| places[n + 1..].iter().map(move |other| [one, other]));
        let pairs: Vec<[&Case; 2]> = pairs.step_by(every as usize).collect();
        on_all_processors(
            &format!("{left:?}, pairs of {} places", places.len()),
            pairs.len(),
            |n| run(&fixture, &pairs[n], n.is_multiple_of(7)).err(),
        );
    }
}

/// Every case is run for each way in which a store may have been left.
#[test]
fn damage_of_several_kinds_at_once_costs_only_what_it_hit() {
    let first = number("MILLPOND_DAMAGE_FIRST", 0);
    let seeds = number("MILLPOND_DAMAGE_SEEDS", 500);
    for left in ALL_WAYS {
        let world = World::new(left);
        println!("{left:?}, seeds {first}..{}", first + seeds);
        on_all_processors(&format!("{left:?}, at random"), seeds as usize, |n| {
            world.run(first + n as u64).err()
        });
    }
}

#[test]
fn a_store_that_is_damaged_again_and_again_reports_what_it_loses() {
    let first = number("MILLPOND_DAMAGE_FIRST", 0);
    let seeds = number("MILLPOND_DAMAGE_SEEDS", 500);
    on_all_processors("in rounds", seeds as usize, |n| rounds::run(first + n as u64).err());
}
