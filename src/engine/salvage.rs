//! Copying what can be read of a store that is past repair into a new one.
//!
//! The old store is only read. What an open would find is taken first; then what it would set aside or has set aside
//! already: what lies behind the end of the log, which was never proven durable, and segments that nothing names. Of a
//! segment that belongs to the log no more, only what damage has cost the log is taken: the rest was deleted.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;

use super::queue_entry::QueueEntry;
use super::queue_shared::Traits;
use super::take::queue_mut;
use super::verify::{Examined, examine};
use super::walk::parse_aside;
use super::{Engine, QueueShared};
use crate::cursor::AckSet;
use crate::error::{Error, ErrorKind, Result};
use crate::format::checksum::Seed;
use crate::format::frame::Envelope;
use crate::format::header::{FRAMES_START, Header, HeaderFound, decode_start};
use crate::format::record::insert::{InsertHead, Origin, Target, Targets, decode_insert};
use crate::format::record::{DELETE, INSERT, Record};
use crate::log::{Draft, Lane, Purpose, frames, parse_segment_name, segment_name, survey};
use crate::options::MESSAGE_BYTES_MAX;
use crate::report::Report;
use crate::storage::{Mapping, ReadOnly, Storage};

/// A file that may hold messages.
struct Source {
    name: String,
    /// Where its first byte was in the segment.
    offset: u64,
    salt: u64,
    first_id: u64,
    kind: Kind,
    /// What lies at this offset or behind it is not part of the log, though the file is.
    proven_end: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Part of the log: what is not deleted is taken.
    Log,
    /// Part of it once: what the log has lost is taken.
    Old,
    /// Behind the end of the log: all is taken.
    Unproven,
}

/// Ids, some of which are in the set.
#[derive(Default)]
struct Ids(HashMap<u64, AckSet>);

impl Ids {
    fn contains(&self, id: u64) -> bool {
        self.0.get(&(id >> 32)).is_some_and(|ids| ids.contains(id as u32))
    }

    /// Whether it was not in it.
    fn insert(&mut self, id: u64) -> bool {
        self.0.entry(id >> 32).or_default().insert(id as u32)
    }
}

struct Salvage<'a> {
    from: Examined,
    to: &'a Engine,
    queues: BTreeMap<u32, Arc<QueueShared>>,
    taken: Ids,
    /// The ids that what was taken had first.
    origins: Ids,
    /// By records that no open would read.
    deleted: Ids,
    messages: u64,
}

impl Engine {
    /// Inserts all messages of the store in `from` into this one, which is new, under the names and with the options of
    /// their queues.
    pub(crate) fn salvage_from(&self, from: Arc<dyn Storage>) -> Result<Report> {
        let from = examine(&(Arc::new(ReadOnly(from)) as Arc<dyn Storage>))?;
        let mut queues = BTreeMap::new();
        for (&id, entry) in &from.found.replay.state.queues {
            let queue = self.declare_salvaged(id, entry)?;
            if entry.pause.is_some() {
                self.set_paused(&queue, entry.pause)?;
            }
            queues.insert(id, queue);
        }
        let mut salvage = Salvage {
            from,
            to: self,
            queues,
            taken: Ids::default(),
            origins: Ids::default(),
            deleted: Ids::default(),
            messages: 0,
        };
        let sources = salvage.sources();
        for source in sources.iter().filter(|source| source.kind == Kind::Unproven) {
            salvage.read(source, |salvage, _, _, envelope, body| {
                salvage.note_deleted(envelope, body);
                Ok(())
            })?;
        }
        for source in &sources {
            salvage.read(source, Salvage::take)?;
        }
        self.sync()?;
        Ok(Report { messages: salvage.messages, ..salvage.from.report })
    }

    /// A queue as it was declared. What nobody could have declared costs it its options, or its name.
    fn declare_salvaged(&self, id: u32, entry: &QueueEntry) -> Result<Arc<QueueShared>> {
        let name = &entry.shared.name;
        let refused = |error: &Error| *error.kind() == ErrorKind::InvalidArgument;
        match self.declare(name, entry.options.clone()) {
            Err(error) if refused(&error) => {}
            declared => return declared,
        }
        match self.open_queue(name) {
            Err(error) if refused(&error) => self.open_queue(&format!("recovered-{id}")),
            opened => opened,
        }
    }
}

impl Salvage<'_> {
    /// Where messages may be: first the log, in its order.
    fn sources(&self) -> Vec<Source> {
        let state = &self.from.found.replay.state;
        let mut sources: Vec<Source> = state
            .segments
            .iter()
            .map(|s| Source {
                name: s.segment.name(),
                offset: 0,
                salt: s.segment.salt,
                first_id: s.segment.first_id,
                kind: Kind::Log,
                proven_end: u32::MAX,
            })
            .collect();
        let found = &self.from.found;
        let walked = found.verdict.segments.last().map(|&at| found.files[at].header.number);
        if let Some(last) = sources.last_mut()
            && walked.is_some_and(|number| last.name == segment_name(number))
        {
            last.proven_end = found.end;
        }
        let last = state.segments.last().map_or(0, |s| s.segment.number);
        let in_log = |file: u32| state.segments.iter().any(|s| s.segment.file == file);
        let of_store = |header: &&Header| header.store == self.from.store_id;
        let whole = |header: &Header, name: String| Source {
            name,
            offset: 0,
            salt: header.salt,
            first_id: header.first_id,
            kind: if header.place() > last { Kind::Unproven } else { Kind::Old },
            proven_end: 0,
        };
        let strays = self.from.headers.values().map(|(header, _)| header).filter(of_store);
        let strays = strays.filter(|header| !in_log(header.number));
        sources.extend(strays.map(|header| whole(header, segment_name(header.number))));

        let storage = &*self.from.opening.storage;
        for entry in storage.list_in("quarantine").unwrap_or_default() {
            let name = format!("quarantine/{}", entry.name);
            if parse_segment_name(&entry.name).is_some() {
                let header = self.header_of(&name);
                // It was not part of the log when it was put there.
                let aside =
                    header.iter().filter(of_store).map(|header| whole(header, name.clone()));
                sources.extend(aside.map(|source| Source { kind: Kind::Unproven, ..source }));
            } else if let Some(stem) = name.strip_suffix(".txt")
                && let Some(aside) = parse_aside(&self.text(&name))
            {
                let (salt, first_id, offset) = (aside.salt, aside.first_id, aside.offset);
                let name = format!("{stem}.bin");
                let kind = Kind::Unproven;
                sources.push(Source { name, offset, salt, first_id, kind, proven_end: 0 });
            }
        }
        sources
    }

    fn text(&self, name: &str) -> String {
        let read = || -> io::Result<String> {
            let file = self.from.opening.storage.open_read(name)?;
            let mut bytes = vec![0; usize::try_from(file.len()?.min(4096)).unwrap_or(0)];
            file.read_at(0, &mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        read().unwrap_or_default()
    }

    fn header_of(&self, name: &str) -> Option<Header> {
        let data = self.map(name).ok()?;
        match decode_start(data.get(0..FRAMES_START.into())?) {
            HeaderFound::Header { header, .. } => Some(header),
            _ => None,
        }
    }

    fn map(&self, name: &str) -> io::Result<Mapping> {
        self.from.opening.storage.open_read(name)?.map_read()
    }

    /// Calls `visit` with every frame of a source that verifies. One that cannot be read has none.
    fn read(
        &mut self,
        source: &Source,
        visit: impl Fn(&mut Self, &Source, u32, &Envelope, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let Ok(data) = self.map(&source.name) else { return Ok(()) };
        let mut bytes = data.bytes(0..data.published());
        let mut moved;
        if source.offset > 0 {
            // Frames verify only in their own place.
            if source.offset > MESSAGE_BYTES_MAX {
                return Ok(());
            }
            let start = source.offset as usize;
            // Whatever a note claims: zeroes that nobody touches take no memory.
            moved = vec![0; start + bytes.len()];
            moved[start..].copy_from_slice(bytes);
            bytes = &moved;
        }
        let from = FRAMES_START.max(source.offset as u32);
        let found = survey(bytes, &Seed::new(source.salt), from);
        let mut result = Ok(());
        frames(bytes, &found, from, found.end, |offset, envelope| {
            let start = offset as usize + envelope.size();
            let body = bytes.get(start..start + envelope.length as usize);
            if let Some(body) = body.filter(|_| result.is_ok()) {
                result = visit(self, source, offset, envelope, body);
            }
        });
        result
    }

    fn note_deleted(&mut self, envelope: &Envelope, body: &[u8]) {
        if envelope.kind == DELETE
            && let Ok(Record::Delete(delete)) = Record::decode(envelope, body)
        {
            // A run of a few bytes can claim ids that were never given out, and take for ever.
            let next_id = self.from.found.next_id;
            for (start, length) in delete.runs.iter() {
                (start..(start + length).min(next_id)).for_each(|id| _ = self.deleted.insert(id));
            }
        }
    }

    fn take(
        &mut self,
        source: &Source,
        offset: u32,
        envelope: &Envelope,
        body: &[u8],
    ) -> Result<()> {
        if envelope.kind != INSERT {
            return Ok(());
        }
        let Ok((head, payload)) = decode_insert(envelope.info, body) else { return Ok(()) };
        let first_id = source.first_id + u64::from(envelope.arg);
        for (id, (queue, priority)) in (first_id..).zip(head.targets()) {
            let origin = head.origin.map_or(id, |origin| origin.id);
            // It was moved behind the end of the log, which therefore still has it.
            let moved = offset >= source.proven_end && self.origins.contains(origin);
            if self.wants(source.kind, id) && !moved && self.taken.insert(id) {
                self.origins.insert(origin);
                let queue = self.queue(queue)?;
                self.insert(&queue, priority, id, &head, payload)?;
                self.messages += 1;
            }
        }
        Ok(())
    }

    fn wants(&self, kind: Kind, id: u64) -> bool {
        let lost = || self.from.report.damaged.iter().any(|damage| damage.ids.contains(&id));
        let state = &self.from.found.replay.state;
        match kind {
            Kind::Log => !state.is_deleted(id),
            Kind::Old => lost() && !state.is_deleted(id),
            Kind::Unproven => !self.deleted.contains(id),
        }
    }

    fn queue(&mut self, id: u32) -> Result<Arc<QueueShared>> {
        if let Some(queue) = self.queues.get(&id) {
            return Ok(queue.clone());
        }
        let queue = self.to.open_queue(&format!("recovered-{id}"))?;
        self.queues.insert(id, queue.clone());
        Ok(queue)
    }

    /// Inserts a message as it was, but for its id, which it keeps as its origin, and its deduplication key.
    fn insert(
        &self,
        queue: &Arc<QueueShared>,
        priority: u8,
        id: u64,
        head: &InsertHead<'_>,
        payload: &[u8],
    ) -> Result<()> {
        let from = Origin { id, attempts: 0, queue: queue.name.as_bytes(), reason: b"salvaged" };
        let copy = InsertHead {
            targets: Targets::One(Target { queue: queue.id, priority }),
            origin: Some(head.origin.unwrap_or(from)),
            not_before: head.not_before,
            expiry: head.expiry,
            group: head.group,
            headers: head.headers,
            ..InsertHead::plain(head.time_ms, queue.id, priority)
        };
        let mut encoded = Vec::new();
        let info = copy.encode_head(&mut encoded);
        let lanes = [Lane { queue: queue.id, priority }];
        let draft = Draft::insert(info, &encoded, payload, &lanes);
        let draft = Draft { expiry: head.expiry, ..draft };
        let sync_by = self.to.sync_by(queue.durability());
        let (expires, grouped) = (head.expiry.is_some(), head.group.is_some());
        self.to.look_for(queue, Traits { priority, expires, grouped })?;
        loop {
            let mut state = self.to.lock_open()?;
            // Whatever limit the queue has.
            match self.to.log.append(&[draft], Purpose::Insert, sync_by, None) {
                Ok(appended) => {
                    let entry = queue_mut(&mut state, queue)?;
                    entry.note_usage(&[draft]);
                    self.to.delay(&mut state, queue, appended.first_id, priority, head.not_before);
                    drop(state);
                    queue.note_append(priority);
                    self.to.after_append(&appended);
                    return Ok(());
                }
                Err(refused) => {
                    drop(state);
                    self.to.make_room(refused, Purpose::Insert)?;
                }
            }
        }
    }
}

/// An error if there is anything in the directory that is to become a store.
pub(crate) fn check_empty(storage: &dyn Storage) -> Result<()> {
    let listed = storage
        .list()
        .map_err(|error| Error::io("cannot list the directory", error).file(storage.path("")))?;
    match listed.is_empty() {
        true => Ok(()),
        false => Err(Error::invalid("the directory must be empty").file(storage.path(""))),
    }
}
