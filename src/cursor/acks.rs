//! Which messages of one segment are deleted.
//!
//! Ids are counted from the segment's first one, in pages; a page that is all deleted or not touched takes no
//! memory of its own.

use crate::format::cursor::pages::{PAGE_IDS, PAGE_WORDS, PageForm};
use crate::format::cursor::sections::AckedSection;

#[derive(Clone, Debug, Default)]
pub(crate) struct AckSet {
    pages: Vec<Page>,
    count: u64,
}

#[derive(Clone, Debug, Default)]
enum Page {
    #[default]
    Empty,
    Full,
    Some {
        words: Box<[u64; PAGE_WORDS]>,
        count: u32,
    },
}

impl Page {
    fn word(&self, at: usize) -> u64 {
        match self {
            Page::Empty => 0,
            Page::Full => u64::MAX,
            Page::Some { words, .. } => words[at],
        }
    }
}

impl AckSet {
    /// How many are deleted.
    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn contains(&self, delta: u32) -> bool {
        match self.pages.get((delta / PAGE_IDS) as usize) {
            None | Some(Page::Empty) => false,
            Some(Page::Full) => true,
            Some(Page::Some { words, .. }) => {
                let bit = delta % PAGE_IDS;
                words[(bit / 64) as usize] >> (bit % 64) & 1 == 1
            }
        }
    }

    /// Those that are here and were not in `before`, an earlier state of this set.
    pub fn since(&self, before: &AckSet) -> Vec<u32> {
        let mut new = Vec::new();
        for (at, page) in self.pages.iter().enumerate() {
            let old = before.pages.get(at).unwrap_or(&Page::Empty);
            if matches!((old, page), (_, Page::Empty) | (Page::Full, _)) {
                continue;
            }
            for word in 0..PAGE_WORDS {
                let mut bits = page.word(word) & !old.word(word);
                while bits != 0 {
                    new.push(at as u32 * PAGE_IDS + word as u32 * 64 + bits.trailing_zeros());
                    bits &= bits - 1;
                }
            }
        }
        new
    }

    /// Whether it was not there before.
    pub fn insert(&mut self, delta: u32) -> bool {
        let at = (delta / PAGE_IDS) as usize;
        if self.pages.len() <= at {
            self.pages.resize(at + 1, Page::Empty);
        }
        let page = &mut self.pages[at];
        if matches!(page, Page::Empty) {
            *page = Page::Some { words: Box::new([0; PAGE_WORDS]), count: 0 };
        }
        let Page::Some { words, count } = page else { return false };
        let bit = delta % PAGE_IDS;
        let word = &mut words[(bit / 64) as usize];
        let mask = 1 << (bit % 64);
        if *word & mask != 0 {
            return false;
        }
        *word |= mask;
        *count += 1;
        self.count += 1;
        if *count == PAGE_IDS {
            *page = Page::Full;
        }
        true
    }

    /// What the cursor says of this segment; None if nothing is deleted.
    pub fn section(&self, segment: u32) -> Option<AckedSection> {
        let pages: Vec<(u32, PageForm)> = self
            .pages
            .iter()
            .enumerate()
            .filter_map(|(at, page)| {
                let form = match page {
                    Page::Empty => None,
                    Page::Full => Some(PageForm::Full),
                    Page::Some { words, .. } => PageForm::smallest(words),
                };
                Some((at as u32, form?))
            })
            .collect();
        (!pages.is_empty()).then_some(AckedSection { segment, pages })
    }

    pub fn from_section(section: &AckedSection) -> AckSet {
        // A few bytes may name the last page of all: the table takes what it must, and no more.
        let pages = section.pages.last().map_or(0, |(at, _)| *at as usize + 1);
        let mut set = AckSet { pages: vec![Page::Empty; pages], ..AckSet::default() };
        for (at, form) in &section.pages {
            let at = *at as usize;
            set.count += u64::from(form.count());
            set.pages[at] = match form {
                PageForm::Full => Page::Full,
                form => Page::Some { words: form.to_bitmap(), count: form.count() },
            };
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_set_reads_back_from_its_section(ids in prop::collection::btree_set(0u32..200_000, 0..400)) {
            let mut set = AckSet::default();
            for &id in &ids {
                prop_assert!(set.insert(id));
                prop_assert!(!set.insert(id));
            }
            prop_assert_eq!(set.count(), ids.len() as u64);
            let back = set.section(7).map_or_else(AckSet::default, |s| AckSet::from_section(&s));
            prop_assert_eq!(back.count(), set.count());
            for id in 0..200_000 {
                prop_assert_eq!(back.contains(id), ids.contains(&id));
            }
        }
    }

    #[test]
    fn what_has_come_since_is_what_one_set_has_and_the_other_has_not() {
        let mut set = AckSet::default();
        (0..PAGE_IDS + 100).filter(|id| id % 3 != 0).for_each(|id| assert!(set.insert(id)));
        let before = set.clone();
        assert_eq!(set.since(&before), []);
        let new: Vec<u32> = (0..PAGE_IDS).filter(|id| id % 3 == 0).chain([3 * PAGE_IDS]).collect();
        new.iter().for_each(|&id| assert!(set.insert(id)));
        assert_eq!(set.since(&before), new);
        assert_eq!(AckSet::default().since(&before), []);
    }

    #[test]
    fn a_full_page_takes_no_bitmap() {
        let mut set = AckSet::default();
        for id in 0..PAGE_IDS {
            set.insert(id);
        }
        assert!(matches!(set.pages[..], [Page::Full]));
        assert!(!set.insert(5));
        assert!(set.contains(PAGE_IDS - 1) && !set.contains(PAGE_IDS));
        let section = set.section(7).unwrap();
        assert_eq!(section.pages, [(0, PageForm::Full)]);
        let back = AckSet::from_section(&section);
        assert!(matches!(back.pages[..], [Page::Full]));
        assert_eq!(back.count(), u64::from(PAGE_IDS));
    }
}
