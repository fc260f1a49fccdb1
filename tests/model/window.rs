//! The deduplication keys that a queue knows.
//!
//! Ages are certain while the store is open. Over a kill they go by the wall clock, of which the log may say what it
//! showed at any time since the insert; so if it was set meanwhile, they are between two bounds.

/// Times are of the monotonic clock, which goes on over restarts here.
#[derive(Clone, Debug)]
struct Seen {
    key: u8,
    id: u64,
    /// When it was inserted, at the earliest and at the latest.
    at: (i64, i64),
    /// How far the wall clock was ahead of the other since the insert, or since the store was opened.
    offsets: (i64, i64),
}

#[derive(Clone, Debug, Default)]
pub struct Window {
    seen: Vec<Seen>,
    /// Keys that others have pushed out: the log may still have them, and then none of the others is older than they are.
    pushed_out: Vec<Seen>,
}

impl Window {
    pub fn add(&mut self, key: u8, id: u64, mono: u64, offset: i64) {
        let at = (mono as i64, mono as i64);
        self.seen.push(Seen { key, id, at, offsets: (offset, offset) });
    }

    pub fn trim(&mut self, keys: usize) {
        let over = self.seen.len().saturating_sub(keys);
        self.pushed_out.extend(self.seen.drain(..over));
    }

    /// What was `known` for a key is what must have been, and where both could be, is from now on.
    pub fn check(&mut self, key: u8, known: Option<u64>, mono: u64, window: u64) {
        let begin = mono as i64 - window as i64;
        let last = self.seen.iter_mut().rfind(|seen| seen.key == key);
        let Some(seen) = last.filter(|seen| seen.at.1 > begin) else {
            assert_eq!(known, None, "key {key} is forgotten");
            return;
        };
        match known {
            Some(id) => {
                assert_eq!(id, seen.id, "key {key}");
                seen.at.0 = seen.at.0.max(begin + 1);
            }
            None => {
                assert!(seen.at.0 <= begin, "key {key} is known: {seen:?}");
                seen.at.1 = begin;
            }
        }
    }

    pub fn clock_set(&mut self, offset: i64) {
        for seen in self.pushed_out.iter_mut().chain(&mut self.seen) {
            seen.offsets = (seen.offsets.0.min(offset), seen.offsets.1.max(offset));
        }
    }

    /// The store is closed, which writes down how old each key is, or killed; and opened again.
    pub fn reopen(&mut self, closed: bool, mono: u64, offset: i64) {
        let age = |seen: &mut Seen| {
            if !closed {
                seen.at.0 += seen.offsets.0 - offset;
                seen.at.1 += seen.offsets.1 - offset;
            }
            seen.offsets = (offset, offset);
        };
        if closed {
            self.pushed_out.clear();
        }
        self.pushed_out.iter_mut().for_each(age);
        let latest = self.pushed_out.iter().map(|seen| seen.at.1).max();
        let mut before = (i64::MIN, latest.unwrap_or(i64::MIN));
        for seen in &mut self.seen {
            age(seen);
            // None is of a later time than now, nor older than the one before.
            let at = (seen.at.0.max(before.0), seen.at.1.max(before.1));
            seen.at = (at.0.min(mono as i64), at.1.min(mono as i64));
            before = seen.at;
        }
    }
}
