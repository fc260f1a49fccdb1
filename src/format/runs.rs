//! Runs of ids: sorted, disjoint, not even touching ranges, stored as gaps and lengths.
//!
//! A [`Runs`] has been checked as a whole: there is at least one run, none is empty, and each ends at or below
//! `u64::MAX`. So reading them out cannot fail.

use super::bytes::{Malformed, Reader, put_varint};

/// Checked runs, read in place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Runs<'a> {
    count: u64,
    ids: u64,
    encoded: &'a [u8],
}

impl<'a> Runs<'a> {
    /// Takes runs off the front of what `reader` has left.
    pub(crate) fn decode(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let count = reader.count(2)? as u64;
        if count == 0 {
            return Err(reader.malformed("no runs"));
        }
        let mut ahead = reader.clone();
        let mut end = 0_u64;
        let mut ids = 0;
        for index in 0..count {
            let gap = ahead.varint()?;
            let length = ahead.varint()?;
            if length == 0 || (gap == 0 && index > 0) {
                return Err(ahead.malformed("empty run or gap"));
            }
            end = end
                .checked_add(gap)
                .and_then(|start| start.checked_add(length))
                .ok_or_else(|| ahead.malformed("run beyond the last id"))?;
            // The runs are disjoint and end within a u64, so this does not overflow.
            ids += length;
        }
        let encoded = reader.take(ahead.at() - reader.at())?;
        Ok(Self { count, ids, encoded })
    }

    /// How many ids there are in all.
    pub(crate) fn total_ids(&self) -> u64 {
        self.ids
    }

    /// Each run as its first id and its length, ascending.
    pub(crate) fn iter(&self) -> RunsIter<'a> {
        RunsIter { reader: Reader::new(self.encoded), end: 0, left: self.count }
    }

    /// Each id, ascending: as many as the runs claim, which may be nearly all numbers.
    #[cfg(test)]
    pub(crate) fn ids(&self) -> impl Iterator<Item = u64> + use<'a> {
        self.iter().flat_map(|(start, length)| start..start + length)
    }
}

impl PartialEq for Runs<'_> {
    fn eq(&self, other: &Self) -> bool {
        // There is one encoding only.
        (self.count, self.encoded) == (other.count, other.encoded)
    }
}

impl Eq for Runs<'_> {}

/// See [`Runs::iter`].
#[derive(Clone, Debug)]
pub(crate) struct RunsIter<'a> {
    reader: Reader<'a>,
    end: u64,
    left: u64,
}

impl Iterator for RunsIter<'_> {
    type Item = (u64, u64);

    fn next(&mut self) -> Option<(u64, u64)> {
        self.left = self.left.checked_sub(1)?;
        let start = self.end + self.reader.varint().ok()?;
        let length = self.reader.varint().ok()?;
        self.end = start + length;
        Some((start, length))
    }
}

/// Appends `runs` of (first id, length); neighbours that touch or overlap are joined.
///
/// There must be at least one; they must be in ascending order, none empty, and none reaching beyond
/// `u64::MAX - 1`. The iterator is gone through twice.
pub(crate) fn put_runs(out: &mut Vec<u8>, runs: impl Iterator<Item = (u64, u64)> + Clone) {
    put_varint(out, joined(runs.clone()).count() as u64);
    let mut previous_end = 0;
    for (start, end) in joined(runs) {
        put_varint(out, start - previous_end);
        put_varint(out, end - start);
        previous_end = end;
    }
    debug_assert!(previous_end > 0, "no runs");
}

/// Appends runs of `ids`, which must be in ascending order, as in [`put_runs`].
#[cfg(test)]
pub(crate) fn put_ids(out: &mut Vec<u8>, ids: impl Iterator<Item = u64> + Clone) {
    put_runs(out, ids.map(|id| (id, 1)));
}

/// The runs as (start, end), those that touch or overlap joined.
fn joined(runs: impl Iterator<Item = (u64, u64)>) -> impl Iterator<Item = (u64, u64)> {
    let mut runs = runs.map(|(start, length)| (start, start + length)).peekable();
    std::iter::from_fn(move || {
        let (start, mut end) = runs.next()?;
        debug_assert!(start < end, "empty run");
        while let Some((next_start, next_end)) = runs.next_if(|&(next, _)| next <= end) {
            debug_assert!(start <= next_start, "runs out of order");
            end = end.max(next_end);
        }
        Some((start, end))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::strategies::runs;
    use proptest::prelude::*;

    fn decode(bytes: &[u8]) -> Result<Vec<(u64, u64)>, Malformed> {
        let mut reader = Reader::new(bytes);
        let runs = Runs::decode(&mut reader)?;
        reader.finish()?;
        Ok(runs.iter().collect())
    }

    proptest! {
        #[test]
        fn runs_read_back_as_written(runs in runs()) {
            let mut out = Vec::new();
            put_runs(&mut out, runs.iter().copied());
            let decoded = Runs::decode(&mut Reader::new(&out)).unwrap();
            prop_assert_eq!(decoded.total_ids(), runs.iter().map(|run| run.1).sum::<u64>());
            prop_assert_eq!(decoded.iter().collect::<Vec<_>>(), runs);
        }

        #[test]
        fn ids_read_back_as_written(ids in prop::collection::btree_set(0u64..200, 1..100)) {
            let mut out = Vec::new();
            put_ids(&mut out, ids.iter().copied());
            let decoded = Runs::decode(&mut Reader::new(&out)).unwrap();
            prop_assert_eq!(decoded.ids().collect::<Vec<_>>(), ids.into_iter().collect::<Vec<_>>());
        }

        #[test]
        fn runs_that_decode_have_no_other_encoding(bytes: Vec<u8>) {
            if let Ok(runs) = decode(&bytes) {
                let mut out = Vec::new();
                put_runs(&mut out, runs.into_iter());
                prop_assert_eq!(out, bytes);
            }
        }
    }

    #[test]
    fn a_contiguous_queue_costs_a_few_bytes() {
        let mut out = Vec::new();
        put_ids(&mut out, 1_000_000..2_000_000);
        assert_eq!(decode(&out), Ok(vec![(1_000_000, 1_000_000)]));
        assert_eq!(out.len(), 7);
    }

    #[test]
    fn runs_reach_to_the_last_id_but_not_beyond() {
        let mut out = Vec::new();
        put_runs(&mut out, [(u64::MAX - 1, 1)].into_iter());
        assert_eq!(decode(&out), Ok(vec![(u64::MAX - 1, 1)]));

        let mut beyond = vec![1];
        put_varint(&mut beyond, u64::MAX);
        beyond.push(1);
        assert_eq!(decode(&beyond).unwrap_err().what, "run beyond the last id");
    }

    #[test]
    fn empty_runs_gaps_and_lists_are_malformed() {
        assert_eq!(decode(&[0]).unwrap_err().what, "no runs");
        assert_eq!(decode(&[1, 5, 0]).unwrap_err().what, "empty run or gap");
        assert_eq!(decode(&[2, 0, 1, 0, 1]).unwrap_err().what, "empty run or gap");
        assert_eq!(decode(&[3, 0, 1, 1, 1]).unwrap_err().what, "count beyond the end");
    }

    #[test]
    fn runs_are_equal_when_they_are_of_the_same_ids() {
        let runs_of = |bytes| Runs::decode(&mut Reader::new(bytes)).unwrap();
        let (a, b) = ([1, 5, 2], [1, 5, 3]);
        assert_eq!(runs_of(&a), runs_of(&a));
        assert_ne!(runs_of(&a), runs_of(&b));
    }
}
