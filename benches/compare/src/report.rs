//! The page: tables of a run, in Markdown.

use std::fmt::Write;

use crate::contender::Durability;
use crate::contenders::MILLPOND;
use crate::goals;
use crate::results::{Participant, Results};
use crate::workloads::{self, Kind, Workload};

/// One figure of a table. The first is the one that decides.
struct Column {
    figure: &'static str,
    title: &'static str,
    form: Form,
}

#[derive(Clone, Copy)]
enum Form {
    /// Messages in a second; more is better, of all others less.
    Rate,
    Plain,
    /// Where what counts is far below one.
    Fine,
}

const fn column(figure: &'static str, title: &'static str, form: Form) -> Column {
    Column { figure, title, form }
}

const RATE: Column = column("rate", "messages/s", Form::Rate);
const FLUSHES: Column = column("flushes", "flushes/message", Form::Fine);
const INSERT: [Column; 6] = [
    RATE,
    column("p50", "p50 µs", Form::Plain),
    column("p99", "p99 µs", Form::Plain),
    column("p999", "p99.9 µs", Form::Plain),
    column("max", "max µs", Form::Plain),
    FLUSHES,
];
const DRAIN: [Column; 2] = [RATE, FLUSHES];
const REOPEN: [Column; 2] =
    [column("ms", "ms", Form::Fine), column("rss_mib", "RssAnon MiB", Form::Plain)];
const COST: [Column; 2] = [
    column("insert_ns", "insert ns", Form::Plain),
    column("pop_ns", "get + delete ns", Form::Plain),
];
const SPACE: [Column; 2] = [
    column("allocated", "allocated bytes", Form::Plain),
    column("length", "length bytes", Form::Plain),
];
const LIFE: [Column; 3] = [
    column("written", "by the process, bytes", Form::Plain),
    column("disk", "by the disk, bytes", Form::Plain),
    FLUSHES,
];
const IDLE: [Column; 1] = [column("cpu_ms", "CPU ms in a second", Form::Fine)];

fn columns(workload: &Workload) -> &'static [Column] {
    let synced = workload.durability == Durability::Sync;
    match workload.kind {
        Kind::Insert { .. } if synced => &INSERT,
        Kind::Insert { .. } => &INSERT[..5],
        Kind::Drain { .. } if synced => &DRAIN,
        Kind::Drain { .. } | Kind::OutOfOrder { .. } | Kind::Steady { .. } => &DRAIN[..1],
        Kind::Reopen { .. } => &REOPEN,
        Kind::Backlog { .. } | Kind::InFlight { .. } => &COST,
        Kind::Space { .. } => &SPACE,
        Kind::Life { .. } if synced => &LIFE,
        Kind::Life { .. } => &LIFE[..2],
        Kind::Idle { .. } => &IDLE,
    }
}

/// A number with three digits that count.
pub fn number(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{:.2} M", v / 1e6),
        v if v >= 1e5 => format!("{:.0} k", v / 1e3),
        v if v >= 1e4 => format!("{:.1} k", v / 1e3),
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v if v <= -10.0 => format!("{v:.0}"),
        v => format!("{v:.2}"),
    }
}

fn ratio(value: f64) -> String {
    if value < 0.095 { format!("{value:.3}") } else { number(value) }
}

fn show(form: Form, value: f64) -> String {
    match form {
        Form::Rate | Form::Plain => number(value),
        Form::Fine if value < 1.0 => format!("{value:.3}"),
        Form::Fine => number(value),
    }
}

pub fn page(results: &Results) -> String {
    let mut page = String::from("# Benchmarks\n\n");
    head(results, &mut page);
    let goals = goals::table(results);
    if !goals.is_empty() {
        let _ = write!(page, "## Goals\n\n{goals}\n");
    }
    unequal(results, &mut page);
    for workload in workloads::list(results.quick) {
        if results.runs.iter().any(|run| run.workload == workload.id) {
            table(results, &workload, &mut page);
        }
    }
    participants(results, &mut page);
    page
}

fn head(results: &Results, page: &mut String) {
    let machine = &results.machine;
    let work = if results.quick { "a tenth of the work" } else { "all of the work" };
    let _ = write!(
        page,
        "Written by `cargo run --release --manifest-path benches/compare/Cargo.toml`; not by hand.\n\n\
         | | |\n|---|---|\n\
         | date | {} |\n| millpond | {} |\n| processor | {}, {} cores |\n| memory | {:.1} GiB |\n\
         | kernel | {} |\n| file system | {} |\n| disk | {} |\n| compiler | {} |\n| rounds | {}, {work} |\n\n",
        machine.date,
        machine.commit,
        machine.processor,
        machine.cores,
        machine.memory_gib,
        machine.kernel,
        machine.file_system,
        machine.disk,
        machine.rustc,
        results.rounds,
    );
    page.push_str(
        "Every figure is the median of the rounds, in brackets the smallest and the largest. Each round of each \
         contender is a process of its own, and the contenders take turns. What came out was checked against what was \
         put in: count, content, and the order where there is one. **Bold** is the best of a table, RAW aside. \
         Columns with ÷ say how many times the figure of RAW, or of the best rival, it is.\n\n\
         RAW is the limit on this disk: the same bytes with a checksum put into one file, all room of which was \
         reserved before, and nothing else. It is no queue.\n\n",
    );
}

fn table(results: &Results, workload: &Workload, page: &mut String) {
    let asked: Vec<&Participant> = results
        .participants
        .iter()
        .filter(|one| results.of(&workload.id, &one.key).next().is_some())
        .collect();
    let columns = columns(workload);
    let frame = Frame::of(results, workload, &columns[0], &asked);
    let durability = match workload.durability {
        Durability::Process => "survives the death of the process",
        Durability::Sync => "survives a power cut",
    };
    let _ = write!(
        page,
        "## {}\n\nDurability: {durability}. `--only {}`\n\n",
        workload.title, workload.id
    );
    let titles: Vec<&str> = columns.iter().map(|column| column.title).collect();
    let (first, rest) =
        (titles[0], titles[1..].iter().map(|title| format!(" {title} |")).collect::<String>());
    let _ = writeln!(page, "| contender | {first} |{}{rest}", frame.titles());
    let width = 1 + titles.len() + frame.width();
    let _ = writeln!(page, "|---|{}", "---:|".repeat(width - 1));
    for one in &asked {
        let _ = writeln!(page, "{}", row(results, workload, one, columns, &frame));
    }
    page.push('\n');
    notes(results, workload, &asked, &frame, page);
}

/// What the rows of a table are compared with.
struct Frame {
    raw: Option<f64>,
    rival: Option<f64>,
    /// The key of the winner.
    best: Option<String>,
}

impl Frame {
    fn of(results: &Results, workload: &Workload, first: &Column, asked: &[&Participant]) -> Frame {
        let higher = matches!(first.form, Form::Rate);
        let of_raw = |id: &str, raws: &[&str]| results.median(id, raws.first()?, first.figure);
        let raw = match &workload.yardstick {
            None => of_raw(&workload.id, workload.raws),
            Some(id) => {
                let list = workloads::list(results.quick);
                list.iter().find(|one| one.id == *id).and_then(|one| of_raw(id, one.raws))
            }
        };
        let rival = results.best_rival(&workload.id, first.figure, higher).map(|(best, _)| best);
        let queues = asked.iter().copied().filter(|one| !one.is_raw());
        let best = results.best(queues, &workload.id, first.figure, higher);
        Frame { raw, rival, best: best.map(|(_, one)| one.key.clone()) }
    }

    fn titles(&self) -> String {
        let raw = self.raw.map_or("", |_| " ÷ RAW |");
        let rival = self.rival.map_or("", |_| " ÷ best rival |");
        format!("{raw}{rival}")
    }

    fn width(&self) -> usize {
        usize::from(self.raw.is_some()) + usize::from(self.rival.is_some())
    }
}

fn row(
    results: &Results,
    workload: &Workload,
    one: &Participant,
    columns: &[Column],
    frame: &Frame,
) -> String {
    let first = &columns[0];
    let name = marked(results, one);
    let Some(stat) = results.stat(&workload.id, &one.key, first.figure) else {
        let why = results.fault(&workload.id, &one.key).unwrap_or("n/a".to_string());
        let empty = " |".repeat(columns.len() - 1 + frame.width());
        return format!("| {name} | {} |{empty}", why.replace('|', "/"));
    };
    let form = first.form;
    let mut cell = show(form, stat.median);
    if frame.best.as_ref() == Some(&one.key) {
        cell = format!("**{cell}**");
    }
    let spread = format!("({} – {})", show(form, stat.min), show(form, stat.max));
    let mut row = format!("| {name} | {cell} {spread} |");
    for against in [frame.raw, frame.rival].into_iter().flatten() {
        let _ = write!(row, " {} |", ratio(stat.median / against));
    }
    for column in &columns[1..] {
        let value = results.median(&workload.id, &one.key, column.figure);
        let value = value.map_or("n/a".to_string(), |value| show(column.form, value));
        let _ = write!(row, " {value} |");
    }
    row
}

fn notes(
    results: &Results,
    workload: &Workload,
    asked: &[&Participant],
    frame: &Frame,
    page: &mut String,
) {
    let mut notes = Vec::new();
    if !workload.note.is_empty() {
        notes.push(workload.note.to_string());
    }
    if let (Some(_), Some(raw)) = (&workload.yardstick, frame.raw) {
        notes.push(format!("RAW is that of one thread: {} messages/s.", number(raw)));
    }
    let has = |one: &Participant, figure: &str| {
        results.of(&workload.id, &one.key).any(|run| run.outcome.figures.contains_key(figure))
    };
    for one in asked {
        if has(one, "unchecked") {
            notes.push(format!(
                "{} cannot be read as a queue: what it kept was not checked.",
                one.name
            ));
        }
        if has(one, "partly") {
            notes.push(format!("{} took long to be emptied: only a part was checked.", one.name));
        }
    }
    notes.iter().for_each(|note| {
        let _ = writeln!(page, "- {note}");
    });
    if !notes.is_empty() {
        page.push('\n');
    }
}

/// A contender's name, with the numbers of what makes its figures unequal.
fn marked(results: &Results, one: &Participant) -> String {
    let before = results.participants.iter().take_while(|other| other.key != one.key);
    let first = 1 + before.map(|other| other.unequal.len()).sum::<usize>();
    let marks: Vec<String> = (first..first + one.unequal.len()).map(|n| n.to_string()).collect();
    match marks.is_empty() {
        true => one.name.clone(),
        false => format!("{} <sup>{}</sup>", one.name, marks.join(" ")),
    }
}

/// What the marks behind the names mean.
fn unequal(results: &Results, page: &mut String) {
    page.push_str(
        "## What makes figures unequal\n\nThe numbers behind the names in the tables.\n\n",
    );
    let all =
        results.participants.iter().flat_map(|one| one.unequal.iter().map(move |text| (one, text)));
    for (n, (one, text)) in (1..).zip(all) {
        let _ = writeln!(page, "{n}. {}: {text}.", one.name);
    }
    page.push('\n');
}

fn participants(results: &Results, page: &mut String) {
    page.push_str("## Versions\n\n| contender | version |\n|---|---|\n");
    for one in results.participants.iter().filter(|one| !one.is_raw() && one.key != MILLPOND) {
        let _ = writeln!(page, "| {} | {} |", one.name, one.version);
    }
}
