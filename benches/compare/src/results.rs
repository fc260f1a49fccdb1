//! All figures of a run of the contest, and what they come to.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::contenders::MILLPOND;
use crate::machine::Machine;
use crate::outcome::{Outcome, Status};
use crate::workloads;

#[derive(Serialize, Deserialize)]
pub struct Results {
    pub machine: Machine,
    pub quick: bool,
    pub rounds: usize,
    pub participants: Vec<Participant>,
    pub runs: Vec<Run>,
}

#[derive(Serialize, Deserialize)]
pub struct Participant {
    pub key: String,
    pub name: String,
    pub version: String,
    pub unequal: Vec<String>,
}

impl Participant {
    pub fn is_raw(&self) -> bool {
        self.key.starts_with("raw-")
    }

    pub fn is_rival(&self) -> bool {
        !self.is_raw() && self.key != MILLPOND
    }
}

#[derive(Serialize, Deserialize)]
pub struct Run {
    pub workload: String,
    pub contender: String,
    pub round: usize,
    /// How long all of it took, filling and checking included.
    pub seconds: f64,
    pub outcome: Outcome,
}

/// A figure over all rounds.
#[derive(Clone, Copy)]
pub struct Stat {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Results {
    pub fn read(path: &Path) -> Results {
        let text = std::fs::read(path).expect("the figures can be read");
        serde_json::from_slice(&text).expect("the figures of a run")
    }

    /// Writes down all figures so far.
    pub fn keep(&self, path: Option<&Path>) {
        let Some(path) = path else { return };
        let text = serde_json::to_vec(self).expect("figures can be written");
        std::fs::write(path, text).expect("the figures can be kept");
    }

    /// Whether every workload was gone through.
    pub fn is_whole(&self) -> bool {
        let list = workloads::list(self.quick);
        list.iter().all(|one| self.runs.iter().any(|run| run.workload == one.id))
    }

    pub fn of<'a>(
        &'a self,
        workload: &'a str,
        contender: &'a str,
    ) -> impl Iterator<Item = &'a Run> {
        self.runs.iter().filter(move |run| run.workload == workload && run.contender == contender)
    }

    /// Why there is no figure: the first fault of any round. None if there is one.
    pub fn fault(&self, workload: &str, contender: &str) -> Option<String> {
        let rounds = self.of(workload, contender).count();
        let mut faults = self.of(workload, contender).filter_map(|run| match &run.outcome.status {
            Status::Done => None,
            Status::Unsupported(why) => Some(why.clone()),
            Status::Wrong(what) => Some(format!("wrong: {what}")),
            Status::Failed(what) => Some(format!("failed: {what}")),
        });
        let first = faults.next()?;
        let others = faults.count();
        Some(match others + 1 < rounds {
            true => format!("{first} (in {} of {rounds} rounds)", others + 1),
            false => first,
        })
    }

    /// A figure of a contender without faults.
    pub fn stat(&self, workload: &str, contender: &str, figure: &str) -> Option<Stat> {
        if self.fault(workload, contender).is_some() {
            return None;
        }
        let of_runs = self.of(workload, contender);
        let mut all: Vec<f64> =
            of_runs.filter_map(|run| run.outcome.figures.get(figure).copied()).collect();
        all.sort_by(f64::total_cmp);
        let (min, max) = (*all.first()?, *all.last()?);
        let half = all.len() / 2;
        let median = match all.len() % 2 {
            1 => all[half],
            _ => (all[half - 1] + all[half]) / 2.0,
        };
        Some(Stat { median, min, max })
    }

    pub fn median(&self, workload: &str, contender: &str, figure: &str) -> Option<f64> {
        self.stat(workload, contender, figure).map(|stat| stat.median)
    }

    /// The best figure of a rival, and whose it is.
    pub fn best_rival(
        &self,
        workload: &str,
        figure: &str,
        higher: bool,
    ) -> Option<(f64, &Participant)> {
        let rivals = self.participants.iter().filter(|one| one.is_rival());
        self.best(rivals, workload, figure, higher)
    }

    pub fn best<'a>(
        &self,
        among: impl Iterator<Item = &'a Participant>,
        workload: &str,
        figure: &str,
        higher: bool,
    ) -> Option<(f64, &'a Participant)> {
        let figures = among.filter_map(|one| Some((self.median(workload, &one.key, figure)?, one)));
        figures.max_by(|a, b| if higher { a.0.total_cmp(&b.0) } else { b.0.total_cmp(&a.0) })
    }
}
