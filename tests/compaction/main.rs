//! Compaction: segments in which little is left are rewritten, beside running work, and nothing is lost by it.

mod attacks;
#[path = "../common/small_store.rs"]
mod small_store;
mod space;
