//! What can be got of a queue, as numbers.

use millpond::{Delivery, Queue};

use super::small_store::number;

/// All that can be got, in order.
pub fn get_all(queue: &Queue) -> Vec<Delivery> {
    std::iter::from_fn(|| queue.try_get().unwrap()).collect()
}

pub fn numbers(deliveries: &[Delivery]) -> Vec<u64> {
    deliveries.iter().map(|delivery| number(delivery.payload())).collect()
}
