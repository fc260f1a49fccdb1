#![no_main]

#[path = "../../tests/corpus/allocation.rs"]
mod allocation;

use millpond::testing::fuzz;

#[global_allocator]
static ALLOCATOR: allocation::Counting = allocation::Counting;

libfuzzer_sys::fuzz_target!(|input: &[u8]| allocation::decoding(input, fuzz::segment));
