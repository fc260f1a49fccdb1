//! Calls that fail: the error comes out, nothing is acknowledged that does not hold, a sync that failed is not tried again,
//! and the store opens.

use std::collections::BTreeMap;

use millpond::Durability;
use nix::errno::Errno;

use crate::check::{self, Promises};
use crate::child::{self, Note, Orders, Task};
use crate::kills::whole_run;
use crate::script::Script;
use crate::tracer::{self, Blow, Call, Outcome, Place};
use crate::{Plan, Scene, which};

#[derive(Debug, Default)]
struct Figures {
    runs: usize,
    /// Nobody noticed, or it was tried again.
    went_on: usize,
    refused: usize,
    poisoned: usize,
    gave_up: usize,
    by_call: BTreeMap<String, usize>,
}

/// How each call of the store can fail.
fn blows(call: &Call) -> Vec<Blow> {
    if call.path.ends_with("journal") {
        return Vec::new();
    }
    let errors: &[Errno] = match call.name {
        "fsync" | "fdatasync" => &[Errno::EIO, Errno::ENOSPC],
        "pwrite" => &[Errno::EIO, Errno::ENOSPC, Errno::EINTR],
        "fallocate" => &[Errno::ENOSPC, Errno::EIO, Errno::EOPNOTSUPP],
        "ftruncate" => &[Errno::EIO, Errno::EINTR],
        "mmap" => &[Errno::ENOMEM],
        "madvise" => &[Errno::EINVAL, Errno::EFAULT],
        "openat" => &[Errno::EMFILE, Errno::EIO, Errno::ENOSPC],
        "rename" | "unlink" => &[Errno::EIO, Errno::ENOSPC, Errno::EROFS],
        "linkat" => &[Errno::EXDEV, Errno::EMLINK],
        "mkdir" => &[Errno::ENOSPC],
        "flock" => &[Errno::ENOLCK],
        _ => &[],
    };
    let mut blows: Vec<Blow> = errors.iter().copied().map(Blow::Fail).collect();
    if call.has_pages() {
        blows.push(Blow::Shorten);
    }
    blows
}

fn places(calls: &[Call]) -> Vec<(Place, Blow)> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut places = Vec::new();
    for call in calls {
        let count = counts.entry(call.name).or_default();
        places.extend(blows(call).into_iter().map(|blow| (Place::Of(call.name, *count), blow)));
        *count += 1;
    }
    places
}

pub fn run(durability: Durability, plan: Plan) {
    let script = Task::Play { seed: plan.seed, acts: plan.acts, steps: plan.steps };
    let scene = Scene::new();
    if !scene.may_hold_processes() {
        return;
    }
    let calls = whole_run(&scene, &scene.orders("whole", durability, script));
    let places = places(&calls);
    let mut figures = Figures::default();
    for n in which(places.len(), plan.failures, plan.seed) {
        let (at, blow) = places[n];
        let orders = scene.orders("run", durability, script);
        if let Err(why) = fail_one(&scene, &orders, at, blow, &mut figures) {
            scene.keep();
            panic!("{durability:?}, {blow:?} at {at:?}: {why}");
        }
        scene.clear(&orders);
    }
    println!("{durability:?}: {figures:?}");
}

fn fail_one(
    scene: &Scene,
    orders: &Orders,
    at: Place,
    blow: Blow,
    figures: &mut Figures,
) -> Result<(), String> {
    let outcome = tracer::run(orders, Some((at, blow)));
    let notes = child::read_notes(orders);
    let Some(last) = notes.last().filter(|_| outcome.status == Some(0)) else {
        return Err(format!("the process ended with {:?}: {}", outcome.status, scene.said(orders)));
    };
    check_syncs(&outcome)?;
    figures.runs += 1;
    match last {
        Note::Poisoned => figures.poisoned += 1,
        Note::GaveUp => figures.gave_up += 1,
        _ if notes.contains(&Note::Refused) => figures.refused += 1,
        _ => figures.went_on += 1,
    }
    if let Some(call) = &outcome.hit {
        *figures.by_call.entry(format!("{} {blow:?}", call.name)).or_default() += 1;
    }
    let why = |why: String| {
        let hit = outcome.hit.as_ref().map_or(String::new(), Call::to_string);
        format!("{why}, at {hit}: {}", scene.said(orders))
    };
    if matches!(blow, Blow::Shorten | Blow::Fail(Errno::EINTR)) && *last != Note::Ended {
        return Err(why("that is no error".to_owned()));
    }
    let Task::Play { seed, acts, steps } = orders.task else { return Ok(()) };
    let promises = Promises::of(&mut Script::new(seed, acts, steps), &notes);
    check::check(orders, &promises).map_err(why)?;
    check::check_backup(orders, &promises.history).map(drop).map_err(why)
}

/// The kernel forgets what it could not write: a second sync that succeeds says nothing.
fn check_syncs(outcome: &Outcome) -> Result<(), String> {
    match &outcome.synced_again {
        Some(path) => Err(format!("{} was synced again after a failed sync", path.display())),
        None => Ok(()),
    }
}
