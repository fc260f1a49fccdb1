//! What runs in the machine whose power fails.

use std::fs::OpenOptions;
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::load::{self, AFTERWARDS, QUEUES};
use crate::observe;
use crate::port::Port;
use crate::record::{Kind, Record, Witness};
use crate::workload::{self, Plan};

/// The environment of the process: what to do, with which seed, and the port.
pub const ORDERS: &str = "MILLPOND_POWER_GUEST";

/// Where the machine's disk is mounted.
pub const MOUNTED: &str = "/mnt";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// The workload, on a new disk.
    Work,
    /// Opens what a power cut has left, and inserts.
    Recover,
}

impl Task {
    pub fn name(self) -> &'static str {
        match self {
            Task::Work => "work",
            Task::Recover => "recover",
        }
    }
}

pub fn run_if_started() {
    let Ok(orders) = std::env::var(ORDERS) else { return };
    let [task, seed, port] = orders.split(' ').collect::<Vec<_>>()[..] else {
        panic!("orders in the guest: {orders}");
    };
    let port = Port::new(OpenOptions::new().write(true).open(port).unwrap());
    let dir = Path::new(MOUNTED).join("store");
    if task == Task::Work.name() {
        work(&dir, seed.parse().unwrap(), &port);
    } else {
        recover(&dir, &port);
    }
    // The host ends this machine.
    thread::sleep(Duration::from_secs(1 << 20));
}

fn work(dir: &Path, seed: u64, port: &Port) {
    let threads = if seed.is_multiple_of(4) { 1 } else { 4 };
    // In an emulated machine everything takes ten times as long.
    let operations = 80 / u32::from(threads);
    let plan = Plan { seed, threads, first_open: (seed % 3) as u32, opens: 6, operations };
    workload::run(dir, &plan, port).unwrap();
}

fn recover(dir: &Path, port: &Port) {
    let store = observe::open_after_power_cut(dir).unwrap();
    let queue = store.queue(QUEUES[AFTERWARDS as usize]).unwrap();
    for key in 0.. {
        let record = Record { queue: AFTERWARDS, key, count: 1, ..Record::new(0, Kind::Inserting) };
        port.note(&[record]);
        let id = queue.insert(load::payload(key)).unwrap().as_u64();
        port.note(&[Record { kind: Kind::Inserted, id, ..record }]);
    }
}
