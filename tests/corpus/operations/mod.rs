//! A script of operations against a plain model, with kills and power cuts at places that the input chooses: the model,
//! the operations and the checks are those of the simulated crashes (`tests/crash`), and the input takes the place of
//! their random numbers.

#[path = "../../crash/check.rs"]
#[allow(dead_code, reason = "shared with the simulated crashes, which print what they count")]
mod check;
#[path = "../../crash/operations.rs"]
#[allow(clippy::module_inception, reason = "the file's name, where it is shared from")]
mod operations;
mod workload;
#[path = "../../crash/world.rs"]
mod world;

use workload::{Script, Workload};

/// How long the store's inserts and deletes may take to be durable; then a script: see [`Workload::run`].
pub fn operations(input: &[u8]) {
    let mut script = Script::new(input);
    let durabilities = script.durabilities();
    if let Err(why) = Workload::new(durabilities, script).run() {
        panic!("{why}");
    }
}
