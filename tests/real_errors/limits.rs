//! Limits of a process: the length of a file, the number of open files, its address space.

use millpond::Durability;

use super::check_store;
use super::worker::{self, Orders, Task, Worker};

const SIGABRT: i32 = 6;
const SIGXFSZ: i32 = 25;

fn orders(dir: &std::path::Path, durability: Durability, segment_bytes: u64) -> Orders {
    let dir = dir.join("store");
    Orders { dir, durability, segment_bytes, before: 300, after: 20_000, task: Task::Insert }
}

/// How a worker must come upon its limit.
#[derive(Clone, Copy, Debug)]
enum Met {
    ByError,
    /// Of this signal.
    ByDeath(i32),
    ByEither(i32),
    Perhaps,
}

/// What is refused for a limit is reported, and what was acknowledged before is there after.
fn a_limit(what: &str, limits: &str, orders: &Orders, met: Met) {
    let mut worker = worker::start(orders, limits);
    worker.wait_until_ready();
    let (status, told, errors) = worker.finish();
    println!(
        "{what}, {:?}: {status}, {} acknowledged, {errors:?}",
        orders.durability,
        told.inserted.len()
    );
    let is_met = !errors.is_empty() && (told.inserted.len() as u64) < orders.before + orders.after;
    // The disk has taken all that it was given.
    assert!(errors.iter().all(|error| !error.contains("Poisoned")), "{what}: {errors:?}");
    let has_died = |signal| Worker::has_died_of(status, signal);
    let is_as_it_must_be = match met {
        Met::ByError => status.success() && is_met,
        Met::ByDeath(signal) => has_died(signal),
        Met::ByEither(signal) => has_died(signal) || (status.success() && is_met),
        Met::Perhaps => status.success(),
    };
    assert!(is_as_it_must_be, "{what}: {status}, {met:?}");
    check_store(&orders.dir, &told);
}

/// Under `Sync` the first segment is shorter than the limit and the second is not.
#[test]
fn a_file_that_must_not_be_so_long_is_an_error_and_loses_nothing_acknowledged() {
    for durability in [Durability::Sync, Durability::Process] {
        let dir = tempfile::tempdir().unwrap();
        let segment_bytes = if durability == Durability::Sync { 8 << 20 } else { 1 << 20 };
        let limits = match durability {
            // In blocks of 512 bytes: 1.5 MiB, and half of one.
            Durability::Sync => "trap '' XFSZ; ulimit -f 3072;",
            _ => "trap '' XFSZ; ulimit -f 1024;",
        };
        a_limit(
            "a limit of a file's length",
            limits,
            &orders(dir.path(), durability, segment_bytes),
            Met::ByError,
        );
    }
}

#[test]
fn a_process_that_dies_of_a_file_too_long_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let orders = orders(dir.path(), Durability::Sync, 8 << 20);
    a_limit("death by SIGXFSZ", "ulimit -f 3072;", &orders, Met::ByDeath(SIGXFSZ));
}

/// How many a store needs, from which on there is no limit.
#[test]
fn a_process_without_another_file_descriptor_loses_nothing_acknowledged() {
    for durability in [Durability::Sync, Durability::Process] {
        for files in 4..12 {
            let dir = tempfile::tempdir().unwrap();
            let orders = Orders { after: 1000, ..orders(dir.path(), durability, 64 << 10) };
            let limits = format!("ulimit -n {files};");
            a_limit(&format!("{files} open files"), &limits, &orders, Met::Perhaps);
        }
    }
}

/// Where the standard library finds no memory, it ends the process; so may a mapping that the system refuses.
///
/// The limit leaves room for one segment and not for two, however little the process takes besides. The allocator is kept
/// to one arena: it sets aside 64 MiB of addresses for each, and how many there are goes by how the threads were run.
#[test]
fn a_process_without_address_space_loses_nothing_acknowledged() {
    for durability in [Durability::Sync, Durability::Process] {
        let dir = tempfile::tempdir().unwrap();
        let orders = Orders { after: 40_000, ..orders(dir.path(), durability, 32 << 20) };
        a_limit(
            "an address space of 62 MiB",
            "export MALLOC_ARENA_MAX=1; ulimit -v 63488;",
            &orders,
            Met::ByEither(SIGABRT),
        );
    }
}
