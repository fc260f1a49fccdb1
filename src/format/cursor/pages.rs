//! A page of deleted ids: 32768 in a row, as whatever takes least.
//!
//! Runs are ascending, not empty, do not touch, and end within the page.

use std::fmt;

use crate::format::bytes::{Malformed, Reader, put_varint, varint_size};

/// How many ids a page is about.
pub(crate) const PAGE_IDS: u32 = 32_768;
/// A page as a bitmap of 64-bit words: id i of the page is bit i % 64 of word i / 64.
pub(crate) const PAGE_WORDS: usize = PAGE_IDS as usize / 64;
/// A segment has less than 2^32 ids.
pub(super) const PAGE_COUNT_MAX: u32 = ((1_u64 << 32) / PAGE_IDS as u64) as u32;

const BITMAP_BYTES: usize = PAGE_IDS as usize / 8;

const FORM_FULL: u8 = 0;
const FORM_RUNS: u8 = 1;
const FORM_BITMAP: u8 = 2;

/// The deleted ids of a page.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum PageForm {
    Full,
    /// (first, length), counted within the page.
    Runs(Vec<(u16, u16)>),
    Bitmap(Box<[u64; PAGE_WORDS]>),
}

impl fmt::Debug for PageForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("Full"),
            Self::Runs(runs) => f.debug_tuple("Runs").field(runs).finish(),
            Self::Bitmap(_) => write!(f, "Bitmap({} ids)", self.count()),
        }
    }
}

impl PageForm {
    /// The form that takes least, or None if no id is deleted.
    pub(crate) fn smallest(bitmap: &[u64; PAGE_WORDS]) -> Option<Self> {
        let mut runs = Vec::new();
        // Where runs come close to the size of a bitmap, there are so many that their count takes two bytes.
        let mut bytes = 2;
        let mut previous_end = 0;
        for (start, length) in bitmap_runs(bitmap) {
            bytes += varint_size(u64::from(start - previous_end)) + varint_size(length.into());
            previous_end = start + length;
            if bytes >= BITMAP_BYTES {
                return Some(Self::Bitmap(Box::new(*bitmap)));
            }
            runs.push((start, length));
        }
        match runs[..] {
            [] => None,
            [(0, length)] if u32::from(length) == PAGE_IDS => Some(Self::Full),
            _ => Some(Self::Runs(runs)),
        }
    }

    /// How many ids are deleted.
    pub(crate) fn count(&self) -> u32 {
        match self {
            Self::Full => PAGE_IDS,
            Self::Runs(runs) => runs.iter().map(|&(_, length)| u32::from(length)).sum(),
            Self::Bitmap(words) => words.iter().map(|word| word.count_ones()).sum(),
        }
    }

    /// As a bitmap.
    pub(crate) fn to_bitmap(&self) -> Box<[u64; PAGE_WORDS]> {
        match self {
            Self::Full => Box::new([u64::MAX; PAGE_WORDS]),
            Self::Bitmap(words) => words.clone(),
            Self::Runs(runs) => {
                let mut words = Box::new([0; PAGE_WORDS]);
                for &(start, length) in runs {
                    set_run(&mut words, start.into(), usize::from(start) + usize::from(length));
                }
                words
            }
        }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Full => out.push(FORM_FULL),
            Self::Runs(runs) => {
                out.push(FORM_RUNS);
                put_varint(out, runs.len() as u64);
                let mut previous_end = 0;
                for &(start, length) in runs {
                    put_varint(out, (start - previous_end).into());
                    put_varint(out, length.into());
                    previous_end = start + length;
                }
            }
            Self::Bitmap(words) => {
                out.push(FORM_BITMAP);
                for word in words.iter() {
                    out.extend_from_slice(&word.to_le_bytes());
                }
            }
        }
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        match reader.u8()? {
            FORM_FULL => Ok(Self::Full),
            FORM_RUNS => decode_runs(reader),
            FORM_BITMAP => {
                // The bytes are there before the memory is taken.
                let mut bytes = Reader::new(reader.take(BITMAP_BYTES)?);
                let mut words = Box::new([0; PAGE_WORDS]);
                for word in words.iter_mut() {
                    *word = bytes.u64()?;
                }
                Ok(Self::Bitmap(words))
            }
            _ => Err(reader.malformed("unknown form of a page")),
        }
    }
}

fn decode_runs(reader: &mut Reader<'_>) -> Result<PageForm, Malformed> {
    let count = reader.count(2)?;
    if count == 0 {
        return Err(reader.malformed("no runs"));
    }
    // As many runs as could lie in a page, whatever the section's length allows.
    let mut runs = Vec::with_capacity(count.min(PAGE_IDS as usize / 2));
    let mut end = 0_u32;
    for index in 0..count {
        let gap = reader.varint()?;
        let length = reader.varint()?;
        if length == 0 || (gap == 0 && index > 0) {
            return Err(reader.malformed("empty run or gap"));
        }
        let left = u64::from(PAGE_IDS - end);
        if length > left.saturating_sub(gap) {
            return Err(reader.malformed("run beyond the page"));
        }
        // Both are at most PAGE_IDS, which fits.
        runs.push((end as u16 + gap as u16, length as u16));
        end += gap as u32 + length as u32;
    }
    Ok(PageForm::Runs(runs))
}

/// Each run of set bits as (first, length).
fn bitmap_runs(words: &[u64; PAGE_WORDS]) -> impl Iterator<Item = (u16, u16)> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = next_bit(words, at, true)?;
        at = next_bit(words, start, false).unwrap_or(PAGE_IDS as usize);
        Some((start as u16, (at - start) as u16))
    })
}

/// The first bit at or behind `from` that is `set`.
fn next_bit(words: &[u64; PAGE_WORDS], from: usize, set: bool) -> Option<usize> {
    let mut skipped = !0 << (from % 64);
    for (index, &word) in words.iter().enumerate().skip(from / 64) {
        let alike = if set { word } else { !word };
        let candidates = alike & skipped;
        if candidates != 0 {
            return Some(index * 64 + candidates.trailing_zeros() as usize);
        }
        skipped = !0;
    }
    None
}

fn set_run(words: &mut [u64; PAGE_WORDS], start: usize, end: usize) {
    for (index, word) in words.iter_mut().enumerate().take(end.div_ceil(64)).skip(start / 64) {
        let from = start.saturating_sub(index * 64);
        let to = (end - index * 64).min(64);
        *word |= (!0 << from) & (!0 >> (64 - to));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::strategies::{bitmap, page_form};
    use proptest::prelude::*;

    fn encoded(form: &PageForm) -> Vec<u8> {
        let mut out = Vec::new();
        form.encode(&mut out);
        out
    }

    fn decode(bytes: &[u8]) -> Result<PageForm, Malformed> {
        let mut reader = Reader::new(bytes);
        let form = PageForm::decode(&mut reader)?;
        reader.finish()?;
        Ok(form)
    }

    proptest! {
        #[test]
        fn a_page_reads_back_as_written(form in page_form()) {
            prop_assert_eq!(decode(&encoded(&form)), Ok(form));
        }

        #[test]
        fn the_smallest_form_says_the_same_in_no_more_than_a_bitmap(bitmap in bitmap()) {
            match PageForm::smallest(&bitmap) {
                None => prop_assert!(bitmap.iter().all(|&word| word == 0)),
                Some(form) => {
                    prop_assert!(encoded(&form).len() <= 1 + BITMAP_BYTES);
                    prop_assert_eq!(form.count(), PageForm::Bitmap(bitmap.clone()).count());
                    prop_assert_eq!(form.to_bitmap(), bitmap);
                }
            }
        }

        #[test]
        fn random_bytes_never_panic(bytes: Vec<u8>) {
            if let Ok(form) = decode(&bytes) {
                prop_assert_eq!(encoded(&form), bytes);
                prop_assert!(form.count() <= PAGE_IDS);
            }
        }
    }

    #[test]
    fn each_form_is_chosen_where_it_is_smallest() {
        assert_eq!(PageForm::smallest(&[0; PAGE_WORDS]), None);
        assert_eq!(PageForm::smallest(&[u64::MAX; PAGE_WORDS]), Some(PageForm::Full));
        let mut one_left = [u64::MAX; PAGE_WORDS];
        one_left[1] &= !1;
        let runs = vec![(0, 64), (65, (PAGE_IDS - 65) as u16)];
        assert_eq!(PageForm::smallest(&one_left), Some(PageForm::Runs(runs)));
        let every_other = [0x5555_5555_5555_5555; PAGE_WORDS];
        assert_eq!(PageForm::smallest(&every_other), Some(PageForm::Bitmap(Box::new(every_other))));
    }

    #[test]
    fn a_form_has_as_many_ids_as_it_names() {
        assert_eq!(PageForm::Full.count(), PAGE_IDS);
        assert_eq!(PageForm::Runs(vec![(0, 5), (7, 2)]).count(), 7);
        let mut words = Box::new([0; PAGE_WORDS]);
        words[3] = 0b1011;
        let form = PageForm::Bitmap(words);
        assert_eq!((form.count(), format!("{form:?}")), (3, "Bitmap(3 ids)".to_owned()));
    }

    #[test]
    fn all_ids_from_the_first_on_are_a_full_page_and_no_others() {
        let mut bitmap = [0; PAGE_WORDS];
        bitmap[0] = 0b111;
        assert_eq!(PageForm::smallest(&bitmap), Some(PageForm::Runs(vec![(0, 3)])));
    }

    #[test]
    fn runs_are_kept_for_as_long_as_they_take_less_than_a_bitmap() {
        // They take two bytes each, and the first gap two more: so many fit, and one more does not.
        let fit = (BITMAP_BYTES - 2) / 2 - 2;
        for (count, are_runs) in [(fit, true), (fit + 1, false)] {
            let mut words = [0; PAGE_WORDS];
            let first = PAGE_IDS as usize - 4 * count;
            (0..count).for_each(|n| set_run(&mut words, first + 4 * n, first + 4 * n + 1));
            let form = PageForm::smallest(&words).unwrap();
            assert_eq!(matches!(form, PageForm::Runs(_)), are_runs, "{count} runs");
        }
    }

    #[test]
    fn an_empty_run_or_gap_is_malformed() {
        // Form, number of runs, then gap and length of each. Only the first gap may be empty.
        assert_eq!(decode(&[FORM_RUNS, 1, 0, 1]), Ok(PageForm::Runs(vec![(0, 1)])));
        for bytes in [&[FORM_RUNS, 1, 5, 0][..], &[FORM_RUNS, 1, 0, 0], &[FORM_RUNS, 2, 0, 1, 0, 1]]
        {
            assert_eq!(decode(bytes).unwrap_err().what, "empty run or gap", "{bytes:?}");
        }
        assert_eq!(decode(&[FORM_RUNS, 0]).unwrap_err().what, "no runs");
    }

    #[test]
    fn a_run_beyond_the_page_is_malformed() {
        let whole = PageForm::Runs(vec![(0, PAGE_IDS as u16)]);
        assert_eq!(decode(&encoded(&whole)), Ok(whole));
        let beyond = PageForm::Runs(vec![(1, PAGE_IDS as u16)]);
        assert_eq!(decode(&encoded(&beyond)).unwrap_err().what, "run beyond the page");
        let behind = PageForm::Runs(vec![(PAGE_IDS as u16, 1)]);
        assert_eq!(decode(&encoded(&behind)).unwrap_err().what, "run beyond the page");
        let second = PageForm::Runs(vec![(0, 100), (101, (PAGE_IDS - 100) as u16)]);
        assert_eq!(decode(&encoded(&second)).unwrap_err().what, "run beyond the page");
        // A gap of 65,536.
        let far = decode(&[FORM_RUNS, 1, 0x80, 0x80, 0x04, 1]);
        assert_eq!(far.unwrap_err().what, "run beyond the page");
    }
}
