//! What millpond sets out to reach, held against a run.

use std::fmt::Write;

use crate::contenders::MILLPOND;
use crate::report::number;
use crate::results::Results;

/// A goal with what became of it. A figure that was not measured is `None`, and its goal is left open.
struct Goal {
    what: String,
    /// What is to be reached; at least or at most.
    bound: Bound,
    figure: Option<f64>,
}

#[derive(Clone, Copy)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Bound {
    fn holds(self, figure: f64) -> bool {
        match self {
            Bound::AtLeast(bound) => figure >= bound,
            Bound::AtMost(bound) => figure <= bound,
        }
    }
}

use Bound::{AtLeast, AtMost};

/// All goals; of a part of a run, those of which anything was measured.
pub fn table(results: &Results) -> String {
    let look = Look(results);
    let chapters = [
        look.synced_inserts(),
        look.unsynced_inserts(),
        look.drains(),
        look.steady(),
        look.reopens(),
        look.costs(),
        look.stalls(),
        look.rest(),
    ];
    let mut goals: Vec<Goal> = chapters.into_iter().flatten().collect();
    if !results.is_whole() {
        goals.retain(|goal| goal.figure.is_some());
    }
    if goals.is_empty() {
        return String::new();
    }
    let mut table = String::new();
    if results.quick {
        table.push_str("Of a tenth of the work: no verdict, and backlogs are a tenth too.\n\n");
    }
    table.push_str("| goal | bound | figure | |\n|---|---:|---:|---|\n");
    for goal in goals {
        let bound = match goal.bound {
            AtLeast(bound) => format!("≥ {bound}"),
            AtMost(bound) => format!("≤ {bound}"),
        };
        let (figure, verdict) = match goal.figure {
            None => ("not measured".to_string(), "**not reached**"),
            Some(figure) if goal.bound.holds(figure) => (number(figure), "reached"),
            Some(figure) => (number(figure), "**not reached**"),
        };
        let _ = writeln!(table, "| {} | {bound} | {} | {verdict} |", goal.what, figure);
    }
    table
}

fn goal(what: impl Into<String>, bound: Bound, figure: Option<f64>) -> Goal {
    Goal { what: what.into(), bound, figure }
}

const SIZES: [(usize, &str); 2] = [(100, "100 B"), (1024, "1 KiB")];

struct Look<'a>(&'a Results);

impl Look<'_> {
    fn own(&self, workload: &str, figure: &str) -> Option<f64> {
        self.0.median(workload, MILLPOND, figure)
    }

    /// millpond's rate as a multiple of another one.
    fn rate_to(&self, workload: &str, other: Option<f64>) -> Option<f64> {
        Some(self.own(workload, "rate")? / other?)
    }

    fn raw(&self, workload: &str, raw: &str) -> Option<f64> {
        self.0.median(workload, raw, "rate")
    }

    fn to_best_rival(&self, workload: &str) -> Option<f64> {
        self.rate_to(workload, self.0.best_rival(workload, "rate", true).map(|(best, _)| best))
    }

    /// The best rate of a rival that flushes the disk for every message; of any, if flushes are not counted here.
    fn best_syncing_rival(&self, workload: &str) -> Option<f64> {
        let syncs =
            |key: &str| self.0.median(workload, key, "flushes").is_none_or(|flushes| flushes > 0.5);
        let rivals = self.0.participants.iter().filter(|one| one.is_rival() && syncs(&one.key));
        self.0.best(rivals, workload, "rate", true).map(|(best, _)| best)
    }

    fn synced_inserts(&self) -> Vec<Goal> {
        let mut goals = Vec::new();
        for (size, name) in SIZES {
            let single = format!("insert-synced-1t-{size}");
            let raw = self.raw(&single, "raw-synced");
            for (threads, least) in [(1, 1.0), (8, 5.0), (64, 15.0)] {
                let workload = format!("insert-synced-{threads}t-{size}");
                let what = format!("1. synced insert, {name}, threads: {threads}; times RAW");
                goals.push(goal(what, AtLeast(least), self.rate_to(&workload, raw)));
            }
            let what =
                format!("1. synced insert, {name}, 1 thread; times the best rival that syncs");
            let figure = self.rate_to(&single, self.best_syncing_rival(&single));
            goals.push(goal(what, AtLeast(1.0), figure));
            let batch = format!("insert-synced-batch-{size}");
            let what = format!("1. synced insert, {name}, batches of 100; times RAW");
            let figure = self.rate_to(&batch, self.raw(&batch, "raw-synced"));
            goals.push(goal(what, AtLeast(0.95), figure));
        }
        goals
    }

    fn unsynced_inserts(&self) -> Vec<Goal> {
        let (small, large) = ("insert-unsynced-1t-100", "insert-unsynced-1t-1024");
        let fresh = self.raw(large, "raw-fresh");
        let better = fresh.zip(self.raw(large, "raw-written")).map(|(a, b)| a.max(b));
        vec![
            goal(
                "2. unsynced insert, 100 B; times RAW's copy into a fresh mapping",
                AtLeast(0.7),
                self.rate_to(small, self.raw(small, "raw-fresh")),
            ),
            goal(
                "2. unsynced insert, 100 B; times the best rival",
                AtLeast(2.5),
                self.to_best_rival(small),
            ),
            goal(
                "2. unsynced insert, 1 KiB; times the better of RAW's fresh mapping and RAW's write call",
                AtLeast(0.9),
                self.rate_to(large, better),
            ),
        ]
    }

    fn drains(&self) -> Vec<Goal> {
        let mut goals = Vec::new();
        for (size, name) in SIZES {
            let what = format!("3. get and delete one by one, {name}; times the best rival");
            goals.push(goal(what, AtLeast(2.0), self.to_best_rival(&format!("drain-1t-{size}"))));
            let what = format!("3. get and delete by batches of 100, {name}; times the best rival");
            goals.push(goal(
                what,
                AtLeast(5.0),
                self.to_best_rival(&format!("drain-batch-{size}")),
            ));
            let synced = format!("drain-synced-{size}");
            let what = format!("3. synced get and delete, {name}; times RAW");
            let figure = self.rate_to(&synced, self.raw(&synced, "raw-synced"));
            goals.push(goal(what, AtLeast(1.0), figure));
        }
        goals
    }

    fn steady(&self) -> Vec<Goal> {
        let mut goals = Vec::new();
        for (size, name) in SIZES {
            let single = format!("steady-1x1-{size}");
            let rate = self.own(&single, "rate");
            let what = format!("4. steady state, 1 + 1, {name}; times the best rival");
            goals.push(goal(what, AtLeast(3.0), self.to_best_rival(&single)));
            let what = format!("4. steady state, 16 queues, {name}; times one queue");
            goals.push(goal(what, AtLeast(0.7), self.rate_to(&format!("steady-16q-{size}"), rate)));
            let what = format!("4. steady state, 4 + 4, {name}; times 1 + 1");
            goals.push(goal(what, AtLeast(1.0), self.rate_to(&format!("steady-4x4-{size}"), rate)));
        }
        goals
    }

    fn reopens(&self) -> Vec<Goal> {
        let mut goals = Vec::new();
        for (how, words) in [("closed", "after a close"), ("killed", "after a kill")] {
            let large = format!("reopen-{how}-10m");
            let small = self.own(&format!("reopen-{how}-10k"), "ms");
            let ms = self.own(&large, "ms");
            let times = ms.zip(small).map(|(large, small)| large / small);
            let what = format!("5. reopen {words} with 10 million waiting; ms");
            goals.push(goal(what, AtMost(5.0), ms));
            let what = format!("5. reopen {words} with 10 million waiting; times 10 thousand");
            goals.push(goal(what, AtMost(2.0), times));
            let what = format!("5. RssAnon {words} with 10 million waiting; MiB");
            goals.push(goal(what, AtMost(8.0), self.own(&large, "rss_mib")));
        }
        goals
    }

    fn costs(&self) -> Vec<Goal> {
        let mut goals = Vec::new();
        for (figure, operation) in [("insert_ns", "insert"), ("pop_ns", "get + delete")] {
            let times = |more: &str, fewer: &str| {
                let (more, fewer) = (self.own(more, figure), self.own(fewer, figure));
                more.zip(fewer).map(|(more, fewer)| more / fewer)
            };
            let what =
                format!("6. {operation} with 10 million waiting; times its cost with 10 thousand");
            goals.push(goal(what, AtMost(1.3), times("cost-waiting-10m", "cost-waiting-10k")));
            let what =
                format!("6. {operation} with 100 thousand in flight; times its cost with none");
            goals.push(goal(what, AtMost(1.3), times("cost-inflight-100k", "cost-inflight-0")));
        }
        goals
    }

    /// How far millpond's tail reaches beyond that of a copy into a fresh mapping.
    fn stalls(&self) -> Vec<Goal> {
        let mut goals = Vec::new();
        for (size, name) in SIZES {
            let workload = format!("insert-unsynced-1t-{size}");
            for (figure, words) in [("p999", "p99.9"), ("max", "longest")] {
                let raw = self.0.median(&workload, "raw-fresh", figure);
                let beyond = self.own(&workload, figure).zip(raw).map(|(own, raw)| own - raw);
                let what = format!("7. unsynced insert, {name}, {words}; µs beyond RAW's");
                goals.push(goal(what, AtMost(1000.0), beyond));
            }
        }
        goals
    }

    fn rest(&self) -> Vec<Goal> {
        let space = |count| self.own(&format!("space-{count}-100"), "allocated");
        vec![
            goal(
                "8. idle with 4 waiting consumers; CPU ms in a second",
                AtMost(1.0),
                self.own("idle", "cpu_ms"),
            ),
            goal(
                "9. bytes on disk for one of 100 thousand messages of 100",
                AtMost(136.0),
                space("100k"),
            ),
            goal(
                "9. bytes on disk for one of 1 million messages of 100",
                AtMost(136.0),
                space("1m"),
            ),
        ]
    }
}
