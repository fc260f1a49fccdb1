//! For the project's own fuzz targets, which cannot name the decoders: each function takes bytes, whatever they are, and
//! panics where a decoder does not keep what it promises. None of it is meant for users.
//!
//! Checksums would stop nearly every input at the door. So the first byte of an input says whether its checksums are
//! put right ([`seal`]) before anything is decoded, and both kinds of garbage are tried.

mod cursor;
mod frame;
mod input;
pub mod seal;
mod segment;

pub use cursor::cursor;
pub use frame::frame;
pub use input::Input;
pub use segment::segment;
