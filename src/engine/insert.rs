//! Inserting messages.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::checkpoint::IDS_RESERVED;
use super::limits::{Need, Victims};
use super::queue_shared::Traits;
use super::scratch::with_scratch;
use super::state::State;
use super::take::queue_mut;
use super::{Engine, QueueShared};
use crate::clock::{Now, millis};
use crate::error::{Error, ErrorKind, Result};
use crate::format::record::DELETE;
use crate::format::record::insert::InsertHead;
use crate::format::record::settle::encode_delete;
use crate::log::{Appended, Draft, Lane, Purpose, Refused, frames_capacity};
use crate::options::Durability;
use crate::planted::{Bug, planted};

/// What the log has room for, in milliseconds since the epoch.
const TIME_MAX_MS: u64 = (1 << 48) - 1;

/// The envelope and the head of a plain message are less than this.
const OVERHEAD_BYTES: u64 = 64;

/// What is inserted.
#[derive(Clone, Copy)]
pub(crate) struct Outgoing<'a> {
    pub payload: &'a [u8],
    /// A header block; empty for none.
    pub headers: &'a [u8],
    pub priority: u8,
    pub due: Option<Due>,
    /// How long it lives.
    pub ttl: Option<Duration>,
    /// For [`Engine::insert_keyed`].
    pub key: Option<&'a [u8]>,
    pub group: Option<&'a [u8]>,
}

/// When a message becomes ready, and when it expires, in milliseconds since the epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Times {
    pub due: Option<u64>,
    pub expiry: Option<u64>,
}

/// When a message becomes ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    In(Duration),
    At(SystemTime),
}

impl Due {
    /// In milliseconds since the epoch; None for a time that has come.
    fn at_ms(self, now: Now) -> Result<Option<u64>> {
        let at_ms = match self {
            // Not before: less than a millisecond is one.
            Due::In(delay) if delay.is_zero() => 0,
            Due::In(delay) => now.wall_ms.saturating_add(millis(delay).max(1)),
            Due::At(time) => time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| {
                let whole = Duration::from_millis(millis(since));
                millis(since).saturating_add(u64::from(since > whole))
            }),
        };
        if at_ms > TIME_MAX_MS {
            return Err(Error::invalid("a message cannot be delayed beyond the year 10889"));
        }
        Ok(Some(at_ms).filter(|at_ms| *at_ms > now.wall_ms))
    }
}

impl<'a> Outgoing<'a> {
    pub fn plain(payload: &'a [u8]) -> Outgoing<'a> {
        Outgoing {
            payload,
            headers: &[],
            priority: 0,
            due: None,
            ttl: None,
            key: None,
            group: None,
        }
    }

    /// How long it lives in this queue.
    fn lifetime(&self, queue: &QueueShared) -> Option<Duration> {
        match (self.ttl, queue.ttl()) {
            (Some(own), Some(general)) => Some(own.min(general)),
            (own, general) => own.or(general),
        }
    }

    fn times(&self, queue: &QueueShared, now: Now) -> Result<Times> {
        let due = self.due.map_or(Ok(None), |due| due.at_ms(now))?;
        let expiry = self.lifetime(queue).map_or(Ok(None), |ttl| expiry_ms(ttl, now).map(Some))?;
        if due.is_some_and(|due| expiry.is_some_and(|expiry| expiry <= due)) {
            return Err(Error::invalid("the message would expire before it is due"));
        }
        Ok(Times { due, expiry })
    }

    fn bytes(&self) -> usize {
        let optional = |field: Option<&[u8]>| field.map_or(0, <[u8]>::len);
        self.payload.len() + self.headers.len() + optional(self.key) + optional(self.group)
    }

    fn head(&self, time_ms: u64, queue: u32, times: Times) -> InsertHead<'a> {
        let headers = Some(self.headers).filter(|headers| !headers.is_empty());
        let Times { due: not_before, expiry } = times;
        let plain = InsertHead::plain(time_ms, queue, self.priority);
        InsertHead { headers, not_before, expiry, key: self.key, group: self.group, ..plain }
    }

    fn traits(&self, times: Times) -> Traits {
        let (expires, grouped) = (times.expiry.is_some(), self.group.is_some());
        Traits { priority: self.priority, expires, grouped }
    }
}

/// When a message expires that is inserted now, in milliseconds since the epoch.
pub(super) fn expiry_ms(ttl: Duration, now: Now) -> Result<u64> {
    if ttl < Duration::from_millis(1) {
        return Err(Error::invalid("a time to live must be at least 1 ms"));
    }
    let expiry_ms = now.wall_ms.saturating_add(millis(ttl));
    if expiry_ms > TIME_MAX_MS {
        return Err(Error::invalid("a message cannot live beyond the year 10889"));
    }
    Ok(expiry_ms)
}

impl Engine {
    /// Inserts one message and returns its id; waits for room until `until`, or for as long as it takes.
    pub fn insert(
        &self,
        queue: &Arc<QueueShared>,
        message: &Outgoing<'_>,
        until: Option<Instant>,
    ) -> Result<u64> {
        self.insert_one(queue, message, until)
    }

    /// As [`insert`](Engine::insert), of nothing but a payload: compiled for that case.
    pub fn insert_plain(
        &self,
        queue: &Arc<QueueShared>,
        payload: &[u8],
        until: Option<Instant>,
    ) -> Result<u64> {
        self.insert_one(queue, &Outgoing::plain(payload), until)
    }

    #[inline(always)]
    fn insert_one(
        &self,
        queue: &Arc<QueueShared>,
        message: &Outgoing<'_>,
        until: Option<Instant>,
    ) -> Result<u64> {
        if message.due.is_some() || queue.is_limited() {
            return self.insert_batch(queue, std::slice::from_ref(message), until);
        }
        self.check_size(message.bytes())?;
        let times = match message.lifetime(queue) {
            Some(_) => message.times(queue, self.now())?,
            None => Times::default(),
        };
        self.look_for(queue, message.traits(times))?;
        let lanes = [Lane { queue: queue.id, priority: message.priority }];
        let head = message.head(self.time.stamp_ms(), queue.id, times);
        let inserted = with_scratch(|buffer| {
            let info = head.encode_head(buffer);
            let mut draft = Draft::insert(info, buffer, message.payload, &lanes);
            draft.expiry = times.expiry;
            let appended = self.append_insert(queue, std::slice::from_ref(&draft))?;
            let Some(appended) = appended else { return Ok(None) };
            queue.note_append(message.priority);
            self.finish_insert(queue, &appended, 1)?;
            Ok(Some(appended.first_id))
        })?;
        match inserted {
            Some(id) => Ok(id),
            None => self.insert_batch(queue, std::slice::from_ref(message), until),
        }
    }

    /// Inserts all of `messages`, or none; their ids are in a row from the one returned.
    pub fn insert_batch(
        &self,
        queue: &Arc<QueueShared>,
        messages: &[Outgoing<'_>],
        until: Option<Instant>,
    ) -> Result<u64> {
        self.with_run(queue, messages, self.now(), |run, times| {
            let is_delayed = times.iter().any(|times| times.due.is_some());
            let locked = is_delayed || queue.is_limited();
            let appended = if locked { None } else { self.append_insert(queue, run)? };
            let appended = match appended {
                Some(appended) => appended,
                None => self.append_locked(queue, run, times, until)?,
            };
            messages.iter().for_each(|message| queue.note_append(message.priority));
            self.finish_insert(queue, &appended, messages.len())?;
            Ok(appended.first_id)
        })
    }

    /// Checks `messages`, and appends the run that they make, each with its times, by `append`.
    pub(super) fn with_run<T>(
        &self,
        queue: &Arc<QueueShared>,
        messages: &[Outgoing<'_>],
        now: Now,
        append: impl FnOnce(&[Draft<'_>], &[Times]) -> Result<T>,
    ) -> Result<T> {
        self.check_batch(messages)?;
        let times = messages.iter().map(|message| message.times(queue, now));
        let times = times.collect::<Result<Vec<_>>>()?;
        for (message, times) in messages.iter().zip(&times) {
            self.look_for(queue, message.traits(*times))?;
        }
        let heads = Heads::encode(messages, &times, |message, times| {
            message.head(now.wall_ms, queue.id, times)
        });
        let lanes: Vec<Lane> = messages
            .iter()
            .map(|message| Lane { queue: queue.id, priority: message.priority })
            .collect();
        let run: Vec<Draft<'_>> = (messages.iter().zip(&lanes).enumerate())
            .map(|(n, (message, lane))| {
                let (info, head) = heads.get(n);
                let draft = Draft::insert(info, head, message.payload, std::slice::from_ref(lane));
                Draft { expiry: times[n].expiry, ..draft }
            })
            .collect();
        append(&run, &times)
    }

    fn check_batch(&self, messages: &[Outgoing<'_>]) -> Result<()> {
        let mut frames_bytes = 0;
        for message in messages {
            self.check_size(message.bytes())?;
            frames_bytes += message.bytes() as u64 + OVERHEAD_BYTES;
        }
        if messages.len() as u64 > IDS_RESERVED {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!("a batch of {} messages; it can have {IDS_RESERVED}", messages.len()),
            ));
        }
        // A run lies within one segment.
        let capacity = frames_capacity(self.settings.segment_bytes as u32);
        if messages.len() > 1 && frames_bytes > capacity {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!("a batch of {frames_bytes} bytes does not fit in a segment of {capacity}"),
            ));
        }
        Ok(())
    }

    /// Makes sure that consumers look for such messages before there is one.
    #[inline]
    pub(super) fn look_for(&self, queue: &QueueShared, traits: Traits) -> Result<()> {
        match queue.looks_for(traits) {
            true => Ok(()),
            false => self.begin_to_look_for(queue, traits),
        }
    }

    #[cold]
    fn begin_to_look_for(&self, queue: &QueueShared, traits: Traits) -> Result<()> {
        let mut state = self.lock_state();
        let next_id = self.log.tail().next_id();
        queue_mut(&mut state, queue)?.add_lane(traits.priority, next_id);
        queue.look_for(traits);
        Ok(())
    }

    fn check_size(&self, bytes: usize) -> Result<()> {
        let limit = self.settings.max_message_bytes;
        if bytes as u64 > limit {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!("a message of {bytes} bytes; the store takes at most {limit}"),
            ));
        }
        Ok(())
    }

    /// None if it has to be done under the dispatch lock: the queue has been limited.
    fn append_insert(&self, queue: &QueueShared, run: &[Draft<'_>]) -> Result<Option<Appended>> {
        let sync_by = self.sync_by(queue.durability());
        loop {
            match self.log.append_if(run, Purpose::Insert, sync_by, |_| queue.admits()) {
                Ok(appended) => return Ok(Some(appended)),
                Err(Refused::Limited) => return Ok(None),
                Err(refused) => self.make_room(refused, Purpose::Insert)?,
            }
        }
    }

    /// As [`append_insert`](Engine::append_insert), under the dispatch lock: of messages some of which are due later, or
    /// into a limited queue. Those that are due later are touched from the first: the lanes, which are in the order of the
    /// inserts, pass them over.
    fn append_locked(
        &self,
        queue: &Arc<QueueShared>,
        run: &[Draft<'_>],
        times: &[Times],
        until: Option<Instant>,
    ) -> Result<Appended> {
        let sync_by = self.sync_by(queue.durability());
        loop {
            self.check_alive()?;
            let room = self.room(self.lock_open()?, queue, Need::of(run), until)?;
            let Some((mut state, victims)) = room else { continue };
            let refused = match self.append_with_victims(queue, run, &victims, sync_by) {
                Ok(appended) => {
                    self.forget_victims(&mut state, queue, &victims);
                    queue_mut(&mut state, queue)?.note_usage(run);
                    for ((draft, times), id) in run.iter().zip(times).zip(appended.first_id..) {
                        self.delay(&mut state, queue, id, draft.lanes[0].priority, times.due);
                    }
                    queue_mut(&mut state, queue)?.set_timer(self.now());
                    return Ok(appended);
                }
                Err(refused) => refused,
            };
            drop(state);
            self.make_room(refused, Purpose::Insert)?;
        }
    }

    /// A message that was just inserted is due later, if it is: it is touched from the first.
    ///
    /// Ensures: the state knows the segment of each touched message, so that what becomes of it is noted there. The log may
    /// have gone on in another one with this very insert.
    pub(super) fn delay(
        &self,
        state: &mut State,
        queue: &QueueShared,
        id: u64,
        priority: u8,
        due: Option<u64>,
    ) {
        let Some(due) = due else { return };
        if !planted(Bug::DelayedMisplaced) {
            state.absorb(&mut self.log.tail());
        }
        if let Some(entry) = state.queues.get_mut(&queue.id) {
            entry.delay(id, priority, due);
        }
    }

    /// Appends the run, and with it that what has to make room for it is deleted.
    pub(super) fn append_with_victims(
        &self,
        queue: &QueueShared,
        run: &[Draft<'_>],
        victims: &Victims,
        sync_by: Option<Instant>,
    ) -> std::result::Result<Appended, Refused> {
        let append = |run: &[Draft<'_>]| {
            self.log.append(run, Purpose::Insert, sync_by, Some(&queue.removed))
        };
        if victims.is_empty() {
            return append(run);
        }
        with_scratch(|body| {
            encode_delete(queue.id, victims.iter().map(|&(id, _)| (id, 1)), body);
            let mut run = run.to_vec();
            run.push(Draft::record(DELETE, body));
            append(&run)
        })
    }

    /// Waits for what the queue's durability asks for, and wakes consumers.
    pub(super) fn finish_insert(
        &self,
        queue: &QueueShared,
        appended: &Appended,
        messages: usize,
    ) -> Result<()> {
        self.after_append(appended);
        if queue.durability() == Durability::Sync {
            self.sync_to(appended.end)?;
        }
        self.wake_waiters(queue, messages);
        Ok(())
    }
}

/// The heads of a batch, each with its envelope's `info`. Those that are alike are there once.
struct Heads {
    encoded: Vec<u8>,
    heads: Vec<(u16, Range<usize>)>,
}

impl Heads {
    fn encode<'a>(
        messages: &[Outgoing<'a>],
        times: &[Times],
        head: impl Fn(&Outgoing<'a>, Times) -> InsertHead<'a>,
    ) -> Heads {
        let mut all = Heads { encoded: Vec::new(), heads: Vec::with_capacity(messages.len()) };
        for (n, message) in messages.iter().enumerate() {
            let kind = |n: usize| {
                let Outgoing { headers, priority, key, group, .. } = messages[n];
                (headers, priority, key, group, times[n])
            };
            if n > 0 && kind(n - 1) == kind(n) {
                all.heads.push(all.heads[n - 1].clone());
                continue;
            }
            let start = all.encoded.len();
            let info = head(message, times[n]).encode_head(&mut all.encoded);
            all.heads.push((info, start..all.encoded.len()));
        }
        all
    }

    fn get(&self, n: usize) -> (u16, &[u8]) {
        let (info, range) = &self.heads[n];
        (*info, &self.encoded[range.clone()])
    }
}
