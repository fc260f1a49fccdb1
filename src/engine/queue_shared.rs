//! The part of a queue that its handles share, readable without the dispatch lock.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::millis;
use crate::lock::Signal;
use crate::log::Refused;
use crate::options::Durability;
use crate::planted::{Bug, planted};
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// What consumers have to look out for because of a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traits {
    pub priority: u8,
    pub expires: bool,
    pub grouped: bool,
}

/// The part of a queue that its handles share, readable without the dispatch lock.
#[derive(Debug)]
pub(crate) struct QueueShared {
    pub id: u32,
    pub name: Arc<str>,
    durability: AtomicU64,
    /// What consumers look for: a bit for each priority, and those below. Set under the dispatch lock, once they do.
    looked_for: AtomicU32,
    /// How long messages live, in milliseconds; 0 is for ever.
    ttl_ms: AtomicU64,
    /// Appends of messages with a priority above the lowest, so that lanes without new ones need not be looked at.
    urgent: AtomicU64,
    /// Consumers that sleep, or are about to.
    pub waiters: AtomicUsize,
    pub signal: Signal,
    /// Inserts that wait for room, and how they are woken.
    pub room_waiters: AtomicUsize,
    pub room: Signal,
    /// Set under the append lock, which inserts hold while they look.
    pub removed: AtomicBool,
}

impl QueueShared {
    const PROCESS: u64 = 0;
    const SYNC: u64 = 1;

    /// Behind the priorities: messages of the queue may expire.
    const EXPIRES: u32 = 1 << 16;
    /// And there is a limit to how many there may be.
    const LIMITED: u32 = 1 << 17;
    /// And they may belong to groups.
    const GROUPED: u32 = 1 << 18;

    pub(super) fn new(id: u32, name: &str, durability: Durability) -> Arc<QueueShared> {
        let shared = QueueShared {
            id,
            name: name.into(),
            durability: AtomicU64::new(0),
            looked_for: AtomicU32::new(0),
            ttl_ms: AtomicU64::new(0),
            urgent: AtomicU64::new(0),
            waiters: AtomicUsize::new(0),
            signal: Signal::default(),
            room_waiters: AtomicUsize::new(0),
            room: Signal::default(),
            removed: AtomicBool::new(false),
        };
        shared.set_durability(durability);
        Arc::new(shared)
    }

    /// Whether consumers look for such messages.
    #[inline]
    pub fn looks_for(&self, traits: Traits) -> bool {
        let expires = if traits.expires { Self::EXPIRES } else { 0 };
        let grouped = if traits.grouped { Self::GROUPED } else { 0 };
        let wanted = 1 << traits.priority | expires | grouped;
        self.looked_for.load(Ordering::Acquire) & wanted == wanted
    }

    /// Consumers look for messages with these traits, but for the priority: see [`add_lane`](QueueEntry::add_lane). Under
    /// the dispatch lock.
    pub fn look_for(&self, traits: Traits) {
        let expires = if traits.expires { Self::EXPIRES } else { 0 };
        let grouped = if traits.grouped { Self::GROUPED } else { 0 };
        self.looked_for.fetch_or(expires | grouped, Ordering::Release);
    }

    /// Consumers look for messages of this priority. Under the dispatch lock.
    pub(super) fn look_for_priority(&self, priority: u8) {
        self.looked_for.fetch_or(1 << priority, Ordering::Release);
    }

    /// Consumers look for messages of no priority. Under the dispatch lock.
    pub(super) fn look_for_no_priority(&self) {
        let kept = Self::EXPIRES | Self::LIMITED | Self::GROUPED;
        self.looked_for.fetch_and(kept, Ordering::Release);
    }

    /// The same queue under another name.
    pub(super) fn renamed(&self, name: &str, default: Durability) -> Arc<QueueShared> {
        let renamed = QueueShared::new(self.id, name, default);
        let looked_for = self.looked_for.load(Ordering::Acquire);
        renamed.looked_for.store(looked_for, Ordering::Release);
        renamed
    }

    /// Whether inserts have to see whether there is room.
    #[inline]
    pub fn is_limited(&self) -> bool {
        self.looked_for.load(Ordering::Acquire) & Self::LIMITED != 0
    }

    /// See [`QueueEntry::set_limited`].
    pub(super) fn set_limited(&self, limited: bool) {
        match limited {
            true => self.looked_for.fetch_or(Self::LIMITED, Ordering::Release),
            false => self.looked_for.fetch_and(!Self::LIMITED, Ordering::Release),
        };
    }

    /// Whether an insert may come in that does not hold the dispatch lock. Under the append lock.
    #[inline]
    pub fn admits(&self) -> std::result::Result<(), Refused> {
        match (self.removed.load(Ordering::Relaxed), self.is_limited()) {
            (true, _) => Err(Refused::Removed),
            (_, true) if !planted(Bug::LimitAskedTooEarly) => Err(Refused::Limited),
            _ => Ok(()),
        }
    }

    /// Something was taken out of the queue, or it may have more: whoever waits for room looks again. Under the dispatch
    /// lock, which they hold from their look until they sleep.
    pub fn wake_for_room(&self) {
        if self.room_waiters.load(Ordering::SeqCst) > 0 {
            self.room.notify_all();
        }
    }

    /// Whether there may be messages that expire.
    #[inline]
    pub fn has_expiring(&self) -> bool {
        self.looked_for.load(Ordering::Acquire) & Self::EXPIRES != 0
    }

    /// Whether there may be messages that belong to groups.
    #[inline]
    pub fn has_groups(&self) -> bool {
        self.looked_for.load(Ordering::Acquire) & Self::GROUPED != 0
    }

    /// Whether messages have to be looked at before they are delivered.
    #[inline]
    pub fn looks_ahead(&self) -> bool {
        self.looked_for.load(Ordering::Acquire) & (Self::EXPIRES | Self::GROUPED) != 0
    }

    /// How long messages live if they do not say.
    #[inline]
    pub fn ttl(&self) -> Option<Duration> {
        let ttl_ms = self.ttl_ms.load(Ordering::Relaxed);
        (ttl_ms > 0).then(|| Duration::from_millis(ttl_ms))
    }

    /// Messages of this priority were appended.
    #[inline]
    pub fn note_append(&self, priority: u8) {
        if priority > 0 {
            self.urgent.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// How long messages live that do not say.
    pub(super) fn set_ttl(&self, ttl: Option<Duration>) {
        let ttl_ms = ttl.map_or(0, |ttl| millis(ttl).max(1));
        self.ttl_ms.store(ttl_ms, Ordering::Relaxed);
    }

    /// Appends of messages with a priority above the lowest. What a look at the lanes misses changes the number that was
    /// read before it.
    #[inline]
    pub(super) fn urgent(&self) -> u64 {
        self.urgent.load(Ordering::SeqCst)
    }

    /// An interval is kept as its milliseconds and one more.
    pub(super) fn set_durability(&self, durability: Durability) {
        let code = match durability {
            Durability::Process => Self::PROCESS,
            Durability::Sync => Self::SYNC,
            Durability::Interval(every) => millis(every).saturating_add(1),
        };
        self.durability.store(code, Ordering::Release);
    }

    pub fn durability(&self) -> Durability {
        match self.durability.load(Ordering::Acquire) {
            Self::PROCESS => Durability::Process,
            Self::SYNC => Durability::Sync,
            code => Durability::Interval(Duration::from_millis(code - 1)),
        }
    }
}
