//! A small store on a simulated disk, that can be closed or killed and opened again.

use millpond::Store;
use millpond::testing::{Clock, Disk};

use super::small_store::options;

pub struct Simulated {
    pub disk: Disk,
    pub clock: Clock,
    pub store: Store,
}

impl Simulated {
    pub fn new() -> Simulated {
        let (disk, clock) = (Disk::new(), Clock::new());
        let store = options().open_simulated(&disk, &clock).unwrap();
        Simulated { disk, clock, store }
    }

    pub fn reopen(&mut self, kill: bool) {
        if kill {
            self.disk = self.disk.kill();
        } else {
            self.store.close().unwrap();
        }
        self.store = options().open_simulated(&self.disk, &self.clock).unwrap();
    }
}
