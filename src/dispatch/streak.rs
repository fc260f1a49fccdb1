//! Failures in a row.

/// How many attempts have failed since the last one that succeeded, whatever message they were at.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Streak(u32);

impl Streak {
    pub fn failed(&mut self) {
        self.0 = self.0.saturating_add(1);
    }

    /// One has succeeded, or they do not count any more.
    pub fn end(&mut self) {
        self.0 = 0;
    }

    pub fn count(self) -> u32 {
        self.0
    }

    /// Whether there are so many. 0 is never reached.
    pub fn reaches(self, limit: u32) -> bool {
        limit > 0 && self.0 >= limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_count_until_one_attempt_succeeds() {
        let mut streak = Streak::default();
        assert!(!streak.reaches(1));
        (0..3).for_each(|_| streak.failed());
        assert_eq!((streak.count(), streak.reaches(3), streak.reaches(4)), (3, true, false));
        assert!(!streak.reaches(0), "0 is no limit");
        streak.end();
        assert!(!streak.reaches(1));
        let mut longest = Streak(u32::MAX);
        longest.failed();
        assert!(longest.reaches(u32::MAX));
    }
}
