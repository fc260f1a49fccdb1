//! The list of all workloads, with their sizes.

use std::time::Duration;

use super::{Kind, Limit, Workload};
use crate::contender::Durability::{self, Process, Sync};

const SIZES: [(usize, &str); 2] = [(100, "100 B"), (1024, "1 KiB")];

const SPACE_NOTE: &str =
    "After a close: what the files reserve on the disk, and what they say their lengths are.";

const LIFE_NOTE: &str = "Inserted, got, deleted, store closed, file system synced. By the process: `write_bytes` less \
     `cancelled_write_bytes` of `/proc/PID/io`, which counts pages when they are made dirty (for a server: of the \
     server, until just before its end). By the disk: what the disk of the directory says it has written, for whomever. \
     Both count the making of files beforehand, which fewer messages than usual have to bear here.";

/// How much of the work is done: all, or a tenth for a quick look.
#[derive(Clone, Copy)]
struct Scale {
    quick: bool,
}

impl Scale {
    fn messages(self, count: u64) -> u64 {
        if self.quick { count / 10 } else { count }
    }

    fn limit(self, messages: u64, seconds: f64) -> Limit {
        let seconds = if self.quick { seconds / 10.0 } else { seconds };
        Limit { messages: self.messages(messages), time: Duration::from_secs_f64(seconds) }
    }
}

pub fn list(quick: bool) -> Vec<Workload> {
    let scale = Scale { quick };
    let mut all = Vec::new();
    for (size, name) in SIZES {
        synced_inserts(scale, size, name, &mut all);
    }
    for (size, name) in SIZES {
        unsynced_inserts(scale, size, name, &mut all);
    }
    for (size, name) in SIZES {
        drains(scale, size, name, &mut all);
    }
    for (size, name) in SIZES {
        steady(scale, size, name, &mut all);
    }
    reopens(&mut all, quick);
    costs(scale, &mut all);
    space(scale, &mut all);
    for workload in all.iter_mut().filter(|one| is_secondary(one)) {
        workload.rounds = workload.rounds.min(3);
    }
    all
}

/// What is measured in fewer rounds, so that a whole run does not take longer than anybody waits for.
fn is_secondary(workload: &Workload) -> bool {
    let large = workload.size > 500 && workload.id != "insert-unsynced-1t-1024";
    let others = ["insert-unsynced-4t", "drain-4t", "drain-shuffled"];
    large || others.iter().any(|id| workload.id.starts_with(id))
}

fn workload(
    id: String,
    title: String,
    durability: Durability,
    size: usize,
    kind: Kind,
) -> Workload {
    Workload {
        id,
        title,
        durability,
        size,
        kind,
        raws: &[],
        yardstick: None,
        own: false,
        rounds: usize::MAX,
        note: "",
    }
}

/// Messages of this size that fit into RAW's file.
fn fits(size: usize) -> u64 {
    (240 << 20) / (size as u64 + 8)
}

fn synced_inserts(scale: Scale, size: usize, name: &str, all: &mut Vec<Workload>) {
    for threads in [1, 8, 64] {
        let kind = Kind::Insert { threads, batch: 1, limit: scale.limit(fits(size), 1.0) };
        let plural = if threads == 1 { "thread" } else { "threads" };
        let id = format!("insert-synced-{threads}t-{size}");
        let title = format!("Synced insert, {threads} {plural}, {name}");
        let mut workload = workload(id, title, Sync, size, kind);
        match threads {
            1 => workload.raws = &["raw-synced"],
            _ => workload.yardstick = Some(format!("insert-synced-1t-{size}")),
        }
        all.push(workload);
    }
    let kind = Kind::Insert { threads: 1, batch: 100, limit: scale.limit(fits(size), 1.0) };
    let id = format!("insert-synced-batch-{size}");
    let title = format!("Synced insert by batches of 100, {name}");
    let note = "The latency is that of a batch.";
    let raws = &["raw-synced"];
    all.push(Workload { raws, note, ..workload(id, title, Sync, size, kind) });
}

fn unsynced_inserts(scale: Scale, size: usize, name: &str, all: &mut Vec<Workload>) {
    let messages = if size > 500 { 200_000 } else { 500_000 };
    for threads in [1, 4] {
        let kind = Kind::Insert { threads, batch: 1, limit: scale.limit(messages, 1.0) };
        let plural = if threads == 1 { "thread" } else { "threads" };
        let id = format!("insert-unsynced-{threads}t-{size}");
        let title = format!("Unsynced insert, {threads} {plural}, {name}");
        let mut workload = workload(id, title, Process, size, kind);
        workload.note = "The latency is measured in a pass of its own: looking at the clock would slow down the rate.";
        match threads {
            1 => workload.raws = &["raw-fresh", "raw-faulted", "raw-written"],
            _ => workload.yardstick = Some(format!("insert-unsynced-1t-{size}")),
        }
        all.push(workload);
    }
}

fn drains(scale: Scale, size: usize, name: &str, all: &mut Vec<Workload>) {
    let messages = if size > 500 { 100_000 } else { 300_000 };
    let limit = scale.limit(messages, 1.0);
    let mut push = |id: &str, title: &str, durability, raws, kind| {
        let id = format!("{id}-{size}");
        let title = format!("{title}, {name}");
        all.push(Workload { raws, ..workload(id, title, durability, size, kind) });
    };
    let drain = |threads, batch, limit| Kind::Drain { threads, batch, limit };
    push("drain-1t", "Get and delete one by one, 1 thread", Process, &[], drain(1, 1, limit));
    push("drain-4t", "Get and delete one by one, 4 threads", Process, &[], drain(4, 1, limit));
    push("drain-batch", "Get and delete by batches of 100", Process, &[], drain(1, 100, limit));
    let synced = scale.limit(30_000, 1.0);
    let title = "Synced get and delete one by one, 1 thread";
    push("drain-synced", title, Sync, &["raw-synced"], drain(1, 1, synced));
    let kind = Kind::OutOfOrder { window: 1000, limit };
    push("drain-shuffled", "Get 1000, delete them in another order", Process, &[], kind);
}

fn steady(scale: Scale, size: usize, name: &str, all: &mut Vec<Workload>) {
    let messages = if size > 500 { 150_000 } else { 400_000 };
    let limit = scale.limit(messages, 1.0);
    let shapes = [
        ("steady-1x1", "Steady state, 1 producer and 1 consumer", 1, 1),
        ("steady-4x4", "Steady state, 4 producers and 4 consumers", 4, 1),
        ("steady-16q", "Steady state, 1 producer and 1 consumer go round 16 queues", 1, 16),
    ];
    for (id, title, threads, queues) in shapes {
        let kind = Kind::Steady { producers: threads, consumers: threads, queues, limit };
        let (id, title) = (format!("{id}-{size}"), format!("{title}, {name}"));
        all.push(workload(id, title, Process, size, kind));
    }
}

/// 10 thousand, 1 million, 10 million; a tenth of the two large ones for a quick look.
fn backlogs(quick: bool) -> [(u64, &'static str); 3] {
    match quick {
        true => [(10_000, "10k"), (100_000, "1m"), (1_000_000, "10m")],
        false => [(10_000, "10k"), (1_000_000, "1m"), (10_000_000, "10m")],
    }
}

fn reopens(all: &mut Vec<Workload>, quick: bool) {
    for (killed, how) in [(false, "after a close"), (true, "after a kill")] {
        for (waiting, short) in backlogs(quick) {
            let id = if killed { "reopen-killed" } else { "reopen-closed" };
            let title =
                format!("Reopen to the first message {how}, {} waiting, 100 B", words(waiting));
            let kind = Kind::Reopen { waiting, killed };
            let workload = workload(format!("{id}-{short}"), title, Process, 100, kind);
            let rounds = if killed && waiting > 5_000_000 { 3 } else { usize::MAX };
            all.push(Workload { own: killed, rounds, ..workload });
        }
    }
}

fn costs(scale: Scale, all: &mut Vec<Workload>) {
    for (waiting, short) in backlogs(scale.quick) {
        let kind = Kind::Backlog { waiting, operations: scale.messages(200_000) };
        let title = format!("Cost of an operation with {} waiting, 100 B", words(waiting));
        let workload = workload(format!("cost-waiting-{short}"), title, Process, 100, kind);
        let rounds = if waiting > 5_000_000 { 3 } else { usize::MAX };
        all.push(Workload { own: true, rounds, ..workload });
    }
    for (held, short) in [(0, "0"), (100_000, "100k")] {
        let kind = Kind::InFlight { held, operations: scale.messages(200_000) };
        let title = format!("Cost of an operation with {} in flight, 100 B", words(held));
        let workload = workload(format!("cost-inflight-{short}"), title, Process, 100, kind);
        all.push(Workload { own: true, ..workload });
    }
    let kind = Kind::Idle { consumers: 4, time: Duration::from_secs(2) };
    let title = "Idle with 4 waiting consumers".to_string();
    let workload = workload("idle".to_string(), title, Process, 100, kind);
    all.push(Workload { own: true, rounds: 3, ..workload });
}

fn space(scale: Scale, all: &mut Vec<Workload>) {
    for (messages, short) in [(100_000, "100k"), (1_000_000, "1m")] {
        for (size, name) in SIZES {
            let kind = Kind::Space { messages: scale.messages(messages) };
            let title = format!("Bytes on disk for one of {} waiting, {name}", words(messages));
            let workload = workload(format!("space-{short}-{size}"), title, Process, size, kind);
            all.push(Workload { rounds: 1, note: SPACE_NOTE, ..workload });
        }
    }
    let lives = [
        ("life-process", "one by one", Process, 200_000, 1),
        ("life-synced", "one by one", Sync, 10_000, 1),
        ("life-synced-batch", "by batches of 100", Sync, 200_000, 100),
    ];
    for (id, how, durability, messages, batch) in lives {
        let kind = Kind::Life { messages: scale.messages(messages), batch };
        let synced = if durability == Sync { "synced" } else { "unsynced" };
        let title = format!("Bytes written in the life of a message, {synced}, {how}, 100 B");
        let workload = workload(id.to_string(), title, durability, 100, kind);
        all.push(Workload { rounds: 1, note: LIFE_NOTE, ..workload });
    }
}

fn words(count: u64) -> String {
    match count {
        0 => "none".to_string(),
        n if n % 1_000_000 == 0 => format!("{} million", n / 1_000_000),
        n => format!("{} thousand", n / 1000),
    }
}
