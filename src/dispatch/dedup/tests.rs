//! A window answers as a list of all keys does, also when it is captured piece by piece and rebuilt from the pieces and
//! the records behind them.

use super::*;
use proptest::prelude::*;

const KEYS: u8 = 6;

#[derive(Clone, Debug)]
enum Step {
    /// Of this key, if it is not known.
    Insert(u8),
    /// So many milliseconds pass.
    Pass(u64),
    Declare(Limits),
    /// A checkpoint captures the next piece, of so many keys; the first one after the last piece begins a new capture.
    Capture(usize),
}

fn limits() -> impl Strategy<Value = Limits> {
    (prop_oneof![Just(10), 1u64..30], 1usize..5)
        .prop_map(|(time_ms, keys)| Limits { time_ms, keys })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..KEYS).prop_map(Step::Insert),
        3 => (1u64..12).prop_map(Step::Pass),
        1 => limits().prop_map(Step::Declare),
        3 => (1usize..4).prop_map(Step::Capture),
    ]
}

/// What the log has of a window.
#[derive(Clone, Debug)]
enum Record {
    Insert(SeenKey),
    Declare(Limits),
}

/// As a section of a cursor has it: how many records had been appended, the first id, and the keys.
type Piece = (usize, u64, Vec<SeenKey>);

/// What should be known, in the simplest way.
struct Plain {
    limits: Limits,
    /// All keys that were ever inserted.
    all: Vec<SeenKey>,
    /// Before this one all are forgotten.
    first: usize,
}

impl Plain {
    fn find(&self, key: u8, now_ms: u64) -> Option<u64> {
        let known = |seen: &&SeenKey| now_ms - seen.time_ms < self.limits.time_ms;
        let mut known = self.all[self.first..].iter().filter(known);
        known.rfind(|seen| *seen.key == [key]).map(|seen| seen.id)
    }

    fn forget(&mut self) {
        self.first = self.first.max(self.all.len().saturating_sub(self.limits.keys));
    }

    fn forget_over(&mut self, now_ms: u64) {
        let over = |seen: &SeenKey| now_ms - seen.time_ms >= self.limits.time_ms;
        self.first += self.all[self.first..].iter().take_while(|seen| over(seen)).count();
    }
}

struct Run {
    now_ms: u64,
    window: DedupWindow,
    plain: Plain,
    log: Vec<Record>,
    /// The limits that the log begins with.
    began_with: Limits,
    /// Captured last; whether all of it is there; and which limits held when it began, after how many records.
    cursor: (Vec<Piece>, bool, Limits),
    next_id: u64,
}

impl Run {
    fn new(limits: Limits) -> Run {
        Run {
            now_ms: 1000,
            window: DedupWindow::new(limits),
            plain: Plain { limits, all: Vec::new(), first: 0 },
            log: Vec::new(),
            began_with: limits,
            cursor: (Vec::new(), true, limits),
            next_id: 1,
        }
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Insert(key) => {
                self.window.forget_some(self.now_ms);
                self.plain.forget_over(self.now_ms);
                if self.window.find(&[key], self.now_ms).is_some() {
                    return;
                }
                let seen = SeenKey { key: [key].into(), id: self.next_id, time_ms: self.now_ms };
                self.next_id += 1 + u64::from(key % 2);
                self.window.add(seen.clone());
                self.plain.all.push(seen.clone());
                self.plain.forget();
                self.log.push(Record::Insert(seen));
            }
            Step::Pass(ms) => self.now_ms += ms,
            Step::Declare(limits) => {
                self.window.set_limits(limits);
                self.window.forget(self.now_ms);
                self.plain.limits = limits;
                self.plain.forget();
                self.plain.forget_over(self.now_ms);
                self.log.push(Record::Declare(limits));
            }
            Step::Capture(max) => self.capture(max),
        }
    }

    fn capture(&mut self, max: usize) {
        let (pieces, complete, limits) = &mut self.cursor;
        if *complete {
            pieces.clear();
            (*complete, *limits) = (false, self.plain.limits);
        }
        let behind = pieces.last().and_then(|(_, _, keys)| keys.last()).map(|seen| seen.id);
        match self.window.piece(behind, self.now_ms, max) {
            Some((first, keys)) => pieces.push((self.log.len(), first, keys)),
            None => *complete = true,
        }
    }

    /// As an open does it: the pieces, and all records, of which the window leaves out those before the last piece.
    fn rebuilt(&self, pieces: &[Piece], limits: Limits) -> DedupWindow {
        let mut window = DedupWindow::new(limits);
        pieces.iter().for_each(|(_, first, keys)| window.load(*first, keys));
        let as_of = pieces.last().map_or(0, |(as_of, _, _)| *as_of);
        for (n, record) in self.log.iter().enumerate() {
            match record {
                Record::Insert(seen) if n >= as_of => window.add(seen.clone()),
                Record::Insert(_) => {}
                Record::Declare(limits) => {
                    window.set_limits(*limits);
                    if n >= as_of {
                        window.forget_beyond();
                    }
                }
            }
        }
        window.begin(self.now_ms);
        window
    }

    fn check(&self, window: &DedupWindow) -> Result<(), TestCaseError> {
        for key in 0..KEYS {
            prop_assert_eq!(
                window.find(&[key], self.now_ms),
                self.plain.find(key, self.now_ms),
                "key {}",
                key
            );
        }
        prop_assert!(window.line.len() <= window.limits.keys);
        prop_assert!(window.by_key.len() <= window.line.len());
        let bytes: usize = window.line.iter().map(|seen| seen.key.len()).sum();
        prop_assert_eq!(window.key_bytes, bytes as u64);
        Ok(())
    }

    /// Whether only shorter times were declared: what a longer one would bring back, the log does not say.
    fn time_never_grew(&self) -> bool {
        let declared = self.log.iter().filter_map(|record| match record {
            Record::Declare(limits) => Some(limits.time_ms),
            Record::Insert(_) => None,
        });
        let times: Vec<u64> = [self.began_with.time_ms].into_iter().chain(declared).collect();
        times.is_sorted_by(|a, b| a >= b)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn it_knows_what_a_list_of_all_keys_knows(
        limits in limits(),
        steps in prop::collection::vec(step(), 0..80),
    ) {
        let mut run = Run::new(limits);
        for step in &steps {
            run.apply(step);
            run.check(&run.window)?;
        }
    }

    /// After each step the process may die: what is rebuilt is what was there, whether or not a cursor is found.
    #[test]
    fn it_is_the_same_when_it_is_rebuilt_from_the_log_and_from_a_cursor(
        limits in limits(),
        steps in prop::collection::vec(step(), 0..80),
    ) {
        let mut run = Run::new(limits);
        for step in &steps {
            run.apply(step);
            if run.time_never_grew() {
                run.check(&run.rebuilt(&[], run.began_with))?;
                let (pieces, _, limits) = &run.cursor;
                if run.cursor.1 {
                    run.check(&run.rebuilt(pieces, *limits))?;
                }
            }
        }
    }
}

fn seen(key: &str, id: u64, time_ms: u64) -> SeenKey {
    SeenKey { key: key.as_bytes().into(), id, time_ms }
}

fn window(time_ms: u64, keys: usize) -> DedupWindow {
    DedupWindow::new(Limits { time_ms, keys })
}

#[test]
fn a_key_is_known_until_its_time_is_over() {
    let mut w = window(10, 5);
    w.add(seen("a", 1, 100));
    assert_eq!((w.find(b"a", 100), w.find(b"a", 109), w.find(b"a", 110)), (Some(1), Some(1), None));
    // Though nothing was forgotten yet.
    w.add(seen("a", 2, 110));
    assert_eq!(w.line.len(), 2);
    assert_eq!((w.find(b"a", 110), w.find(b"b", 110)), (Some(2), None));
    w.forget(110);
    assert_eq!((w.line.len(), w.find(b"a", 119)), (1, Some(2)));
}

#[test]
fn the_oldest_key_goes_when_there_are_too_many() {
    let mut w = window(10, 2);
    ["a", "b", "c"].into_iter().zip(1..).for_each(|(key, id)| w.add(seen(key, id, 100)));
    assert_eq!(["a", "b", "c"].map(|key| w.find(key.as_bytes(), 100)), [None, Some(2), Some(3)]);
    // What is over but was not forgotten yet must not push out its successor.
    let mut w = window(10, 2);
    w.add(seen("a", 1, 100));
    w.add(seen("a", 2, 110));
    w.add(seen("b", 3, 110));
    assert_eq!((w.find(b"a", 111), w.find(b"b", 111)), (Some(2), Some(3)));
}

#[test]
fn a_clock_that_was_set_back_makes_keys_live_for_one_more_window_at_most() {
    let mut w = window(10, 5);
    w.load(0, &[seen("a", 1, 5000), seen("b", 2, 40)]);
    w.begin(100);
    assert_eq!((w.find(b"a", 109), w.find(b"b", 109)), (Some(1), Some(2)));
    assert_eq!((w.find(b"a", 110), w.find(b"b", 110)), (None, None));
}

#[test]
fn an_empty_window_holds_no_memory_and_time_forgets_a_little_at_a_time() {
    let mut w = window(10, 1000);
    (0..200).for_each(|id| w.add(seen(&format!("{id:03}"), id, 100)));
    assert!(w.forget_some(200));
    assert_eq!(w.line.len(), 200 - FORGOTTEN_AT_ONCE);
    assert_eq!(w.piece(None, 200, 5), None);
    assert_eq!(w.cursor_bytes(100), 236 * (3 + 1 + SEEN_OVERHEAD));
    assert_eq!(w.cursor_bytes(u64::MAX / 1000), 1000 * (3 + 1 + SEEN_OVERHEAD));
    w.forget(200);
    assert_eq!((w.line.capacity(), w.by_key.capacity(), w.cursor_bytes(100)), (0, 0, 0));
    w.add(seen("a", 300, 200));
    assert_eq!(w.find(b"a", 200), Some(300));
}

#[test]
fn ids_that_go_back_are_left_out() {
    let mut w = window(10, 5);
    w.load(0, &[seen("a", 7, 100), seen("b", 3, 100), seen("c", 7, 100)]);
    w.begin(100);
    let ids: Vec<u64> = w.line.iter().map(|seen| seen.id).collect();
    assert_eq!(ids, [7]);
    assert_eq!((w.by_key.len(), w.key_bytes), (1, 1));
}
