//! A scheduler that lets each thread run for a while: short whiles in some executions, long ones in others.

use std::sync::Arc;

use shuttle::scheduler::{DataSource, RandomDataSource, Schedule, Scheduler, Task, TaskId};

use crate::random::Entropy;

/// How many steps a thread makes on average before another one has a turn.
const LENGTHS: [u64; 6] = [2, 4, 8, 20, 60, 200];

pub(super) struct Bursts {
    random: Entropy,
    /// What a test asks for, so that its schedule can be repeated.
    data: RandomDataSource,
    left: usize,
    length: u64,
}

impl Bursts {
    pub fn new(seed: u64, executions: usize) -> Bursts {
        let random = Entropy::Sequence(Arc::new(seed.into()));
        let data = RandomDataSource::initialize(seed);
        Bursts { random, data, left: executions, length: 1 }
    }

    fn below(&self, limit: u64) -> u64 {
        self.random.next_u64().expect("a sequence has no end") % limit
    }
}

impl Scheduler for Bursts {
    fn new_execution(&mut self) -> Option<Schedule> {
        self.left = self.left.checked_sub(1)?;
        self.length = LENGTHS[self.below(LENGTHS.len() as u64) as usize];
        Some(Schedule::new(self.data.reinitialize()))
    }

    fn next_task(
        &mut self,
        runnable: &[&Task],
        current: Option<TaskId>,
        is_yielding: bool,
    ) -> Option<TaskId> {
        let goes_on = |task: &&&Task| Some(task.id()) == current && !is_yielding;
        if let Some(task) = runnable.iter().find(goes_on)
            && self.below(self.length) > 0
        {
            return Some(task.id());
        }
        let others: Vec<TaskId> =
            runnable.iter().map(|task| task.id()).filter(|id| Some(*id) != current).collect();
        if others.is_empty() {
            return current;
        }
        Some(others[self.below(others.len() as u64) as usize])
    }

    fn next_u64(&mut self) -> u64 {
        self.data.next_u64()
    }
}
