//! A signal for schedules: waits with a limit end when a test says that time goes by, and no others with them.

use std::cell::RefCell;
use std::sync::{Arc, LockResult, PoisonError, Weak};
use std::time::Duration;

use shuttle::rand::Rng;
use shuttle::sync::MutexGuard;

/// Each sleeper has a signal of its own, so that it can be told which one is woken.
type Sleeper = Arc<shuttle::sync::Condvar>;
/// Of the standard library, so that it is no place to switch to another thread.
type Sleepers = Arc<std::sync::Mutex<Vec<Sleeper>>>;

#[derive(Debug, Default)]
pub(crate) struct Condvar {
    sleepers: Sleepers,
}

thread_local! {
    /// Who sleeps with a limit. All threads of a schedule are one thread of the system.
    static WITH_LIMIT: RefCell<Vec<(Weak<std::sync::Mutex<Vec<Sleeper>>>, Sleeper)>> =
        const { RefCell::new(Vec::new()) };
}

/// All limits are over.
#[cfg(test)]
pub(crate) fn time_goes_by() {
    for (sleepers, sleeper) in WITH_LIMIT.take() {
        let Some(sleepers) = sleepers.upgrade() else { continue };
        let at = position(&sleepers, &sleeper);
        if let Some(at) = at {
            wake(&sleepers, at);
        }
    }
}

#[cfg(test)]
fn position(sleepers: &Sleepers, sleeper: &Sleeper) -> Option<usize> {
    let sleepers = sleepers.lock().unwrap_or_else(PoisonError::into_inner);
    sleepers.iter().position(|other| Arc::ptr_eq(other, sleeper))
}

fn wake(sleepers: &Sleepers, at: usize) {
    let sleeper = sleepers.lock().unwrap_or_else(PoisonError::into_inner).swap_remove(at);
    sleeper.notify_one();
}

impl Condvar {
    pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> LockResult<MutexGuard<'a, T>> {
        self.sleep(Sleeper::default(), guard)
    }

    pub fn wait_timeout<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        _limit: Duration,
    ) -> LockResult<(MutexGuard<'a, T>, ())> {
        let sleeper = Sleeper::default();
        let known = (Arc::downgrade(&self.sleepers), sleeper.clone());
        WITH_LIMIT.with_borrow_mut(|all| all.push(known));
        match self.sleep(sleeper, guard) {
            Ok(guard) => Ok((guard, ())),
            Err(poisoned) => Err(PoisonError::new((poisoned.into_inner(), ()))),
        }
    }

    /// No other thread has a turn before it sleeps.
    fn sleep<'a, T>(
        &self,
        sleeper: Sleeper,
        guard: MutexGuard<'a, T>,
    ) -> LockResult<MutexGuard<'a, T>> {
        self.sleepers.lock().unwrap_or_else(PoisonError::into_inner).push(sleeper.clone());
        sleeper.wait(guard)
    }

    pub fn notify_one(&self) {
        let count = self.count();
        if count > 0 {
            // Asking for a number is no place to switch either.
            wake(&self.sleepers, shuttle::rand::thread_rng().gen_range(0..count));
        } else {
            shuttle::thread::sleep(Duration::ZERO);
        }
    }

    pub fn notify_all(&self) {
        let all =
            std::mem::take(&mut *self.sleepers.lock().unwrap_or_else(PoisonError::into_inner));
        all.iter().for_each(|sleeper| sleeper.notify_one());
    }

    fn count(&self) -> usize {
        self.sleepers.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}
