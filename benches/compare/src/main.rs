//! The contest: millpond beside what people use today, in one run.
//!
//! ```text
//! cargo run --release --manifest-path benches/compare/Cargo.toml
//! ```
//!
//! Every figure is measured in a process of its own, which this program starts as a child of itself.

mod args;
mod child;
mod contender;
mod contenders;
mod goals;
mod machine;
mod measure;
mod outcome;
mod payload;
mod report;
mod results;
mod runner;
mod workloads;

use std::path::Path;

use args::{Args, Command};
use results::Results;

fn main() {
    let args = match args::parse() {
        Ok(Command::Compare(args)) => args,
        Ok(Command::Child(order)) => return child::run(order),
        Ok(Command::Help) => return print!("{}", args::HELP),
        Err(error) => {
            eprintln!("{error}\n\n{}", args::HELP);
            std::process::exit(2);
        }
    };
    let results = match &args.from {
        Some(path) => Results::read(path),
        None => runner::run(&args),
    };
    publish(&args, &results);
}

/// A full run replaces the page of the repository; a part of one is only shown.
fn publish(args: &Args, results: &Results) {
    let page = report::page(results);
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/benchmarks.md");
    let out = args.out.clone().or_else(|| args.is_full().then_some(home));
    match out {
        Some(path) => {
            std::fs::write(&path, page).expect("the report can be written");
            eprintln!("written: {}", path.display());
        }
        None => print!("{page}"),
    }
}
