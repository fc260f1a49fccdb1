//! millpond itself, by its plain calls and its default options.

use std::path::Path;
use std::time::Duration;

use millpond::{Delivery, Queue, Store};

use super::{git_version, locked_version};
use crate::contender::{Card, Consumer, Contender, Durability, Producer, Supported};

pub struct Millpond {
    store: Store,
    queues: Vec<Queue>,
}

impl Contender for Millpond {
    fn card() -> Card {
        let version = format!("{} {}", locked_version("millpond"), git_version());
        Card { name: "millpond", version, unequal: &[] }
    }

    fn open(dir: &Path, durability: Durability, queues: usize) -> Supported<Millpond> {
        let durability = match durability {
            Durability::Process => millpond::Durability::Process,
            Durability::Sync => millpond::Durability::Sync,
        };
        let options = Store::options().durability(durability).delete_durability(durability);
        let store = options.open(dir).unwrap();
        let queues = (0..queues).map(|n| store.queue(&format!("q{n}")).unwrap()).collect();
        Ok(Millpond { store, queues })
    }

    fn producer(&self, queue: usize) -> Supported<impl Producer + '_> {
        Ok(&self.queues[queue])
    }

    fn consumer(&self, queue: usize) -> Supported<impl Consumer + '_> {
        Ok(&self.queues[queue])
    }

    fn close(self) {
        self.store.close().unwrap();
    }
}

impl Millpond {
    /// For what only millpond is asked.
    pub fn queue(&self, queue: usize) -> &Queue {
        &self.queues[queue]
    }
}

impl Producer for &Queue {
    fn insert(&mut self, payload: &[u8]) {
        Queue::insert(self, payload).unwrap();
    }

    fn insert_batch(&mut self, payloads: &[&[u8]]) -> Supported<()> {
        Queue::insert_batch(self, payloads.iter().copied()).unwrap();
        Ok(())
    }
}

impl Consumer for &Queue {
    fn pop(&mut self, look: &mut dyn FnMut(&[u8])) -> Supported<bool> {
        let Some(delivery) = self.try_get().unwrap() else {
            return Ok(false);
        };
        look(delivery.payload());
        delivery.delete().unwrap();
        Ok(true)
    }

    fn pop_batch(&mut self, max: usize, look: &mut dyn FnMut(&[u8])) -> Supported<usize> {
        let batch = self.get_batch(max, Duration::ZERO).unwrap();
        batch.iter().for_each(|delivery| look(delivery.payload()));
        let count = batch.len();
        if count > 0 {
            assert_eq!(self.delete_batch(batch).unwrap().deleted, count as u64);
        }
        Ok(count)
    }

    fn pop_out_of_order(
        &mut self,
        max: usize,
        order: &[usize],
        look: &mut dyn FnMut(&[u8]),
    ) -> Supported<usize> {
        let mut held: Vec<Option<Delivery>> = Vec::with_capacity(max);
        while held.len() < max {
            // A batch may be smaller than what is there.
            let batch = self.get_batch(max - held.len(), Duration::ZERO).unwrap();
            if batch.is_empty() {
                break;
            }
            held.extend(batch.into_iter().map(Some));
        }
        held.iter().flatten().for_each(|delivery| look(delivery.payload()));
        for &at in order {
            if let Some(delivery) = held.get_mut(at).and_then(Option::take) {
                delivery.delete().unwrap();
            }
        }
        Ok(held.len())
    }
}
