//! A message on its way into the log.

use std::mem;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::oneshot;

use super::big::{self, BigFile, INLINE_MAX};
use super::budget::Held;
use super::lanes::Job;
use super::record::{Header, Kind};
use super::shared::{Shared, blocking};
use super::{Draft, SpoolError, encode_message, io_error};
use crate::clock::Timestamp;
use crate::mail::{Message, QueueId, QueueState};

/// Octets gathered before they go to the file of a large body.
const BLOCK: usize = 256 << 10;
/// The first allocation for a body.
const FIRST: usize = 4096;

/// The body so far: in memory, or in memory and a file.
pub(super) struct LogDraft {
    core: Arc<Shared>,
    id: QueueId,
    buffer: Vec<u8>,
    held: Held,
    big: Option<BigFile>,
    len: u64,
    crc: u32,
    /// A body that lacks a piece is never stored.
    failed: Option<SpoolError>,
}

impl LogDraft {
    /// A draft with a fresh id.
    pub(super) fn new(core: Arc<Shared>, id: QueueId) -> Self {
        let held = core.budget.hold();
        Self { core, id, buffer: Vec::new(), held, big: None, len: 0, crc: 0, failed: None }
    }

    async fn add(&mut self, chunk: Bytes) -> Result<(), SpoolError> {
        self.len += chunk.len() as u64;
        self.crc = crc32c::crc32c_append(self.crc, &chunk);
        let room = match self.big {
            None => INLINE_MAX,
            Some(_) => BLOCK,
        };
        if self.buffer.len() + chunk.len() > room {
            return self.flush(chunk).await;
        }
        if self.buffer.capacity() == 0 {
            return self.adopt(chunk);
        }
        self.gather(&chunk)
    }

    /// Makes the first piece the buffer: most bodies have no other. It is copied only if someone
    /// else has it, too; else all of its memory is paid for, used or not.
    fn adopt(&mut self, chunk: Bytes) -> Result<(), SpoolError> {
        let buffer = Vec::from(chunk);
        self.held.grow(buffer.capacity() as u64)?;
        self.buffer = buffer;
        Ok(())
    }

    /// Adds to the buffer, whose every octet is paid for from the budget.
    fn gather(&mut self, chunk: &[u8]) -> Result<(), SpoolError> {
        let (len, have) = (self.buffer.len() + chunk.len(), self.buffer.capacity());
        if len > have {
            let want = len.max(have * 2).max(FIRST).min(len.max(INLINE_MAX));
            self.held.grow((want - have) as u64)?;
            self.buffer.reserve_exact(want - self.buffer.len());
        }
        self.buffer.extend_from_slice(chunk);
        Ok(())
    }

    /// Writes what was gathered, and `chunk`, to the file.
    async fn flush(&mut self, chunk: Bytes) -> Result<(), SpoolError> {
        let buffer = mem::take(&mut self.buffer);
        let (big, core, id) = (self.big.take(), Arc::clone(&self.core), self.id);
        let big = blocking(move || {
            let io = |e| io_error("write", &core.settings.path.join(big::path(id)), e);
            let mut big = match big {
                Some(big) => big,
                None => BigFile::create(Arc::clone(&core.storage), id).map_err(io)?,
            };
            big.write(&buffer).and_then(|()| big.write(&chunk)).map_err(io)?;
            Ok(big)
        });
        self.big = Some(big.await?);
        self.held.release();
        Ok(())
    }

    /// Makes a large body durable under its name.
    async fn finish(&mut self) -> Result<(), SpoolError> {
        self.flush(Bytes::new()).await?;
        let Some(mut big) = self.big.take() else { return Ok(()) };
        let path = self.core.settings.path.join(big::path(self.id));
        let finished = blocking(move || {
            big.finish().map_err(|e| io_error("sync", &path, e))?;
            Ok(big)
        });
        self.big = Some(finished.await?);
        Ok(())
    }
}

#[async_trait]
impl Draft for LogDraft {
    fn id(&self) -> QueueId {
        self.id
    }

    async fn write(&mut self, chunk: Bytes) -> Result<(), SpoolError> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        // If the caller goes away in the middle, a piece is missing too.
        self.failed = Some(SpoolError::Closed);
        let added = self.add(chunk).await;
        self.failed = added.clone().err();
        added
    }

    async fn commit(self: Box<Self>, message: Message) -> Result<Message, SpoolError> {
        let due = message.received;
        self.commit_as(message, QueueState::Incoming, due).await
    }
}

impl LogDraft {
    /// Stores the message in a state of its own choice: one record, so it never is in another.
    pub(super) async fn commit_as(
        mut self: Box<Self>,
        mut message: Message,
        state: QueueState,
        due: Timestamp,
    ) -> Result<Message, SpoolError> {
        if let Some(failed) = self.failed.take() {
            return Err(failed);
        }
        if self.big.is_some() {
            self.finish().await?;
        }
        message.id = self.id;
        message.size = self.len;
        let header = Header {
            kind: if self.big.is_some() { Kind::EnqueueBig } else { Kind::Enqueue },
            state,
            id: self.id,
            due,
            body_len: self.len,
            body_crc: self.crc,
        };
        let meta = encode_message(&message)?;
        let room = self.core.lanes.mail_room().await?;
        let (done, answer) = oneshot::channel();
        let Self { core, buffer, held, big, .. } = *self;
        let change = Job::change(header, meta, Some(room), done);
        core.lanes.push(Job { body: buffer, big, memory: Some(held), ..change })?;
        answer.await.unwrap_or(Err(SpoolError::Closed)).map(|()| message)
    }
}
