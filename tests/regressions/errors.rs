//! An error of the disk that passes leaves nothing behind: no count that is wrong, no space that stays taken, nobody who
//! waits for ever.

use millpond::State;
use millpond::testing::{Clock, Disk, Fault, FaultKind};

use super::{opts, steps};

/// The old segment was gone and the new one not there: who came to the log's end looked for the new one, for ever, under
/// the lock.
#[test]
fn a_failed_write_of_a_roll_leaves_a_log_that_can_be_looked_at() {
    for after in 0..8 {
        let (disk, clock) = (Disk::new(), Clock::new());
        let store = opts().open_simulated(&disk, &clock).unwrap();
        let queue = store.queue("q").unwrap();
        for n in 0..11 {
            queue.insert(vec![n; 5000]).unwrap();
        }
        steps(&store);
        disk.fail(Fault { kind: FaultKind::Write, after, sticky: false });
        let inserted = (0..20).take_while(|_| queue.insert(vec![9; 5000]).is_ok()).count();
        assert!(inserted < 20, "the fault at {after} did not strike");
        assert!(queue.browse(State::Ready).count() >= 11);
        assert!(queue.peek().unwrap().is_some());
        assert_eq!(queue.stats().unwrap().ready, 11 + inserted as u64);
        assert_eq!(queue.redrive(5).unwrap(), 0);
        store.close().unwrap_err();
    }
}
