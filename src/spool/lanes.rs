//! The two bounded lanes to the writer: state changes go before new mail.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::SpoolError;
use super::big::BigFile;
use super::budget::Held;
use super::record::{HEADER, Header, Kind, padded};
use crate::mail::Message;

/// Records that may wait in one lane, and that one batch takes.
pub(super) const LANE: usize = 4096;

/// A record on its way to the disk.
pub(super) struct Job {
    pub(super) header: Header,
    pub(super) meta: Vec<u8>,
    /// The body, when it goes into the record.
    pub(super) body: Vec<u8>,
    /// The body, when it has a file. Removed with the job unless the record is written.
    pub(super) big: Option<BigFile>,
    /// Whether the claim of the message goes on.
    pub(super) is_note: bool,
    /// To be remembered when it is finished.
    pub(super) finished: Option<Message>,
    /// Who waits for it.
    pub(super) done: oneshot::Sender<Result<(), SpoolError>>,
    /// Its place in the lane, and its octets in memory; let go with the job.
    pub(super) room: Option<OwnedSemaphorePermit>,
    pub(super) memory: Option<Held>,
}

impl Job {
    /// A record that nobody waits for.
    pub(super) fn copy(header: Header, meta: Vec<u8>, body: Vec<u8>) -> Self {
        let (done, _) = oneshot::channel();
        Self { body, ..Self::change(header, meta, None, done) }
    }

    /// A record that changes the state of a message, or its metadata.
    pub(super) fn change(
        header: Header,
        meta: Vec<u8>,
        room: Option<OwnedSemaphorePermit>,
        done: oneshot::Sender<Result<(), SpoolError>>,
    ) -> Self {
        let (body, big, is_note, finished, memory) = (Vec::new(), None, false, None, None);
        Self { header, meta, body, big, is_note, finished, done, room, memory }
    }

    /// Whether it brings a new message.
    pub(super) const fn is_mail(&self) -> bool {
        matches!(self.header.kind, Kind::Enqueue | Kind::EnqueueBig)
    }

    /// Octets of its record.
    pub(super) fn len(&self) -> u64 {
        padded((HEADER + self.meta.len() + self.body.len()) as u64)
    }

    /// Tells who waits.
    pub(super) fn answer(self, result: Result<(), SpoolError>) {
        // What it held is free before anyone hears of it; nobody hears when the waiter went away.
        let Self { done, big, memory, room, .. } = self;
        drop((big, memory, room));
        let _ = done.send(result);
    }
}

/// What the writer does next.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) state: Vec<Job>,
    pub(super) mail: Vec<Job>,
}

/// The lanes.
pub(super) struct Lanes {
    waiting: Mutex<Waiting>,
    ready: Condvar,
    state: Arc<Semaphore>,
    mail: Arc<Semaphore>,
}

#[derive(Default)]
struct Waiting {
    state: VecDeque<Job>,
    mail: VecDeque<Job>,
    closed: bool,
    /// Whether the writer sleeps. Waking it is a system call, also when it is awake.
    asleep: bool,
}

impl Default for Lanes {
    fn default() -> Self {
        Self {
            waiting: Mutex::default(),
            ready: Condvar::new(),
            state: Arc::new(Semaphore::new(LANE)),
            mail: Arc::new(Semaphore::new(LANE)),
        }
    }
}

impl Lanes {
    /// Waits for a place in the lane of new mail.
    pub(super) async fn mail_room(&self) -> Result<OwnedSemaphorePermit, SpoolError> {
        Arc::clone(&self.mail).acquire_owned().await.map_err(|_| SpoolError::Closed)
    }

    /// Waits for a place in the lane of state changes.
    pub(super) async fn state_room(&self) -> Result<OwnedSemaphorePermit, SpoolError> {
        Arc::clone(&self.state).acquire_owned().await.map_err(|_| SpoolError::Closed)
    }

    /// Hands a job to the writer.
    pub(super) fn push(&self, job: Job) -> Result<(), SpoolError> {
        let mut waiting = self.lock();
        if waiting.closed {
            return Err(SpoolError::Closed);
        }
        let lane = if job.is_mail() { &mut waiting.mail } else { &mut waiting.state };
        lane.push_back(job);
        let asleep = std::mem::take(&mut waiting.asleep);
        drop(waiting);
        if asleep {
            self.ready.notify_one();
        }
        Ok(())
    }

    /// Takes what waits, at most `octets` of it but at least one; an empty batch after `idle`;
    /// `None` when the lanes are closed and empty.
    pub(super) fn take(&self, octets: u64, idle: Duration) -> Option<Batch> {
        let empty = |w: &mut Waiting| {
            w.asleep = w.state.is_empty() && w.mail.is_empty() && !w.closed;
            w.asleep
        };
        let guard = self.ready.wait_timeout_while(self.lock(), idle, empty);
        let mut waiting = guard.unwrap_or_else(PoisonError::into_inner).0;
        waiting.asleep = false;
        if waiting.closed && waiting.state.is_empty() && waiting.mail.is_empty() {
            return None;
        }
        let (mut batch, mut taken, mut total) = (Batch::default(), 0, 0);
        let Waiting { state, mail, .. } = &mut *waiting;
        for (lane, to) in [(state, &mut batch.state), (mail, &mut batch.mail)] {
            while let Some(job) = lane.pop_front() {
                if taken > 0 && (taken >= LANE || total + job.len() > octets) {
                    lane.push_front(job);
                    break;
                }
                taken += 1;
                total += job.len();
                to.push(job);
            }
        }
        Some(batch)
    }

    /// Takes no more jobs; what waits is still written.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.ready.notify_all();
        self.mail.close();
        self.state.close();
    }

    /// Mail that waits or is being written.
    #[cfg(test)]
    pub(super) fn mail_waiting(&self) -> usize {
        LANE.saturating_sub(self.mail.available_permits())
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
