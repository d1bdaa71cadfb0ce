//! What happens to the spool.

use tracing::{error, info, warn};

use super::count;
use crate::mail::QueueId;

/// The spool is open.
#[derive(Debug)]
pub struct SpoolOpened<'a> {
    /// Its directory.
    pub path: &'a std::path::Path,
    /// Messages in it.
    pub messages: u64,
    /// Ranges that could not be read and were set aside.
    pub damaged: usize,
    /// Messages whose body is missing; they are held.
    pub without_body: usize,
    /// Whether the last, never acknowledged batch was cut off.
    pub torn_tail: bool,
}

impl SpoolOpened<'_> {
    /// Logs it.
    pub fn emit(&self) {
        let Self { path, messages, damaged, without_body, torn_tail } = self;
        let path = path.display();
        if *damaged > 0 || *without_body > 0 {
            error!(event = "spool", %path, messages, damaged, without_body, torn_tail,
                "spool opened with damage; see quarantine/ in it");
        } else {
            info!(event = "spool", %path, messages, torn_tail, "spool opened");
        }
    }
}

/// The spool could not do something.
pub struct SpoolFailed<'a> {
    /// Which message, if one.
    pub queue_id: Option<QueueId>,
    /// What went wrong.
    pub error: &'a dyn std::fmt::Display,
}

impl SpoolFailed<'_> {
    /// Logs it.
    pub fn emit(&self) {
        count("postgate_spool_errors_total", &[]);
        let queue_id = self.queue_id.map(|id| id.to_string()).unwrap_or_default();
        error!(event = "spool", queue_id, error = %self.error, "spool failed");
    }
}

/// A queued message could not be read from the spool.
pub struct SpoolUnreadable<'a> {
    /// The message.
    pub id: QueueId,
    /// What was wrong; a damaged message is held.
    pub error: &'a dyn std::fmt::Display,
}

impl SpoolUnreadable<'_> {
    /// Logs it.
    pub fn emit(&self) {
        count("postgate_spool_errors_total", &[]);
        let Self { id, error } = self;
        error!(event = "spool_unreadable", queue_id = %id, %error, "message can't be read");
    }
}

/// The state of the queue could not be written down; the next start takes longer.
pub struct SpoolSnapshotFailed<'a> {
    /// What was wrong.
    pub error: &'a dyn std::fmt::Display,
}

impl SpoolSnapshotFailed<'_> {
    /// Logs it.
    pub fn emit(&self) {
        let Self { error } = self;
        warn!(event = "spool_snapshot", %error, "no snapshot; the next start reads the whole log");
    }
}

/// A range of a segment did not hold what was written there.
pub struct SpoolDamage<'a> {
    /// The spool's directory.
    pub path: &'a std::path::Path,
    /// The segment.
    pub segment: u32,
    /// Where in it, in octets.
    pub range: std::ops::Range<u64>,
    /// The message, where that can still be told.
    pub id: Option<QueueId>,
}

impl SpoolDamage<'_> {
    /// Logs it.
    pub fn emit(&self) {
        count("postgate_spool_damaged_ranges_total", &[]);
        let Self { path, segment, range, id } = self;
        let (path, queue_id) = (path.display(), id.map(|id| id.to_string()).unwrap_or_default());
        let (start, end) = (range.start, range.end);
        error!(event = "spool_damage", %path, segment, start, end, queue_id,
            "damage in the spool; a copy is in quarantine/ where there was something to copy");
    }
}
