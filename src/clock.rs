//! Time: the one place that reads the clocks.
//!
//! Leases run on the monotonic clock, because they end within one process. Due times and insertion times
//! are wall-clock milliseconds since the Unix epoch, because they must mean the same after a restart.

#[cfg(any(test, feature = "testing"))]
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// One reading of both clocks. Everything that decides by time takes one of these.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    pub mono: Instant,
    pub wall_ms: u64,
}

#[derive(Clone, Debug, Default)]
pub(crate) enum TimeSource {
    #[default]
    System,
    #[cfg(any(test, feature = "testing"))]
    Manual(Clock),
}

impl TimeSource {
    #[expect(clippy::disallowed_methods, reason = "the home of the clocks")]
    pub fn now(&self) -> Now {
        match self {
            TimeSource::System => {
                Now { mono: Instant::now(), wall_ms: millis_since_epoch(SystemTime::now()) }
            }
            #[cfg(any(test, feature = "testing"))]
            TimeSource::Manual(clock) => clock.now(),
        }
    }
}

impl TimeSource {
    /// The monotonic clock alone.
    #[inline]
    #[expect(clippy::disallowed_methods, reason = "the home of the clocks")]
    pub fn mono(&self) -> Instant {
        match self {
            TimeSource::System => Instant::now(),
            #[cfg(any(test, feature = "testing"))]
            TimeSource::Manual(clock) => clock.now().mono,
        }
    }

    /// The wall clock for a time stamp, in milliseconds since the epoch. Up to 10 ms behind, and at a tenth of the
    /// price of [`now`](TimeSource::now): this runs for every insert.
    #[inline]
    pub fn stamp_ms(&self) -> u64 {
        match self {
            TimeSource::System => coarse_millis_since_epoch(),
            #[cfg(any(test, feature = "testing"))]
            TimeSource::Manual(clock) => clock.wall_ms(),
        }
    }
}

/// The monotonic clock of the machine, for how long a call has waited: that passes in real time, whatever clock decides
/// about messages.
#[expect(clippy::disallowed_methods, reason = "the home of the clocks")]
#[cfg(not(any(loom, shuttle)))]
pub(crate) fn real_now() -> Instant {
    Instant::now()
}

/// It stands still: no model waits for time to go by.
#[cfg(any(loom, shuttle))]
#[expect(clippy::disallowed_methods, reason = "the home of the clocks")]
pub(crate) fn real_now() -> Instant {
    static NOW: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    *NOW.get_or_init(Instant::now)
}

#[cfg(target_os = "linux")]
fn coarse_millis_since_epoch() -> u64 {
    use rustix::time::{ClockId, clock_gettime};
    let time = clock_gettime(ClockId::RealtimeCoarse);
    // Before 1970 as below.
    u64::try_from(time.tv_sec).map_or(0, |seconds| seconds * 1000 + time.tv_nsec as u64 / 1_000_000)
}

#[cfg(not(target_os = "linux"))]
#[expect(clippy::disallowed_methods, reason = "the home of the clocks")]
fn coarse_millis_since_epoch() -> u64 {
    millis_since_epoch(SystemTime::now())
}

/// A time before 1970 counts as 1970.
fn millis_since_epoch(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, millis)
}

/// The wall-clock time of a stored number of milliseconds since the epoch.
pub(crate) fn wall_time(ms: u64) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_millis(ms)).unwrap_or(UNIX_EPOCH)
}

/// Whole milliseconds, saturating: a duration that does not fit is as good as for ever.
pub(crate) fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

/// A clock that stands still until a test moves it. Clones share the time.
///
/// Both clocks move apart: a lease follows the monotonic one, a delay the wall clock, so a test can set the
/// wall clock back without touching a lease.
#[cfg(any(test, feature = "testing"))]
#[derive(Clone, Debug)]
pub struct Clock(Arc<Mutex<Now>>);

#[cfg(any(test, feature = "testing"))]
impl Default for Clock {
    fn default() -> Self {
        Clock::new()
    }
}

#[cfg(any(test, feature = "testing"))]
impl Clock {
    /// A clock that shows the present.
    pub fn new() -> Clock {
        Clock(Arc::new(Mutex::new(TimeSource::System.now())))
    }

    /// Lets `by` pass on both clocks.
    pub fn advance(&self, by: Duration) {
        self.step(|now| {
            now.mono += by;
            now.wall_ms = now.wall_ms.saturating_add(millis(by));
        });
    }

    /// Sets the wall clock to `ms` milliseconds since the Unix epoch; the monotonic clock stands still.
    pub fn set_wall_ms(&self, ms: u64) {
        self.step(|now| now.wall_ms = ms);
    }

    /// The wall clock, in milliseconds since the Unix epoch.
    pub fn wall_ms(&self) -> u64 {
        self.now().wall_ms
    }

    fn now(&self) -> Now {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn step(&self, change: impl FnOnce(&mut Now)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
