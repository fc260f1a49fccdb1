#![no_main]

#[path = "../../tests/corpus/operations/mod.rs"]
mod operations;

libfuzzer_sys::fuzz_target!(|input: &[u8]| operations::operations(input));
