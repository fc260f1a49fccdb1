//! What the messages hold: a number of their own and random bytes, so that a lost, repeated, swapped or damaged one is
//! noticed when it comes out.
//!
//! The random bytes come from a small table: making a message is one store of its number, and looking at one is one
//! comparison of memory, so that neither takes much of what is measured.

/// Rows of the table; also the largest batch that can be made at once.
pub const ROWS: usize = 256;

/// Messages of one producer. Each thread has its own.
#[derive(Clone)]
pub struct Payloads {
    size: usize,
    producer: u64,
    table: Vec<u8>,
}

/// Bits of a message's number that count; those above name the producer.
const COUNT_BITS: u32 = 40;

impl Payloads {
    pub fn new(size: usize, producer: usize) -> Payloads {
        assert!(size >= 16, "a payload has room for its number and something random");
        let mut random = Random::new(size as u64);
        let table = (0..ROWS * size).map(|_| random.next() as u8).collect();
        Payloads { size, producer: producer as u64, table }
    }

    /// The `n`-th message.
    pub fn make(&mut self, n: u64) -> &[u8] {
        let number = (self.producer << COUNT_BITS) | n;
        let at = (n % ROWS as u64) as usize * self.size;
        let row = &mut self.table[at..at + self.size];
        row[..8].copy_from_slice(&number.to_le_bytes());
        row
    }

    /// The messages from the `n`-th on, as many as `into` has room for.
    pub fn make_batch(&mut self, n: u64, count: usize) -> Vec<&[u8]> {
        assert!(count <= ROWS);
        for k in 0..count as u64 {
            self.make(n + k);
        }
        let row = |k| {
            let at = ((n + k) % ROWS as u64) as usize * self.size;
            &self.table[at..at + self.size]
        };
        (0..count as u64).map(row).collect()
    }

    /// Who made this message, and its how-manieth it is. None if it is not as it was made.
    pub fn check(&self, payload: &[u8]) -> Option<(usize, u64)> {
        let number = u64::from_le_bytes(*payload.first_chunk()?);
        let n = number & ((1 << COUNT_BITS) - 1);
        let at = (n % ROWS as u64) as usize * self.size;
        let same = payload.len() == self.size && payload[8..] == self.table[at + 8..at + self.size];
        same.then_some(((number >> COUNT_BITS) as usize, n))
    }
}

/// What has come out, held against what was put in.
#[derive(Default)]
pub struct Ledger {
    /// By producer: which of its messages were seen.
    seen: Vec<Vec<u64>>,
    /// The number of the last message, for the order; only with one producer.
    last: Option<u64>,
    twice: u64,
    damaged: u64,
    overtaken: u64,
    foreign: u64,
}

impl Ledger {
    pub fn new(counts: &[u64]) -> Ledger {
        let seen = counts.iter().map(|count| vec![0; count.div_ceil(64) as usize]).collect();
        Ledger { seen, ..Ledger::default() }
    }

    /// Enters a message that came out, as `Payloads::check` found it. In order of coming, where the order counts.
    pub fn enter(&mut self, found: Option<(usize, u64)>) {
        let Some((producer, n)) = found else {
            self.damaged += 1;
            return;
        };
        let word = self.seen.get_mut(producer).and_then(|seen| seen.get_mut(n as usize / 64));
        let Some(word) = word else {
            self.foreign += 1;
            return;
        };
        self.twice += *word >> (n % 64) & 1;
        *word |= 1 << (n % 64);
        if self.seen.len() == 1 {
            self.overtaken += u64::from(self.last.is_some_and(|last| n < last));
            self.last = Some(n);
        }
    }

    /// What is wrong, if anything is. `complete`: nothing more will come, so what was not seen is lost. `ordered`: one
    /// producer and one consumer, so the order counts.
    pub fn verdict(&self, counts: &[u64], complete: bool, ordered: bool) -> Option<String> {
        let bits =
            |seen: &Vec<u64>| seen.iter().map(|word| u64::from(word.count_ones())).sum::<u64>();
        let seen: u64 = self.seen.iter().map(bits).sum();
        let lost = counts.iter().sum::<u64>().saturating_sub(seen);
        let faults = [
            (if complete { lost } else { 0 }, "lost"),
            (self.twice, "twice"),
            (self.damaged, "damaged"),
            (self.foreign, "never inserted"),
            (if ordered { self.overtaken } else { 0 }, "out of order"),
        ];
        let found: Vec<String> =
            faults.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{what} {n}")).collect();
        (!found.is_empty()).then(|| found.join(", "))
    }
}

/// Splitmix64: the same numbers in every run.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A permutation of `0..count`.
    pub fn shuffled(&mut self, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        for at in (1..count).rev() {
            order.swap(at, (self.next() % (at as u64 + 1)) as usize);
        }
        order
    }
}
