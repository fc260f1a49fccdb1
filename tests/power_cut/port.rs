//! The way on which notes leave the machine: a port to the host, to which each of them is written before the call goes on.

use std::fs::File;
use std::io::Write;
use std::sync::Mutex;

use crate::record::{Kind, Moment, Record, Witness};

pub const RECORD_BYTES: usize = 40;

const KINDS: [Kind; 15] = [
    Kind::Opening,
    Kind::Opened,
    Kind::Inserting,
    Kind::Inserted,
    Kind::Getting,
    Kind::Got,
    Kind::GotAll,
    Kind::Deleting,
    Kind::Releasing,
    Kind::Failing,
    Kind::Settled,
    Kind::Syncing,
    Kind::Synced,
    Kind::Closing,
    Kind::Closed,
];

/// The guest's end.
pub struct Port(Mutex<Noted>);

struct Noted {
    file: File,
    records: u64,
}

impl Port {
    pub fn new(file: File) -> Port {
        Port(Mutex::new(Noted { file, records: 0 }))
    }
}

impl Witness for Port {
    fn note(&self, records: &[Record]) {
        let mut noted = self.0.lock().unwrap();
        let at = Moment { tick: noted.records, position: 0 };
        let encoded: Vec<u8> =
            records.iter().flat_map(|record| encode(&Record { at, ..*record })).collect();
        noted.records += records.len() as u64;
        noted.file.write_all(&encoded).expect("the port takes what is written");
    }
}

fn encode(record: &Record) -> [u8; RECORD_BYTES] {
    let mut bytes = [0; RECORD_BYTES];
    bytes[..3].copy_from_slice(&[record.kind as u8, record.thread, record.queue]);
    bytes[4..6].copy_from_slice(&record.count.to_le_bytes());
    bytes[8..12].copy_from_slice(&record.attempt.to_le_bytes());
    bytes[16..24].copy_from_slice(&record.key.to_le_bytes());
    bytes[24..32].copy_from_slice(&record.id.to_le_bytes());
    bytes[32..].copy_from_slice(&record.at.tick.to_le_bytes());
    bytes
}

/// What has come out of the port. The last record may be cut off.
pub fn decode(bytes: &[u8]) -> Vec<Record> {
    bytes.as_chunks::<RECORD_BYTES>().0.iter().map(decode_one).collect()
}

fn decode_one(bytes: &[u8; RECORD_BYTES]) -> Record {
    let u64_at = |at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().unwrap());
    Record {
        kind: KINDS[bytes[0] as usize],
        thread: bytes[1],
        queue: bytes[2],
        count: u16::from_le_bytes([bytes[4], bytes[5]]),
        attempt: u32::from_le_bytes(*bytes[8..].first_chunk().unwrap()),
        key: u64_at(16),
        id: u64_at(24),
        // Nothing begins after the power has failed, so it does not matter where the disk was.
        at: Moment { tick: u64_at(32), position: 0 },
    }
}
