//! What a queue of the model is told to do. Times are in milliseconds.

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backoff {
    Fixed(u64),
    Exponential { first: u64, max: u64, jitter: u8 },
    List(Vec<u64>),
}

impl Backoff {
    pub fn is_possible(&self) -> bool {
        match self {
            Backoff::Fixed(_) => true,
            Backoff::Exponential { first, max, jitter } => first <= max && *jitter <= 100,
            Backoff::List(waits) => !waits.is_empty(),
        }
    }

    pub fn delay(&self, id: u64, attempts: u32) -> u64 {
        match self {
            Backoff::Fixed(delay) => *delay,
            Backoff::Exponential { first, max, jitter } => {
                let longest = (first << attempts.saturating_sub(1).min(31)).min(*max);
                let nanos = u128::from(longest) * 1_000_000;
                let off = (nanos * u128::from(scatter(id, attempts))) >> 32;
                let wait = (nanos - off * u128::from(*jitter) / 100) / 1_000_000;
                // Less than a millisecond is one.
                wait.max(1) as u64
            }
            Backoff::List(waits) => waits[waits.len().min(attempts.max(1) as usize) - 1],
        }
    }
}

/// What decides by how much a wait is shorter than its jitter would let it be at most.
fn scatter(id: u64, attempts: u32) -> u32 {
    let mut word = id.wrapping_add(u64::from(attempts).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((word ^ (word >> 31)) >> 32) as u32
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub lease: Option<u64>,
    pub max_attempts: Option<u32>,
    pub backoff: Backoff,
    pub release_on_drop: bool,
    pub dead_letter: Option<&'static str>,
    pub max_messages: Option<u64>,
    /// Whether the oldest messages make room.
    pub drops: bool,
    /// How long deduplication keys are known, and how many.
    pub window: (u64, usize),
    /// 0 for never.
    pub pause_after: u32,
}

impl Default for Options {
    /// The library's.
    fn default() -> Options {
        Options {
            lease: Some(30 * 60 * 1000),
            max_attempts: None,
            backoff: Backoff::Exponential { first: 100, max: 60_000, jitter: 0 },
            release_on_drop: false,
            dead_letter: None,
            max_messages: None,
            drops: false,
            window: (300_000, 100_000),
            pause_after: 0,
        }
    }
}
