use super::*;

fn at(base: Instant, secs: u64) -> Instant {
    base + Duration::from_secs(secs)
}

/// Or a cursor that is captured piece by piece could leave it out of its lane and out of its entries.
#[test]
fn what_is_touched_before_anything_is_recorded_counts_as_unread_until_then() {
    let mut q = QueueState::default();
    q.touch(5, 2);
    q.touch(6, 2);
    assert_eq!((q.first_unrecorded(2), q.is_recorded(5, 2)), (Some(5), false));
    assert!(q.untouch(5));
    assert!(!q.contains(5) && !q.untouch(5));
    assert_eq!((q.first_unrecorded(2), q.len()), (Some(6), 1));
    q.put(6, Entry::buried(2, 0, "no room"));
    assert_eq!((q.first_unrecorded(2), q.is_recorded(6, 2)), (None, true));
    assert!(!q.untouch(6));
    q.touch(7, 2);
    q.remove(7);
    assert_eq!(q.first_unrecorded(2), None);
}

#[test]
fn what_was_given_back_goes_out_by_priority_then_by_id() {
    let mut q = QueueState::default();
    q.put(9, Entry::given_back(0, 1));
    q.put(4, Entry::given_back(0, 1));
    q.put(7, Entry::given_back(5, 1));
    let mut order = Vec::new();
    while let Some(turn) = q.next_ready(None) {
        order.push((turn.priority(), turn.id));
        q.remove(turn.id);
    }
    assert_eq!(order, [(5, 7), (0, 4), (0, 9)]);
}

#[test]
fn a_lease_that_ran_out_may_be_settled_late_but_not_after_another_delivery() {
    let base = Instant::now();
    let mut q = QueueState::default();
    q.put(1, Entry::in_flight(0, 1, 11, Some(at(base, 10))));
    q.advance(at(base, 9), 0);
    assert_eq!(q.in_flight(), 1);
    q.advance(at(base, 10), 0);
    assert_eq!((q.in_flight(), q.ready.len(), q.streak.count()), (0, 1, 1));
    assert_eq!(q.holder(1, 11).map(|e| e.attempts), Ok(1));
    q.put(1, Entry::in_flight(0, 2, 12, None));
    assert_eq!(q.holder(1, 11), Err(Stale));
    assert!(q.holder(1, 12).is_ok());
}

#[test]
fn extending_a_lapsed_lease_takes_the_message_back_in_flight() {
    let base = Instant::now();
    let mut q = QueueState::default();
    q.put(1, Entry::in_flight(0, 1, 11, Some(at(base, 10))));
    q.advance(at(base, 11), 0);
    q.extend(1, 11, Some(at(base, 30))).unwrap();
    assert_eq!((q.in_flight(), q.ready.len()), (1, 0));
    assert_eq!(q.next_deadline(), Some(at(base, 30)));
    assert_eq!(q.extend(1, 99, None), Err(Stale));
}

#[test]
fn a_delayed_message_is_ready_at_its_due_time_and_not_before() {
    let base = Instant::now();
    let mut q = QueueState::default();
    q.put(3, Entry::delayed(0, 1, 500));
    q.put(2, Entry::delayed(0, 1, 700));
    q.advance(base, 499);
    assert_eq!(q.next_ready(None), None);
    assert_eq!(q.sleep_for(base, 499), Some(Duration::from_millis(1)));
    q.advance(base, 500);
    assert_eq!(q.next_ready(None).map(|turn| (turn.priority(), turn.id)), Some((0, 3)));
    assert_eq!((q.delayed(), q.next_due_ms()), (1, Some(700)));
    q.advance(base, 700);
    assert_eq!((q.delayed(), q.ready.len()), (0, 2));
}

#[test]
fn what_is_due_goes_out_by_due_time_behind_what_was_given_back() {
    let base = Instant::now();
    let mut q = QueueState::default();
    q.put(1, Entry::delayed(0, 0, 700));
    q.put(2, Entry::delayed(0, 0, 500));
    q.put(3, Entry::delayed(9, 0, 800));
    q.put(4, Entry::given_back(0, 1));
    q.advance(base, 1000);
    let mut order = Vec::new();
    let mut behind = None;
    while let Some(turn) = q.next_ready(behind) {
        order.push(turn.id);
        behind = Some(turn);
    }
    assert_eq!(order, [3, 4, 2, 1]);
    (1..=4).for_each(|id| assert!(q.remove(id).is_some()));
    assert!(q.ready.is_empty());
}

#[test]
fn a_settled_delivery_leaves_nothing_behind() {
    let base = Instant::now();
    let mut q = QueueState::default();
    q.put(1, Entry::in_flight(0, 1, 5, Some(at(base, 1))));
    q.put(2, Entry::delayed(0, 1, 9));
    q.put(3, Entry::buried(0, 2, "broken"));
    q.put(4, Entry::given_back(0, 1));
    assert_eq!((q.in_flight(), q.delayed(), q.buried()), (1, 1, 1));
    assert_eq!((q.len(), q.ready.len()), (4, 1));
    assert_eq!(q.get(3), Some(&Entry::buried(0, 2, "broken")));
    assert_eq!(
        q.range(2..4).map(|(id, entry)| (id, entry.place)).collect::<Vec<_>>(),
        [(2, Place::Delayed), (3, Place::Buried)]
    );
    for id in 1..=4 {
        assert!(q.contains(id));
        assert!(q.remove(id).is_some());
        assert!(!q.contains(id));
    }
    assert_eq!((q.in_flight(), q.delayed(), q.buried(), q.ready.len()), (0, 0, 0, 0));
    assert_eq!(q.len(), 0);
    assert_eq!((q.next_deadline(), q.next_due_ms()), (None, None));
}

#[test]
fn a_lease_that_was_extended_or_settled_no_longer_counts() {
    let base = Instant::now();
    let mut q = QueueState::default();
    for id in 1..=4 {
        q.put(id, Entry::in_flight(0, 1, 10 + id, Some(at(base, 10 * id))));
    }
    q.extend(2, 12, Some(at(base, 60))).unwrap();
    q.remove(3);
    q.remove(1);
    assert_eq!(q.next_deadline(), Some(at(base, 40)));
    q.remove(4);
    assert_eq!(q.next_deadline(), Some(at(base, 60)));
}
#[test]
fn sleep_ends_with_what_comes_first() {
    let base = Instant::now();
    let mut q = QueueState::default();
    assert_eq!(q.sleep_for(base, 0), None);
    q.put(1, Entry::in_flight(0, 1, 11, Some(at(base, 10))));
    assert_eq!(q.sleep_for(base, 0), Some(Duration::from_secs(10)));
    q.put(2, Entry::delayed(0, 1, 3_000));
    assert_eq!(q.sleep_for(base, 0), Some(Duration::from_secs(3)));
    q.put(2, Entry::delayed(0, 1, 30_000));
    assert_eq!(q.sleep_for(base, 0), Some(Duration::from_secs(10)));
    // The wall clock may be set before then.
    q.put(2, Entry::delayed(0, 1, 300_000));
    q.remove(1);
    assert_eq!(q.sleep_for(base, 0), Some(Duration::from_secs(60)));
}
