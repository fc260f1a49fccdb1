//! Bugs that a test build can be given, to show that the tests would find them.
//!
//! In every ordinary build [`planted`] is `false` at compile time, and nothing of this is left. With `--cfg planted` the
//! environment variable `MILLPOND_PLANTED` names the one bug that the process has. `tests/planted/bugs` lists, for each,
//! the tests that must fail, and `tests/planted/run` shows that they do.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// An insert under `Sync` waits for a sync that is not done.
    SyncLeftOut,
    /// A segment's file is synced, its name is not.
    DirectorySyncLeftOut,
    /// Whoever waits for a sync is told that it is done before it is.
    AcknowledgedBeforeTheSync,
    /// A sync that failed is tried again, and its success believed.
    FailedSyncRetried,
    /// After a failed sync, work goes on.
    PoisonForgotten,
    /// A delete under `Sync` does not wait for its sync.
    DeleteNotSynced,
    /// A duplicate under `Sync` does not wait until the first message is durable.
    DuplicateNotSynced,
    /// Segments are removed before the cursor that no longer needs them is there.
    RemovedBeforeTheCursor,
    /// A cursor gets its name before its content is durable.
    CursorNotSynced,
    /// A cursor speaks of log that is not durable yet.
    CursorBeforeTheLog,
    /// Segments of another store are taken for the store's own.
    ForeignSegmentAccepted,
    /// Frames of an older file, or from another place, verify.
    StaleFrameAccepted,
    /// A frame's length is used though its header does not verify.
    LengthTrusted,
    /// Bodies are not verified.
    BodyNotVerified,
    /// An index is not verified.
    IndexNotVerified,
    /// A frame's first word is stored before the rest of it.
    FirstWordFirst,
    /// A batch that has lost its end counts.
    TornBatchKept,
    /// The index of a segment stays there although a power cut has undone what it is about.
    UndoneIndexKept,
    /// An open writes one cursor, beside that of a close.
    OneCursorOfAnOpen,
    /// What lies behind the end of a recovered log stays there.
    LeftBehindTheEnd,
    /// Nobody is told that a delivery still has a segment mapped when its store is closed.
    DeliveryNotHeld,
    /// Ids are given out again that no file remembers.
    IdsUsedAgain,
    /// What was in flight when the process died comes back uncounted.
    AttemptForgotten,
    /// A message is moved to its dead letter queue in two appends.
    MovedInTwoAppends,
    /// A cursor does not say that messages of a queue expire.
    ExpiryForgotten,
    /// A cursor does not say that a queue is paused.
    PauseForgotten,
    /// An insert does not ask under the append lock whether its queue got a limit meanwhile.
    LimitAskedTooEarly,
    /// What an insert or a purge has read ahead of a lane is delivered, durable or not.
    ReadAheadDelivered,
    /// A queue counts as empty though the log has just gone on behind a message of it.
    SealedNotCounted,
    /// What becomes of a delayed message is noted in the segment before its own, if the log has just gone on.
    DelayedMisplaced,
    /// After an open nobody asks who holds a group.
    HoldersForgotten,
    /// A cursor says of a lane that it has come past messages that only wait for their groups.
    PassedOverForgotten,
    /// A consumer that waits is not woken when a group goes on.
    GroupWakesNobody,
    /// A rewritten segment gets its name before its content is durable.
    RewriteNotSynced,
    /// What was deleted while a segment was rewritten is there again.
    DeletedDuringRewriteForgotten,
    /// A file that was given back is changed before its new name is durable.
    ReusedBeforeTheSync,
    /// A spare becomes a segment before what it held is gone for certain.
    SpareTakenBeforeTheSync,
    /// Inserts use the space that is held back for a full disk.
    HeldBackSpaceUsed,
    /// A leader that is done wakes its own group, and nobody to lead the next one.
    NextLeaderNotWoken,
    /// An insert signals a consumer without the lock that the consumer looks under.
    ConsumerSignalledWithoutTheLock,
}

#[cfg(not(planted))]
#[inline(always)]
pub(crate) const fn planted(_bug: Bug) -> bool {
    false
}

#[cfg(planted)]
pub(crate) fn planted(bug: Bug) -> bool {
    use std::sync::OnceLock;

    static NAME: OnceLock<Option<String>> = OnceLock::new();
    let name = NAME.get_or_init(|| std::env::var("MILLPOND_PLANTED").ok());
    name.as_ref().is_some_and(|name| *name == format!("{bug:?}"))
}
