//! The command line.

use std::path::PathBuf;

use lexopt::prelude::*;

use crate::workloads::Phase;

pub const HELP: &str = "\
Runs millpond and its rivals through the same work, and writes docs/benchmarks.md.

  --only TEXT        only workloads with TEXT in their name; may be repeated
  --contender NAME   only this contender, and only this way of raw writing with raw-...; may be repeated
  --rounds N         how often each is run (default 5)
  --quick            one round of a tenth of the work
  --dir DIR          where the stores lie (default: where temporary files lie)
  --out FILE         where the report goes (default: docs/benchmarks.md, and the terminal for part of a run)
  --json FILE        where the figures of each run go
  --from FILE        writes the report of an earlier run anew, from what --json has kept
  --list             lists the names of workloads and contenders
";

pub enum Command {
    Compare(Args),
    Child(Order),
    Help,
}

pub struct Args {
    pub only: Vec<String>,
    pub contenders: Vec<String>,
    pub rounds: usize,
    pub quick: bool,
    pub dir: PathBuf,
    pub out: Option<PathBuf>,
    pub json: Option<PathBuf>,
    pub from: Option<PathBuf>,
    pub list: bool,
}

impl Args {
    /// Whether every contender goes through all of the work.
    pub fn is_full(&self) -> bool {
        self.only.is_empty() && self.contenders.is_empty() && !self.quick
    }
}

/// What a child is told by its parent.
pub struct Order {
    pub contender: String,
    pub workload: String,
    pub dir: PathBuf,
    pub quick: bool,
    pub phase: Phase,
}

pub fn parse() -> Result<Command, lexopt::Error> {
    let mut parser = lexopt::Parser::from_env();
    let mut args = Args {
        only: Vec::new(),
        contenders: Vec::new(),
        rounds: 5,
        quick: false,
        dir: std::env::temp_dir(),
        out: None,
        json: None,
        from: None,
        list: false,
    };
    while let Some(arg) = parser.next()? {
        match arg {
            Value(word) if word == "child" => return child(parser),
            Long("only") => args.only.push(parser.value()?.string()?),
            Long("contender") => args.contenders.push(parser.value()?.string()?),
            Long("rounds") => args.rounds = parser.value()?.parse()?,
            Long("quick") => (args.quick, args.rounds) = (true, 1),
            Long("dir") => args.dir = parser.value()?.into(),
            Long("out") => args.out = Some(parser.value()?.into()),
            Long("json") => args.json = Some(parser.value()?.into()),
            Long("from") => args.from = Some(parser.value()?.into()),
            Long("list") => args.list = true,
            Long("help") | Short('h') => return Ok(Command::Help),
            other => return Err(other.unexpected()),
        }
    }
    if args.rounds == 0 {
        return Err("at least one round".into());
    }
    Ok(Command::Compare(args))
}

/// `child CONTENDER WORKLOAD DIR full|quick PHASE`, as `arguments` makes it.
fn child(mut parser: lexopt::Parser) -> Result<Command, lexopt::Error> {
    let mut word = || parser.value()?.string();
    let (contender, workload, dir) = (word()?, word()?, word()?);
    let quick = word()? == "quick";
    let phase = match word()?.as_str() {
        "whole" => Phase::Whole,
        "fill" => Phase::Fill { close: true },
        "fill-and-stay" => Phase::Fill { close: false },
        opened => Phase::Open(opened.parse().map_err(|_| "an unknown phase")?),
    };
    Ok(Command::Child(Order { contender, workload, dir: dir.into(), quick, phase }))
}

impl Order {
    pub fn arguments(&self) -> Vec<String> {
        let phase = match self.phase {
            Phase::Whole => "whole".to_string(),
            Phase::Fill { close: true } => "fill".to_string(),
            Phase::Fill { close: false } => "fill-and-stay".to_string(),
            Phase::Open(before) => before.to_string(),
        };
        let dir = self.dir.to_str().expect("a directory with a plain name").to_string();
        let scale = if self.quick { "quick" } else { "full" };
        let words = ["child", &self.contender, &self.workload, &dir, scale, &phase];
        words.map(str::to_string).to_vec()
    }
}
