//! The store without a disk: for tests of what stands above the spool. It keeps every promise but
//! the one that matters.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Notify;

use super::index::{Index, Slot, View};
use super::recent::Recent;
use super::rules;
use super::{Action, Claim, Draft, Entry, Room, Settlement, Spool, SpoolError, Stats};
use crate::clock::{Clock, Timestamp};
use crate::mail::{Body, Message, QueueId, QueueIdSequence, QueueState};

/// A queue that is gone with the process.
#[derive(Clone)]
pub struct MemorySpool {
    core: Arc<Core>,
}

struct Core {
    clock: Arc<dyn Clock>,
    changed: Notify,
    state: Mutex<State>,
}

struct State {
    index: Index<()>,
    messages: HashMap<QueueId, (Message, Bytes)>,
    recent: Recent,
    ids: QueueIdSequence,
    refusal: Option<SpoolError>,
    closed: bool,
}

impl MemorySpool {
    /// An empty queue.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let state = State {
            index: Index::default(),
            messages: HashMap::new(),
            recent: Recent::default(),
            ids: QueueIdSequence::above(0),
            refusal: None,
            closed: false,
        };
        Self { core: Arc::new(Core { clock, changed: Notify::new(), state: Mutex::new(state) }) }
    }

    /// The queue as a new process finds it: what was settled or noted is there, claims and rooms are
    /// forgotten. The old one is closed.
    pub fn reopened(&self) -> Self {
        let mut state = self.core.state();
        state.closed = true;
        let at_the_entry = |slot: &Slot<()>| Slot { room: Room::ENTRY, ..*slot };
        let slots = state.index.slots().map(|(id, slot)| (id, at_the_entry(slot))).collect();
        let old = State {
            index: Index::of(slots),
            messages: std::mem::take(&mut state.messages),
            recent: Recent::default(),
            ids: std::mem::replace(&mut state.ids, QueueIdSequence::above(0)),
            refusal: None,
            closed: false,
        };
        drop(state);
        self.core.announce();
        let clock = Arc::clone(&self.core.clock);
        Self { core: Arc::new(Core { clock, changed: Notify::new(), state: Mutex::new(old) }) }
    }

    /// From now on new mail is refused with this; with `None` it is taken again.
    pub fn refuse(&self, refusal: Option<SpoolError>) {
        self.core.state().refusal = refusal;
    }
}

impl Core {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> Result<MutexGuard<'_, State>, SpoolError> {
        let state = self.state();
        if state.closed { Err(SpoolError::Closed) } else { Ok(state) }
    }

    fn announce(&self) {
        self.changed.notify_waiters();
        self.changed.notify_one();
    }
}

impl State {
    fn entry(&self, view: View<()>) -> Option<Entry> {
        let message = self.messages.get(&view.id)?.0.clone();
        Some(Entry { message, state: view.state, due: view.due })
    }

    /// Stores a message in a state or, as [`QueueState::Sent`], ends it.
    fn store(&mut self, message: Message, state: QueueState, due: Timestamp) {
        let id = message.id;
        if state == QueueState::Sent {
            self.remove(id);
            self.recent.push(message);
        } else if let Some(size) = self.replace(message) {
            self.index.put(id, Slot { state, room: Room::ENTRY, due, size, place: () });
        }
    }

    /// Puts a message in the place of what it was before; its size, which stays.
    fn replace(&mut self, message: Message) -> Option<u64> {
        let (old, _) = self.messages.get_mut(&message.id)?;
        *old = Message { size: old.size, ..message };
        Some(old.size)
    }

    fn remove(&mut self, id: QueueId) {
        self.index.remove(id);
        self.messages.remove(&id);
    }
}

#[async_trait]
impl Spool for MemorySpool {
    async fn draft(&self) -> Result<Box<dyn Draft>, SpoolError> {
        let now = self.core.clock.wall();
        let mut state = self.core.open()?;
        if let Some(refusal) = &state.refusal {
            return Err(refusal.clone());
        }
        let id = state.ids.next(now);
        drop(state);
        Ok(Box::new(MemoryDraft { core: Arc::clone(&self.core), id, body: Vec::new() }))
    }

    async fn claim(
        &self,
        room: Room,
        now: Timestamp,
        limit: usize,
        lease: Duration,
    ) -> Result<Vec<Claim>, SpoolError> {
        let mut state = self.core.open()?;
        let claimed = state.index.claim(room, now, limit, lease);
        let claim =
            |(id, epoch)| Some(Claim { message: state.messages.get(&id)?.0.clone(), epoch });
        Ok(claimed.into_iter().filter_map(claim).collect())
    }

    async fn body(&self, claim: &Claim) -> Result<Body, SpoolError> {
        self.content(claim.message.id).await
    }

    async fn content(&self, id: QueueId) -> Result<Body, SpoolError> {
        let state = self.core.open()?;
        let (_, body) = state.messages.get(&id).ok_or(SpoolError::NotFound(id))?;
        Ok(Body::Memory(body.clone()))
    }

    async fn settle(&self, claim: &Claim, settlement: Settlement) -> Result<(), SpoolError> {
        let (id, epoch, now) = (claim.message.id, claim.epoch, self.core.clock.wall());
        let mut state = self.core.open()?;
        state.index.check(id, epoch)?;
        let (next, due) = match settlement {
            Settlement::Finished => (QueueState::Sent, now),
            Settlement::Deferred(due) => (QueueState::Deferred, due),
            Settlement::Held => (QueueState::Held, now),
            Settlement::Dead => (QueueState::Dead, now),
            Settlement::Released(room, due) => {
                state.index.release(id, epoch, room, due)?;
                drop(state);
                if room == Room::ENTRY {
                    self.core.announce();
                }
                return Ok(());
            }
        };
        state.store(claim.message.clone(), next, due);
        drop(state);
        self.core.announce();
        Ok(())
    }

    async fn note(&self, claim: &Claim) -> Result<(), SpoolError> {
        let mut state = self.core.open()?;
        state.index.check(claim.message.id, claim.epoch)?;
        state.replace(claim.message.clone());
        Ok(())
    }

    fn next_due(&self, room: Room) -> Option<Timestamp> {
        self.core.state().index.next_due(room)
    }

    fn regroup(&self) {
        if self.core.state().index.regroup() {
            self.core.announce();
        }
    }

    async fn wait(&self) {
        self.core.changed.notified().await;
    }

    fn stats(&self) -> Stats {
        self.core.state().index.stats()
    }

    fn refusal(&self) -> Option<SpoolError> {
        match self.core.open() {
            Ok(state) => state.refusal.clone(),
            Err(closed) => Some(closed),
        }
    }

    async fn list(&self, after: Option<QueueId>, limit: usize) -> Result<Vec<Entry>, SpoolError> {
        let state = self.core.open()?;
        let page = state.index.page(after, limit);
        Ok(page.into_iter().filter_map(|view| state.entry(view)).collect())
    }

    async fn show(&self, id: QueueId) -> Result<Option<Entry>, SpoolError> {
        let state = self.core.open()?;
        let queued = state.index.view(id).and_then(|view| state.entry(view));
        Ok(queued.or_else(|| state.recent.entry(id)))
    }

    async fn act(&self, id: QueueId, action: Action, now: Timestamp) -> Result<(), SpoolError> {
        let mut state = self.core.open()?;
        let (before, epoch) = state.index.act(id, action, now)?;
        let Some((message, _)) = state.messages.get(&id) else {
            return Err(SpoolError::NotFound(id));
        };
        let mut message = message.clone();
        let applied = rules::apply(&mut message, before.state, before.due, action, now);
        match &applied {
            _ if action == Action::Delete => state.remove(id),
            Ok((to, due)) => state.store(message, *to, *due),
            Err(_) => state.index.unclaim(id, epoch),
        }
        drop(state);
        self.core.announce();
        applied.map(|_| ())
    }

    async fn close(&self) {
        self.core.state().closed = true;
        self.core.announce();
    }
}

struct MemoryDraft {
    core: Arc<Core>,
    id: QueueId,
    body: Vec<u8>,
}

#[async_trait]
impl Draft for MemoryDraft {
    fn id(&self) -> QueueId {
        self.id
    }

    async fn write(&mut self, chunk: Bytes) -> Result<(), SpoolError> {
        self.body.extend_from_slice(&chunk);
        Ok(())
    }

    async fn commit(self: Box<Self>, mut message: Message) -> Result<Message, SpoolError> {
        let Self { core, id, body } = *self;
        message.id = id;
        message.size = body.len() as u64;
        let (state, due, size) = (QueueState::Incoming, message.received, message.size);
        let mut spool = core.open()?;
        spool.messages.insert(id, (message.clone(), body.into()));
        spool.index.put(id, Slot { state, room: Room::ENTRY, due, size, place: () });
        drop(spool);
        core.announce();
        Ok(message)
    }
}
