//! One measurement, in a process of its own.

use std::io::Write;

use crate::args::Order;
use crate::contenders;
use crate::workloads::{self, Phase, Task};

pub fn run(order: Order) {
    let workload = workloads::list(order.quick).into_iter().find(|one| one.id == order.workload);
    let workload = workload.expect("a workload of that name");
    let contender = contenders::all().into_iter().find(|one| one.key == order.contender);
    let contender = contender.expect("a contender of that name");
    let task = Task { workload, dir: order.dir, phase: order.phase };
    let outcome = (contender.run)(&task);
    println!("{}", serde_json::to_string(&outcome).expect("an outcome can be written"));
    std::io::stdout().flush().expect("the parent listens");
    if order.phase == (Phase::Fill { close: false }) {
        // The store is still open, and the parent kills this process.
        loop {
            std::thread::park();
        }
    }
}
