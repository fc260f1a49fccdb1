//! A process that works on a store is killed, again and again, and nothing that it was promised is lost.
//!
//! A child process (this same binary, started anew) runs four producers and four consumers over four queues, a thread
//! that pauses one of them now and then, and one whose work fails more often than not, with dead letters that it brings
//! back. It is killed with SIGKILL after 5 to 200 ms: while it inserts, rolls, checkpoints, reclaims, or still opens. Each
//! of its threads writes what it is about to do, and what has returned, to a journal of its own; what a write call has taken
//! survives a SIGKILL. After each kill the parent opens a copy of the directory, takes every message out of it, and
//! compares that with what all journals so far say. The next child goes on in the directory itself.
//!
//! `cargo test --test kill` does a few rounds. The long run, with figures:
//!
//! ```text
//! MILLPOND_KILL_ROUNDS=200 cargo test --test kill -- --nocapture
//! ```
//!
//! or, for a soak of a given time, `MILLPOND_KILL_SECONDS=600`.
//!
//! `MILLPOND_KILL_SEED` sets the seed that a run has printed. What the threads do follows from it, what the scheduler
//! does not. A run that fails leaves its directory behind, and says where.

#[path = "kill/child.rs"]
mod child;
#[path = "kill/fifo.rs"]
mod fifo;
#[path = "kill/journal.rs"]
mod journal;
#[path = "kill/load.rs"]
mod load;
#[path = "kill/model.rs"]
mod model;
#[path = "kill/parent.rs"]
mod parent;

use std::time::Duration;

use millpond::Durability;

/// How many rounds are enough to notice a fault that shows often; the long run is for the others.
const ROUNDS: u32 = 12;

/// How long a run goes on.
#[derive(Clone, Copy, Debug)]
pub enum Length {
    Rounds(u32),
    Time(Duration),
}

fn run(durability: Durability) {
    let number = |name: &str| {
        std::env::var(name).ok().map(|value| value.parse::<u32>().expect("a number in its place"))
    };
    let length = match (number("MILLPOND_KILL_SECONDS"), number("MILLPOND_KILL_ROUNDS")) {
        (Some(seconds), _) => Length::Time(Duration::from_secs(seconds.into())),
        (None, rounds) => Length::Rounds(rounds.unwrap_or(ROUNDS)),
    };
    parent::run(durability, length);
}

#[test]
fn nothing_promised_is_lost_when_a_process_is_killed_under_process_durability() {
    run(Durability::Process);
}

#[test]
fn nothing_promised_is_lost_when_a_process_is_killed_under_sync_durability() {
    run(Durability::Sync);
}

/// The process that is killed. Does nothing unless a parent started it.
#[test]
#[ignore = "the other tests of this file start it"]
fn child() {
    child::run_if_started();
}
