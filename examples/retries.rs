//! What becomes of a message that cannot be handled: it is tried again, later each time, then kept apart as a dead letter,
//! and brought back once the reason is gone.
//!
//!     cargo run --example retries
//!
//! A mail server does not know one of three addresses. The mail to it is tried three times, with a longer wait before
//! each, and ends up in the queue of dead letters, which says where it came from and why. Somebody adds the address and
//! lets the dead letters be sent again.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use millpond::{Backoff, Fate, Queue, QueueOptions, Result, State, Store};

/// After the last retry nothing comes any more for so long.
const QUIET: Duration = Duration::from_secs(2);

/// The mail server: an error for an address that it does not know.
fn send(known: &BTreeSet<&str>, address: &str) -> std::result::Result<(), String> {
    if known.contains(address) { Ok(()) } else { Err(format!("550 no such user: {address}")) }
}

/// Handles mails until there are no more, also none that waits for its next attempt.
fn work(mails: &Queue, known: &BTreeSet<&str>) -> Result<()> {
    let begin = Instant::now();
    while let Some(mail) = mails.get_timeout(QUIET)? {
        let address = String::from_utf8_lossy(mail.payload()).into_owned();
        print!("{:>5} ms  {address}, attempt {}: ", begin.elapsed().as_millis(), mail.attempt());
        match send(known, &address) {
            Ok(()) => {
                mail.delete()?;
                println!("sent");
            }
            Err(why) => match mail.fail(&why)? {
                Fate::RetryAt(_) => println!("{why}; it is tried again"),
                Fate::DeadLettered => println!("{why}; given up"),
                other => println!("{why}; {other:?}"),
            },
        }
    }
    Ok(())
}

fn main() -> Result<()> {
    let dir = std::env::temp_dir().join(format!("millpond-retries-{}", std::process::id()));
    let store = Store::open(&dir)?;
    let backoff = Backoff::Exponential {
        first: Duration::from_millis(200),
        max: Duration::from_secs(1),
        jitter: 20,
    };
    let options = QueueOptions::new().max_attempts(Some(3)).backoff(backoff);
    let mails = store.declare("mails", options.dead_letter("undelivered"))?;
    let undelivered = store.queue("undelivered")?;

    for address in ["ada", "grace", "charles"] {
        mails.insert(address)?;
    }
    let mut known = BTreeSet::from(["ada", "charles"]);
    work(&mails, &known)?;

    println!("\nDead letters:");
    for letter in undelivered.browse(State::Ready) {
        let letter = letter?;
        let Some(origin) = letter.origin() else { continue };
        println!(
            "  {}: from {:?} after {} attempts, because of {:?}",
            String::from_utf8_lossy(letter.payload()),
            origin.queue(),
            origin.attempts(),
            origin.reason(),
        );
    }

    println!("\nSomebody adds grace.");
    known.insert("grace");
    println!("{} brought back.", undelivered.redrive(u64::MAX)?);
    work(&mails, &known)?;

    let left = store.stats().messages;
    println!("\n{left} messages are left.");
    store.close()?;
    std::fs::remove_dir_all(&dir).expect("a directory of its own");
    Ok(())
}
