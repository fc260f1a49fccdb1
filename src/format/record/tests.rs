//! Every record reads back as written, and nothing that a body may hold makes a decoder panic.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::headers::{HeaderBlock, HeaderValue, put_header_block};
use super::insert::{Origin, PRIORITIES, TARGETS_MAX, Target, Targets};
use super::settle::{Place, Placed, encode_delete, encode_set, reason_cut};
use super::*;
use crate::format::bytes::U48_MAX;
use crate::format::checksum::crc32;
use crate::format::strategies::{place, runs, small_bytes};

fn envelope(kind: u8, info: u16, body: &[u8]) -> Envelope {
    Envelope {
        length: body.len() as u32,
        kind,
        continued: false,
        mark: None,
        info,
        arg: 0,
        body_checksum: crc32(body),
    }
}

fn decode(kind: u8, body: &[u8]) -> Result<Record<'_>, RecordError> {
    Record::decode(&envelope(kind, 0, body), body)
}

fn encoded(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    encode(&mut out);
    out
}

fn malformed(result: Result<Record<'_>, RecordError>) -> &'static str {
    match result {
        Err(RecordError::Malformed(malformed)) => malformed.what,
        other => panic!("not malformed: {other:?}"),
    }
}

fn target() -> impl Strategy<Value = Target> {
    (any::<u32>(), 0..PRIORITIES).prop_map(|(queue, priority)| Target { queue, priority })
}

fn header_value() -> impl Strategy<Value = OwnedValue> {
    prop_oneof![
        any::<String>().prop_map(OwnedValue::String),
        small_bytes().prop_map(OwnedValue::Bytes),
        any::<i64>().prop_map(OwnedValue::Integer),
        any::<bool>().prop_map(OwnedValue::Bool),
    ]
}

#[derive(Clone, Debug)]
enum OwnedValue {
    String(String),
    Bytes(Vec<u8>),
    Integer(i64),
    Bool(bool),
}

impl OwnedValue {
    fn borrow(&self) -> HeaderValue<'_> {
        match self {
            Self::String(text) => HeaderValue::String(text),
            Self::Bytes(bytes) => HeaderValue::Bytes(bytes),
            Self::Integer(integer) => HeaderValue::Integer(*integer),
            Self::Bool(flag) => HeaderValue::Bool(*flag),
        }
    }
}

proptest! {
    #[test]
    fn an_insert_reads_back_as_written(
        time_ms in 0..=U48_MAX,
        targets in vec(target(), 1..20),
        times in (option::of(0..=U48_MAX), option::of(0..=U48_MAX)),
        key in option::of(small_bytes()),
        group in option::of(small_bytes()),
        origin in option::of((any::<u64>(), any::<u32>(), small_bytes(), small_bytes())),
        headers in option::of(small_bytes()),
        payload in small_bytes(),
    ) {
        let head = InsertHead {
            time_ms,
            targets: Targets::Many(&targets),
            not_before: times.0,
            expiry: times.1,
            key: key.as_deref(),
            group: group.as_deref(),
            origin: origin.as_ref().map(|(id, attempts, queue, reason)| Origin {
                id: *id,
                attempts: *attempts,
                queue,
                reason,
            }),
            headers: headers.as_deref(),
        };
        let mut body = Vec::new();
        let info = head.encode_head(&mut body);
        let payload_at = body.len();
        body.extend_from_slice(&payload);

        let record = Record::decode(&envelope(INSERT, info, &body), &body);
        prop_assert_eq!(record, Ok(Record::Insert { head, payload: &payload }));
        let (decoded, in_place) = decode_insert(info, &body).unwrap();
        prop_assert_eq!(body.len() - in_place.len(), payload_at);
        prop_assert_eq!(decoded.targets.count(), targets.len());
        // What was decoded encodes to the same bytes: compaction relies on it.
        let mut again = Vec::new();
        prop_assert_eq!(decoded.encode_head(&mut again), info);
        prop_assert_eq!(again, &body[..payload_at]);
    }

    #[test]
    fn a_delete_reads_back_as_written(queue: u32, runs in runs()) {
        let body = encoded(|out| encode_delete(queue, runs.iter().copied(), out));
        let Ok(Record::Delete(delete)) = decode(DELETE, &body) else {
            panic!("not a delete");
        };
        prop_assert_eq!(delete.queue, queue);
        prop_assert_eq!(delete.runs.iter().collect::<Vec<_>>(), runs);
    }

    #[test]
    fn a_set_reads_back_as_written(
        queue: u32,
        place in place(),
        priority in 0..PRIORITIES,
        attempts: u32,
        due in 0..=U48_MAX,
        runs in runs(),
        reason: String,
    ) {
        let runs_in = runs.iter().copied();
        let placed = Placed { place, fresh: attempts % 2 == 0, priority, attempts, due };
        let body = encoded(|out| encode_set(queue, placed, runs_in, &reason, out));
        let Ok(Record::Set(set)) = decode(SET, &body) else { panic!("not a set") };
        prop_assert_eq!((set.queue, set.placed), (queue, placed));
        prop_assert_eq!(set.runs.iter().collect::<Vec<_>>(), runs);
        prop_assert_eq!(set.reason, reason_cut(&reason).as_bytes());
    }

    #[test]
    fn catalog_records_read_back_as_written(
        queue: u32,
        a in small_bytes(),
        b in small_bytes(),
        exchange_kind: u8,
        failures: u32,
        next_segment in 1..=u32::MAX,
    ) {
        let declare = Declare { queue, name: &a, options: &b };
        let body = encoded(|out| declare.encode(out));
        prop_assert_eq!(decode(DECLARE, &body), Ok(Record::Declare(declare)));

        let binding = Binding { exchange: &a, exchange_kind, queue, pattern: &b };
        let body = encoded(|out| binding.encode(out));
        prop_assert_eq!(decode(BIND, &body), Ok(Record::Bind(binding)));
        prop_assert_eq!(decode(UNBIND, &body), Ok(Record::Unbind(binding)));

        let value = Value { key: &a, value: &b };
        let body = encoded(|out| value.encode(out));
        prop_assert_eq!(decode(VALUE, &body), Ok(Record::Value(value)));

        let body = encoded(|out| encode_pause(queue, failures, out));
        prop_assert_eq!(decode(PAUSE, &body), Ok(Record::Pause { queue, failures }));
        let body = encoded(|out| encode_queue(queue, out));
        prop_assert_eq!(decode(REMOVE, &body), Ok(Record::Remove { queue }));
        prop_assert_eq!(decode(RESUME, &body), Ok(Record::Resume { queue }));

        let body = encoded(|out| encode_roll(next_segment, out));
        prop_assert_eq!(decode(ROLL, &body), Ok(Record::Roll { next_segment }));
    }

    #[test]
    fn a_header_block_reads_back_as_written(
        headers in vec((any::<String>(), header_value()), 0..8),
    ) {
        let borrowed = headers.iter().map(|(key, value)| (key.as_str(), value.borrow()));
        let block = encoded(|out| put_header_block(out, borrowed.clone()));
        let decoded = HeaderBlock::decode(&block).unwrap();
        prop_assert_eq!(decoded.count(), headers.len());
        prop_assert!(decoded.iter().eq(borrowed));
    }

    #[test]
    fn random_bytes_never_panic(kind in 0u8..14, info in 0u16..0x1000, body: Vec<u8>) {
        for info in [0, info] {
            match Record::decode(&envelope(kind, info, &body), &body) {
                Ok(Record::Insert { head, .. }) => {
                    prop_assert_eq!(head.targets().count(), head.targets.count());
                    if let Ok(headers) = head.header_block() {
                        prop_assert_eq!(headers.iter().count(), headers.count());
                    }
                }
                Ok(Record::Delete(Delete { runs, .. })) | Ok(Record::Set(Set { runs, .. })) => {
                    prop_assert_eq!(runs.iter().map(|run| run.1).sum::<u64>(), runs.total_ids());
                }
                _ => {}
            }
        }
        if let Ok(headers) = HeaderBlock::decode(&body) {
            prop_assert_eq!(headers.iter().count(), headers.count());
        }
    }
}

#[test]
fn a_plain_message_costs_seven_bytes_of_body() {
    let mut body = Vec::new();
    let info = InsertHead::plain(1_700_000_000_000, 127, 9).encode_head(&mut body);
    assert_eq!((info, body.len()), (9, 7));
}

#[test]
fn a_plain_message_costs_at_most_36_bytes_over_its_payload() {
    for payload in 0..1000 {
        assert!(crate::format::frame::frame_bytes(7 + payload, false) - payload <= 36);
    }
}

#[test]
fn an_unknown_kind_is_told_from_a_malformed_record() {
    assert_eq!(decode(12, b"whatever"), Err(RecordError::UnknownKind(12)));
    assert_eq!(malformed(decode(ROLL, &[0])), "segment number 0");
}

#[test]
fn info_and_arg_belong_to_inserts_alone() {
    let body = encoded(|out| encode_queue(1, out));
    let what = "info or arg in the envelope of a record that has none";
    assert_eq!(malformed(Record::decode(&envelope(RESUME, 1, &body), &body)), what);
    let with_arg = Envelope { arg: 1, ..envelope(RESUME, 0, &body) };
    assert_eq!(malformed(Record::decode(&with_arg, &body)), what);
}

#[test]
fn bytes_behind_a_record_are_malformed() {
    let mut body = encoded(|out| encode_delete(1, [(5, 2)].into_iter(), out));
    body.push(0);
    assert_eq!(malformed(decode(DELETE, &body)), "bytes behind the last field");
}

#[test]
fn an_insert_with_unknown_flags_is_malformed() {
    let mut body = Vec::new();
    let info = InsertHead::plain(1, 1, 0).encode_head(&mut body);
    for bit in 11..16 {
        let flagged = decode_insert(info | 1 << bit, &body);
        assert_eq!(flagged.unwrap_err().what, "unknown field flag");
    }
    let all_but_the_priority = decode_insert(0xFFF0, &body);
    assert_eq!(all_but_the_priority.unwrap_err().what, "unknown field flag");
}

#[test]
fn an_insert_for_several_queues_is_checked_target_by_target() {
    const MULTI: u16 = 1 << 4;
    let body = |targets: &[u8]| [&[0; 6], targets].concat();
    let ok = body(&[2, 1, 0, 2, 9]);
    let (head, payload) = decode_insert(MULTI, &ok).unwrap();
    assert_eq!(head.targets().collect::<Vec<_>>(), [(1, 0), (2, 9)]);
    assert_eq!(payload, b"");
    let what = |info, targets: &[u8]| decode_insert(info, &body(targets)).unwrap_err().what;
    assert_eq!(what(MULTI, &[0]), "number of queues out of range");
    assert_eq!(what(MULTI, &[9, 1, 0]), "count beyond the end");
    assert_eq!(what(MULTI, &[1, 1, PRIORITIES]), "priority out of range");
    assert_eq!(
        what(MULTI | 1, &[1, 1, 0]),
        "priority in the envelope of a message for several queues"
    );
    let mut many = vec![0x81, 0x08];
    many.resize(2 + 2 * (TARGETS_MAX + 1), 0);
    assert_eq!(what(MULTI, &many), "number of queues out of range");
}

#[test]
fn a_set_with_an_unknown_place_is_malformed() {
    let body = encoded(|out| {
        let placed =
            Placed { place: Place::Buried, fresh: false, priority: 2, attempts: 3, due: 0 };
        encode_set(1, placed, [(5, 2)].into_iter(), "gave up", out);
    });
    assert_eq!(body[1], 0x24, "priority and place share a byte");
    for place in [0, 5, 255] {
        let mut body = body.clone();
        body[1] = place;
        assert_eq!(malformed(decode(SET, &body)), "unknown place");
    }
}

#[test]
fn messages_are_equal_when_they_go_to_the_same_queues() {
    let targets = [1, 2, 3].map(|queue| Target { queue, priority: 0 });
    assert_eq!(Targets::Many(&targets[..1]), Targets::One(targets[0]));
    assert_ne!(Targets::Many(&targets[..2]), Targets::Many(&targets[1..]));
    assert_ne!(Targets::Many(&targets), Targets::Many(&targets[..2]));
}

#[test]
fn the_headers_of_a_message_are_those_that_it_was_encoded_with() {
    let headers = [("tries", HeaderValue::Integer(-3))];
    let block = encoded(|out| put_header_block(out, headers.into_iter()));
    let plain = InsertHead::plain(1, 1, 0);
    let with = InsertHead { headers: Some(&block), ..plain };
    assert!(with.header_block().unwrap().iter().eq(headers));
    assert_eq!(plain.header_block().unwrap().count(), 0);
    let cut_off = InsertHead { headers: Some(&block[..2]), ..plain };
    assert!(cut_off.header_block().is_err());
}

#[test]
fn header_values_of_unknown_types_are_malformed() {
    let what = |value: &[u8]| {
        let block = [&[1, 1, b'k'], value].concat();
        HeaderBlock::decode(&block).map(|_| ()).map_err(|malformed| malformed.what)
    };
    assert_eq!(what(&[3, 1]), Ok(()));
    assert_eq!(what(&[3, 2]), Err("neither true nor false"));
    assert_eq!(what(&[4, 0]), Err("unknown type of header value"));
}
