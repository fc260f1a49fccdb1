//! Inserting messages.

use std::sync::Arc;

use super::checkpoint::IDS_RESERVED;
use super::scratch::with_scratch;
use super::{Engine, QueueShared};
use crate::error::{Error, ErrorKind, Result};
use crate::format::record::insert::InsertHead;
use crate::log::{Appended, Draft, Lane, Purpose, frames_capacity};
use crate::options::Durability;

/// The envelope and the head of a plain message are less than this.
const OVERHEAD_BYTES: u64 = 64;

impl Engine {
    /// Inserts one message and returns its id.
    pub fn insert(&self, queue: &Arc<QueueShared>, payload: &[u8]) -> Result<u64> {
        self.check_size(payload.len())?;
        let lanes = [Lane { queue: queue.id, priority: 0 }];
        let head = InsertHead::plain(self.time.stamp_ms(), queue.id, 0);
        let appended = with_scratch(|buffer| {
            let info = head.encode_head(buffer);
            let draft = Draft::insert(info, buffer, payload, &lanes);
            self.append_insert(queue, std::slice::from_ref(&draft))
        })?;
        self.finish_insert(queue, &appended, 1)?;
        Ok(appended.first_id)
    }

    /// Inserts all of `payloads`, or none; their ids are in a row from the one returned.
    pub fn insert_batch(&self, queue: &Arc<QueueShared>, payloads: &[&[u8]]) -> Result<u64> {
        let mut frames_bytes = 0;
        for payload in payloads {
            self.check_size(payload.len())?;
            frames_bytes += payload.len() as u64 + OVERHEAD_BYTES;
        }
        if payloads.len() as u64 > IDS_RESERVED {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!("a batch of {} messages; it can have {IDS_RESERVED}", payloads.len()),
            ));
        }
        // A run lies within one segment.
        let capacity = frames_capacity(self.settings.segment_bytes as u32);
        if payloads.len() > 1 && frames_bytes > capacity {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!("a batch of {frames_bytes} bytes does not fit in a segment of {capacity}"),
            ));
        }
        let lanes = [Lane { queue: queue.id, priority: 0 }];
        let mut head = Vec::new();
        let info = InsertHead::plain(self.time.stamp_ms(), queue.id, 0).encode_head(&mut head);
        let run: Vec<Draft<'_>> =
            payloads.iter().map(|payload| Draft::insert(info, &head, payload, &lanes)).collect();
        let appended = self.append_insert(queue, &run)?;
        self.finish_insert(queue, &appended, payloads.len())?;
        Ok(appended.first_id)
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

    pub(super) fn append_insert(&self, queue: &QueueShared, run: &[Draft<'_>]) -> Result<Appended> {
        let sync_by = self.sync_by(queue.durability());
        loop {
            match self.log.append(run, Purpose::Insert, sync_by, Some(&queue.removed)) {
                Ok(appended) => return Ok(appended),
                Err(refused) => self.make_room(refused, Purpose::Insert)?,
            }
        }
    }

    /// Waits for what the queue's durability asks for, and wakes consumers.
    fn finish_insert(
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
