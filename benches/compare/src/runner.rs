//! Goes through the workloads, with a child for each measurement.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::args::{Args, Order};
use crate::contenders::{self, Entry, MILLPOND};
use crate::machine::Machine;
use crate::measure;
use crate::outcome::{Outcome, Status};
use crate::results::{Participant, Results, Run};
use crate::workloads::{self, Kind, Phase, Workload};

/// How long a child may take.
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// Whoever needs longer than this for a million messages is not asked for ten millions.
const FILL_SECONDS: f64 = 6.0;

pub fn run(args: &Args) -> Results {
    let chosen: Vec<Entry> =
        contenders::all().into_iter().filter(|one| is_chosen(args, one)).collect();
    let mut list = workloads::list(args.quick);
    list.retain(|one| args.only.is_empty() || args.only.iter().any(|text| one.id.contains(text)));
    if args.list {
        list.iter().for_each(|one| println!("{:24} {}", one.id, one.title));
        chosen.iter().for_each(|one| println!("{}", one.key));
        std::process::exit(0);
    }
    let base = tempfile::Builder::new().prefix("millpond-compare-").tempdir_in(&args.dir);
    let base = base.expect("a directory to measure in");
    let mut contest = Contest {
        args,
        base: base.path(),
        results: Results {
            machine: Machine::look(base.path()),
            quick: args.quick,
            rounds: args.rounds,
            participants: chosen.iter().map(participant).collect(),
            runs: Vec::new(),
        },
        since: Instant::now(),
    };
    for workload in &list {
        contest.go_through(workload, &chosen);
        contest.results.keep(args.json.as_deref());
    }
    contest.results
}

fn is_chosen(args: &Args, entry: &Entry) -> bool {
    let named = |name: &String| entry.key == name || (entry.is_raw() && name == "raw");
    args.contenders.is_empty() || args.contenders.iter().any(named)
}

fn participant(entry: &Entry) -> Participant {
    if !contenders::installed(entry.key) {
        let (key, name) = (entry.key.to_string(), entry.key.to_string());
        let unequal = vec!["is not installed on this machine".to_string()];
        return Participant { key, name, version: String::new(), unequal };
    }
    let card = (entry.card)();
    Participant {
        key: entry.key.to_string(),
        name: card.name.to_string(),
        version: card.version,
        unequal: card.unequal.iter().map(|text| text.to_string()).collect(),
    }
}

struct Contest<'a> {
    args: &'a Args,
    base: &'a Path,
    results: Results,
    /// When the run that goes on was begun.
    since: Instant,
}

impl Contest<'_> {
    /// All rounds of one workload. The contenders take turns, so that a noise of the machine meets all of them.
    fn go_through(&mut self, workload: &Workload, chosen: &[Entry]) {
        let mut asked: Vec<&Entry> = chosen.iter().filter(|one| is_asked(workload, one)).collect();
        let rounds = self.args.rounds.min(workload.rounds);
        if let Kind::Reopen { waiting, killed: false } = workload.kind {
            // The store is filled once, so here it is contender by contender.
            asked.iter().for_each(|entry| self.reopen(workload, entry, waiting, rounds));
            return;
        }
        let mut failed: Vec<&str> = Vec::new();
        for round in 0..rounds {
            for entry in &asked {
                if failed.contains(&entry.key) {
                    continue;
                }
                let outcome = match workload.kind {
                    Kind::Reopen { .. } => self.kill_and_reopen(workload, entry),
                    _ => self.in_fresh_directory(workload, entry),
                };
                // What has failed, or cannot do it, would do so again.
                if outcome.status != Status::Done && entry.key != MILLPOND {
                    failed.push(entry.key);
                }
                self.enter(workload, entry, round, outcome);
            }
            // Nobody always comes after the same one, whose files leave memory and disk as they leave them: on a virtual
            // machine the pages that somebody has just given back are cheap, and others are fetched from the host.
            let count = asked.len();
            asked.rotate_left((count / rounds + 1) % count.max(1));
            asked.reverse();
        }
    }

    fn enter(&mut self, workload: &Workload, entry: &Entry, round: usize, outcome: Outcome) {
        let seconds = self.since.elapsed().as_secs_f64();
        self.since = Instant::now();
        let figures: Vec<String> =
            outcome.figures.iter().map(|(key, value)| format!("{key} {value:.1}")).collect();
        let status = match &outcome.status {
            Status::Done => String::new(),
            other => format!("{other:?} "),
        };
        let name = format!("{} {} {}", workload.id, round + 1, entry.key);
        eprintln!("{name}: {status}{} [{seconds:.1} s]", figures.join(", "));
        let (workload, contender) = (workload.id.clone(), entry.key.to_string());
        self.results.runs.push(Run { workload, contender, round, seconds, outcome });
    }

    fn in_fresh_directory(&self, workload: &Workload, entry: &Entry) -> Outcome {
        self.with_directory(|dir| self.ask(workload, entry, dir, Phase::Whole))
    }

    fn with_directory<T>(&self, work: impl FnOnce(&Path) -> T) -> T {
        let dir = self.base.join("store");
        std::fs::create_dir(&dir).expect("a directory for the store");
        let result = work(&dir);
        std::fs::remove_dir_all(&dir).expect("the store can be removed");
        // What the disk still has to do for this one must not be done at the next one's expense.
        measure::sync_file_system(self.base);
        result
    }

    fn reopen(&mut self, workload: &Workload, entry: &Entry, waiting: u64, rounds: usize) {
        if let Some(seconds) = self.too_slow(entry, waiting) {
            let why = format!("not tried: a tenth of it took {seconds:.0} s to fill");
            return self.enter(workload, entry, 0, Outcome::unsupported(why));
        }
        let outcomes = self.with_directory(|dir| {
            let filled = self.ask(workload, entry, dir, Phase::Fill { close: true });
            if filled.status != Status::Done {
                return vec![filled];
            }
            measure::sync_file_system(dir);
            let opened = (0..rounds).map(|round| {
                let mut outcome = self.ask(workload, entry, dir, Phase::Open(round as u64));
                outcome.figures.extend(filled.figures.clone());
                outcome
            });
            opened.collect()
        });
        for (round, outcome) in outcomes.into_iter().enumerate() {
            self.enter(workload, entry, round, outcome);
        }
    }

    /// How long the contender took for a million, if that was too long for ten. None if it may try.
    fn too_slow(&self, entry: &Entry, waiting: u64) -> Option<f64> {
        if waiting < 10_000_000 {
            return None;
        }
        let before = self.results.runs.iter().rev();
        let before = before
            .filter(|run| run.workload == "reopen-closed-1m" && run.contender == entry.key)
            .find_map(|run| run.outcome.figures.get("fill_seconds"));
        before.copied().filter(|&seconds| seconds >= FILL_SECONDS)
    }

    fn kill_and_reopen(&self, workload: &Workload, entry: &Entry) -> Outcome {
        self.with_directory(|dir| {
            let filled = self.ask(workload, entry, dir, Phase::Fill { close: false });
            if filled.status != Status::Done {
                return filled;
            }
            measure::sync_file_system(dir);
            self.ask(workload, entry, dir, Phase::Open(0))
        })
    }

    /// Starts a child and waits for its line.
    fn ask(&self, workload: &Workload, entry: &Entry, dir: &Path, phase: Phase) -> Outcome {
        if !contenders::installed(entry.key) {
            return Outcome::unsupported("not installed");
        }
        let order = Order {
            contender: entry.key.to_string(),
            workload: workload.id.clone(),
            dir: dir.to_path_buf(),
            quick: self.args.quick,
            phase,
        };
        let program = std::env::current_exe().expect("this program has a name");
        let mut child = Command::new(program)
            .args(order.arguments())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("a child can be started");
        let outcome = listen(&mut child, phase);
        end(&mut child);
        outcome
    }
}

/// Whether a contender takes part in a workload: RAW only where it is the limit.
fn is_asked(workload: &Workload, entry: &Entry) -> bool {
    if entry.is_raw() {
        return workload.raws.contains(&entry.key);
    }
    !workload.own || entry.key == MILLPOND
}

fn listen(child: &mut Child, phase: Phase) -> Outcome {
    let output = child.stdout.take().expect("it is a pipe");
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let lines = BufReader::new(output).lines().map_while(Result::ok);
        // Libraries of rivals may print too.
        let found = lines.filter_map(|line| serde_json::from_str::<Outcome>(&line).ok()).next();
        let _ = sender.send(found);
    });
    let mut errors = child.stderr.take().expect("it is a pipe");
    let errors = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = errors.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    match receiver.recv_timeout(TIME_LIMIT) {
        Ok(Some(outcome)) => {
            if phase != (Phase::Fill { close: false }) {
                let _ = child.wait();
            }
            outcome
        }
        Ok(None) => {
            let _ = child.wait();
            Outcome::failed(first_words(&errors.join().unwrap_or_default()))
        }
        Err(_) => Outcome::failed(format!("did not finish in {} s", TIME_LIMIT.as_secs())),
    }
}

/// What a panic said.
fn first_words(errors: &str) -> String {
    let mut lines = errors.lines().skip_while(|line| !line.contains("panicked at")).skip(1);
    let line = lines.next().or(errors.lines().last()).unwrap_or("ended without a word");
    line.chars().take(120).collect()
}

/// Kills a child and what it has started, if they are still there.
fn end(child: &mut Child) {
    // SAFETY: only a signal; the group is the child's own, and the child is waited for only afterwards or has left its
    // servers behind.
    unsafe { libc::kill(-(child.id() as i32), libc::SIGKILL) };
    let _ = child.wait();
}
