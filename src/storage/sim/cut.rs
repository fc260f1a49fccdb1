//! What a power cut leaves: from a seed to one of the many states that it may be.

use super::inode::Inode;

/// Sebastiano Vigna's generator: a few lines, and any seed will do.
pub(super) struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is not 0.
    pub(super) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// True `of_8` times out of 8.
    pub(super) fn chance(&mut self, of_8: u8) -> bool {
        self.next() % 8 < u64::from(of_8)
    }
}

/// How a power cut treats one file, or the directory.
#[derive(Clone, Copy)]
pub(super) struct Fate {
    /// How probable it is for an unsynced change to have reached the drive.
    pub(super) kept_of_8: u8,
    /// Whether write-back, where it happened, happened last.
    pub(super) newest_only: bool,
}

/// Different losses find different bugs.
enum Bias {
    /// The same for every file.
    All(Fate),
    /// A file is lost or kept as a whole.
    WholeFiles,
    /// Some files fare better than others.
    FileByFile,
}

/// The decisions of one power cut.
pub(super) struct Cut {
    random: SplitMix64,
    bias: Bias,
}

impl Cut {
    pub(super) fn new(seed: u64) -> Self {
        let mut random = SplitMix64(seed);
        let all = |kept_of_8, newest_only| Bias::All(Fate { kept_of_8, newest_only });
        let bias = match seed {
            0 => all(0, true),
            1 => all(8, true),
            _ => match random.below(6) {
                0 => all(1, false),
                1 => all(7, false),
                2 => all(4, false),
                3 => Bias::WholeFiles,
                _ => Bias::FileByFile,
            },
        };
        Self { random, bias }
    }

    fn fate(&mut self) -> Fate {
        match self.bias {
            Bias::All(fate) => fate,
            Bias::WholeFiles => {
                let kept_of_8 = if self.random.chance(4) { 8 } else { 0 };
                Fate { kept_of_8, newest_only: true }
            }
            Bias::FileByFile => {
                let kept_of_8 = [0, 1, 4, 7, 8][self.random.below(5)];
                Fate { kept_of_8, newest_only: self.random.chance(4) }
            }
        }
    }

    pub(super) fn inode(&mut self, inode: &mut Inode) -> Inode {
        let fate = self.fate();
        inode.power_cut(fate, &mut self.random)
    }

    /// Which of `count` directory operations have happened. Often that is all up to some moment, since most file
    /// systems keep a journal, but none promises it.
    pub(super) fn happened(&mut self, count: usize) -> Vec<bool> {
        match self.bias {
            Bias::All(Fate { newest_only: true, kept_of_8 }) => vec![kept_of_8 > 0; count],
            _ if self.random.chance(4) => {
                let end = self.random.below(count + 1);
                (0..count).map(|index| index < end).collect()
            }
            _ => {
                let kept_of_8 = self.fate().kept_of_8;
                (0..count).map(|_| self.random.chance(kept_of_8)).collect()
            }
        }
    }
}
