//! An outbox, and the proof that it loses no order and that its receiver can tell what it gets twice.
//!
//! A shop accepts orders: it puts each into the outbox, and tells the customer once it is durable there. A relay sends
//! them to the warehouse, on another machine, and deletes each when it was sent. Both may die at any moment, and so may
//! their machine. `CrashTest` ends them after every operation of the disk, by killing them and by power cuts that keep
//! different sectors, starts them again on what is left, and ends them once more.
//!
//! ```text
//! cargo run --release --example outbox
//! ```
//!
//! The same relay with two lines swapped is shown to lose orders.

use millpond::testing::{Broken, Clock, CrashTest, Disk, Journal, Visited, step};
use millpond::{Durability, Queue, Result, Store};

const ORDERS: u32 = 4;

/// What the outside world knows, whatever happens to the shop's machine.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Known {
    /// A customer has sent an order.
    Ordered(u32),
    /// The customer was told that it is accepted.
    Accepted(u32),
    /// It has arrived at the warehouse, in the message with this id.
    Arrived { order: u32, message: u64 },
    /// The relay was told that the message is deleted.
    Deleted { message: u64 },
}

/// How the relay treats a message. One of them is right.
#[derive(Clone, Copy, PartialEq)]
enum Relay {
    SendThenDelete,
    DeleteThenSend,
}

fn open(disk: &Disk) -> Result<(Store, Queue)> {
    let options = Store::options().durability(Durability::Sync).delete_durability(Durability::Sync);
    let store = options.segment_bytes(64 << 10).open_simulated(disk, &Clock::new())?;
    let outbox = store.queue("outbox")?;
    Ok((store, outbox))
}

/// The shop and its relay, from start to end. After a crash it goes on with what it finds.
fn run(relay: Relay, disk: &Disk, world: &Journal<Known>) -> Result<()> {
    let (store, outbox) = open(disk)?;
    // A customer who got no answer does not try again.
    let next =
        1 + world.notes().iter().filter(|note| matches!(note, Known::Ordered(_))).count() as u32;
    for order in next..=ORDERS {
        world.note(Known::Ordered(order));
        outbox.insert(&order.to_le_bytes())?;
        world.note(Known::Accepted(order));
        if order % 2 == 0 {
            send_all(relay, &outbox, world)?;
        }
    }
    send_all(relay, &outbox, world)?;
    // What the store's threads do by themselves on a real disk: checkpoints, and giving space back.
    while step(&store)? {}
    store.close()
}

fn send_all(relay: Relay, outbox: &Queue, world: &Journal<Known>) -> Result<()> {
    while let Some(message) = outbox.try_get()? {
        let order = order_in(message.payload());
        let arrived = Known::Arrived { order, message: message.id().as_u64() };
        let deleted = Known::Deleted { message: message.id().as_u64() };
        if relay == Relay::SendThenDelete {
            world.note(arrived);
            message.delete()?;
            world.note(deleted);
        } else {
            message.delete()?;
            world.note(deleted);
            world.note(arrived);
        }
    }
    Ok(())
}

fn order_in(payload: &[u8]) -> u32 {
    u32::from_le_bytes(payload.try_into().expect("an order has four bytes"))
}

/// What must hold after any crash.
fn check(disk: &Disk, world: &[Known]) -> std::result::Result<(), String> {
    let (store, outbox) =
        open(disk).map_err(|error| format!("the outbox does not open: {error}"))?;
    let recovery = store.recovery();
    if !recovery.damaged.is_empty() {
        return Err(format!("a crash is not damage: {recovery:?}"));
    }
    let mut waiting = Vec::new();
    for message in
        outbox.get_batch(100, std::time::Duration::ZERO).map_err(|error| error.to_string())?
    {
        waiting.push((order_in(message.payload()), message.id().as_u64()));
    }
    for note in world {
        let (order, id) = match *note {
            Known::Accepted(order) => (order, None),
            Known::Arrived { order, message } => (order, Some(message)),
            Known::Deleted { message } if waiting.iter().any(|(_, id)| *id == message) => {
                return Err(format!("message {message} was deleted and is back"));
            }
            _ => continue,
        };
        let arrivals = || {
            world.iter().filter_map(move |note| match *note {
                Known::Arrived { order: arrived, message } if arrived == order => Some(message),
                _ => None,
            })
        };
        if arrivals().next().is_none() && !waiting.iter().any(|(waits, _)| *waits == order) {
            return Err(format!("order {order} was accepted, has not arrived, and does not wait"));
        }
        // The warehouse recognises by the message's id what it has already. (Not by the attempt: a power cut may take
        // away that there was one before.)
        if id.is_some_and(|id| arrivals().any(|message| message != id)) {
            return Err(format!("order {order} has arrived in two messages"));
        }
    }
    Ok(())
}

fn prove(relay: Relay) -> std::result::Result<Visited, Broken> {
    let test = CrashTest::new().power_cuts(4).restarts(1).restart_every(3);
    test.run(|disk, world| run(relay, disk, world).expect("nothing fails on this disk"), check)
}

fn main() {
    match prove(Relay::SendThenDelete) {
        Ok(Visited { runs, crashes, .. }) => {
            println!(
                "Sent, then deleted: {crashes} crashes in {runs} runs, and no order is missing."
            );
        }
        Err(broken) => {
            eprintln!("Sent, then deleted: {broken}");
            std::process::exit(1);
        }
    }
    match prove(Relay::DeleteThenSend) {
        Err(broken) => println!("Deleted, then sent: {broken}"),
        Ok(_) => {
            eprintln!("Deleted, then sent: this loses orders, and nothing has noticed");
            std::process::exit(1);
        }
    }
}
