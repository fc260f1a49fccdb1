//! Walking a segment whose bytes cannot be trusted: which frames are whole, and where it is torn or damaged.
//!
//! A survey passes no verdict: whether a bad span is damage or the end of the log depends on what is proven
//! durable, which later segments may tell. It never trusts a length whose header does not verify: behind such a
//! frame it looks for the next place at which header and body both verify, which bytes of another store, of an
//! older file or of another place never do.

use crate::format::checksum::Seed;
use crate::format::frame::{self, Envelope, FRAME_ALIGNMENT, Found};
use crate::format::position::Position;
use crate::format::record::{ROLL, Record};

/// Why a span is bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A zero first word, and frames behind it.
    Zero,
    /// The header does not verify.
    Header,
    /// The header verifies and the body does not.
    Body,
}

/// A stretch that holds no frame that verifies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadSpan {
    pub start: u32,
    pub end: u32,
    pub fault: Fault,
    /// Whether a frame that verifies follows in this segment.
    pub followed: bool,
    /// Where the run begins that goes on here.
    pub open_run: Option<u32>,
}

/// What a segment's bytes hold from some offset on.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    /// In ascending order; everything between them up to `end` is frames that verify.
    pub bad: Vec<BadSpan>,
    /// Behind the last frame that verifies.
    pub end: u32,
    /// Behind the last byte that is not zero, rounded up to where a frame may begin.
    pub used: u32,
    /// Where the run begins that the last frame says goes on.
    pub open_run: Option<u32>,
    /// The highest sync mark.
    pub mark: Option<Position>,
    /// The segment that the last frame says the log goes on in.
    pub next: Option<u32>,
    /// The kind of the first frame that this version does not know.
    pub unknown_kind: Option<u8>,
}

/// Surveys `bytes`, the whole file, from `from` to its end. Bodies are verified too: one that is damaged names a queue
/// that the message was never in.
pub(crate) fn survey(bytes: &[u8], seed: &Seed, from: u32) -> Survey {
    survey_data(bytes, bytes.len() as u64, seed, from)
}

/// As [`survey`], of a file that has nothing but zeros from `data_end` on, which need not be looked at.
pub(crate) fn survey_data(bytes: &[u8], data_end: u64, seed: &Seed, from: u32) -> Survey {
    let limit = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let data_end = usize::try_from(data_end).map_or(bytes.len(), |end| end.min(bytes.len()));
    let used = used_bytes(&bytes[..data_end], from);
    let mut found = Survey { end: from, used, ..Survey::default() };
    let mut at = from;
    // The last frame of a segment names the next one; what lies behind it is left from before.
    while at < limit && found.next.is_none() {
        match step(bytes, seed, at) {
            Step::Frame { envelope, next } => {
                found.note(bytes, at, &envelope);
                at = next;
                found.end = at;
            }
            Step::Bad { fault, resume } => {
                let resume = resume
                    .filter(|&resume| is_whole(bytes, seed, resume))
                    .or_else(|| next_whole(bytes, seed, at, found.used));
                let end = resume.unwrap_or_else(|| found.used.max(at));
                if end > at {
                    let (followed, open_run) = (resume.is_some(), found.open_run);
                    found.bad.push(BadSpan { start: at, end, fault, followed, open_run });
                }
                let Some(resume) = resume else { break };
                at = resume;
            }
        }
    }
    if found.next.is_some() {
        found.used = found.end;
    }
    found
}

enum Step {
    Frame {
        envelope: Envelope,
        next: u32,
    },
    /// `resume` is where the next frame must be, if the header can be believed.
    Bad {
        fault: Fault,
        resume: Option<u32>,
    },
}

fn step(bytes: &[u8], seed: &Seed, at: u32) -> Step {
    let next = |envelope: &Envelope| u32::try_from(u64::from(at) + envelope.total_bytes()).ok();
    match frame::read(bytes, at, seed) {
        Found::Frame(frame) => Step::Frame { envelope: frame.envelope, next: frame.next_offset() },
        Found::End => Step::Bad { fault: Fault::Zero, resume: None },
        Found::BadHeader => Step::Bad { fault: Fault::Header, resume: None },
        Found::BadBody(envelope) => Step::Bad { fault: Fault::Body, resume: next(&envelope) },
    }
}

impl Survey {
    fn note(&mut self, bytes: &[u8], at: u32, envelope: &Envelope) {
        self.mark = self.mark.max(envelope.mark);
        self.open_run = if envelope.continued { self.open_run.or(Some(at)) } else { None };
        if envelope.kind == ROLL {
            let body = at as usize + envelope.size();
            let body = bytes.get(body..body + envelope.length as usize).unwrap_or_default();
            if let Ok(Record::Roll { next_segment }) = Record::decode(envelope, body) {
                self.next = Some(next_segment);
            }
        } else if envelope.kind > ROLL {
            self.unknown_kind.get_or_insert(envelope.kind);
        }
    }
}

impl Survey {
    /// `end`, or where the run begins that has lost its end there and so does not count.
    pub fn without_open_run(&self, end: u32) -> u32 {
        let cut = self.bad.iter().find(|span| span.start == end);
        cut.map_or(self.open_run, |span| span.open_run).unwrap_or(end)
    }
}

/// Whether a frame that verifies, header and body, or the segment's end in zeros, begins at `at`.
fn is_whole(bytes: &[u8], seed: &Seed, at: u32) -> bool {
    matches!(frame::read(bytes, at, seed), Found::Frame(_))
}

/// The next place behind `at` and before `used` at which a frame verifies.
fn next_whole(bytes: &[u8], seed: &Seed, at: u32, used: u32) -> Option<u32> {
    (at + FRAME_ALIGNMENT..used)
        .step_by(FRAME_ALIGNMENT as usize)
        .find(|&candidate| is_whole(bytes, seed, candidate))
}

/// Behind the last byte that is not zero, rounded up to where a frame may begin; at least `from`.
pub(crate) fn used_bytes(bytes: &[u8], from: u32) -> u32 {
    const BLOCK: usize = 4096;
    let mut end = bytes.len();
    while end >= BLOCK && bytes[end - BLOCK..end] == [0; BLOCK] {
        end -= BLOCK;
    }
    let zeros = bytes[..end].iter().rev().take_while(|&&byte| byte == 0).count();
    let used = (end - zeros).next_multiple_of(FRAME_ALIGNMENT as usize);
    u32::try_from(used).unwrap_or(u32::MAX).max(from)
}

/// Calls `visit` with the offset and envelope of every frame of a surveyed stretch that lies in `from..to`.
pub(crate) fn frames(
    bytes: &[u8],
    survey: &Survey,
    from: u32,
    to: u32,
    mut visit: impl FnMut(u32, &Envelope),
) {
    let mut at = from;
    let mut bad = survey.bad.iter().filter(|span| span.end > from).peekable();
    while at < to.min(survey.end) {
        if let Some(span) = bad.next_if(|span| span.start <= at) {
            at = span.end;
            continue;
        }
        let Some(envelope) = frame::read_verified_header(bytes, at) else { return };
        visit(at, &envelope);
        at = at.saturating_add(envelope.total_bytes() as u32);
    }
}

#[cfg(test)]
mod tests;
