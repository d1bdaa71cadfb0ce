//! Putting a message back into a queue.

use std::path::Path;

use crate::clock::Timestamp;
use crate::mail::{Body, Message, QueueId, QueueState};
use crate::spool::shared::blocking;
use crate::spool::{Draft, Entry, SegmentLog, SpoolError, io_error};

/// Octets that are handed on at a time.
const PIECE: usize = 64 << 10;

/// Stores a message under a new id, in the state and with the history it had; `Ok` means durable.
/// One that was being delivered waits for its next attempt, due at `now`.
pub async fn restore(
    spool: &SegmentLog,
    entry: &Entry,
    body: &Body,
    now: Timestamp,
) -> Result<QueueId, SpoolError> {
    let mut draft = Box::new(spool.new_draft()?);
    let mut at = 0;
    while at < body.len() {
        let source = body.clone();
        let read = blocking(move || {
            let failed = |e| io_error("read", Path::new("the content"), e);
            source.chunk(at, PIECE).map_err(failed)
        });
        let piece = read.await?;
        at += piece.len() as u64;
        draft.write(piece).await?;
    }
    let id = draft.id();
    let message = Message { id, ..entry.message.clone() };
    let state = match entry.state {
        QueueState::Active | QueueState::Sent if message.attempts == 0 => QueueState::Incoming,
        QueueState::Active | QueueState::Sent => QueueState::Deferred,
        stored => stored,
    };
    draft.commit_as(message, state, entry.due.unwrap_or(now)).await?;
    Ok(id)
}
