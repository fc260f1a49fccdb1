//! A script of operations against a plain model, with kills and power cuts at places that the input chooses: the model,
//! the operations and the checks are those of the simulated crashes (`tests/crash`), and the input takes the place of
//! their random numbers.

#[path = "../../crash/check.rs"]
#[allow(dead_code, reason = "shared with the simulated crashes, which print what they count")]
mod check;
#[path = "../../crash/content.rs"]
mod content;
#[path = "../../crash/operations.rs"]
#[allow(clippy::module_inception, reason = "the file's name, where it is shared from")]
#[allow(dead_code, reason = "some operations are for the exhaustive test alone")]
mod operations;
#[path = "../../crash/queue.rs"]
mod queue;
#[path = "../../crash/run.rs"]
#[allow(dead_code, reason = "scripts are run one at a time")]
mod run;
#[path = "../../crash/seen.rs"]
mod seen;
#[path = "../../crash/workload.rs"]
#[allow(dead_code, reason = "scripts are run one at a time")]
mod workload;
#[path = "../../crash/world.rs"]
mod world;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use millpond::Durability;
use millpond::testing::Cut;
use millpond::testing::fuzz::Input;

use check::{Checker, Counts};
use run::{Job, Plan};
use workload::{Choices, Outcome, Workload};

/// More is cut off the end of a script.
const OPERATIONS_MAX: usize = 200;

/// Of a byte's 256 values, so many have the next operation cut off within.
const CUTS: usize = 32;

/// One in so many of the recoveries is cut off again everywhere, which takes long.
const AGAIN_EVERY: [u64; 2] = [60, u64::MAX];

/// The input, where the crash tests have random numbers.
#[derive(Clone)]
struct Script<'a>(Rc<RefCell<Input<'a>>>);

impl Choices for Script<'_> {
    fn below(&mut self, end: usize) -> usize {
        let mut input = self.0.borrow_mut();
        let number: usize = if end <= 256 { input.byte().into() } else { input.u16().into() };
        number % end
    }
}

impl Script<'_> {
    fn durability(&mut self) -> Durability {
        let interval = Durability::Interval(Duration::from_secs(1));
        [Durability::Sync, Durability::Process, interval][self.below(3)]
    }

    fn cut(&mut self) -> Cut {
        match self.below(4) {
            0 => Cut::Kill,
            _ => Cut::PowerCut(self.below(1 << 16) as u64),
        }
    }

    fn is_at_its_end(&self) -> bool {
        self.0.borrow().is_empty()
    }
}

/// How long the store's inserts and deletes may take to be durable; then for each operation a byte that says whether it is
/// cut off within, and what [`Workload::perform_any`] asks for.
pub fn operations(input: &[u8]) {
    let mut script = Script(Rc::new(RefCell::new(Input::new(input))));
    let plan = Plan {
        durability: script.durability(),
        delete_durability: script.durability(),
        operations: 0,
        power_cuts: 0,
    };
    if let Err(why) = run_script(&plan, script) {
        panic!("{why}");
    }
}

fn run_script(plan: &Plan, mut script: Script<'_>) -> Outcome<()> {
    let counts = Arc::new(Counts::default());
    let checker = Checker::new(plan.options(), counts, AGAIN_EVERY);
    let check = |job: Job| job.check(&checker);
    let mut run = Workload::new(plan, script.clone(), &checker, &check);
    run.begin()?;
    for n in 0..OPERATIONS_MAX {
        if script.is_at_its_end() {
            break;
        }
        let at = |why| format!("operation {n}: {why}");
        let choice = script.below(256);
        if choice < CUTS {
            let (cut, after) = (script.cut(), 1 + script.below(16) as u64);
            let mut left = after;
            run.crash_after(move |_| {
                left = left.wrapping_sub(1);
                (left == 0).then_some(cut)
            });
        } else if choice < 2 * CUTS {
            run.crash(script.cut()).map_err(at)?;
        }
        run.perform_any().map_err(at)?;
    }
    run.reopen()
}
