//! Declarations at the same time.

use super::*;
use crate::error::ErrorKind;
use crate::sync::thread;

#[test]
fn of_two_declarations_that_would_make_a_circle_one_is_refused() {
    explore(|| {
        let disk = yielding(Disk::new());
        let store = open(&disk, settings(Durability::Process));
        let declaring = [("a", "b"), ("b", "a")].map(|(name, dead)| {
            let store = store.clone();
            let options = QueueOptions::new().dead_letter(dead);
            thread::spawn(move || store.declare(name, options).map(drop))
        });
        let refused = declaring.into_iter().filter_map(|thread| thread.join().unwrap().err());
        let kinds: Vec<_> = refused.map(|error| error.kind().clone()).collect();
        assert_eq!(kinds, [ErrorKind::InvalidArgument]);
        store.close().unwrap();
    });
}
