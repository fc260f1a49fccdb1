//! How long a failed message waits before its next attempt.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How long a failed message waits before it is delivered again.
///
/// Stored with the queue's options: variants are only ever added at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Backoff {
    /// The same wait after every failure; zero gives the message back at once.
    Fixed(Duration),
    /// `first` after the first failure, then twice as long each time, never more than `max`.
    Exponential {
        /// The wait after the first failure.
        first: Duration,
        /// The longest wait.
        max: Duration,
    },
}

impl Backoff {
    /// The wait after the `attempts`-th attempt failed (counted from 1).
    pub(crate) fn delay(&self, attempts: u32) -> Duration {
        match *self {
            Backoff::Fixed(delay) => delay,
            Backoff::Exponential { first, max } => {
                let doublings = attempts.saturating_sub(1).min(31);
                first.saturating_mul(1 << doublings).min(max)
            }
        }
    }
}

impl Default for Backoff {
    /// 100 ms, doubling up to 1 minute.
    fn default() -> Backoff {
        Backoff::Exponential { first: Duration::from_millis(100), max: Duration::from_secs(60) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exponential_backoff_doubles_up_to_its_maximum_and_never_overflows() {
        let backoff = Backoff::default();
        let waits: Vec<u128> = (1..=12).map(|n| backoff.delay(n).as_millis()).collect();
        assert_eq!(waits[..4], [100, 200, 400, 800]);
        assert_eq!(waits[11], 60_000);
        assert_eq!(backoff.delay(u32::MAX).as_millis(), 60_000);
    }
}
