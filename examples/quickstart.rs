//! Counts the words of a text with four workers, and goes on where it was when it is killed.
//!
//!     cargo run --release --example quickstart [FILE] [--dir DIR] [--pause-ms MS]
//!
//! Every line of the text becomes a message of the queue `lines`. A worker gets a line, counts its words, inserts the
//! result into the queue `results`, and then deletes the line. In the end the results are held against the text.
//! A real count takes a few milliseconds; each worker pauses for every line, so that a run takes about ten seconds and
//! there is time to kill it (`kill -9`, as often as you like) and to start it again.
//!
//! Nothing but the two queues survives a kill, and nothing else is needed. The windows in which it can come:
//!
//! 1. **While lines are inserted.** A batch is inserted whole or not at all, and in order, so the lines that are in are
//!    always the first so many. How many follows from what survives: a line is in `lines` until its result is in
//!    `results`, so the highest number in either queue is the last line that went in. There is no counter beside the
//!    queues that a kill could leave behind or ahead of them.
//! 2. **While a worker has a line.** It was not deleted, so it is delivered again.
//! 3. **Between the result and the delete.** The line is delivered again and gets a second result. That is what
//!    at-least-once means; the tally knows lines by their numbers, counts each once, and reports the rest.
//! 4. **While the queues are read at the start or the end.** What was got and not given back is given back by the next
//!    open.
//! 5. **Between the proof and the end of the cleaning up.** The store is renamed before it is removed, so that what a
//!    kill leaves is either the whole store, whose next run has nothing to do but the proof, or rubbish with a name of
//!    its own, which the next run removes.

use std::error::Error;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use std::{env, fs};

use millpond::{Queue, Store};

const USAGE: &str = "usage: quickstart [FILE] [--dir DIR] [--pause-ms MS]";
const WORKERS: usize = 4;
const PAUSE_MS: u64 = 65;

/// Lines that are inserted at once, unless they are long.
const BATCH_LINES: usize = 16;
const BATCH_BYTES: usize = 64 << 10;

/// How long a worker waits before it looks whether there is still something to come.
const PATIENCE: Duration = Duration::from_millis(100);

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> ExitCode {
    let job = match Job::from_arguments(env::args().skip(1)) {
        Ok(job) => job,
        Err(error) => {
            eprintln!("{error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match job.run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("quickstart: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What is to be counted, and where the queues are.
struct Job {
    file: PathBuf,
    dir: PathBuf,
    pause: Duration,
}

impl Job {
    fn from_arguments(mut arguments: impl Iterator<Item = String>) -> Outcome<Job> {
        let (mut file, mut dir, mut pause_ms) = (None, None, PAUSE_MS);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--dir" => dir = Some(PathBuf::from(arguments.next().ok_or("--dir needs DIR")?)),
                "--pause-ms" => {
                    pause_ms = arguments.next().ok_or("--pause-ms needs MS")?.parse()?
                }
                _ if argument.starts_with('-') => return Err(format!("unknown: {argument}").into()),
                _ if file.is_some() => return Err("one FILE at a time".into()),
                _ => file = Some(PathBuf::from(argument)),
            }
        }
        let shipped = || Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/quickstart.txt");
        let file = std::path::absolute(file.unwrap_or_else(shipped))?;
        let dir = match dir {
            Some(dir) => dir,
            None => usual_dir(&file)?,
        };
        Ok(Job { file, dir, pause: Duration::from_millis(pause_ms) })
    }

    /// Does what is left to do. Whether every line was counted.
    fn run(&self) -> Outcome<bool> {
        let text = fs::read(&self.file).map_err(|e| format!("{}: {e}", self.file.display()))?;
        let lines = lines_of(&text);
        // What a run that was killed while it cleaned up has left.
        remove_all(&self.dir.join("done"))?;
        println!("counting the words of {}", self.file.display());
        println!("the queues are in {}", self.dir.display());
        println!("to see it go on where it was: kill -9 {}", std::process::id());
        let (inserted, tally) = {
            let options = Store::options().segment_bytes(1 << 20);
            let store = options.open(self.dir.join("store"))?;
            let queues = Queues { lines: store.queue("lines")?, results: store.queue("results")? };
            let inserted = self.go_on(&queues, &lines)?;
            let tally = queues.tally(&lines)?;
            store.close()?;
            (inserted, tally)
        };
        println!("{inserted} lines inserted by this run");
        let proven = tally.prove(&text);
        if proven {
            fs::rename(self.dir.join("store"), self.dir.join("done"))?;
            remove_all(&self.dir.join("done"))?;
            // It stays if it was there before and holds something else.
            let _ = fs::remove_dir(&self.dir);
        } else {
            println!("the queues are still in {}; remove it to begin anew", self.dir.display());
        }
        Ok(proven)
    }

    /// Inserts the lines that are not in yet, while the workers count. Returns how many there were to insert.
    fn go_on(&self, queues: &Queues, lines: &[&[u8]]) -> Outcome<usize> {
        let (start, counted) = queues.progress(lines)?;
        let progress = Progress {
            lines: lines.len(),
            inserted: AtomicUsize::new(start),
            counted: AtomicUsize::new(counted.iter().filter(|&&done| done).count()),
            done: counted.into_iter().map(AtomicBool::new).collect(),
            stop: AtomicBool::new(false),
        };
        if start > 0 {
            let counted = progress.counted.load(Ordering::Relaxed);
            println!("going on after an earlier run: {start} lines inserted, {counted} counted");
        }
        let rest = lines.get(start..).unwrap_or_default();
        thread::scope(|scope| {
            let mut threads = vec![
                scope.spawn(|| progress.watch(queues.insert(rest, start, &progress, self.pause))),
            ];
            for _ in 0..WORKERS {
                threads.push(scope.spawn(|| progress.watch(queues.work(&progress, self.pause))));
            }
            progress.show_until(|| threads.iter().all(|thread| thread.is_finished()));
            for thread in threads {
                thread.join().map_err(|_| "a thread panicked")??;
            }
            Ok(rest.len())
        })
    }
}

/// The same file leads to the same directory, so that a second start finds what the first one has left.
fn usual_dir(file: &Path) -> Outcome<PathBuf> {
    let len = fs::metadata(file).map_err(|e| format!("{}: {e}", file.display()))?.len();
    let mut hasher = DefaultHasher::new();
    (file, len).hash(&mut hasher);
    Ok(env::temp_dir().join(format!("millpond-quickstart-{:016x}", hasher.finish())))
}

fn remove_all(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn lines_of(text: &[u8]) -> Vec<&[u8]> {
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    if text.is_empty() { Vec::new() } else { body.split(|&byte| byte == b'\n').collect() }
}

fn count_words(text: &[u8]) -> usize {
    text.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).count()
}

/// A message of either queue: the number of a line, from 0, a space, and the line or the number of its words.
fn parse(message: &[u8]) -> Option<(usize, &[u8])> {
    let space = message.iter().position(|&byte| byte == b' ')?;
    let number = std::str::from_utf8(&message[..space]).ok()?.parse().ok()?;
    Some((number, &message[space + 1..]))
}

struct Queues {
    lines: Queue,
    results: Queue,
}

impl Queues {
    /// Where inserting goes on, and which lines have a result.
    fn progress(&self, lines: &[&[u8]]) -> Outcome<(usize, Vec<bool>)> {
        let tally = self.tally(lines)?;
        let mut start = tally.seen.iter().rposition(|&times| times > 0).map_or(0, |last| last + 1);
        read_all(&self.lines, |message| {
            let (number, _) = parse(message).ok_or("a message that is no line")?;
            start = start.max(number + 1);
            Ok(())
        })?;
        Ok((start, tally.seen.iter().map(|&times| times > 0).collect()))
    }

    /// Inserts `rest`, whose first line has number `start`.
    fn insert(
        &self,
        rest: &[&[u8]],
        start: usize,
        progress: &Progress,
        pause: Duration,
    ) -> Outcome<()> {
        let mut at = 0;
        while at < rest.len() && !progress.stop.load(Ordering::Relaxed) {
            let mut batch = Vec::new();
            let mut bytes = 0;
            while at < rest.len() && batch.len() < BATCH_LINES && bytes < BATCH_BYTES {
                // A long line goes alone: a batch has to fit in a segment, a single message need not.
                if !batch.is_empty() && bytes + rest[at].len() > BATCH_BYTES {
                    break;
                }
                bytes += rest[at].len();
                batch.push([format!("{} ", start + at).as_bytes(), rest[at]].concat());
                at += 1;
            }
            // If the process dies here, either the whole batch is in the queue afterwards or nothing of it (window 1).
            self.lines.insert_batch(&batch)?;
            progress.inserted.store(start + at, Ordering::Release);
            thread::sleep(pause);
        }
        Ok(())
    }

    /// What each worker does, until nothing is left.
    fn work(&self, progress: &Progress, pause: Duration) -> Outcome<()> {
        while !progress.stop.load(Ordering::Relaxed) {
            let all_inserted = progress.inserted.load(Ordering::Acquire) >= progress.lines;
            let Some(line) = self.lines.get_timeout(PATIENCE)? else {
                let stats = self.lines.stats()?;
                // A line in another worker's hands comes back if that worker fails.
                if all_inserted && stats.ready + stats.in_flight + stats.delayed == 0 {
                    break;
                }
                continue;
            };
            let (number, text) = parse(line.payload()).ok_or("a message that is no line")?;
            let words = count_words(text);
            thread::sleep(pause);
            // If the process dies here, the line is delivered again (window 2).
            self.results.insert(format!("{number} {words}"))?;
            // And here too, and then it has two results (window 3).
            line.delete()?;
            if progress.done.get(number).is_some_and(|done| !done.swap(true, Ordering::Relaxed)) {
                progress.counted.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Everything that the results say.
    fn tally(&self, lines: &[&[u8]]) -> Outcome<Tally> {
        let mut tally = Tally {
            expected: lines.iter().map(|line| count_words(line)).collect(),
            counted: vec![0; lines.len()],
            seen: vec![0; lines.len()],
            foreign: 0,
        };
        read_all(&self.results, |message| {
            let (number, words) = parse(message).ok_or("a message that is no result")?;
            let words = std::str::from_utf8(words)?.parse()?;
            match tally.seen.get_mut(number) {
                Some(times) => {
                    *times += 1;
                    tally.counted[number] = words;
                }
                None => tally.foreign += 1,
            }
            Ok(())
        })?;
        Ok(tally)
    }
}

/// Looks at every message of a queue and gives it back. All are held until the last one is there, or those given back
/// would be delivered again.
fn read_all(queue: &Queue, mut visit: impl FnMut(&[u8]) -> Outcome<()>) -> Outcome<()> {
    let mut held = Vec::new();
    loop {
        let batch = queue.get_batch(1000, Duration::ZERO)?;
        if batch.is_empty() {
            break;
        }
        held.extend(batch);
    }
    for delivery in held {
        visit(delivery.payload())?;
        delivery.release()?;
    }
    Ok(())
}

/// What was counted, against what there is to count; by the number of the line.
struct Tally {
    /// Words of the line in the file.
    expected: Vec<usize>,
    /// Words of the line according to its result.
    counted: Vec<usize>,
    /// Results of the line.
    seen: Vec<u32>,
    /// Results of lines that the file does not have.
    foreign: u64,
}

impl Tally {
    /// Prints the result. Whether nothing is missing or wrong.
    fn prove(&self, text: &[u8]) -> bool {
        let lines = self.seen.len();
        let at = |wrong: &dyn Fn(usize) -> bool| -> Vec<usize> {
            (0..lines).filter(|&line| wrong(line)).map(|line| line + 1).collect()
        };
        let missing = at(&|line| self.seen[line] == 0);
        let wrong = at(&|line| self.seen[line] > 0 && self.counted[line] != self.expected[line]);
        let repeated = at(&|line| self.seen[line] > 1);
        let words: usize = self.counted.iter().sum();
        let direct = count_words(text);
        println!("{words} words in {lines} lines; a direct count of the file gives {direct}");
        if !repeated.is_empty() {
            println!(
                "{} lines have more than one result and were counted once: {}",
                repeated.len(),
                some_of(&repeated)
            );
        }
        if !missing.is_empty() {
            println!("{} lines are MISSING: {}", missing.len(), some_of(&missing));
        }
        if !wrong.is_empty() || self.foreign > 0 {
            println!(
                "{} lines have another number of words than in the file: {}; {} results are of no line of it: \
                 has the file changed since the first start?",
                wrong.len(),
                some_of(&wrong),
                self.foreign
            );
        }
        let proven = missing.is_empty() && wrong.is_empty() && self.foreign == 0 && words == direct;
        if proven {
            println!("no line is missing");
        }
        proven
    }
}

fn some_of(numbers: &[usize]) -> String {
    let shown: Vec<String> = numbers.iter().take(10).map(usize::to_string).collect();
    let more = if numbers.len() > shown.len() { ", ..." } else { "" };
    format!("{}{more}", shown.join(", "))
}

/// How far the run is, for whoever watches it.
struct Progress {
    lines: usize,
    inserted: AtomicUsize,
    counted: AtomicUsize,
    /// By the number of the line.
    done: Vec<AtomicBool>,
    /// A thread has failed: the others need not go on.
    stop: AtomicBool,
}

impl Progress {
    fn watch(&self, outcome: Outcome<()>) -> Outcome<()> {
        if outcome.is_err() {
            self.stop.store(true, Ordering::Relaxed);
        }
        outcome
    }

    /// One line that is written over on a terminal, and a line every second elsewhere.
    fn show_until(&self, finished: impl Fn() -> bool) {
        let terminal = io::stdout().is_terminal();
        let began = Instant::now();
        let mut next = if terminal { Duration::ZERO } else { Duration::from_secs(1) };
        while !finished() {
            thread::sleep(Duration::from_millis(20));
            if began.elapsed() >= next {
                next += Duration::from_millis(if terminal { 100 } else { 1000 });
                self.show(terminal);
            }
        }
        self.show(terminal);
        if terminal {
            println!();
        }
    }

    fn show(&self, terminal: bool) {
        let (inserted, counted) =
            (self.inserted.load(Ordering::Relaxed), self.counted.load(Ordering::Relaxed));
        let lines = self.lines;
        let text = format!("inserted {inserted} of {lines} lines, counted {counted}");
        if terminal {
            print!("\r{text}\x1b[K");
            // Nobody is hurt by a progress that is not seen.
            let _ = io::stdout().flush();
        } else {
            println!("{text}");
        }
    }
}
