//! The power of a virtual machine fails while a store in it is at work.
//!
//! The machine has a disk with ext4 or XFS, on which the workload of `tests/block_log` runs; each of its notes leaves the
//! machine by a port, before the call that it announces, and after the call that it confirms. After up to 1200 of them the
//! machine is killed. Its disk is mounted here, the store in it opened, and held against what had been acknowledged. In
//! one of three rounds the machine is first started once more with the same disk, recovers, inserts, and is killed again.
//!
//! ```text
//! cargo test --release --test power_cut -- --ignored --nocapture
//! ```
//!
//! `MILLPOND_POWER_CUTS=n` makes n cuts instead of a few, `MILLPOND_POWER_SEED` sets the first seed, which a run prints.
//!
//! What that shows: the whole way of a write through another kernel, its page cache, its file system and its driver. What
//! it does not: what the disk had taken when the machine is killed is kept, as in a disk without a cache of its own, so a
//! flush that is missing behind a write is found by `tests/block_log` alone. What had not left the page cache of the
//! machine is lost, and so a missing sync is found here too.
//!
//! It takes root, loop devices, e2fsprogs, xfsprogs, `qemu-system-x86_64`, a busybox that is linked statically, and the
//! kernel of linux-image-cloud-amd64, installed or unpacked in the directory that `MILLPOND_POWER_KERNEL` names. Where one
//! of them is missing, that is said, and nothing is shown.

#![cfg(target_os = "linux")]

#[path = "../block_log/history.rs"]
mod history;
#[path = "../block_log/load.rs"]
mod load;
#[path = "../block_log/mount.rs"]
mod mount;
#[path = "../block_log/observe.rs"]
mod observe;
#[path = "../block_log/record.rs"]
mod record;
#[path = "../block_log/workload.rs"]
mod workload;

mod guest;
mod initramfs;
mod machine;
mod port;
mod run;

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use run::{Figures, Scene};

const CUTS: u64 = 12;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number in its place"))
}

#[test]
#[ignore = "takes root and an emulator"]
fn what_was_acknowledged_survives_the_power_cut_of_a_machine() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let first = number("MILLPOND_POWER_SEED").unwrap_or(now % 1_000_000);
    println!("MILLPOND_POWER_SEED={first}");
    let scene = match Scene::prepare() {
        Ok(scene) => scene,
        Err(why) => return eprintln!("no machine was cut off: {why}"),
    };
    let (began, mut figures) = (Instant::now(), Figures::default());
    for seed in first..first + number("MILLPOND_POWER_CUTS").unwrap_or(CUTS) {
        if let Err(why) = scene.cut(seed, &mut figures) {
            panic!("seed {seed}: {why}");
        }
        if figures.cuts.is_multiple_of(25) {
            println!("{:.0?}: {figures}", began.elapsed());
        }
    }
    println!("{:.0?}: {figures}", began.elapsed());
    assert!(
        figures.acknowledged.inserts > 0 && figures.messages > 0,
        "nothing was done: {figures}"
    );
}

/// What runs in the machine. Does nothing anywhere else.
#[test]
#[ignore = "the other test of this file starts it"]
fn guest() {
    guest::run_if_started();
}
