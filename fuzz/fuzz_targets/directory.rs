#![no_main]

#[path = "../../tests/corpus/allocation.rs"]
mod allocation;
#[path = "../../tests/corpus/directory.rs"]
#[allow(dead_code, reason = "shared with the replay of the corpus, which makes the seeds")]
mod directory;
#[path = "../../tests/damage/fixture.rs"]
#[allow(dead_code, reason = "shared with the tests of damage, which hold more against it")]
mod fixture;
#[path = "../../tests/damage/frames.rs"]
#[allow(dead_code, reason = "shared with the tests of damage")]
mod frames;

#[global_allocator]
static ALLOCATOR: allocation::Counting = allocation::Counting;

libfuzzer_sys::fuzz_target!(|input: &[u8]| allocation::opening(input, directory::directory));
