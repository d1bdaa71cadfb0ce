//! The spool: the durable store, and the only place where receiving and delivering meet.
//!
//! [`Spool`] is what the rest of the program sees. What it promises, and when, is `docs/spool.md`;
//! what every implementation must do is the conformance suite.

mod big;
mod budget;
mod compact;
#[cfg(test)]
mod conformance;
mod draft;
#[cfg(test)]
mod fault;
mod format;
mod gate;
mod index;
mod lanes;
mod log;
mod memory;
mod place;
mod recent;
mod record;
mod recovery;
mod rooms;
mod rules;
mod segment;
mod settings;
mod shared;
mod snapshot;
mod storage;
#[cfg(test)]
mod tests;
pub mod tools;
mod writer;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::mail::{Body, Message, QueueId, QueueState};

pub use log::SegmentLog;
pub use memory::MemorySpool;
pub use place::{OpenError, check_free};
pub use recovery::{Damage, Recovered};
pub use settings::Settings;
pub use storage::{File, Is, Listed, Open, Storage};

/// A durable queue of messages.
#[async_trait]
pub trait Spool: Send + Sync + 'static {
    /// Starts a message: gives it an id, and takes its body piece by piece.
    ///
    /// Fails at once when the spool takes no new mail (see [`SpoolError::Full`]).
    async fn draft(&self) -> Result<Box<dyn Draft>, SpoolError>;

    /// Takes up to `limit` messages of a room that are due at `now`, each for as long as `lease`. A
    /// claim that was not settled by then may be given out again, at the entry.
    ///
    /// Fair between new and deferred messages: while both are due they are taken in turns, also
    /// over several calls, so a backlog of either never keeps back the other. Within each the
    /// oldest due time comes first.
    async fn claim(
        &self,
        room: Room,
        now: Timestamp,
        limit: usize,
        lease: Duration,
    ) -> Result<Vec<Claim>, SpoolError>;

    /// The content of a claimed message.
    async fn body(&self, claim: &Claim) -> Result<Body, SpoolError>;

    /// The content of a message, whoever has it at the moment: for the operator to look at.
    async fn content(&self, id: QueueId) -> Result<Body, SpoolError>;

    /// Writes down what came of a claim; `Ok` means durable.
    ///
    /// After an error that is not [`SpoolError::Stale`] the claim still holds: try again, or what
    /// was delivered will be delivered once more. Fails with `Stale` when the claim is no longer
    /// the current one: the lease ran out and someone else has it, or an operator deleted the
    /// message; with [`SpoolError::InDelivery`] while another call for this claim, whose caller did
    /// not wait for its end, is still at work.
    async fn settle(&self, claim: &Claim, settlement: Settlement) -> Result<(), SpoolError>;

    /// Writes down the changed message of a claim, which goes on; `Ok` means durable. Should the
    /// process end before the claim is settled, the message is found as noted, in the state it had
    /// before it was claimed, and due.
    ///
    /// Fails as [`settle`](Self::settle) does. After an error of the disk the claim holds, and the
    /// message is as before as long as this process runs; the next may find either.
    async fn note(&self, claim: &Claim) -> Result<(), SpoolError>;

    /// When the next message of a room falls due; `None` when nothing waits there for a time.
    fn next_due(&self, room: Room) -> Option<Timestamp>;

    /// Puts everything back into [`Room::ENTRY`], due when it was: what the messages wait for is to
    /// be found out anew.
    fn regroup(&self);

    /// Returns when something may have become due at the entry sooner than
    /// [`next_due`](Self::next_due) said. It may return without reason, and it never misses a change
    /// made after it was called. Nobody hears of what is released into another room but the one who
    /// does it.
    async fn wait(&self);

    /// How much is in it. Cheap.
    fn stats(&self) -> Stats;

    /// Why new mail is refused at the moment; `None` when it is not. Cheap.
    fn refusal(&self) -> Option<SpoolError>;

    /// Up to `limit` messages with ids above `after`, by id.
    async fn list(&self, after: Option<QueueId>, limit: usize) -> Result<Vec<Entry>, SpoolError>;

    /// One message; also one that was finished lately, as [`QueueState::Sent`].
    async fn show(&self, id: QueueId) -> Result<Option<Entry>, SpoolError>;

    /// Does what the operator says to one message; `Ok` means durable.
    async fn act(&self, id: QueueId, action: Action, now: Timestamp) -> Result<(), SpoolError>;

    /// Stops taking work and makes everything durable. Later calls fail with
    /// [`SpoolError::Closed`].
    async fn close(&self);
}

/// A message on its way in. Dropped without [`commit`](Self::commit), it leaves nothing behind.
#[async_trait]
pub trait Draft: Send {
    /// The id the message will have.
    fn id(&self) -> QueueId;

    /// Adds to the body.
    async fn write(&mut self, chunk: Bytes) -> Result<(), SpoolError>;

    /// Stores the message, and gives it back as it is stored. **`Ok` means durable**: only then may
    /// the client be told 250.
    ///
    /// On `Err` the message is not in the queue and never will be.
    async fn commit(self: Box<Self>, message: Message) -> Result<Message, SpoolError>;
}

/// A message taken for delivery. While it is held nobody else delivers it.
#[derive(Debug)]
pub struct Claim {
    /// The message; the holder changes it and has it stored by [`Spool::settle`].
    pub message: Message,
    /// Which claim of this message this is; an older one is refused.
    pub epoch: u64,
}

/// Where messages wait that wait for the same thing. A spool does not know for what: whoever claims
/// a message and finds that it can't be delivered now puts it into a room by
/// [`Settlement::Released`], and looks there when it can.
///
/// Rooms are not stored. After a restart everything is at the entry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Room(pub u16);

impl Room {
    /// Where messages wait of which nothing is known: new ones, deferred ones, all after a restart.
    pub const ENTRY: Self = Self(0);
}

/// What becomes of a claimed message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Settlement {
    /// Every recipient is served: forget it.
    Finished,
    /// Store the changed message, and try again at this time.
    Deferred(Timestamp),
    /// Store the changed message among the dead letters.
    Dead,
    /// Store the changed message, and wait for the operator.
    Held,
    /// Nothing was tried: give it back as it is stored, due at this time, in this room.
    Released(Room, Timestamp),
}

/// What an operator can do to a message that is not being delivered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Due now, and upstreams that would not have it are asked again.
    Retry,
    /// Kept back until released.
    Hold,
    /// Back into the queue, due now, to be tried like one that is [retried](Self::Retry).
    Release,
    /// Out of the dead letters back into the queue: failed recipients are tried again, by any
    /// upstream, but for those that one upstream may have served.
    Requeue,
    /// What is unconfirmed has arrived: the operator says so. Refused when nothing is unconfirmed.
    Confirm,
    /// What is unconfirmed has not arrived: it is sent again, by any way. Refused as above.
    Resend,
    /// Gone for good.
    Delete,
}

/// A message and where it stands.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// The message.
    pub message: Message,
    /// Its place in the queue.
    pub state: QueueState,
    /// When it falls due, where it waits for a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due: Option<Timestamp>,
}

/// How much is in the spool.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Stats {
    /// Messages that were never tried.
    pub incoming: u64,
    /// Messages being delivered.
    pub active: u64,
    /// Messages that wait for their next attempt.
    pub deferred: u64,
    /// Messages that wait for the operator.
    pub held: u64,
    /// Dead letters.
    pub dead: u64,
    /// Octets of all bodies.
    pub bytes: u64,
}

impl Stats {
    /// All messages, dead letters included.
    pub const fn messages(&self) -> u64 {
        self.incoming + self.active + self.deferred + self.held + self.dead
    }
}

/// Why the spool did not do it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SpoolError {
    /// No new mail for want of space: on the disk, or under a limit of the configuration. What is
    /// queued is still delivered, and service resumes by itself.
    #[error("spool is full: {0}")]
    Full(&'static str),
    /// The message is larger than its announced or allowed size for the memory at hand; try later.
    #[error("too many message octets in memory")]
    Busy,
    /// The disk failed.
    #[error("spool {action} {path}: {source}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::sync::Arc<std::io::Error>,
    },
    /// A stored record does not hold what was written.
    #[error("message {0} is damaged on disk")]
    Damaged(QueueId),
    /// No such message.
    #[error("no message {0} in the queue")]
    NotFound(QueueId),
    /// The claim is not the current one.
    #[error("message {0} is no longer claimed by this attempt")]
    Stale(QueueId),
    /// The message is being delivered at this moment.
    #[error("message {0} is being delivered; try again in a moment")]
    InDelivery(QueueId),
    /// The action does not fit the message's state.
    #[error("message {0} is {1}")]
    WrongState(QueueId, &'static str),
    /// The spool was closed.
    #[error("the spool is closed")]
    Closed,
}

/// An error of the disk with its subject; a full one is [`SpoolError::Full`].
fn io_error(action: &'static str, path: &Path, source: io::Error) -> SpoolError {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            SpoolError::Full("no room on the disk")
        }
        _ => SpoolError::Io { action, path: path.into(), source: Arc::new(source) },
    }
}

/// The metadata of a record.
fn encode_message(message: &Message) -> Result<Vec<u8>, SpoolError> {
    let encoded = serde_json::to_vec(message).map_err(io::Error::from);
    let fits = |meta: &Vec<u8>| meta.len() <= record::META_MAX;
    let encoded = encoded.and_then(|meta| {
        if fits(&meta) { Ok(meta) } else { Err(io::ErrorKind::FileTooLarge.into()) }
    });
    encoded.map_err(|e| io_error("encode a message for", Path::new("the log"), e))
}
