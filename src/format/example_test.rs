//! The examples of `docs/format.md` are what this code reads and what it writes.

use super::checksum::{Seed, crc32};
use super::cursor::sections::{
    AckedSection, DamageSection, EntriesSection, Entry, LaneState, QueueSection, Section,
    SegmentSection,
};
use super::cursor::{self, CursorEncoder, CursorFound, CursorHeader, pages::PageForm};
use super::frame::{self, Envelope, Found};
use super::header::{self, FRAMES_START, HEADER_BYTES, HEADER_COPIES_AT, Header, HeaderFound};
use super::index::{self, Lane};
use super::position::Position;
use super::record::headers::{HeaderValue, put_header_block};
use super::record::insert::{InsertHead, Target, Targets};
use super::record::settle::{Place, encode_delete};
use super::record::{self, Record};

const PAGE: &str = include_str!("../../docs/format.md");
const STORE: [u8; 16] = 0x0011_2233_4455_6677_8899_AABB_CCDD_EEFF_u128.to_be_bytes();
const SALT: u64 = 0x0123_4567_89AB_CDEF;
const TIME: u64 = 1_700_000_000_000;
const SEGMENT_BYTES: usize = 8192;
const ROLL_AT: u32 = 4216;
const END: u32 = 4240;

/// The bytes of the page's example of that name: each line has an offset, bytes, and a comment.
fn example(name: &str) -> Vec<u8> {
    let fence = format!("```hex {name}\n");
    let (_, behind) = PAGE.split_once(&fence).expect("the page has the example");
    let (block, _) = behind.split_once("```").expect("the example ends");
    let mut bytes = Vec::new();
    for line in block.lines().filter(|line| !line.is_empty()) {
        let fields = line.split(';').next().expect("split yields at least one");
        let mut words = fields.split_whitespace();
        let offset = words.next().expect("a line begins with an offset");
        let offset = usize::from_str_radix(offset, 16).expect("the offset is hex");
        assert!(offset >= bytes.len(), "lines overlap: {line}");
        bytes.resize(offset, 0);
        bytes.extend(words.map(|byte| u8::from_str_radix(byte, 16).expect("a byte is hex")));
    }
    bytes
}

fn example_segment() -> Vec<u8> {
    let mut bytes = example("segment");
    assert_eq!(bytes.len(), END as usize);
    bytes.resize(SEGMENT_BYTES, 0);
    bytes
}

fn example_header() -> Header {
    Header {
        store: STORE,
        number: 7,
        replaces_first: 7,
        replaces_last: 7,
        first_id: 1000,
        salt: SALT,
        created_at: TIME,
        capacity: SEGMENT_BYTES as u32,
    }
}

fn headers() -> Vec<u8> {
    let mut block = Vec::new();
    put_header_block(&mut block, [("lang", HeaderValue::String("en"))].into_iter());
    block
}

const TARGETS: [Target; 2] = [Target { queue: 1, priority: 4 }, Target { queue: 2, priority: 0 }];

fn second_head(headers: &[u8]) -> InsertHead<'_> {
    InsertHead {
        targets: Targets::Many(&TARGETS),
        key: Some(b"k1"),
        headers: Some(headers),
        ..InsertHead::plain(TIME + 1, 0, 0)
    }
}

/// The frames of the example segment, without their places.
fn example_frames() -> Vec<(Envelope, Vec<u8>)> {
    let frame = |kind, info, arg, mark: Option<Position>, body: Vec<u8>| {
        let envelope = Envelope {
            length: body.len() as u32,
            kind,
            // In the example, the one frame with a mark is the one that is continued.
            continued: mark.is_some(),
            mark,
            info,
            arg,
            body_checksum: crc32(&body),
        };
        (envelope, body)
    };
    let mut first = Vec::new();
    let first_info = InsertHead::plain(TIME, 1, 4).encode_head(&mut first);
    first.extend_from_slice(b"hello");
    let mut second = Vec::new();
    let second_info = second_head(&headers()).encode_head(&mut second);
    second.extend_from_slice(b"hi");
    let mut delete = Vec::new();
    encode_delete(1, [(1000, 1)].into_iter(), &mut delete);
    let mut roll = Vec::new();
    record::encode_roll(8, &mut roll);
    vec![
        frame(record::INSERT, first_info, 0, None, first),
        frame(record::INSERT, second_info, 1, Some(Position::new(7, 4128)), second),
        frame(record::DELETE, 0, 0, None, delete),
        frame(record::ROLL, 0, 0, None, roll),
    ]
}

#[test]
fn the_example_segment_of_the_format_page_reads_as_the_page_says() {
    let file = example_segment();
    let [a, b] = HEADER_COPIES_AT.map(|at| &file[at..at + HEADER_BYTES]);
    let found = HeaderFound::Header { header: example_header(), damaged_copy: false };
    assert_eq!(header::decode(a, b), found);

    let seed = Seed::new(SALT);
    let mut offset = FRAMES_START;
    let mut records = Vec::new();
    while let Found::Frame(frame) = frame::read(&file, offset, &seed) {
        records.push(Record::decode(&frame.envelope, frame.body).expect("a record"));
        offset = frame.next_offset();
    }
    assert_eq!((offset, frame::read(&file, offset, &seed)), (END, Found::End));

    let [first, second, Record::Delete(delete), roll] = records[..] else {
        panic!("other records than the page says: {records:?}");
    };
    let head = InsertHead::plain(TIME, 1, 4);
    assert_eq!(first, Record::Insert { head, payload: b"hello" });
    let block = headers();
    assert_eq!(second, Record::Insert { head: second_head(&block), payload: b"hi" });
    assert_eq!((delete.queue, delete.runs.ids().collect::<Vec<_>>()), (1, vec![1000]));
    assert_eq!(roll, Record::Roll { next_segment: 8 });
}

#[test]
fn the_example_segment_of_the_format_page_is_what_is_written() {
    let mut file = vec![0; FRAMES_START as usize];
    for at in HEADER_COPIES_AT {
        file[at..at + HEADER_BYTES].copy_from_slice(&example_header().encode());
    }
    let seed = Seed::new(SALT);
    for (envelope, body) in example_frames() {
        let start = file.len();
        file.extend_from_slice(envelope.encode(&seed, start as u32).as_bytes());
        file.extend_from_slice(&body);
        file.resize(start + envelope.total_bytes() as usize, 0);
    }
    file.resize(SEGMENT_BYTES, 0);
    assert!(file == example_segment(), "the page's segment differs from what is written");
}

#[test]
fn the_example_index_of_the_format_page_is_what_is_read_and_written() {
    let file = example("index");
    let layout = index::open(&file, 7, SALT, END).expect("an index of the example segment");
    assert_eq!(layout.lanes().collect::<Vec<_>>(), [(1, 4, 2), (2, 0, 1)]);
    assert_eq!(layout.slot(&file, 1, 4, 1), Some((1, 4128)));
    assert_eq!(layout.slot(&file, 2, 0, 0), Some((2, 4128)));

    let first = [(0, 4096), (1, 4128)];
    let second = [(2, 4128)];
    let lanes = [
        (Lane { queue: 1, priority: 4 }, &first[..]),
        (Lane { queue: 2, priority: 0 }, &second[..]),
    ];
    assert_eq!(index::encode(7, SALT, END, &lanes), file);
}

#[test]
fn the_example_cursor_of_the_format_page_is_what_is_read_and_written() {
    let position = Position::new(7, ROLL_AT);
    let header = CursorHeader {
        clean: false,
        store: STORE,
        generation: 3,
        position,
        proof: position,
        id_ceiling: 2024,
        next_id: 1003,
        written_at: TIME + 2,
    };
    let segment = SegmentSection {
        file: 7,
        number: 7,
        salt: SALT,
        first_id: 1000,
        end: ROLL_AT,
        active: true,
        messages: 3,
        live_bytes: 64,
        first_expiry: None,
    };
    let queue = QueueSection {
        id: 1,
        name: b"jobs".to_vec(),
        declared_at: Position::new(6, 4096),
        as_of: position,
        expires: false,
        grouped: false,
        live: 1,
        options: vec![],
        lanes: vec![LaneState { priority: 4, next_id: 1002 }],
    };
    let entry = Entry {
        id: 1001,
        place: Place::InFlight,
        fresh: false,
        attempts: 1,
        priority: 4,
        due: TIME + 30_000,
        reason: vec![],
    };
    let entries = EntriesSection { queue: 1, entries: vec![entry] };
    let acked = AckedSection { segment: 7, pages: vec![(0, PageForm::Runs(vec![(0, 1)]))] };
    let damage =
        DamageSection { segment: 6, start: 5000, end: 5064, first_id: 990, last_id_exclusive: 991 };

    let mut encoder = CursorEncoder::new(&header);
    encoder.segment(&segment);
    encoder.queue(&queue);
    encoder.entries(entries.queue, &entries.entries);
    encoder.acked(&acked);
    encoder.damage(&damage);
    let file = example("cursor");
    assert_eq!(encoder.finish(), file);

    let sections = vec![
        Section::Segment(segment),
        Section::Queue(queue),
        Section::Entries(entries),
        Section::Acked(acked),
        Section::Damage(damage),
    ];
    assert_eq!(cursor::decode(&file), CursorFound::Cursor { header, sections });
}

#[test]
fn the_checksums_in_the_text_of_the_format_page_are_right() {
    let quoted = |checksum: u32| PAGE.contains(&format!("{checksum:08X}"));
    assert!(quoted(crc32(b"123456789")));
    assert!(quoted(crc32(&SALT.to_le_bytes())));

    let (_, behind) = PAGE.split_once("is that of\n").expect("the page shows what is covered");
    let (covered, _) = behind.split_once("```").expect("the example follows");
    let covered: Vec<u8> = covered
        .split_whitespace()
        .map(|byte| u8::from_str_radix(byte, 16).expect("a byte is hex"))
        .collect();
    assert!(quoted(crc32(&covered)));
    let segment = example_segment();
    assert_eq!(crc32(&covered).to_le_bytes(), segment[4096 + 12..4096 + 16]);
}

#[test]
fn the_runs_in_the_text_of_the_format_page_are_what_is_written() {
    let mut out = Vec::new();
    super::runs::put_ids(&mut out, [5, 6, 7, 10].into_iter());
    let hex: Vec<_> = out.iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(PAGE.contains(&format!("Ids 5, 6, 7 and 10 are `{}`", hex.join(" "))));
}
