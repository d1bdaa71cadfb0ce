//! The embedded store: an append-only log of segments with group commit (`docs/spool.md`).

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Notify, OwnedSemaphorePermit, oneshot};

use super::big;
use super::budget::Budget;
use super::draft::LogDraft;
use super::format;
use super::gate::Gate;
use super::index::View;
use super::lanes::{Job, Lanes};
use super::place::{self, Lock, OpenError};
use super::recent::Recent;
use super::record::{Header, Kind};
use super::recovery::{self, Recovered, Where};
use super::rules;
use super::segment::{self, Extent, Pool};
use super::shared::{Shared, State, blocking};
use super::storage::{Disk, Storage};
use super::writer::{self, Writer};
use super::{
    Action, Claim, Draft, Entry, Room, Settings, Settlement, Spool, SpoolError, Stats,
    encode_message, io_error,
};
use crate::clock::{Clock, Timestamp};
use crate::event::SpoolUnreadable;
use crate::mail::{Body, Message, QueueId, QueueIdSequence, QueueState, ReadAt};

/// The wait after a message could not be read from the disk.
const READ_AGAIN: Duration = Duration::from_mins(1);

/// The spool on a local disk. Dropped, it writes what waits and lets go of its directory.
pub struct SegmentLog {
    pub(super) core: Arc<Shared>,
    /// The directory is locked for as long as this runs.
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl SegmentLog {
    /// Opens the spool, or makes one. Reads all of it, so it blocks for as long as that takes.
    pub fn open(settings: Settings, clock: Arc<dyn Clock>) -> Result<(Self, Recovered), OpenError> {
        settings.check()?;
        let lock = place::take(&settings.path, settings.allow_volatile)?;
        let disk = Arc::new(Disk::new(settings.path.clone()));
        Self::start(disk, settings, clock, Some(lock))
    }

    /// Opens the spool on other storage than a directory of the disk: for tests.
    pub fn open_on(
        storage: Arc<dyn Storage>,
        settings: Settings,
        clock: Arc<dyn Clock>,
    ) -> Result<(Self, Recovered), OpenError> {
        settings.check()?;
        Self::start(storage, settings, clock, None)
    }

    fn start(
        storage: Arc<dyn Storage>,
        settings: Settings,
        clock: Arc<dyn Clock>,
        lock: Option<Lock>,
    ) -> Result<(Self, Recovered), OpenError> {
        let path = settings.path.clone();
        let (core, writer, report) = Self::assemble(storage, settings, clock)?;
        let thread = std::thread::Builder::new().name("spool".into());
        let thread = thread.spawn(move || {
            writer.run();
            drop(lock);
        });
        let failed = |e| OpenError::io("start the writer of", &path, e);
        let thread = thread.map_err(failed)?;
        Ok((Self { core, writer: Mutex::new(Some(thread)) }, report))
    }

    /// Reads the log and makes everything ready to write, without starting it.
    pub(super) fn assemble(
        storage: Arc<dyn Storage>,
        settings: Settings,
        clock: Arc<dyn Clock>,
    ) -> Result<(Arc<Shared>, Writer, Recovered), OpenError> {
        let path = settings.path.clone();
        let io = |action| {
            let path = path.clone();
            move |e| OpenError::io(action, &path, e)
        };
        let salt = format::salt(&*storage, &path, || draw(&*clock))?;
        writer::prepare(&*storage).map_err(io("prepare"))?;
        let log = recovery::read(&storage, salt)?;
        let next = log.names.segments.last().map_or(1, |n| n.saturating_add(1));
        let next = (next, log.sequence, log.floor);
        let mut pool = Pool::new(Arc::clone(&storage), settings.segment_size, log.names);
        // Without its blocks it is no reserve; the writer sees to another.
        let _ = pool.check_reserve();
        let state = State {
            ledger: log.ledger,
            recent: Recent::default(),
            ids: QueueIdSequence::above(log.floor),
            gate: Gate::new(&settings),
        };
        let core = Arc::new(Shared {
            storage,
            budget: Budget::new(settings.memory),
            settings,
            clock,
            salt,
            lanes: Lanes::default(),
            changed: Notify::new(),
            state: Mutex::new(state),
        });
        let writer =
            Writer::new(Arc::clone(&core), pool, log.tail, next, (log.uncovered, log.covered));
        Ok((core, writer, log.report))
    }

    /// A message on its way in.
    pub(super) fn new_draft(&self) -> Result<LogDraft, SpoolError> {
        let now = self.core.clock.wall();
        let mut state = self.core.state();
        if let Some(refusal) = state.gate.refusal(state.ledger.index.stats()) {
            return Err(refusal);
        }
        let id = state.ids.next(now);
        drop(state);
        Ok(LogDraft::new(Arc::clone(&self.core), id))
    }

    /// Writes down the message of a claim: in the state and due at the time that end the claim, or
    /// as a note.
    async fn write(
        &self,
        claim: &Claim,
        end: Option<(QueueState, Timestamp)>,
    ) -> Result<(), SpoolError> {
        let (id, epoch) = (claim.message.id, claim.epoch);
        let room = self.core.lanes.state_room().await?;
        let slot = self.core.state().ledger.index.slot(id).copied().ok_or(SpoolError::Stale(id))?;
        let message = Message { size: slot.size, ..claim.message.clone() };
        let (state, due) = end.unwrap_or((slot.state, slot.due));
        let (job, answer) = change(message, state, due, room)?;
        self.core.state().ledger.index.begin(id, epoch)?;
        if let Err(closed) = self.core.lanes.push(Job { is_note: end.is_none(), ..job }) {
            self.core.state().ledger.index.resume(id);
            return Err(closed);
        }
        answer.await.unwrap_or(Err(SpoolError::Closed))
    }

    fn release(&self, claim: &Claim, room: Room, due: Timestamp) -> Result<(), SpoolError> {
        self.check_open()?;
        self.core.state().ledger.index.release(claim.message.id, claim.epoch, room, due)?;
        // Whoever fills another room must not be woken by it, again and again.
        if room == Room::ENTRY {
            self.core.announce();
        }
        Ok(())
    }

    /// Writes what waits, then ends the writer. Blocks.
    fn stop(core: &Shared, writer: Option<JoinHandle<()>>) {
        core.lanes.close();
        if let Some(writer) = writer {
            // A writer that panicked has nothing left to write.
            let _ = writer.join();
        }
        core.state().gate.close();
        core.announce();
    }

    fn take_writer(&self) -> Option<JoinHandle<()>> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn check_open(&self) -> Result<(), SpoolError> {
        if self.core.state().gate.is_closed() { Err(SpoolError::Closed) } else { Ok(()) }
    }
}

impl Drop for SegmentLog {
    fn drop(&mut self) {
        Self::stop(&self.core, self.take_writer());
    }
}

/// The salt of a new spool.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a draw of 32 bits")]
fn draw(clock: &dyn Clock) -> u32 {
    (clock.chance() * f64::from(u32::MAX)) as u32
}

#[async_trait]
impl Spool for SegmentLog {
    async fn draft(&self) -> Result<Box<dyn Draft>, SpoolError> {
        Ok(Box::new(self.new_draft()?))
    }

    async fn claim(
        &self,
        room: Room,
        now: Timestamp,
        limit: usize,
        lease: Duration,
    ) -> Result<Vec<Claim>, SpoolError> {
        self.check_open()?;
        let claimed = self.core.state().ledger.index.claim(room, now, limit, lease);
        if claimed.is_empty() {
            return Ok(Vec::new());
        }
        let cached = |(id, epoch): &(QueueId, u64)| {
            Some(Claim { message: self.core.read_cached(*id)?, epoch: *epoch })
        };
        // What came a moment ago needs no thread that waits for the disk.
        let claims: Vec<Claim> = claimed.iter().map_while(cached).collect();
        if claims.len() == claimed.len() {
            return Ok(claims);
        }
        let core = Arc::clone(&self.core);
        blocking(move || {
            let read = |(id, epoch): (QueueId, u64)| match core.read(id) {
                Ok(message) => Some(Claim { message, epoch }),
                Err(error) => {
                    unreadable(&core, id, epoch, now, &error);
                    None
                }
            };
            let rest = claimed.into_iter().skip(claims.len());
            Ok(claims.into_iter().chain(rest.filter_map(read)).collect())
        })
        .await
    }

    async fn body(&self, claim: &Claim) -> Result<Body, SpoolError> {
        self.check_open()?;
        if let Some(body) = self.core.body_cached(claim.message.id) {
            return Ok(Body::Memory(body));
        }
        let (core, id) = (Arc::clone(&self.core), claim.message.id);
        blocking(move || read_body(&core, id)).await
    }

    async fn content(&self, id: QueueId) -> Result<Body, SpoolError> {
        self.check_open()?;
        let core = Arc::clone(&self.core);
        blocking(move || read_body(&core, id)).await
    }

    async fn settle(&self, claim: &Claim, settlement: Settlement) -> Result<(), SpoolError> {
        let next = match settlement {
            Settlement::Finished => (QueueState::Sent, Timestamp::default()),
            Settlement::Deferred(due) => (QueueState::Deferred, due),
            Settlement::Held => (QueueState::Held, self.core.clock.wall()),
            Settlement::Dead => (QueueState::Dead, self.core.clock.wall()),
            Settlement::Released(room, due) => return self.release(claim, room, due),
        };
        self.write(claim, Some(next)).await
    }

    async fn note(&self, claim: &Claim) -> Result<(), SpoolError> {
        self.write(claim, None).await
    }

    fn next_due(&self, room: Room) -> Option<Timestamp> {
        self.core.state().ledger.index.next_due(room)
    }

    fn regroup(&self) {
        if self.core.state().ledger.index.regroup() {
            self.core.announce();
        }
    }

    async fn wait(&self) {
        self.core.changed.notified().await;
    }

    fn stats(&self) -> Stats {
        self.core.state().ledger.index.stats()
    }

    fn refusal(&self) -> Option<SpoolError> {
        let state = self.core.state();
        state.gate.refusal(state.ledger.index.stats())
    }

    async fn list(&self, after: Option<QueueId>, limit: usize) -> Result<Vec<Entry>, SpoolError> {
        self.check_open()?;
        let core = Arc::clone(&self.core);
        blocking(move || {
            let page = core.state().ledger.index.page(after, limit);
            let read = |view: View<Where>| match core.read(view.id) {
                Ok(message) => Some(Ok(entry(view, message))),
                // Finished meanwhile, or of no use in a list.
                Err(SpoolError::NotFound(_) | SpoolError::Damaged(_)) => None,
                Err(e) => Some(Err(e)),
            };
            page.into_iter().filter_map(read).collect()
        })
        .await
    }

    async fn show(&self, id: QueueId) -> Result<Option<Entry>, SpoolError> {
        self.check_open()?;
        let core = Arc::clone(&self.core);
        blocking(move || {
            let view = core.state().ledger.index.view(id);
            let read = view.map(|view| Ok(entry(view, core.read(id)?)));
            match read.transpose() {
                Ok(Some(entry)) => Ok(Some(entry)),
                Ok(None) | Err(SpoolError::NotFound(_)) => Ok(core.state().recent.entry(id)),
                Err(e) => Err(e),
            }
        })
        .await
    }

    async fn act(&self, id: QueueId, action: Action, now: Timestamp) -> Result<(), SpoolError> {
        let room = self.core.lanes.state_room().await?;
        let core = Arc::clone(&self.core);
        // On a thread of its own: begun, it is ended, also when the caller goes away.
        blocking(move || {
            let (before, epoch) = core.state().ledger.index.act(id, action, now)?;
            let acted = (|| {
                let (job, answer) = if action == Action::Delete {
                    // A damaged message can be deleted too: it isn't read.
                    record(id, QueueState::Sent, now, Vec::new(), room)
                } else {
                    let mut message = core.read(id)?;
                    let (state, due) =
                        rules::apply(&mut message, before.state, before.due, action, now)?;
                    change(message, state, due, room)?
                };
                core.lanes.push(job)?;
                answer.blocking_recv().unwrap_or(Err(SpoolError::Closed))
            })();
            if acted.is_err() {
                core.state().ledger.index.unclaim(id, epoch);
                // It may be due sooner than it was while nobody could have it.
                core.announce();
            }
            acted
        })
        .await
    }

    async fn close(&self) {
        let (core, writer) = (Arc::clone(&self.core), self.take_writer());
        let stopped = blocking(move || {
            Self::stop(&core, writer);
            Ok(())
        });
        // Nothing fails here but the runtime itself, which is going down then.
        let _ = stopped.await;
    }
}

/// A job that stores a message in a state or, as [`QueueState::Sent`], ends it.
fn change(
    message: Message,
    state: QueueState,
    due: Timestamp,
    room: OwnedSemaphorePermit,
) -> Result<(Job, Answer), SpoolError> {
    let is_end = state == QueueState::Sent;
    let meta = if is_end { Vec::new() } else { encode_message(&message)? };
    let (job, answer) = record(message.id, state, due, meta, room);
    Ok((Job { finished: is_end.then_some(message), ..job }, answer))
}

/// What the writer says of a job.
type Answer = oneshot::Receiver<Result<(), SpoolError>>;

fn record(
    id: QueueId,
    state: QueueState,
    due: Timestamp,
    meta: Vec<u8>,
    room: OwnedSemaphorePermit,
) -> (Job, Answer) {
    let kind = if state == QueueState::Sent { Kind::Done } else { Kind::State };
    let header = Header { kind, state, id, due, body_len: 0, body_crc: 0 };
    let (done, answer) = oneshot::channel();
    (Job::change(header, meta, Some(room), done), answer)
}

fn entry(view: View<Where>, message: Message) -> Entry {
    Entry { message, state: view.state, due: view.due }
}

/// A message that is due can't be read. Damaged, it is held for the operator; after an error of the
/// disk it is tried again soon.
fn unreadable(core: &Shared, id: QueueId, epoch: u64, now: Timestamp, error: &SpoolError) {
    let mut state = core.state();
    match error {
        SpoolError::NotFound(_) => return,
        SpoolError::Damaged(_) => {
            state.ledger.index.hold(id);
            state.ledger.incomplete = true;
        }
        _ => {
            // Stale means that someone else has taken care of it.
            let later = now.after(READ_AGAIN);
            let _ = state.ledger.index.release(id, epoch, Room::ENTRY, later);
        }
    }
    drop(state);
    SpoolUnreadable { id, error }.emit();
}

fn read_body(core: &Shared, id: QueueId) -> Result<Body, SpoolError> {
    let big = core.state().ledger.index.slot(id).is_some_and(|slot| slot.place.big);
    if !big {
        let read = |file: &dyn ReadAt, record: Extent| {
            Ok(segment::read_body(file, core.seed(record.at), record)?.ok())
        };
        return Ok(Body::Memory(core.read_record(id, Where::body_record, read)?));
    }
    let read = |file: &dyn ReadAt, record: Extent| {
        let read = segment::read_meta(file, core.seed(record.at), record)?.ok();
        Ok(read.map(|(decoded, _)| decoded.header).filter(|header| header.id == id))
    };
    let Header { body_len: len, body_crc: crc, .. } =
        core.read_record(id, Where::body_record, read)?;
    let path = core.settings.path.join(big::path(id));
    let file = big::open(&*core.storage, id, len, crc).map_err(|e| io_error("read", &path, e))?;
    let source = file.ok_or_else(|| match core.state().ledger.index.slot(id) {
        Some(_) => SpoolError::Damaged(id),
        // Finished meanwhile, and its file removed.
        None => SpoolError::NotFound(id),
    })?;
    Ok(Body::Stored { source, len })
}
