//! The one public error: few kinds, each saying what the caller should do.

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::report::Damage;

/// What millpond's operations return.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The store was closed. Stop using this handle.
    Closed,
    /// Another process (or another handle of this one) has the directory open. Use that one, or wait for it.
    Locked {
        /// The process that holds it, where it could be read.
        pid: Option<u32>,
    },
    /// An earlier sync failed, so nothing more can be promised. Close the store, look at the disk, reopen.
    Poisoned,
    /// No space to prepare the next segment. Nothing was inserted. Delete messages or make room, and try again.
    DiskFull,
    /// There is no room in the queue, and the insert did not wait, or not long enough. Nothing was inserted.
    QueueFull,
    /// The message, or the batch, is larger than the store allows. Split it, or raise the limit.
    TooLarge,
    /// Somebody else has taken or moved the message since. It will be, or was, handled by another delivery.
    StaleDelivery,
    /// The queue was removed, or there is none of that name.
    NotFound,
    /// The queue still has messages. Purge it first.
    NotEmpty,
    /// What was asked for contradicts what is there; the message says how. Nothing was changed.
    Conflict,
    /// An argument is out of its range; the message says which.
    InvalidArgument,
    /// Damage on disk that strict mode does not pass over. Open without `strict` to go on with what is intact.
    Corrupt,
    /// The directory was written by a newer millpond. Use that version; nothing was touched.
    NewerFormat,
    /// The operating system refused something; `source()` says what.
    Io,
}

/// An error of millpond: a [kind](Error::kind) to act upon, and a message for the person who reads the log.
#[derive(Clone, Debug, thiserror::Error)]
#[error(transparent)]
pub struct Error(Box<Inner>);

#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", self.describe())]
struct Inner {
    kind: ErrorKind,
    what: Cow<'static, str>,
    file: Option<PathBuf>,
    offset: Option<u64>,
    indeterminate: bool,
    damage: Vec<Damage>,
    #[source]
    source: Option<Arc<io::Error>>,
}

impl Inner {
    fn describe(&self) -> String {
        let mut text = self.what.to_string();
        if let Some(file) = &self.file {
            text.push_str(&format!(": {}", file.display()));
        }
        if let Some(offset) = self.offset {
            text.push_str(&format!(" at byte {offset}"));
        }
        if let Some(source) = &self.source {
            text.push_str(&format!(": {source}"));
        }
        text
    }
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, what: impl Into<Cow<'static, str>>) -> Error {
        Error(Box::new(Inner {
            kind,
            what: what.into(),
            file: None,
            offset: None,
            indeterminate: false,
            damage: Vec::new(),
            source: None,
        }))
    }

    /// An operating system error; a full disk is told apart from the rest.
    pub(crate) fn io(what: impl Into<Cow<'static, str>>, source: io::Error) -> Error {
        let kind = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::DiskFull,
            _ => ErrorKind::Io,
        };
        let mut error = Error::new(kind, what);
        error.0.source = Some(Arc::new(source));
        error
    }

    pub(crate) fn poisoned(cause: Arc<io::Error>) -> Error {
        let mut error = Error::new(
            ErrorKind::Poisoned,
            "a sync failed, so nothing more can be promised; close the store, look at the disk, reopen",
        );
        error.0.source = Some(cause);
        error
    }

    pub(crate) fn closed() -> Error {
        Error::new(ErrorKind::Closed, "the store is closed")
    }

    pub(crate) fn stale() -> Error {
        Error::new(
            ErrorKind::StaleDelivery,
            "another delivery has taken or moved this message, or it is gone",
        )
    }

    pub(crate) fn invalid(what: impl Into<Cow<'static, str>>) -> Error {
        Error::new(ErrorKind::InvalidArgument, what)
    }

    pub(crate) fn file(mut self, path: impl AsRef<Path>) -> Error {
        self.0.file = Some(path.as_ref().to_path_buf());
        self
    }

    pub(crate) fn offset(mut self, offset: u64) -> Error {
        self.0.offset = Some(offset);
        self
    }

    pub(crate) fn damage_found(mut self, damage: &[Damage]) -> Error {
        self.0.damage = damage.to_vec();
        self
    }

    pub(crate) fn indeterminate(mut self) -> Error {
        self.0.indeterminate = true;
        self
    }

    /// What to act upon.
    pub fn kind(&self) -> &ErrorKind {
        &self.0.kind
    }

    /// The file in question, where there is one.
    pub fn file_path(&self) -> Option<&Path> {
        self.0.file.as_deref()
    }

    /// The byte offset in [`file_path`](Error::file_path), where there is one.
    pub fn byte_offset(&self) -> Option<u64> {
        self.0.offset
    }

    /// Whether the same call may succeed later without any other change by the caller.
    pub fn is_retryable(&self) -> bool {
        matches!(self.0.kind, ErrorKind::DiskFull | ErrorKind::QueueFull | ErrorKind::Locked { .. })
    }

    /// Whether it is unknown if the operation took effect: the record was appended and the sync that was to
    /// cover it failed, so after a reopen the message may or may not be there. An insert with a
    /// [deduplication key](crate::Message::dedup_key) can simply be repeated then.
    pub fn is_indeterminate(&self) -> bool {
        self.0.indeterminate
    }

    /// All damage to the log that made strict mode refuse to open it: what
    /// [`Recovery::damaged`](crate::Recovery::damaged) would list otherwise. Empty for other errors.
    pub fn damage(&self) -> &[Damage] {
        &self.0.damage
    }

    /// The operating system's error behind this one.
    pub fn io_error(&self) -> Option<&io::Error> {
        self.0.source.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_file_offset_and_cause() {
        let cause = io::Error::other("disk on fire");
        let error = Error::io("cannot read the segment", cause).file("/q/1.seg").offset(4096);
        assert_eq!(
            error.to_string(),
            "cannot read the segment: /q/1.seg at byte 4096: disk on fire"
        );
        assert_eq!(error.kind(), &ErrorKind::Io);
    }

    #[test]
    fn an_error_can_cross_threads() {
        fn check<T: Send + Sync + 'static>() {}
        check::<Error>();
    }
}
