//! The corpus of the fuzz targets (see `fuzz/`), once through: what coverage has led to before, and every input that has
//! ever broken something. Each input goes through the function that its target calls.
//!
//! `cargo test --test corpus -- --ignored` writes the seeds that the corpus grew from: to `MILLPOND_SEEDS`, a directory.

mod allocation;
mod directory;
#[path = "../damage/fixture.rs"]
#[allow(dead_code, reason = "shared with the tests of damage, which hold more against it")]
mod fixture;
#[path = "../damage/frames.rs"]
#[allow(dead_code, reason = "shared with the tests of damage")]
mod frames;
mod operations;
mod seeds;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};

use millpond::testing::fuzz;

#[global_allocator]
static ALLOCATOR: allocation::Counting = allocation::Counting;

/// The inputs of a target, sorted.
fn inputs(target: &str) -> Vec<PathBuf> {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let files = |kind: &str| {
        let entries = fs::read_dir(fuzz.join(kind).join(target)).into_iter().flatten();
        entries.map(|entry| entry.unwrap().path())
    };
    let mut found: Vec<PathBuf> = files("corpus").chain(files("regressions")).collect();
    found.sort();
    assert!(!found.is_empty(), "the corpus of {target} is in {}", fuzz.display());
    found
}

/// Runs all inputs of a target, and says which one fails.
fn replay(target: &str, check: fn(&[u8])) {
    let inputs = inputs(target);
    for path in &inputs {
        let input = fs::read(path).unwrap();
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| check(&input))) {
            eprintln!("the input is {}", path.display());
            resume_unwind(panic);
        }
    }
    println!("{target}: {} inputs", inputs.len());
}

#[test]
fn what_was_found_of_frames_holds() {
    replay("frame", |input| allocation::decoding(input, fuzz::frame));
}

#[test]
fn what_was_found_of_segments_holds() {
    replay("segment", |input| allocation::decoding(input, fuzz::segment));
}

#[test]
fn what_was_found_of_cursors_holds() {
    replay("cursor", |input| allocation::decoding(input, fuzz::cursor));
}

#[test]
fn what_was_found_of_directories_holds() {
    replay("directory", |input| allocation::opening(input, directory::directory));
}

#[test]
fn what_was_found_of_operations_holds() {
    replay("operations", operations::operations);
}

#[test]
#[should_panic(expected = "bytes of memory at once")]
fn memory_that_the_input_does_not_justify_is_noticed() {
    allocation::decoding(&[0; 100], |_| drop(std::hint::black_box(vec![1_u8; 100 << 20])));
}
