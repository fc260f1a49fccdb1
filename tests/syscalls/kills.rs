//! Kills: at calls that are spread over all of a run, and again while what is left is opened.

use std::fmt;
use std::sync::Arc;

use millpond::Durability;

use crate::check::{self, Promises};
use crate::child::{self, Note, Orders, Task};
use crate::script::{Random, Script};
use crate::tracer::{self, Blow, Call, Place};
use crate::world::World;
use crate::{Plan, Scene, which};

const BLOWS: [Blow; 3] = [Blow::KillBefore, Blow::KillAfter, Blow::KillWithin];

/// Of so many deaths one is opened by a process that dies too.
const AGAIN_EVERY: usize = 4;

#[derive(Debug, Default)]
struct Figures {
    kills: usize,
    within_a_write: usize,
    while_opening: usize,
    came_to_its_end: usize,
    backups: usize,
    steps_returned: usize,
    by_call: std::collections::BTreeMap<&'static str, usize>,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} kills at system calls, {} of them within a write and {} more while opening; {} runs came to their end; \
             {} steps had returned, {} backups were made; at {:?}",
            self.kills,
            self.within_a_write,
            self.while_opening,
            self.came_to_its_end,
            self.steps_returned,
            self.backups,
            self.by_call,
        )
    }
}

pub fn run(durability: Durability, plan: Plan) {
    let script = Task::Play { seed: plan.seed, acts: plan.acts, steps: plan.steps };
    let scene = Scene::new();
    if !scene.may_hold_processes() {
        return;
    }
    let calls = whole_run(&scene, &scene.orders("whole", durability, script));
    println!("{durability:?}: {} system calls, seed {}", calls.len(), plan.seed);
    check_coverage(&calls);
    let mut figures = Figures::default();
    for (n, (at, blow)) in places(&calls, &plan).into_iter().enumerate() {
        let orders = scene.orders("run", durability, script);
        if let Err(why) = kill_one(&scene, &orders, at, blow, n, &mut figures) {
            scene.keep();
            panic!("{durability:?}, {blow:?}, call {at}, {}: {why}", calls[at]);
        }
        scene.clear(&orders);
    }
    println!("{durability:?}: {figures}");
    assert!(figures.kills * 10 >= plan.kills * 9, "too few runs were killed");
}

/// Where to kill and how: half of the blows fall on calls that change what lies on the disk, the others on any.
fn places(calls: &[Call], plan: &Plan) -> Vec<(usize, Blow)> {
    let kinds = BLOWS.len();
    let blow = |n: usize| (n / kinds, BLOWS[n % kinds]);
    let all = calls.len() * kinds;
    if plan.kills >= all {
        return (0..all).map(blow).collect();
    }
    let changing: Vec<usize> =
        (0..calls.len()).filter(|at| changes_the_disk(&calls[*at])).collect();
    let of_any = which(all, plan.kills / 2, plan.seed).map(blow);
    let of_changing = which(changing.len() * kinds, plan.kills - plan.kills / 2, plan.seed);
    of_any.chain(of_changing.map(blow).map(|(n, blow)| (changing[n], blow))).collect()
}

fn changes_the_disk(call: &Call) -> bool {
    !matches!(call.name, "openat" | "write" | "mmap" | "madvise" | "flock")
}

/// The script is to lead through all that a store does with files.
fn check_coverage(calls: &[Call]) {
    let ends = |name: &str, end: &str| {
        let of_name = calls.iter().filter(|call| call.name == name);
        let path = |call: &Call| call.path.display().to_string();
        of_name
            .filter(|call| path(call).ends_with(end) || path(call).contains(&format!("{end}.")))
            .count()
    };
    let found = [
        ("segments made", ends("openat", ".seg")),
        ("segments removed", ends("unlink", ".seg")),
        ("segments trimmed", ends("ftruncate", ".seg")),
        ("segments rewritten", ends("openat", "compact.tmp")),
        ("segments in a backup", ends("linkat", ".seg")),
        ("indexes named", ends("rename", ".idx")),
        ("cursors named", ends("rename", "/cursor")),
        ("cursors removed", ends("unlink", "/cursor")),
    ];
    println!("{found:?}");
    assert!(found.iter().all(|(_, count)| *count > 0), "{found:?}");
}

/// The calls of a run that nobody disturbs.
pub fn whole_run(scene: &Scene, orders: &Orders) -> Vec<Call> {
    let outcome = tracer::run(orders, None);
    let notes = child::read_notes(orders);
    let said = scene.said(orders);
    assert!(outcome.status == Some(0) && notes.last() == Some(&Note::Ended), "{said}");
    outcome.calls
}

fn kill_one(
    scene: &Scene,
    orders: &Orders,
    at: usize,
    blow: Blow,
    n: usize,
    figures: &mut Figures,
) -> Result<(), String> {
    let outcome = tracer::run(orders, Some((Place::Any(at), blow)));
    match (&outcome.hit, outcome.status) {
        (Some(call), None) => {
            figures.kills += 1;
            figures.within_a_write += usize::from(blow == Blow::KillWithin);
            *figures.by_call.entry(call.name).or_default() += 1;
        }
        (None, Some(0)) => figures.came_to_its_end += 1,
        (hit, status) => {
            return Err(format!("hit {hit:?}, and ended with {status:?}{}", scene.said(orders)));
        }
    }
    let notes = child::read_notes(orders);
    let Task::Play { seed, acts, steps } = orders.task else { return Ok(()) };
    let promises = Promises::of(&mut Script::new(seed, acts, steps), &notes);
    figures.steps_returned += promises.returned;
    if n.is_multiple_of(AGAIN_EVERY) {
        die_again(scene, orders, at as u64, &promises, figures)?;
    }
    check::check(orders, &promises)?;
    let all: Vec<Arc<World>> = promises.history;
    figures.backups += usize::from(check::check_backup(orders, &all)?);
    Ok(())
}

/// Opens a copy of what is left, and dies of it; a second one dies while it opens what that has left.
fn die_again(
    scene: &Scene,
    orders: &Orders,
    seed: u64,
    promises: &Promises,
    figures: &mut Figures,
) -> Result<(), String> {
    let again = scene.orders("again", orders.durability, Task::Open);
    check::copy_files(&orders.store(), &again.store());
    let whole = scene.orders("again-whole", orders.durability, Task::Open);
    check::copy_files(&orders.store(), &whole.store());
    let calls = tracer::run(&whole, None).calls.len();
    scene.clear(&whole);
    let mut random = Random(seed);
    for _ in 0..2 {
        let (at, blow) = (random.below(calls), BLOWS[random.below(BLOWS.len())]);
        let outcome = tracer::run(&again, Some((Place::Any(at), blow)));
        if outcome.status.is_some_and(|status| status != 0) {
            return Err(format!("opening has failed: {}", scene.said(&again)));
        }
        figures.while_opening += usize::from(outcome.status.is_none());
    }
    check::check(&again, promises).map_err(|why| format!("{why}, killed again while opening"))?;
    scene.clear(&again);
    Ok(())
}
