//! How long a failed message waits.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The most waits of a [`Backoff::List`].
const WAITS_MAX: usize = 100;

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
        /// The longest wait; not less than `first`.
        max: Duration,
        /// By how much a wait may be shorter than that, in percent: from 0, for all the same, to 100. How much it is
        /// depends on the message and the attempt, so that messages that failed together do not come back together,
        /// and fall upon what has just recovered. With 50, waits lie between half of it and all of it.
        jitter: u8,
    },
    /// After the n-th failure the n-th of these waits, and after all later ones the last of them. From 1 to 100.
    List(Vec<Duration>),
}

impl Backoff {
    /// The wait after the `attempts`-th attempt at message `id` failed (counted from 1). It depends on nothing else.
    pub(crate) fn delay(&self, id: u64, attempts: u32) -> Duration {
        match self {
            Backoff::Fixed(delay) => *delay,
            Backoff::Exponential { first, max, jitter } => {
                let doublings = attempts.saturating_sub(1).min(31);
                let longest = first.saturating_mul(1 << doublings).min(*max);
                longest.saturating_sub(part(longest, *jitter, scatter(id, attempts)))
            }
            Backoff::List(waits) => {
                let nth = waits.get(attempts.saturating_sub(1) as usize).or(waits.last());
                nth.copied().unwrap_or_default()
            }
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        let what = match self {
            Backoff::Exponential { first, max, .. } if first > max => {
                format!("a backoff that begins with {first:?} cannot be at most {max:?}")
            }
            Backoff::Exponential { jitter: 101.., .. } => {
                "the jitter of a backoff is from 0 to 100 percent".to_owned()
            }
            Backoff::List(waits) if !(1..=WAITS_MAX).contains(&waits.len()) => {
                format!("a backoff lists from 1 to {WAITS_MAX} waits, not {}", waits.len())
            }
            _ => return Ok(()),
        };
        Err(Error::invalid(what))
    }
}

impl Default for Backoff {
    /// 100 ms, doubling up to 1 minute, without jitter.
    fn default() -> Backoff {
        let (first, max) = (Duration::from_millis(100), Duration::from_secs(60));
        Backoff::Exponential { first, max, jitter: 0 }
    }
}

/// So many percent of `whole`, by `share`: none of them by 0, nearly all by the largest.
fn part(whole: Duration, percent: u8, share: u32) -> Duration {
    // A duration is less than 2^94 ns.
    let nanos = (whole.as_nanos() * u128::from(share)) >> 32;
    let nanos = nanos * u128::from(percent) / 100;
    Duration::new((nanos / 1_000_000_000) as u64, (nanos % 1_000_000_000) as u32)
}

/// A number for each pair that looks like any other: neighbours get numbers that lie anywhere.
fn scatter(id: u64, attempts: u32) -> u32 {
    // The finishing steps of SplitMix64.
    let mut word = id.wrapping_add(u64::from(attempts).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((word ^ (word >> 31)) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn exponential(first: u64, max: u64, jitter: u8) -> Backoff {
        Backoff::Exponential { first: MS(first), max: MS(max), jitter }
    }

    #[test]
    fn an_exponential_backoff_doubles_up_to_its_maximum_and_never_overflows() {
        let backoff = Backoff::default();
        let waits: Vec<u128> = (1..=12).map(|n| backoff.delay(7, n).as_millis()).collect();
        assert_eq!(waits[..4], [100, 200, 400, 800]);
        assert_eq!(waits[11], 60_000);
        assert_eq!(backoff.delay(7, u32::MAX).as_millis(), 60_000);
    }

    #[test]
    fn the_last_wait_of_a_list_is_that_of_all_later_failures() {
        let backoff = Backoff::List(vec![MS(10), Duration::ZERO, MS(30)]);
        let waits: Vec<u128> = (0..6).map(|n| backoff.delay(7, n).as_millis()).collect();
        assert_eq!(waits, [10, 10, 0, 30, 30, 30]);
        assert_eq!(backoff.delay(7, u32::MAX), MS(30));
    }

    #[test]
    fn jitter_shortens_waits_by_up_to_its_percentage_and_spreads_them_evenly() {
        for jitter in [0, 1, 50, 100] {
            let backoff = exponential(1000, 1_000_000, jitter);
            let waits: Vec<Duration> = (0..10_000).map(|id| backoff.delay(id, 1)).collect();
            let (least, most) = (waits.iter().min().unwrap(), waits.iter().max().unwrap());
            let shortest = MS(1000 - 10 * u64::from(jitter));
            assert!(shortest <= *least && *most <= MS(1000), "{jitter}: {least:?} to {most:?}");
            let mean = waits.iter().sum::<Duration>() / 10_000;
            let middle = (shortest + MS(1000)) / 2;
            assert!(mean.abs_diff(middle) < MS(10), "{jitter}: on average {mean:?}");
        }
        let longest = exponential(u64::MAX, u64::MAX, 100);
        assert!(longest.delay(1, u32::MAX) <= MS(u64::MAX));
    }

    #[test]
    fn jitter_depends_on_the_message_and_the_attempt_alone() {
        let backoff = exponential(100_000, 100_000, 100);
        assert_eq!(backoff.delay(7, 3), backoff.clone().delay(7, 3));
        assert_ne!(backoff.delay(7, 3), backoff.delay(8, 3));
        assert_ne!(backoff.delay(7, 3), backoff.delay(7, 4));
        // The model of the tests knows it too.
        assert_eq!(scatter(7, 3), 3_868_737_664);
    }

    #[test]
    fn a_backoff_that_contradicts_itself_is_refused() {
        let listed = |count| Backoff::List(vec![MS(1); count]);
        for bad in [exponential(2, 1, 0), exponential(1, 2, 101), listed(0), listed(WAITS_MAX + 1)]
        {
            assert!(bad.check().is_err(), "{bad:?}");
        }
        for good in [exponential(1, 1, 100), listed(1), listed(WAITS_MAX), Backoff::default()] {
            assert!(good.check().is_ok(), "{good:?}");
        }
    }
}
