//! Crashes at every operation of a program: collecting the disks that they leave, and running the program again on each.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Disk;

/// How a program ends before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cut {
    /// The process is killed; what it has written survives, see [`Disk::kill`].
    Kill,
    /// The power goes, and this seed decides what of the unsynced is kept, see [`Disk::power_cut`]: 0 nothing, 1 all.
    PowerCut(u64),
}

impl Cut {
    /// The disk as the next process finds it.
    pub fn apply(self, disk: &Disk) -> Disk {
        match self {
            Cut::Kill => disk.kill(),
            Cut::PowerCut(seed) => disk.power_cut(seed),
        }
    }
}

/// What a crash has left.
#[derive(Clone, Debug)]
pub struct Crash {
    /// An independent disk, for the next process.
    pub disk: Disk,
    /// How the program ended.
    pub cut: Cut,
    /// After which operation of the disk, counted from 1.
    pub operation: u64,
}

impl Crash {
    fn of(disk: &Disk, cut: Cut, operation: u64) -> Crash {
        Crash { disk: cut.apply(disk), cut, operation }
    }
}

/// Takes a [`Crash`] of each kind after every operation of a disk, for as long as it lives. The disk itself goes on.
///
/// It uses the disk's [`on_operation`](Disk::on_operation).
#[derive(Debug)]
pub struct Crashes {
    disk: Disk,
    taken: Arc<Mutex<Vec<Crash>>>,
}

impl Crashes {
    /// Begins to watch. `cuts` says which crashes to take after the operation of that number.
    pub fn watch<I>(disk: &Disk, mut cuts: impl FnMut(u64) -> I + Send + 'static) -> Crashes
    where
        I: IntoIterator<Item = Cut>,
    {
        let taken = Arc::<Mutex<Vec<Crash>>>::default();
        let into = Arc::clone(&taken);
        disk.on_operation(Some(Box::new(move |disk, operation| {
            let crashes = cuts(operation).into_iter().map(|cut| Crash::of(disk, cut, operation));
            lock(&into).extend(crashes);
        })));
        Crashes { disk: disk.clone(), taken }
    }

    /// Those since the last call, in order.
    pub fn take(&self) -> Vec<Crash> {
        std::mem::take(&mut *lock(&self.taken))
    }
}

impl Drop for Crashes {
    fn drop(&mut self) {
        self.disk.on_operation(None);
    }
}

/// What a program says of itself while it runs, on paper that no crash of its machine destroys.
///
/// A program notes what it is about to do, and what it has been told is done; a check compares what a crash has left
/// with what had been noted until then.
#[derive(Debug)]
pub struct Journal<J> {
    notes: Mutex<Vec<J>>,
}

impl<J: Clone> Journal<J> {
    fn new(notes: Vec<J>) -> Journal<J> {
        Journal { notes: Mutex::new(notes) }
    }

    /// Adds a note.
    pub fn note(&self, note: J) {
        lock(&self.notes).push(note);
    }

    /// All notes, those of the runs before a crash included.
    pub fn notes(&self) -> Vec<J> {
        lock(&self.notes).clone()
    }
}

/// Runs a program on a simulated disk and crashes it at every operation of the disk; checks what each crash has left;
/// and, if asked, starts the program again on that and crashes it once more.
///
/// `examples/outbox.rs` proves a program correct with it.
///
/// ```
/// use std::time::Duration;
///
/// use millpond::testing::{Clock, CrashTest, Disk, Journal};
/// use millpond::Store;
///
/// // Inserts a message, and notes when it was told that the message is safe.
/// let program = |disk: &Disk, journal: &Journal<&str>| {
///     let store = Store::options().open_simulated(disk, &Clock::new()).unwrap();
///     store.queue("q").unwrap().insert("x").unwrap();
///     journal.note("inserted");
/// };
/// let check = |disk: &Disk, notes: &[&str]| {
///     let store = Store::options().open_simulated(disk, &Clock::new()).map_err(|e| e.to_string())?;
///     let got = store.queue("q").unwrap().get_batch(10, Duration::ZERO).unwrap();
///     // The crash may have come between the insert and the note.
///     if got.len() < notes.len() || got.len() > notes.len() + 1 {
///         return Err(format!("{} messages after {} inserts", got.len(), notes.len()));
///     }
///     Ok(())
/// };
/// let visited = CrashTest::new().power_cuts(4).run(program, check).unwrap();
/// assert!(visited.crashes > 20);
/// ```
#[derive(Clone, Debug)]
pub struct CrashTest {
    power_cuts: u64,
    restarts: u32,
    restart_every: u64,
}

/// What a [`CrashTest`] went through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Visited {
    /// Runs of the program, the first one included.
    pub runs: u64,
    /// Crashes that were checked.
    pub crashes: u64,
}

/// A crash after which the check was not content.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Broken {
    /// The crashes that led there, the first one first: how each run ended, and after which operation of its disk. Empty
    /// if a run itself failed before it was ever cut.
    pub crashes: Vec<(Cut, u64)>,
    /// What the check said, or what it or the program panicked with.
    pub why: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.why)?;
        for (n, (cut, operation)) in self.crashes.iter().enumerate() {
            write!(
                f,
                "\n  run {} ended by {cut:?} after operation {operation} of the disk",
                n + 1
            )?;
        }
        Ok(())
    }
}

impl std::error::Error for Broken {}

impl CrashTest {
    /// A kill and four power cuts after every operation, and no restart.
    pub fn new() -> CrashTest {
        CrashTest { power_cuts: 4, restarts: 0, restart_every: 1 }
    }

    /// How many power cuts are tried after every operation, besides the kill: the first keeps nothing of what was not
    /// synced, the second all of it, each further one some. Default 4.
    #[must_use]
    pub fn power_cuts(mut self, count: u64) -> CrashTest {
        self.power_cuts = count;
        self
    }

    /// How many times the program is started again after a crash, and crashed at each operation of that run. The number
    /// of runs grows with that power: see [`restart_every`](CrashTest::restart_every). Default 0.
    #[must_use]
    pub fn restarts(mut self, count: u32) -> CrashTest {
        self.restarts = count;
        self
    }

    /// Of so many crashes one is followed by a restart. Default 1: each.
    #[must_use]
    pub fn restart_every(mut self, crashes: u64) -> CrashTest {
        self.restart_every = crashes.max(1);
        self
    }

    /// Runs `program` on an empty disk, and checks every crash.
    ///
    /// All disks of a run are kept until it ends: a program of some hundred operations is long enough.
    ///
    /// The program opens its store on the disk it is given, by
    /// [`StoreOptions::open_simulated`](crate::StoreOptions::open_simulated), goes on from what it finds there, and notes
    /// in the journal what a check has to know. The check gets a disk of its own and the notes that were made before the
    /// crash.
    ///
    /// # Errors
    /// The first crash that the check objects to. A panic of the check is an objection; one of the program is too.
    pub fn run<J: Clone + Send + 'static>(
        &self,
        program: impl Fn(&Disk, &Journal<J>),
        check: impl Fn(&Disk, &[J]) -> Result<(), String>,
    ) -> Result<Visited, Broken> {
        let mut visited = Visited::default();
        let mut path = Vec::new();
        self.run_on(&Disk::new(), Vec::new(), &program, &check, &mut path, &mut visited)?;
        Ok(visited)
    }

    fn run_on<J: Clone + Send + 'static>(
        &self,
        disk: &Disk,
        notes: Vec<J>,
        program: &impl Fn(&Disk, &Journal<J>),
        check: &impl Fn(&Disk, &[J]) -> Result<(), String>,
        path: &mut Vec<(Cut, u64)>,
        visited: &mut Visited,
    ) -> Result<(), Broken> {
        visited.runs += 1;
        let journal = Arc::new(Journal::new(notes));
        let taken = Arc::<Mutex<Vec<(Crash, usize)>>>::default();
        disk.on_operation(Some({
            let (journal, taken, power_cuts) = (journal.clone(), taken.clone(), self.power_cuts);
            Box::new(move |disk, operation| {
                let noted = lock(&journal.notes).len();
                let crashes =
                    cuts(operation, power_cuts).map(|cut| Crash::of(disk, cut, operation));
                lock(&taken).extend(crashes.map(|crash| (crash, noted)));
            })
        }));
        let outcome = catch_unwind(AssertUnwindSafe(|| program(disk, &journal)));
        disk.on_operation(None);
        outcome.map_err(|panic| Broken { crashes: path.clone(), why: words(&*panic) })?;
        let (taken, notes) = (std::mem::take(&mut *lock(&taken)), journal.notes());
        for (crash, noted) in taken {
            path.push((crash.cut, crash.operation));
            visited.crashes += 1;
            // Looking at it changes it, so a copy of it is looked at.
            let outcome =
                catch_unwind(AssertUnwindSafe(|| check(&crash.disk.kill(), &notes[..noted])));
            let outcome = outcome.unwrap_or_else(|panic| Err(words(&*panic)));
            outcome.map_err(|why| Broken { crashes: path.clone(), why })?;
            let again = visited.crashes.is_multiple_of(self.restart_every);
            if path.len() <= self.restarts as usize && again {
                self.run_on(&crash.disk, notes[..noted].to_vec(), program, check, path, visited)?;
            }
            path.pop();
        }
        Ok(())
    }
}

impl Default for CrashTest {
    fn default() -> Self {
        Self::new()
    }
}

fn cuts(operation: u64, power_cuts: u64) -> impl Iterator<Item = Cut> {
    let seed = move |n| if n < 2 { n } else { operation << 8 | n };
    std::iter::once(Cut::Kill).chain((0..power_cuts).map(move |n| Cut::PowerCut(seed(n))))
}

/// What somebody panicked with.
fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("panicked: {}", text.unwrap_or_else(|| "with something that is not a text".to_owned()))
}

/// A panic elsewhere is told of where it happened.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
