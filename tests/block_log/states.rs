//! What a power cut may leave of a disk: all that was written before the last completed flush, and of what came after it
//! anything, in pieces as small as a sector.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::load::Random;
use crate::log::{Log, SECTOR};
use crate::mount::FileSystem;

/// Where the power fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cut {
    /// How many entries the device had taken.
    pub at: usize,
    /// How many of them the last completed flush covers.
    pub flushed: usize,
    pub seed: u64,
}

/// Chooses `count` cuts, in the order of the log. Each but a few leaves at least one write in doubt, and often the one
/// among several places is taken where most is.
pub fn choose(log: &Log, count: usize, random: &mut Random) -> Vec<Cut> {
    let mut cuts: Vec<Cut> = (0..count)
        .map(|_| {
            let tries = 1 + random.below(6);
            let cuts = (0..tries).map(|_| cut_somewhere(log, random)).collect::<Vec<Cut>>();
            cuts.into_iter().max_by_key(|cut| cut.at - cut.flushed).expect("one try at least")
        })
        .collect();
    cuts.sort();
    cuts
}

fn cut_somewhere(log: &Log, random: &mut Random) -> Cut {
    let entries = &log.entries;
    let mut at = random.below(entries.len() as u64) as usize;
    if random.one_in(2) {
        // Right before the flush that would end the doubt.
        let flush = entries[at..].iter().position(|entry| entry.is_flush());
        at += flush.unwrap_or(entries.len() - at);
    }
    let flush = entries[..at].iter().rposition(|entry| entry.is_flush());
    let flushed = flush.map_or(0, |flush| flush + 1);
    if at == flushed && entries[at..].first().is_some_and(|entry| !entry.is_flush()) {
        at += 1;
    }
    Cut { at, flushed, seed: random.next() }
}

/// What became of the writes that no flush had covered.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fates {
    pub kept: u64,
    pub lost: u64,
    pub torn: u64,
}

impl Fates {
    pub fn add(&mut self, other: Fates) {
        self.kept += other.kept;
        self.lost += other.lost;
        self.torn += other.torn;
    }
}

/// Which of them reach the disk.
#[derive(Clone, Copy)]
enum Luck {
    None,
    All,
    AllButOne,
    OnlyOne,
    /// Each with this chance, in percent.
    Percent(u64),
}

const LUCK: [Luck; 11] = [
    Luck::None,
    Luck::None,
    Luck::All,
    Luck::AllButOne,
    Luck::AllButOne,
    Luck::OnlyOne,
    Luck::Percent(10),
    Luck::Percent(50),
    Luck::Percent(50),
    Luck::Percent(90),
    Luck::Percent(99),
];

/// A disk's content, as far along the log as it was taken.
pub struct Image {
    bytes: Vec<u8>,
    /// Which of its pieces may be anything but zeros; the others are not written out.
    used: Vec<bool>,
    /// How many entries were applied.
    applied: usize,
    /// How much of a torn write is whole, in bytes: one of these each time.
    sectors: &'static [usize],
}

const PIECE: usize = 64 << 10;

/// The superblock of ext4 has two sectors and one checksum: torn, it makes the file system one that cannot be mounted, by
/// no fault of who has stored anything in it. So it is written as one.
const SUPERBLOCK: Range<usize> = 1024..2048;

impl Image {
    pub fn new(bytes: Vec<u8>, file_system: FileSystem) -> Image {
        let sectors: &[usize] = match file_system {
            FileSystem::Ext4 => &[SECTOR, 4096],
            // It takes a block of metadata for replayed whose first sector is, and then cannot be mounted.
            FileSystem::Xfs => &[4096],
        };
        let used = bytes.chunks(PIECE).map(|piece| piece.iter().any(|byte| *byte != 0)).collect();
        Image { bytes, used, applied: 0, sectors }
    }

    /// Goes on along the log, up to entry `to`, nothing lost.
    pub fn advance(&mut self, log: &Log, to: usize) {
        for entry in &log.entries[self.applied..to] {
            if !entry.to.is_empty() {
                self.bytes[entry.to.clone()].copy_from_slice(log.data(entry));
                self.used[entry.to.start / PIECE..=(entry.to.end - 1) / PIECE].fill(true);
            }
        }
        self.applied = to;
    }

    /// Writes the disk as the cut leaves it to a file.
    pub fn write_cut(&mut self, log: &Log, cut: Cut, path: &Path) -> Fates {
        self.advance(log, cut.flushed);
        let file = self.write_out(path);
        let mut chance = Chance::new(cut, self.sectors);
        let mut fates = Fates::default();
        for (n, entry) in log.entries[cut.flushed..cut.at].iter().enumerate() {
            fates.add(chance.write(&file, n, entry.to.start, log.data(entry)));
        }
        fates
    }

    fn write_out(&self, path: &Path) -> File {
        let file = File::create(path).unwrap();
        file.set_len(self.bytes.len() as u64).unwrap();
        for (n, piece) in self.bytes.chunks(PIECE).enumerate().filter(|(n, _)| self.used[*n]) {
            file.write_all_at(piece, (n * PIECE) as u64).unwrap();
        }
        file
    }
}

/// What decides about the writes that no flush has covered.
struct Chance {
    random: Random,
    luck: Luck,
    /// The one that `luck` is about, if it is about one.
    chosen: usize,
    /// Whether any are torn, and into what, in bytes.
    tears: bool,
    sector: usize,
}

impl Chance {
    fn new(cut: Cut, sectors: &[usize]) -> Chance {
        let mut random = Random::new(cut.seed);
        let mut any = |count: usize| random.below(count as u64) as usize;
        let luck = LUCK[any(LUCK.len())];
        let (tears, sector) = (any(2) == 0, sectors[any(sectors.len())]);
        let chosen = any((cut.at - cut.flushed).max(1));
        Chance { random, luck, chosen, tears, sector }
    }

    /// Writes `bytes` to `at`, or not, or a part of them.
    fn write(&mut self, file: &File, n: usize, at: usize, bytes: &[u8]) -> Fates {
        let torn = self.tears && bytes.len() > self.sector && self.random.one_in(3);
        if torn {
            self.tear(file, at, bytes);
            return Fates { torn: 1, ..Fates::default() };
        }
        let kept = match self.luck {
            Luck::None => false,
            Luck::All => true,
            Luck::AllButOne => n != self.chosen,
            Luck::OnlyOne => n == self.chosen,
            Luck::Percent(percent) => self.random.below(100) < percent,
        };
        if kept {
            file.write_all_at(bytes, at as u64).unwrap();
        }
        Fates { kept: kept.into(), lost: (!kept).into(), torn: 0 }
    }

    fn tear(&mut self, file: &File, at: usize, bytes: &[u8]) {
        let superblock = self.random.one_in(2);
        for (n, piece) in bytes.chunks(self.sector).enumerate() {
            let start = at + n * self.sector;
            let whole = SUPERBLOCK.contains(&start);
            if if whole { superblock } else { self.random.one_in(2) } {
                file.write_all_at(piece, start as u64).unwrap();
            }
        }
    }
}
