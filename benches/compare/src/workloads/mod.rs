//! What is measured: how each workload is run by one contender.

mod backlog;
mod drain;
mod fill;
mod insert;
mod list;
mod millpond_only;
mod reopen;
mod space;
mod steady;

use std::path::PathBuf;
use std::time::Duration;

use crate::contender::{Contender, Durability, Supported};
use crate::contenders::millpond::Millpond;
use crate::outcome::Outcome;

pub use list::list;

/// What a child is asked to do.
pub struct Task {
    pub workload: Workload,
    /// Empty, or left by the phase before.
    pub dir: PathBuf,
    pub phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// All of it.
    Whole,
    /// Only fill the store, close it if `close`, and otherwise wait to be killed.
    Fill { close: bool },
    /// Open it, for the how-manieth time.
    Open(u64),
}

#[derive(Clone, Debug)]
pub struct Workload {
    /// What the command line calls it.
    pub id: String,
    pub title: String,
    pub durability: Durability,
    /// Bytes of a message.
    pub size: usize,
    pub kind: Kind,
    /// The ways of writing that are its limit, by their keys; the first is the yardstick.
    pub raws: &'static [&'static str],
    /// The workload whose limit is the yardstick, if it is not this one.
    pub yardstick: Option<String>,
    /// Only millpond is asked.
    pub own: bool,
    /// Most rounds; what is costly and steady needs no more.
    pub rounds: usize,
    /// A sentence for the report.
    pub note: &'static str,
}

/// When a measurement ends: after so many messages, or so much time.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    pub messages: u64,
    pub time: Duration,
}

#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Insert { threads: usize, batch: usize, limit: Limit },
    Drain { threads: usize, batch: usize, limit: Limit },
    OutOfOrder { window: usize, limit: Limit },
    Steady { producers: usize, consumers: usize, queues: usize, limit: Limit },
    Reopen { waiting: u64, killed: bool },
    Backlog { waiting: u64, operations: u64 },
    InFlight { held: u64, operations: u64 },
    Space { messages: u64 },
    Life { messages: u64, batch: usize },
    Idle { consumers: usize, time: Duration },
}

/// Runs a workload that every contender is asked for.
pub fn run<C: Contender>(task: &Task) -> Outcome {
    or_unsupported(run_any::<C>(task))
}

/// Runs any workload, those that only millpond is asked for included.
pub fn run_millpond(task: &Task) -> Outcome {
    or_unsupported(match task.workload.kind {
        Kind::InFlight { held, operations } => millpond_only::in_flight(task, held, operations),
        Kind::Idle { consumers, time } => millpond_only::idle(task, consumers, time),
        _ => run_any::<Millpond>(task),
    })
}

fn or_unsupported(result: Supported<Outcome>) -> Outcome {
    result.unwrap_or_else(|why| Outcome::unsupported(why.0))
}

fn run_any<C: Contender>(task: &Task) -> Supported<Outcome> {
    match task.workload.kind {
        Kind::Insert { threads, batch, limit } => insert::run::<C>(task, threads, batch, limit),
        Kind::Drain { threads, batch, limit } => drain::run::<C>(task, threads, batch, limit),
        Kind::OutOfOrder { window, limit } => drain::out_of_order::<C>(task, window, limit),
        Kind::Steady { producers, consumers, queues, limit } => {
            steady::run::<C>(task, steady::Shape { producers, consumers, queues }, limit)
        }
        Kind::Reopen { waiting, .. } => reopen::run::<C>(task, waiting),
        Kind::Backlog { waiting, operations } => backlog::run::<C>(task, waiting, operations),
        Kind::Space { messages } => space::waiting::<C>(task, messages),
        Kind::Life { messages, batch } => space::life::<C>(task, messages, batch),
        Kind::InFlight { .. } | Kind::Idle { .. } => unreachable!("only millpond is asked"),
    }
}
