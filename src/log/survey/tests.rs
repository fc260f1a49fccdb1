//! What is found in a segment that is whole, torn or damaged.

use super::*;
use crate::format::checksum::crc32;
use crate::format::frame::frame_bytes;
use crate::format::record::{INSERT, encode_roll};

const FROM: u32 = 4096;
const BYTES: usize = 16 << 10;

fn seed() -> Seed {
    Seed::new(42)
}

/// A segment's file that frames are put into, one behind the other.
struct File {
    bytes: Vec<u8>,
    end: u32,
}

impl File {
    fn new() -> File {
        File { bytes: vec![0; BYTES], end: FROM }
    }

    /// Where the frame begins.
    fn put(&mut self, kind: u8, continued: bool, body: &[u8]) -> u32 {
        let (at, frame) = (self.end, encode(self.end, kind, continued, body));
        self.bytes[at as usize..][..frame.len()].copy_from_slice(&frame);
        self.end += frame_bytes(body.len() as u64, false) as u32;
        at
    }

    fn insert(&mut self) -> u32 {
        self.put(INSERT, false, b"0123456789")
    }

    fn flip(&mut self, at: u32) {
        self.bytes[at as usize] ^= 1;
    }

    fn survey(&self) -> Survey {
        survey(&self.bytes, &seed(), FROM)
    }
}

fn encode(at: u32, kind: u8, continued: bool, body: &[u8]) -> Vec<u8> {
    let length = body.len() as u32;
    let body_checksum = crc32(body);
    let envelope = Envelope { length, kind, continued, mark: None, info: 0, arg: 0, body_checksum };
    [envelope.encode(&seed(), at).as_bytes(), body].concat()
}

#[test]
fn a_segment_that_is_whole_has_no_bad_span() {
    let mut file = File::new();
    (0..3).for_each(|_| _ = file.insert());
    let found = file.survey();
    assert_eq!((found.bad.len(), found.end, found.used), (0, file.end, file.end));
    assert_eq!((found.next, found.unknown_kind, found.open_run), (None, None, None));
    assert_eq!(File::new().survey().end, FROM);
}

#[test]
fn a_frame_that_does_not_verify_is_a_bad_span_to_the_next_that_does() {
    for (flipped, fault) in [(4, Fault::Header), (25, Fault::Body)] {
        let mut file = File::new();
        let [_, second, third] = [(); 3].map(|()| file.insert());
        file.flip(second + flipped);
        let span = BadSpan { start: second, end: third, fault, followed: true, open_run: None };
        let found = file.survey();
        assert_eq!((found.bad, found.end), (vec![span], file.end));
    }
}

#[test]
fn bytes_behind_the_last_frame_are_a_bad_span_of_their_own() {
    let mut file = File::new();
    let end = file.insert() + 32;
    file.bytes[end as usize + 20] = 1;
    let (fault, open_run) = (Fault::Zero, None);
    let span = BadSpan { start: end, end: end + 24, fault, followed: false, open_run };
    let found = file.survey();
    assert_eq!((found.bad, found.end, found.used), (vec![span], end, end + 24));
}

#[test]
fn a_damaged_frame_at_the_very_beginning_is_passed_over() {
    let mut bytes =
        [encode(0, INSERT, false, b"body"), encode(24, INSERT, false, b"body")].concat();
    bytes[4] ^= 1;
    let found = survey(&bytes, &seed(), 0);
    assert_eq!((found.bad.len(), found.bad[0].end, found.end), (1, 24, 48));
}

#[test]
fn what_lies_behind_the_frame_that_names_the_next_segment_is_left_from_before() {
    let mut file = File::new();
    file.insert();
    let mut body = Vec::new();
    encode_roll(9, &mut body);
    file.put(ROLL, false, &body);
    let end = file.end;
    file.insert();
    let found = file.survey();
    assert_eq!((found.next, found.end, found.used), (Some(9), end, end));
}

/// A message may hold anything, also what looks like a frame in that very place.
#[test]
fn a_frame_within_a_damaged_message_is_not_taken_for_one() {
    let mut file = File::new();
    let within = FROM + 24;
    let body = [&[7; 4], &encode(within, INSERT, false, b"forged")[..], &[7; 100]].concat();
    let first = file.put(INSERT, false, &body);
    let next = file.insert();
    file.flip(next - 8);
    let found = file.survey();
    assert_eq!((found.bad.len(), found.bad[0].start, found.bad[0].end), (1, first, next));
    assert!(is_whole(&file.bytes, &seed(), within));
}

#[test]
fn a_kind_that_is_not_known_is_named() {
    let mut file = File::new();
    file.put(ROLL - 1, false, b"");
    file.put(ROLL + 1, false, b"");
    file.put(ROLL + 2, false, b"");
    assert_eq!(file.survey().unknown_kind, Some(ROLL + 1));
}

#[test]
fn a_run_that_has_lost_its_end_does_not_count() {
    let mut file = File::new();
    let whole = file.insert();
    let run = file.put(INSERT, true, b"first of a run");
    file.put(INSERT, true, b"second of a run");
    let end = file.end;
    let found = file.survey();
    assert_eq!((found.open_run, found.without_open_run(end)), (Some(run), run));
    // Its end is there, and damaged; then the log goes on.
    let damaged = file.insert();
    file.flip(damaged + 4);
    file.insert();
    let found = file.survey();
    assert_eq!((found.open_run, found.bad[0].open_run), (None, Some(run)));
    assert_eq!(found.without_open_run(damaged), run);
    assert_eq!(found.without_open_run(whole), whole);
}

#[test]
fn the_used_bytes_end_behind_the_last_that_is_not_zero() {
    let mut bytes = vec![0; 3 * 4096];
    assert_eq!((used_bytes(&bytes, 0), used_bytes(&bytes, 4096)), (0, 4096));
    bytes[4096] = 1;
    assert_eq!(used_bytes(&bytes, 0), 4104);
    bytes[8191] = 1;
    assert_eq!((used_bytes(&bytes, 0), used_bytes(&bytes[..8190], 0)), (8192, 4104));
}

#[test]
fn the_frames_of_a_stretch_are_those_between_its_bad_spans() {
    let mut file = File::new();
    let at = [(); 6].map(|()| file.insert());
    file.flip(at[1] + 4);
    file.flip(at[3] + 4);
    let found = file.survey();
    let visited = |from, to| {
        let mut visited = Vec::new();
        frames(&file.bytes, &found, from, to, |at, _| visited.push(at));
        visited
    };
    assert_eq!(visited(FROM, u32::MAX), [at[0], at[2], at[4], at[5]]);
    assert_eq!(visited(at[2], at[5]), [at[2], at[4]]);
    assert_eq!(visited(at[5], file.end), [at[5]]);
}
