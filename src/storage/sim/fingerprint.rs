//! Numbers that tell contents apart: 128 bits, so that two contents by chance never share one.
//!
//! That of a file is the sum of its sectors', and can be kept up to date as sectors change. A sector of zeroes has 0.

use super::super::LOCK;
use super::inode::Sector;
use super::state::{BOOT, State};

/// Odd numbers without a pattern: the fractions of some square roots.
const KEYS: [u64; 4] =
    [0x6a09_e667_f3bc_c909, 0xbb67_ae85_84ca_a73b, 0x3c6e_f372_fe94_f82b, 0xa54f_f53a_5f1d_36f1];

/// Multiplies to twice the bits, and folds them.
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product >> 64) as u64 ^ product as u64
}

/// Two numbers that depend on everything that was taken in, in its order.
struct Lanes(u64, u64);

impl Lanes {
    fn new(seed: u64) -> Self {
        Self(fold(seed ^ KEYS[0], KEYS[1]), fold(seed ^ KEYS[2], KEYS[3]))
    }

    fn take(&mut self, x: u64, y: u64) {
        self.0 = fold(self.0 ^ x, y ^ KEYS[1]) ^ y;
        self.1 = fold(self.1 ^ y, x ^ KEYS[3]) ^ x;
    }

    fn finish(mut self) -> u128 {
        self.take(KEYS[0], KEYS[2]);
        u128::from(self.0) << 64 | u128::from(self.1)
    }
}

pub(super) fn of_sector(index: usize, sector: &Sector) -> u128 {
    if *sector == [0; size_of::<Sector>()] {
        return 0;
    }
    let mut lanes = Lanes::new(index as u64);
    for pair in sector.chunks_exact(16) {
        let word = |at: usize| pair[at..].first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
        lanes.take(word(0), word(8));
    }
    lanes.finish()
}

/// Of whole sectors.
pub(super) fn of_sectors(bytes: &[u8]) -> u128 {
    let sectors = bytes.as_chunks().0.iter().enumerate();
    sectors.fold(0, |sum, (index, sector)| sum.wrapping_add(of_sector(index, sector)))
}

/// Of a text.
pub(super) fn of_text(text: &str) -> u128 {
    let mut lanes = Lanes::new(text.len() as u64);
    for piece in text.as_bytes().chunks(16) {
        let mut pair = [0; 16];
        pair[..piece.len()].copy_from_slice(piece);
        let pair = u128::from_le_bytes(pair);
        lanes.take(pair as u64, (pair >> 64) as u64);
    }
    lanes.finish()
}

/// Of something that has this one, and another number.
pub(super) fn mixed(print: u128, number: u64) -> u128 {
    let mut lanes = Lanes::new(number);
    lanes.take(print as u64, (print >> 64) as u64);
    lanes.finish()
}

/// See [`Disk::fingerprint`](super::Disk::fingerprint).
pub(super) fn of_disk(state: &State) -> u128 {
    let dirs = state.volatile.dirs.iter().map(|name| mixed(of_text(name), 0));
    let files = state.volatile.names.iter().map(|(name, &id)| {
        let content = match name.as_str() {
            LOCK => of_text(&note(state, id)),
            _ => state.inode(id).print(),
        };
        mixed(of_text(name).wrapping_add(content), 1)
    });
    files.chain(dirs).fold(0, u128::wrapping_add)
}

/// What the lock file says, whatever the boots in it are called.
fn note(state: &State, lock: u64) -> String {
    let note = String::from_utf8_lossy(state.inode(lock).content());
    let words = note.split_inclusive([' ', '\n']).map(|word| match word.trim_end() {
        name if name == state.boot_id => ("this boot", &word[name.len()..]),
        name if name.starts_with(BOOT) => ("another boot", &word[name.len()..]),
        _ => (word, ""),
    });
    words.flat_map(|(word, space)| [word, space]).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashSet};

    use super::super::Disk;
    use crate::storage::{Prepare, Storage, Writing};

    type Content = BTreeMap<String, Vec<u8>>;

    fn content(disk: &Disk) -> Content {
        let read = |name: String| (name.clone(), disk.read_file(&name).unwrap());
        disk.file_names().into_iter().map(read).collect()
    }

    /// The fingerprint of a disk that was filled in one go.
    fn of_content(content: &Content) -> u128 {
        let disk = Disk::new();
        for (name, bytes) in content {
            disk.write_file(name, bytes.clone());
        }
        disk.fingerprint()
    }

    #[test]
    fn it_follows_from_what_is_on_the_disk_however_it_came_there() {
        let disk = Disk::new();
        let log = disk.create("log", 5000, Prepare::Reserve).unwrap();
        log.sync_data().unwrap();
        disk.sync_dir().unwrap();
        let short = disk.create("short", 0, Prepare::Reserve).unwrap();
        let mut writer = log.map_write(Writing::Stores).unwrap();
        let mut seen = HashSet::new();
        let mut contents = HashSet::new();
        for n in 0..40u64 {
            writer.write(n * 100, &[n as u8 + 1; 700]);
            short.write_at(n * 90, &[7; 200]).unwrap();
            match n % 8 {
                3 => short.set_len(n * 11).unwrap(),
                5 => short.sync_data().unwrap(),
                6 => disk.rename("short", if n < 20 { "other" } else { "short" }).unwrap_or(()),
                _ => {}
            }
            let cuts = (0..20).map(|seed| disk.power_cut(seed << 8 | n));
            for left in cuts.chain([disk.kill(), disk.clone()]) {
                let content = content(&left);
                assert_eq!(left.fingerprint(), of_content(&content));
                seen.insert(left.fingerprint());
                contents.insert(content);
            }
        }
        assert!(contents.len() > 200, "{}", contents.len());
        assert_eq!(seen.len(), contents.len());
    }

    #[test]
    fn zeroes_and_names_count() {
        let file = |name: &str, content: &[u8]| [(name.to_owned(), content.to_vec())].into();
        let different = [file("a", b""), file("a", &[0]), file("a", &[0; 2]), file("b", &[0])];
        let prints: HashSet<u128> = different.iter().map(of_content).collect();
        assert_eq!(prints.len(), different.len());
    }

    #[test]
    fn of_a_boot_it_counts_whether_it_is_this_one() {
        let disk = Disk::new();
        let note = format!("pid 7\nboot {}\n", disk.boot_id());
        disk.write_file("LOCK", note.into_bytes());
        let [one, other] = [disk.power_cut(1), disk.power_cut(1)];
        assert_eq!(one.fingerprint(), other.fingerprint());
        assert_eq!(disk.kill().fingerprint(), disk.fingerprint());
        assert_ne!(one.fingerprint(), disk.fingerprint());
        assert_eq!(one.read_file("LOCK"), disk.read_file("LOCK"));
    }
}
