//! Random operations, reopens and clock steps against a plain model in memory: all answers are equal.
//!
//! `PROPTEST_CASES` sets how many runs there are.

mod options;
mod queue;
mod reference;
mod window;
mod world;

use millpond::State;
use proptest::prelude::*;

use options::{Backoff, Options};
use world::{NAMES, World};

#[derive(Clone, Debug)]
enum Op {
    Insert { queue: usize, bytes: usize, priority: u8, headers: usize },
    InsertBatch { queue: usize, count: usize, priority: u8, delay: u64 },
    InsertDelayed { queue: usize, bytes: usize, priority: u8, delay: u64 },
    InsertMortal { queue: usize, priority: u8, ttl: u64 },
    InsertKeyed { queue: usize, keys: Vec<u8>, priority: u8 },
    InsertGrouped { queue: usize, groups: Vec<u8>, priority: u8, delay: u64 },
    Get { queue: usize, max: Option<usize> },
    Peek { queue: usize },
    Delete { which: usize },
    DeleteBatch { queue: usize, which: usize, count: usize },
    Release { which: usize, delay: u64 },
    Fail { which: usize, delay: Option<u64> },
    Bury { which: usize },
    Extend { which: usize, lease: u64 },
    Drop { which: usize },
    Purge { queue: usize, state: State },
    Redrive { queue: usize, max: usize },
    Kick { queue: usize, max: usize },
    Pause { queue: usize },
    Resume { queue: usize },
    DeleteById { queue: usize, which: usize },
    Browse { queue: usize, state: State },
    Declare { queue: usize, options: Options },
    Remove { queue: usize },
    Advance { by: u64 },
    SetWallBack { by: u64 },
    Step,
    CloseAndReopen,
    KillAndReopen,
}

impl Op {
    /// Whether something may be due, or over, that the store has not noticed. That it was shows when the clock goes back.
    fn changes_what_is_due(&self) -> bool {
        matches!(
            self,
            Op::Advance { .. } | Op::SetWallBack { .. } | Op::CloseAndReopen | Op::KillAndReopen
        )
    }
}

fn a_queue() -> impl Strategy<Value = usize> {
    prop_oneof![4 => Just(0), 2 => Just(1), 1 => Just(2)]
}

fn a_size() -> impl Strategy<Value = usize> {
    prop_oneof![8 => 0usize..60, 2 => 10_000usize..30_000, 1 => 60_000usize..70_000]
}

fn a_priority() -> impl Strategy<Value = u8> {
    prop_oneof![6 => Just(0), 2 => Just(1), 1 => 0u8..10]
}

/// Times that meet each other: delays, leases and steps of the clock are a few seconds.
fn a_time() -> impl Strategy<Value = u64> {
    prop_oneof![Just(1), Just(1000), Just(2500), 1u64..4000]
}

fn backoff() -> impl Strategy<Value = Backoff> {
    // One in three is refused for its jitter, or because it begins above its maximum.
    let jitter = prop_oneof![Just(0), 0u8..=101];
    prop_oneof![
        2 => Just(Backoff::Fixed(0)),
        2 => a_time().prop_map(Backoff::Fixed),
        2 => (1u64..3000, a_time(), jitter)
            .prop_map(|(first, max, jitter)| Backoff::Exponential { first, max, jitter }),
        1 => prop::collection::vec(prop_oneof![Just(0), a_time()], 0..4).prop_map(Backoff::List),
    ]
}

fn options() -> impl Strategy<Value = Options> {
    let lease = prop::option::of(a_time());
    let max_attempts = prop::option::of(1u32..4);
    let dead_letter = prop::option::of(prop::sample::select(NAMES.to_vec()));
    let limit = (prop::option::weighted(0.3, 2u64..9), any::<bool>());
    // The log does not say when a queue forgot its keys, so their time never becomes longer.
    let window = prop::sample::select(vec![1, 2, 3, 100]).prop_map(|keys| (3000, keys));
    let pause_after = prop_oneof![2 => Just(0), 1 => 1u32..4];
    let bounds = (limit, window, pause_after);
    (lease, max_attempts, backoff(), any::<bool>(), dead_letter, bounds).prop_map(
        |(lease, max_attempts, backoff, release_on_drop, dead_letter, bounds)| Options {
            lease,
            max_attempts,
            backoff,
            release_on_drop,
            dead_letter,
            max_messages: bounds.0.0,
            drops: bounds.0.0.is_some() && bounds.0.1,
            window: bounds.1,
            pause_after: bounds.2,
        },
    )
}

fn messages() -> impl Strategy<Value = Op> {
    let which = 0usize..8;
    let delay = || prop_oneof![Just(0), a_time()];
    prop_oneof![
        8 => (a_queue(), a_size(), a_priority(), prop_oneof![4 => Just(0), 1 => 1usize..4])
            .prop_map(|(queue, bytes, priority, headers)| Op::Insert { queue, bytes, priority, headers }),
        2 => (a_queue(), 0usize..5, a_priority(), prop_oneof![3 => Just(0), 1 => a_time()]).prop_map(
            |(queue, count, priority, delay)| Op::InsertBatch { queue, count, priority, delay },
        ),
        2 => (a_queue(), a_size(), a_priority(), a_time()).prop_map(
            |(queue, bytes, priority, delay)| Op::InsertDelayed { queue, bytes, priority, delay },
        ),
        2 => (a_queue(), a_priority(), a_time())
            .prop_map(|(queue, priority, ttl)| Op::InsertMortal { queue, priority, ttl }),
        3 => (a_queue(), prop::collection::vec(0u8..4, 1..4), a_priority())
            .prop_map(|(queue, keys, priority)| Op::InsertKeyed { queue, keys, priority }),
        5 => (a_queue(), prop::collection::vec(0u8..3, 1..5), a_priority(), prop_oneof![5 => Just(0), 1 => a_time()])
            .prop_map(|(queue, groups, priority, delay)| Op::InsertGrouped { queue, groups, priority, delay }),
        6 => a_queue().prop_map(|queue| Op::Get { queue, max: None }),
        3 => (a_queue(), 1usize..6).prop_map(|(queue, max)| Op::Get { queue, max: Some(max) }),
        1 => a_queue().prop_map(|queue| Op::Peek { queue }),
        4 => which.clone().prop_map(|which| Op::Delete { which }),
        1 => (a_queue(), which.clone(), 0usize..5)
            .prop_map(|(queue, which, count)| Op::DeleteBatch { queue, which, count }),
        2 => (which.clone(), delay()).prop_map(|(which, delay)| Op::Release { which, delay }),
        3 => (which.clone(), prop::option::of(delay()))
            .prop_map(|(which, delay)| Op::Fail { which, delay }),
        1 => which.clone().prop_map(|which| Op::Bury { which }),
        1 => (which.clone(), a_time()).prop_map(|(which, lease)| Op::Extend { which, lease }),
        1 => which.prop_map(|which| Op::Drop { which }),
    ]
}

fn a_state() -> impl Strategy<Value = State> {
    let states = vec![State::Ready, State::InFlight, State::Delayed, State::Buried];
    prop::sample::select(states)
}

/// What is done by whoever looks after the queues.
fn management() -> impl Strategy<Value = Op> {
    let max = || prop_oneof![1 => 0usize..3, 2 => Just(1000)];
    prop_oneof![
        2 => (a_queue(), a_state()).prop_map(|(queue, state)| Op::Purge { queue, state }),
        3 => (a_queue(), max()).prop_map(|(queue, max)| Op::Redrive { queue, max }),
        1 => a_queue().prop_map(|queue| Op::Pause { queue }),
        3 => a_queue().prop_map(|queue| Op::Resume { queue }),
        2 => (a_queue(), max()).prop_map(|(queue, max)| Op::Kick { queue, max }),
        2 => (a_queue(), 0usize..50)
            .prop_map(|(queue, which)| Op::DeleteById { queue, which }),
        2 => (a_queue(), a_state()).prop_map(|(queue, state)| Op::Browse { queue, state }),
    ]
}

fn surroundings() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (a_queue(), options()).prop_map(|(queue, options)| Op::Declare { queue, options }),
        2 => a_queue().prop_map(|queue| Op::Remove { queue }),
        4 => a_time().prop_map(|by| Op::Advance { by }),
        1 => a_time().prop_map(|by| Op::SetWallBack { by }),
        4 => Just(Op::Step),
        2 => Just(Op::CloseAndReopen),
        3 => Just(Op::KillAndReopen),
    ]
}

fn an_op() -> impl Strategy<Value = Op> {
    prop_oneof![12 => messages(), 4 => surroundings(), 1 => management()]
}

fn apply(world: &mut World, op: &Op) {
    match op.clone() {
        Op::Insert { queue, bytes, priority, headers } => {
            world.insert(NAMES[queue], bytes, priority, headers)
        }
        Op::InsertBatch { queue, count, priority, delay } => {
            world.insert_batch(NAMES[queue], count, priority, delay)
        }
        Op::InsertDelayed { queue, bytes, priority, delay } => {
            world.insert_delayed(NAMES[queue], bytes, priority, delay)
        }
        Op::InsertMortal { queue, priority, ttl } => {
            world.insert_mortal(NAMES[queue], priority, ttl)
        }
        Op::InsertKeyed { queue, keys, priority } => {
            world.insert_keyed(NAMES[queue], &keys, priority)
        }
        Op::InsertGrouped { queue, groups, priority, delay } => {
            world.insert_grouped(NAMES[queue], &groups, priority, delay)
        }
        Op::Get { queue, max } => world.get(NAMES[queue], max),
        Op::Peek { queue } => world.peek(NAMES[queue]),
        Op::Delete { which } => world.delete(which),
        Op::DeleteBatch { queue, which, count } => world.delete_batch(NAMES[queue], which, count),
        Op::Release { which, delay } => world.release(which, delay),
        Op::Fail { which, delay } => world.fail(which, delay),
        Op::Bury { which } => world.bury(which),
        Op::Extend { which, lease } => world.extend(which, lease),
        Op::Drop { which } => world.drop_held(which),
        Op::Purge { queue, state } => world.purge(NAMES[queue], state),
        Op::Redrive { queue, max } => world.redrive(NAMES[queue], max),
        Op::Pause { queue } => world.pause(NAMES[queue]),
        Op::Resume { queue } => world.resume(NAMES[queue]),
        Op::Kick { queue, max } => world.kick(NAMES[queue], max),
        Op::DeleteById { queue, which } => world.delete_by_id(NAMES[queue], which),
        Op::Browse { queue, state } => world.browse(NAMES[queue], state),
        Op::Declare { queue, options } => world.declare(NAMES[queue], options),
        Op::Remove { queue } => world.remove(NAMES[queue]),
        Op::Advance { by } => world.advance(by),
        Op::SetWallBack { by } => world.set_wall_back(by),
        Op::Step => world.step(),
        Op::CloseAndReopen => world.close_and_reopen(),
        Op::KillAndReopen => world.kill_and_reopen(),
    }
}

fn cases() -> u32 {
    let set = std::env::var("PROPTEST_CASES").ok();
    set.and_then(|cases| cases.parse().ok()).unwrap_or(10_000)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn a_store_answers_as_a_plain_model_does(
        sync in any::<bool>(),
        // To look at a store is to use it: some mistakes show only where nobody has looked for a while.
        ops in prop::collection::vec((an_op(), prop::bool::weighted(0.3)), 1..80),
    ) {
        let mut world = World::new(sync);
        for (op, looks) in &ops {
            apply(&mut world, op);
            if *looks || op.changes_what_is_due() { world.compare() } else { world.catch_up() }
        }
        world.compare();
        world.drain();
    }
}
