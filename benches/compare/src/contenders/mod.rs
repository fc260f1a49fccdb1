//! Who takes part.

pub mod beanstalkd;
pub mod fjall;
pub mod lmdb;
pub mod millpond;
pub mod okaywal;
pub mod queue_file;
pub mod raft_engine;
pub mod raw;
pub mod redb;
pub mod redis;
mod server;
pub mod sqlite;
pub mod walrus;
pub mod yaque;

use std::process::Command;

use crate::contender::{Card, Contender};
use crate::outcome::Outcome;
use crate::workloads::{self, Task};

/// A contender, without its type.
#[derive(Clone, Copy)]
pub struct Entry {
    /// What the command line calls it.
    pub key: &'static str,
    pub card: fn() -> Card,
    pub run: fn(&Task) -> Outcome,
}

impl Entry {
    /// The limit, and no rival.
    pub fn is_raw(&self) -> bool {
        self.key.starts_with("raw-")
    }
}

fn entry<C: Contender>(key: &'static str) -> Entry {
    Entry { key, card: C::card, run: workloads::run::<C> }
}

/// All that are there, in the order of the tables.
pub fn all() -> Vec<Entry> {
    vec![
        Entry { key: MILLPOND, card: millpond::Millpond::card, run: workloads::run_millpond },
        entry::<raw::Raw<raw::Synced>>("raw-synced"),
        entry::<raw::Raw<raw::Mapped<false>>>("raw-fresh"),
        entry::<raw::Raw<raw::Mapped<true>>>("raw-faulted"),
        entry::<raw::Raw<raw::Written>>("raw-written"),
        entry::<sqlite::Sqlite>("sqlite"),
        entry::<redb::Redb>("redb"),
        entry::<fjall::Fjall>("fjall"),
        entry::<lmdb::Lmdb>("lmdb"),
        entry::<yaque::Yaque>("yaque"),
        entry::<queue_file::QueueFile>("queue-file"),
        entry::<walrus::Walrus>("walrus"),
        entry::<okaywal::OkayWal>("okaywal"),
        entry::<raft_engine::RaftEngine>("raft-engine"),
        entry::<beanstalkd::Beanstalkd>("beanstalkd"),
        entry::<redis::Redis>("redis"),
    ]
}

pub const MILLPOND: &str = "millpond";

/// Whether a server that a contender needs is on this machine.
pub fn installed(key: &str) -> bool {
    match key {
        "beanstalkd" => beanstalkd::Beanstalkd::installed(),
        "redis" => redis::Redis::installed(),
        _ => true,
    }
}

/// The version of a crate that this program was built with.
pub fn locked_version(name: &str) -> String {
    let lock = include_str!("../../Cargo.lock");
    let start = format!("name = \"{name}\"\nversion = \"");
    // Of two versions the newer one stands last; the older ones are of somebody's dependencies.
    let version = lock.rsplit_once(&start).and_then(|(_, rest)| rest.split('"').next());
    version.unwrap_or("?").to_string()
}

/// The commit of the repository that this program was built in.
pub fn git_version() -> String {
    let git = |arguments: &[&str]| {
        let here = env!("CARGO_MANIFEST_DIR");
        let output = Command::new("git").args(["-C", here]).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return "of an unknown commit".to_string();
    };
    // What the library is made of; the report itself is written by this program.
    let changed = git(&["status", "--porcelain", "--", ":/src", ":/Cargo.toml", ":/benches"]);
    match changed {
        Some(changed) if changed.is_empty() => commit,
        _ => format!("{commit} + changes"),
    }
}
