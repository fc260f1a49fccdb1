//! What is remembered of one touched message.

use std::time::Instant;

pub(crate) use crate::format::record::settle::Place;

/// One touched message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub place: Place,
    pub priority: u8,
    /// Attempts used up, the running one included.
    pub attempts: u32,
    /// The delivery that may settle this message; 0 if none may.
    pub token: u64,
    /// When the lease ends; only in flight, and only if the queue has leases.
    pub deadline: Option<Instant>,
    /// When it becomes ready, or has become so, in milliseconds since the epoch; only if it is or was delayed.
    pub due_ms: u64,
    /// Whether nobody has had it since it was inserted, or kicked.
    pub fresh: bool,
    /// Whether it waits for its group; only if it was given back, or nobody has had it.
    pub waits: bool,
    /// Why it was buried; only buried.
    pub reason: Option<Box<str>>,
}

impl Entry {
    pub fn given_back(priority: u8, attempts: u32) -> Entry {
        Entry {
            place: Place::GivenBack,
            priority,
            attempts,
            token: 0,
            deadline: None,
            due_ms: 0,
            fresh: false,
            waits: false,
            reason: None,
        }
    }

    /// Ready as if it were new.
    pub fn fresh(priority: u8) -> Entry {
        Entry { fresh: true, ..Entry::given_back(priority, 0) }
    }

    /// What the log has of its place. That a lease ran out is not recorded: its delivery may still extend it, which is not
    /// either.
    pub fn recorded_place(&self) -> Place {
        if self.place == Place::GivenBack && self.token != 0 { Place::InFlight } else { self.place }
    }

    pub fn delayed(priority: u8, attempts: u32, due_ms: u64) -> Entry {
        Entry { place: Place::Delayed, due_ms, ..Entry::given_back(priority, attempts) }
    }

    pub fn buried(priority: u8, attempts: u32, reason: &str) -> Entry {
        let reason = (!reason.is_empty()).then(|| reason.into());
        Entry { place: Place::Buried, reason, ..Entry::given_back(priority, attempts) }
    }

    pub fn in_flight(priority: u8, attempts: u32, token: u64, deadline: Option<Instant>) -> Entry {
        Entry { place: Place::InFlight, token, deadline, ..Entry::given_back(priority, attempts) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_whose_lease_ran_out_is_in_flight_on_record() {
        let mut entry = Entry::in_flight(0, 1, 7, None);
        assert_eq!(entry.recorded_place(), Place::InFlight);
        entry.place = Place::GivenBack;
        assert_eq!(entry.recorded_place(), Place::InFlight);
        assert_eq!(Entry::given_back(0, 1).recorded_place(), Place::GivenBack);
        assert_eq!(Entry::delayed(0, 1, 5).recorded_place(), Place::Delayed);
    }

    #[test]
    fn a_buried_message_keeps_its_reason_if_there_is_one() {
        let entry = Entry::buried(3, 2, "broken");
        assert_eq!((entry.place, entry.priority, entry.attempts), (Place::Buried, 3, 2));
        assert_eq!(entry.reason.as_deref(), Some("broken"));
        assert_eq!(Entry::buried(3, 2, "").reason, None);
    }
}
