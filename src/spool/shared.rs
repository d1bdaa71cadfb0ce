//! What the log's handle, its drafts and its writer share.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use super::budget::Budget;
use super::gate::Gate;
use super::lanes::Lanes;
use super::recent::Recent;
use super::record::Seed;
use super::recovery::{Ledger, Where};
use super::segment::{self, At, Extent};
use super::storage::{Cached, File, Storage};
use super::{Settings, SpoolError, io_error};
use crate::clock::Clock;
use crate::mail::{Message, QueueId, QueueIdSequence, ReadAt};

/// One open spool.
pub(super) struct Shared {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) settings: Settings,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) salt: u32,
    pub(super) lanes: Lanes,
    pub(super) budget: Budget,
    pub(super) changed: Notify,
    pub(super) state: Mutex<State>,
}

/// What changes. The lock is never held over a disk access.
pub(super) struct State {
    pub(super) ledger: Ledger,
    pub(super) recent: Recent,
    pub(super) ids: QueueIdSequence,
    pub(super) gate: Gate,
}

impl Shared {
    /// The state, locked.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something may be due sooner. Whoever waits wakes, and whoever waits next does too: it may
    /// have looked before the change.
    pub(super) fn announce(&self) {
        self.changed.notify_waiters();
        self.changed.notify_one();
    }

    /// Reads the metadata of a message. Blocks.
    pub(super) fn read(&self, id: QueueId) -> Result<Message, SpoolError> {
        let read = |file: &dyn ReadAt, record| self.meta(id, file, record);
        let meta = self.read_record(id, Where::meta_record, read)?;
        serde_json::from_slice(&meta).map_err(|_| SpoolError::Damaged(id))
    }

    /// Reads the metadata of a message, if that is in memory, short, and as it should be. Does not
    /// wait for the disk; and what is long takes time to decode, too.
    pub(super) fn read_cached(&self, id: QueueId) -> Option<Message> {
        let (mut record, file) = self.locate(id, Where::meta_record).ok()?;
        record.octets = record.octets.min(segment::GLANCE);
        let meta = self.meta(id, &Cached(&*file), record).ok()??;
        serde_json::from_slice(&meta).ok()
    }

    /// The metadata in a record, when it is one of this message.
    fn meta(&self, id: QueueId, file: &dyn ReadAt, record: Extent) -> io::Result<Option<Vec<u8>>> {
        let read = segment::read_meta(file, self.seed(record.at), record)?.ok();
        Ok(read.filter(|(decoded, _)| decoded.header.id == id).map(|(_, meta)| meta))
    }

    /// Reads the body of a message, if it is in its record, that in memory, and all as it should
    /// be. Does not wait for the disk.
    pub(super) fn body_cached(&self, id: QueueId) -> Option<Bytes> {
        let (record, file) = self.locate(id, Where::body_record).ok()?;
        segment::read_body(&Cached(&*file), self.seed(record.at), record).ok()?.ok()
    }

    /// Reads one of a message's records. Blocks.
    ///
    /// Meanwhile the message may have been settled, or copied forward, and the segment reused: what
    /// does not read as the record is looked up once more before it is called damaged.
    pub(super) fn read_record<T>(
        &self,
        id: QueueId,
        which: impl Fn(&Where) -> Extent,
        read: impl Fn(&dyn ReadAt, Extent) -> io::Result<Option<T>>,
    ) -> Result<T, SpoolError> {
        let mut seen = None;
        loop {
            let (record, file) = self.locate(id, &which)?;
            if seen == Some(record) {
                return Err(SpoolError::Damaged(id));
            }
            match read(&*file, record).map_err(|e| self.failed_read(record.at, e))? {
                Some(read) => return Ok(read),
                None => seen = Some(record),
            }
        }
    }

    /// The segment and place of one of a message's records.
    pub(super) fn locate(
        &self,
        id: QueueId,
        which: impl FnOnce(&Where) -> Extent,
    ) -> Result<(Extent, Arc<dyn File>), SpoolError> {
        let state = self.state();
        let slot = state.ledger.index.slot(id).ok_or(SpoolError::NotFound(id))?;
        let record = which(&slot.place);
        let segment = state.ledger.segments.get(&record.at.segment);
        let segment = segment.ok_or(SpoolError::Damaged(id))?;
        Ok((record, Arc::clone(&segment.file)))
    }

    /// The seed of the records in a segment.
    pub(super) fn seed(&self, at: At) -> Seed {
        Seed::new(self.salt, at.segment)
    }

    /// A read error with its subject.
    pub(super) fn failed_read(&self, at: At, e: io::Error) -> SpoolError {
        io_error("read", &self.settings.path.join(segment::path(at.segment)), e)
    }
}

/// Runs what blocks where it may.
pub(super) async fn blocking<T: Send + 'static>(
    f: impl FnOnce() -> Result<T, SpoolError> + Send + 'static,
) -> Result<T, SpoolError> {
    tokio::task::spawn_blocking(f).await.unwrap_or(Err(SpoolError::Closed))
}
