//! One frame, and the record in it.

use super::input::Input;
use super::seal;
use crate::format::checksum::Seed;
use crate::format::frame::{self, Envelope, Found, HeaderOnly};
use crate::format::record::catalog::Binding;
use crate::format::record::headers::{HeaderBlock, put_header_block};
use crate::format::record::insert::{InsertHead, Targets};
use crate::format::record::settle::{Delete, Set, encode_delete, encode_set};
use crate::format::record::{Record, RecordError, encode_pause, encode_queue, encode_roll};
use crate::format::runs::Runs;

const SEALED: u8 = 1 << 0;
/// The body is all that the input has left, whatever the envelope's length says.
const FITTED: u8 = 1 << 1;

const SALT: u64 = 0x0123_4567_89AB_CDEF;

/// A byte of flags, the offset of the frame, and its bytes.
pub fn frame(input: &[u8]) {
    let mut input = Input::new(input);
    let flags = input.byte();
    let mut offset = u32::from(input.byte());
    let seed = Seed::new(SALT);
    if flags & SEALED != 0 {
        offset = offset / 8 * 8;
    }
    let mut file = vec![0; offset as usize];
    file.extend_from_slice(input.rest());
    if flags & FITTED != 0
        && let Some(length) = file.get_mut(offset as usize..offset as usize + 4)
    {
        // Cut to what there is when it is sealed.
        length.fill(0xFF);
    }
    if flags & SEALED != 0 {
        seal::frame(&mut file, offset, &seed, false);
    }
    check_frame(&file, offset, &seed);
}

/// What [`frame::read`] finds is what lies there, to the last bit.
fn check_frame(file: &[u8], offset: u32, seed: &Seed) {
    let header = frame::read_header(file, offset, seed);
    let envelope = match frame::read(file, offset, seed) {
        Found::End => return assert_eq!(header, HeaderOnly::End),
        Found::BadHeader => return assert_eq!(header, HeaderOnly::Bad),
        Found::BadBody(envelope) => envelope,
        Found::Frame(frame) => {
            let body = frame.body_offset() as usize;
            assert_eq!(frame.body, &file[body..body + frame.envelope.length as usize]);
            assert!(frame.next_offset() > offset);
            check_record(&frame.envelope, frame.body);
            frame.envelope
        }
    };
    assert_eq!(header, HeaderOnly::Frame(envelope));
    assert_eq!(frame::read_verified_header(file, offset), Some(envelope));
    let start = offset as usize;
    let encoded = envelope.encode(seed, offset);
    assert_eq!(encoded.as_bytes(), &file[start..start + envelope.size()]);
}

/// A record that decodes encodes to the same bytes, and so has no second form: but for the short form of one target.
pub(super) fn check_record(envelope: &Envelope, body: &[u8]) {
    let record = match Record::decode(envelope, body) {
        Ok(record) => record,
        Err(RecordError::UnknownKind(kind)) => return assert_eq!(kind, envelope.kind),
        Err(RecordError::Malformed(malformed)) => return assert!(malformed.at <= body.len()),
    };
    let mut encoded = Vec::new();
    let info = encode(&record, &mut encoded);
    let again = Envelope { info, ..*envelope };
    assert_eq!(Record::decode(&again, &encoded), Ok(record));
    if !has_long_form_of_one_target(&record) {
        assert_eq!((info, &encoded[..]), (envelope.info, body), "{record:?}");
    }
}

fn has_long_form_of_one_target(record: &Record<'_>) -> bool {
    let Record::Insert { head, .. } = record else { return false };
    matches!(head.targets, Targets::Encoded(_)) && head.targets.count() == 1
}

/// Returns the envelope's `info`.
fn encode(record: &Record<'_>, out: &mut Vec<u8>) -> u16 {
    match record {
        Record::Insert { head, payload } => {
            check_insert(head);
            let info = head.encode_head(out);
            out.extend_from_slice(payload);
            return info;
        }
        Record::Delete(Delete { queue, runs }) => {
            check_runs(runs);
            encode_delete(*queue, runs.iter(), out);
        }
        Record::Set(Set { queue, placed, runs, reason }) => {
            check_runs(runs);
            // A writer cuts the reason, and makes it of text; a reader takes any bytes.
            encode_set(*queue, *placed, runs.iter(), "", out);
            out.extend_from_slice(reason);
        }
        Record::Declare(declare) => declare.encode(out),
        Record::Bind(binding) | Record::Unbind(binding) => Binding::encode(binding, out),
        Record::Pause { queue, failures } => encode_pause(*queue, *failures, out),
        Record::Remove { queue } | Record::Resume { queue } => {
            encode_queue(*queue, out);
        }
        Record::Value(value) => value.encode(out),
        Record::Roll { next_segment } => encode_roll(*next_segment, out),
    }
    0
}

fn check_insert(head: &InsertHead<'_>) {
    assert_eq!(head.targets().count(), head.targets.count());
    let Ok(block) = head.header_block() else { return };
    assert_eq!(block.iter().count(), block.count());
    let Some(bytes) = head.headers else { return };
    let headers: Vec<_> = block.iter().collect();
    let mut encoded = Vec::new();
    put_header_block(&mut encoded, headers.into_iter());
    assert_eq!(encoded, bytes);
    assert_eq!(HeaderBlock::decode(&encoded), Ok(block));
}

fn check_runs(runs: &Runs<'_>) {
    let mut end = 0;
    let mut total = 0;
    for (n, (start, length)) in runs.iter().enumerate() {
        assert!(length > 0 && (n == 0 || start > end), "runs are apart, and none is empty");
        end = start + length;
        total += length;
    }
    assert!(total > 0);
    assert_eq!(total, runs.total_ids());
}
