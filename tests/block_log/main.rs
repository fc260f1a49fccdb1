//! Power cuts on real file systems: a workload runs on ext4 or XFS, on a device that logs every block write and every
//! flush. From the log, disks are built as a power cut may leave them: everything up to the last completed flush, and of
//! what came after it any part, lost, out of order, or torn. Each is mounted, so that the kernel replays its journal; the
//! store in it is opened, and held against all that had been acknowledged when the device had got so far.
//!
//! ```text
//! cargo test --release --test block_log -- --ignored --nocapture
//! ```
//!
//! `MILLPOND_BLOCK_STATES=n` checks n states on each file system, and `MILLPOND_BLOCK_SEED` sets the first seed, which a
//! run prints. What the threads do follows from it, what the scheduler does not: a state that fails comes again most of
//! the time, not always. Its disk is kept, and the run says where.
//!
//! It takes root, loop devices, FUSE in the kernel, e2fsprogs and xfsprogs. Where one of them is missing, that is said, and
//! nothing is shown.
//!
//! The parts: `mount` makes and mounts file systems, `device` and `server` are the disk that logs, `log` what it writes
//! down, `states` cuts that off; `workload` does what `load` and `record` describe, `history` is the model of what may be
//! there, `observe` looks what is, and `run` puts them together.

#![cfg(target_os = "linux")]

mod device;
mod history;
mod load;
mod log;
mod model_test;
mod mount;
mod observe;
mod record;
mod run;
mod server;
mod states;
mod workload;

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use device::{Disk, Flushes};
use mount::FileSystem;
use run::{Failed, Figures, STATES_OF_ONE};
use states::Fates;

/// States on each file system, if nobody asks for more. Fewer need not come across everything.
const STATES: usize = 150;

fn number<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok().map(|text| text.parse().ok().expect("a number in its place"))
}

fn what_was_acknowledged_survives_lost_and_torn_writes(file_system: FileSystem) {
    let states = number("MILLPOND_BLOCK_STATES").unwrap_or(STATES);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let first = number("MILLPOND_BLOCK_SEED").unwrap_or(now % 1_000_000);
    println!("{}: MILLPOND_BLOCK_SEED={first}", file_system.name());
    let (began, mut figures) = (Instant::now(), Figures::default());
    for n in 0..states.div_ceil(STATES_OF_ONE) {
        let count = STATES_OF_ONE.min(states - n * STATES_OF_ONE);
        let disk = Disk { file_system, flushes: Flushes::Kept };
        match run::run(disk, &run::plan(first + n as u64), count) {
            Ok(more) => figures.add(&more),
            Err(Failed::NotHere(why)) => {
                return eprintln!("no power cut was made on {}: {why}", file_system.name());
            }
            Err(Failed::Broken(why)) => panic!("{why}"),
        }
        println!("{}, {:.0?}: {figures}", file_system.name(), began.elapsed());
    }
    if states >= STATES {
        let Fates { lost, torn, .. } = figures.fates;
        assert!(lost > 0 && torn > 0, "no write was lost: {figures}");
        assert!(figures.messages > 0 && figures.in_recovery > 0, "nothing was found: {figures}");
    }
    // When compaction comes is a matter of luck.
    assert!(figures.rewritten > 0 || states < 10 * STATES, "nothing was rewritten: {figures}");
}

#[test]
#[ignore = "takes root, loop devices and FUSE"]
fn what_was_acknowledged_survives_lost_and_torn_writes_on_ext4() {
    what_was_acknowledged_survives_lost_and_torn_writes(FileSystem::Ext4);
}

#[test]
#[ignore = "takes root, loop devices and FUSE"]
fn what_was_acknowledged_survives_lost_and_torn_writes_on_xfs() {
    what_was_acknowledged_survives_lost_and_torn_writes(FileSystem::Xfs);
}

/// What proves that the tests above can fail.
#[test]
#[ignore = "takes root, loop devices and FUSE"]
fn a_disk_that_ignores_flushes_is_noticed() {
    let disk = Disk { file_system: FileSystem::Ext4, flushes: Flushes::Ignored };
    match run::run(disk, &run::plan(1), STATES) {
        Ok(figures) => panic!("a disk that ignores flushes has lost nothing: {figures}"),
        Err(Failed::NotHere(why)) => eprintln!("no power cut was made: {why}"),
        Err(Failed::Broken(why)) => println!("as it should be: {}", why.lines().next().unwrap()),
    }
}

/// The process that is the disk. Does nothing unless a test started it.
#[test]
#[ignore = "the other tests of this file start it"]
fn server() {
    server::run_if_started();
}
