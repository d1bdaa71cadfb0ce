//! From the octets of a session to a message in the spool.
//!
//! The header is collected, worked on and written; the rest streams through. A draft is opened when
//! the header is whole, so that a transaction without text costs nothing. What goes wrong on the
//! way is remembered and answered after the end of the data, where the client listens again. What
//! is written is looked at on its way, for who decides later which way the message goes.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Policy;
use crate::clock::{Clock, Timestamp};
use crate::event;
use crate::mail::facts::Scan;
use crate::mail::header::{self, Collector, Trace};
use crate::mail::{Client, EnhancedStatus, Envelope, Message, QueueId, Recipient, Reply};
use crate::smtp::Verdict;
use crate::spool::{Draft, Spool, SpoolError};

/// A header that takes more than this needs one of [`LARGE_HEADERS`] places.
const LARGE_HEADER: usize = 64 * 1024;

/// How many large headers are collected at once: no number of clients can fill the memory with what
/// the spool has not seen yet.
pub(super) const LARGE_HEADERS: usize = 16;

/// What the session knows about where a message comes from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin<'a> {
    pub(super) peer: IpAddr,
    pub(super) listener: &'a str,
    pub(super) helo: &'a str,
    pub(super) protocol: &'a str,
    pub(super) recipients: &'a [Recipient],
}

/// Takes the messages of one connection, one after the other.
pub(super) struct Intake {
    spool: Arc<dyn Spool>,
    clock: Arc<dyn Clock>,
    large_headers: Arc<Semaphore>,
    state: State,
}

/// How far the message has come.
enum State {
    Idle,
    Header(Collector, Option<OwnedSemaphorePermit>),
    Body(Box<Open>),
    Failed(Reply),
}

/// A message whose header is in the spool.
struct Open {
    draft: Box<dyn Draft>,
    received: Timestamp,
    message_id: String,
    size: u64,
    scan: Scan,
}

impl Intake {
    pub(super) fn new(
        spool: Arc<dyn Spool>,
        clock: Arc<dyn Clock>,
        large_headers: Arc<Semaphore>,
    ) -> Self {
        Self { spool, clock, large_headers, state: State::Idle }
    }

    /// Whether the spool takes a message now. The answer comes before the client sends its text.
    pub(super) fn begin(&mut self) -> Verdict {
        self.state = State::Idle;
        self.spool.refusal().map_or(Verdict::Go, |e| Verdict::Refused(reply(&e, None)))
    }

    /// Takes a piece of the message.
    pub(super) async fn body(&mut self, piece: Bytes, policy: &Policy, origin: Origin<'_>) {
        if matches!(self.state, State::Idle) {
            self.state = State::Header(Collector::new(policy.header.max_header), None);
        }
        let result = match &mut self.state {
            State::Idle | State::Failed(_) => return,
            State::Body(open) => open.write(piece).await,
            State::Header(collector, place) => {
                match collect(collector, place, &piece, &self.large_headers) {
                    Ok(false) => return,
                    Ok(true) => self.open(policy, origin).await,
                    Err(reply) => Err(reply),
                }
            }
        };
        if let Err(reply) = result {
            self.state = State::Failed(reply);
        }
    }

    /// Forgets the message; its draft leaves nothing behind.
    pub(super) fn discard(&mut self) {
        self.state = State::Idle;
    }

    /// Stores the message. [`Verdict::Queued`] means that it is durable.
    pub(super) async fn accept(
        &mut self,
        envelope: Envelope,
        policy: &Policy,
        origin: Origin<'_>,
    ) -> Verdict {
        if matches!(self.state, State::Idle | State::Header(..)) {
            let origin = Origin { recipients: &envelope.recipients, ..origin };
            if let Err(reply) = self.open(policy, origin).await {
                self.state = State::Failed(reply);
            }
        }
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Body(open) => self.commit(*open, envelope, origin).await,
            State::Failed(reply) => Verdict::Refused(reply),
            State::Idle | State::Header(..) => Verdict::Refused(local_error()),
        }
    }

    /// Opens the draft and writes the header to it.
    async fn open(&mut self, policy: &Policy, origin: Origin<'_>) -> Result<(), Reply> {
        let octets = match std::mem::replace(&mut self.state, State::Idle) {
            State::Header(collector, _) => collector.into_octets(),
            State::Idle | State::Body(_) | State::Failed(_) => Vec::new(),
        };
        let draft = self.spool.draft().await.map_err(|e| reply(&e, None))?;
        let received = self.clock.wall();
        let recipient = match origin.recipients {
            [only] => Some(&only.path),
            _ => None,
        };
        let trace = Trace {
            peer: origin.peer,
            helo: origin.helo,
            protocol: origin.protocol,
            id: draft.id(),
            recipient,
            at: received,
        };
        let header =
            header::rewrite(&policy.header, &trace, &octets).map_err(header::HeaderError::reply)?;
        let scan = Scan::new(&policy.wanted_headers);
        let message_id = header.message_id;
        let mut open = Box::new(Open { draft, received, message_id, size: 0, scan });
        open.write(header.bytes.into()).await?;
        self.state = State::Body(open);
        Ok(())
    }

    async fn commit(&mut self, open: Open, envelope: Envelope, origin: Origin<'_>) -> Verdict {
        let client = Client {
            address: origin.peer,
            helo: origin.helo.to_owned(),
            listener: origin.listener.to_owned(),
        };
        let id = open.draft.id();
        let message = Message {
            size: open.size,
            message_id: open.message_id,
            facts: open.scan.finish(),
            ..Message::new(id, open.received, client, envelope)
        };
        let started = self.clock.now();
        let stored = match open.draft.commit(message).await {
            Ok(stored) => stored,
            Err(e) => return Verdict::Refused(reply(&e, Some(id))),
        };
        let commit = self.clock.now().saturating_duration_since(started);
        event::Queued { message: &stored, commit }.emit();
        Verdict::Queued(id)
    }
}

/// Adds a piece to the header; returns whether it is whole.
fn collect(
    collector: &mut Collector,
    place: &mut Option<OwnedSemaphorePermit>,
    piece: &[u8],
    large_headers: &Arc<Semaphore>,
) -> Result<bool, Reply> {
    let whole = collector.push(piece).map_err(header::HeaderError::reply)?;
    if !whole && place.is_none() && collector.len() > LARGE_HEADER {
        let free = large_headers.clone().try_acquire_owned();
        *place = Some(free.map_err(|_| reply(&SpoolError::Busy, None))?);
    }
    Ok(whole)
}

impl Open {
    async fn write(&mut self, octets: Bytes) -> Result<(), Reply> {
        self.size = self.size.saturating_add(octets.len() as u64);
        self.scan.push(&octets);
        let id = self.draft.id();
        self.draft.write(octets).await.map_err(|e| reply(&e, Some(id)))
    }
}

/// What the client is told when the spool fails, and the operator when it is not for want of space.
fn reply(error: &SpoolError, queue_id: Option<QueueId>) -> Reply {
    match error {
        SpoolError::Full(_) => {
            Reply::new(452, EnhancedStatus::new(4, 3, 1), "insufficient system storage")
        }
        SpoolError::Busy => {
            Reply::new(452, EnhancedStatus::new(4, 3, 1), "too much mail at once, try later")
        }
        _ => {
            event::SpoolFailed { queue_id, error }.emit();
            local_error()
        }
    }
}

fn local_error() -> Reply {
    Reply::new(451, EnhancedStatus::new(4, 3, 0), "cannot store the message, try later")
}
