//! A scripted life of the spool on a [`Machine`], with a ledger of what was promised to whom, and
//! the check that an opened spool holds just that.
#![allow(dead_code, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use postgate::clock::{ManualClock, Timestamp};
use postgate::mail::{
    Blame, Body, BodyKind, Client, EnhancedStatus, Envelope, Failure, ForwardPath, Handoff,
    Mailbox, Message, QueueId, QueueState, RecipientStatus, Remedy, ReversePath, Stage,
};
use postgate::spool::{
    Action, Claim, Entry, Recovered, Room, SegmentLog, Settings, Settlement, Spool, SpoolError,
};

use crate::machine::{Machine, MachineStorage};

const NOON: Timestamp = Timestamp::from_millis(1_795_252_321_431);
const LEASE: Duration = Duration::from_secs(2);
/// Errors of a disk.
pub const EIO: i32 = 5;
pub const ENOSPC: i32 = 28;
/// Larger than what goes into the log.
const LARGE: usize = (512 << 10) + 3000;
/// Messages are released into so many rooms.
const ROOMS: u8 = 3;

/// What was promised.
#[derive(Clone, Default)]
pub struct Ledger {
    messages: BTreeMap<QueueId, Known>,
    /// The greatest id that was ever acknowledged.
    greatest: u64,
}

/// A message that is stored, or may be.
#[derive(Clone)]
struct Known {
    size: usize,
    /// What the running spool says.
    now: Stand,
    /// What the disk may say: more than one thing while something is on its way there, or when
    /// that failed.
    may: Vec<Stand>,
    /// Given back unchanged: when it is due next is nobody's promise.
    any_due: bool,
    /// Refused by an error of the disk: a body's file may be gone before the record is.
    refused: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stand {
    Gone,
    Here {
        state: QueueState,
        due: Option<Timestamp>,
        attempts: u32,
        /// What a note says.
        unconfirmed: bool,
    },
}

/// A spool, its machine, and its ledger.
pub struct Life {
    pub machine: Arc<Machine>,
    pub ledger: Arc<Mutex<Ledger>>,
    log: Arc<SegmentLog>,
    claims: Vec<Claim>,
    now: Timestamp,
    /// Something failed since the last restart.
    faulty: bool,
}

/// Any life, with any restarts, power cuts and failing calls in it, keeps its promises. Each two
/// octets are a step.
pub fn property(octets: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let mut life = Life::begin(Machine::new(0));
        for step in octets.chunks_exact(2).take(200) {
            let (what, with) = (step[0], step[1]);
            let error = if with % 2 == 0 { EIO } else { ENOSPC };
            match what {
                250 => life.restart().await,
                251 => life.cut(u64::from(with)).await,
                // One call, some, or all from some call on.
                252 => life.fail(u64::from(with / 4), 1, error),
                253 => life.fail(u64::from(with / 8), u64::from(with % 8), error),
                254 => life.fail(u64::from(with / 4), u64::MAX, error),
                _ => life.step(what, with).await,
            }
        }
        life.cut(octets.len() as u64).await;
    });
}

/// Small segments, so that a short life has many.
pub fn settings() -> Settings {
    Settings {
        min_free: 0,
        segment_size: 16 << 10,
        snapshot_every: 96 << 10,
        ..Settings::new("machine".into())
    }
}

/// Opens the spool of a machine.
pub fn open(machine: &Arc<Machine>) -> (SegmentLog, Recovered) {
    let storage = Arc::new(MachineStorage(Arc::clone(machine)));
    SegmentLog::open_on(storage, settings(), Arc::new(ManualClock::new(NOON))).unwrap()
}

impl Life {
    /// A life that begins with an empty disk.
    pub fn begin(machine: Arc<Machine>) -> Self {
        let log = Arc::new(open(&machine).0);
        let (ledger, claims) = (Arc::default(), Vec::new());
        Self { machine, ledger, log, claims, now: NOON, faulty: false }
    }

    /// A life that goes on where another was killed, on what is in the machine's memory.
    pub async fn resume(machine: Arc<Machine>, ledger: Ledger) -> Self {
        let log = Arc::new(open(&machine).0);
        let ledger = Arc::new(Mutex::new(ledger));
        let mut life = Self { machine, ledger, log, claims: Vec::new(), now: NOON, faulty: false };
        let recovered = Recovered { messages: life.log.stats().messages(), ..Recovered::default() };
        life.settle_on(&recovered, "resumed").await;
        life
    }

    /// One step: which one, and with what.
    pub async fn step(&mut self, what: u8, with: u8) {
        self.now = self.now.after(Duration::from_millis(20));
        match what {
            0..40 => self.put(usize::from(with) * 9).await,
            40..60 => self.put(usize::from(with) * 48).await,
            60..62 => self.put(LARGE + usize::from(with)).await,
            62..72 => self.put_together(2 + usize::from(with % 7)).await,
            72..80 => self.give_up(usize::from(with)).await,
            80..120 => self.claim(1 + usize::from(with % 4)).await,
            120..170 => self.settle(with, Settlement::Finished).await,
            170..188 => self.note(with).await,
            188..190 => self.settle(with, Settlement::Held).await,
            190..205 => {
                let due = self.now.after(Duration::from_millis(u64::from(with) * 3));
                self.settle(with, Settlement::Deferred(due)).await;
            }
            205..210 => self.settle(with, Settlement::Dead).await,
            210..218 => {
                let due = self.now.after(Duration::from_millis(u64::from(with)));
                let room = Room(u16::from(with % ROOMS));
                self.settle(with, Settlement::Released(room, due)).await;
            }
            218 => self.log.regroup(),
            219..224 => self.act(with, Action::Hold).await,
            224..232 => self.act(with, Action::Release).await,
            232..236 => self.act(with, Action::Retry).await,
            236..240 => self.act(with, Action::Requeue).await,
            240..242 => self.act(with, Action::Confirm).await,
            242..244 => self.act(with, Action::Resend).await,
            244..249 => self.act(with, Action::Delete).await,
            249.. => self.now = self.now.after(LEASE),
        }
    }

    /// How many messages there are.
    pub fn len(&self) -> usize {
        self.ledger.lock().unwrap().messages.len()
    }

    /// Calls from the `from`-th fail with this error, `count` of them.
    pub fn fail(&mut self, from: u64, count: u64, error: i32) {
        self.machine.fail(from, from.saturating_add(count), error);
        self.faulty = true;
    }

    /// Closes the spool and opens it again.
    pub async fn restart(&mut self) {
        self.machine.heal();
        self.log.close().await;
        self.reopen(true).await;
    }

    /// Pulls the plug; `seed` chooses what of the unsynced is on the disk.
    pub async fn cut(&mut self, seed: u64) {
        self.machine = Machine::with(self.machine.image().cut(seed), seed);
        self.reopen(false).await;
    }

    async fn reopen(&mut self, clean: bool) {
        self.claims.clear();
        let (log, recovered) = open(&self.machine);
        self.log = Arc::new(log);
        self.settle_on(&recovered, if clean { "closed" } else { "cut off" }).await;
        self.faulty = false;
    }

    /// What the spool says now is what it must say from now on.
    async fn settle_on(&mut self, recovered: &Recovered, context: &str) {
        let ledger = self.ledger.lock().unwrap().clone();
        if let Err(wrong) = ledger.agrees(&self.log, recovered).await {
            panic!("{wrong}; {recovered:?}; {context}");
        }
        let entries = self.log.list(None, usize::MAX).await.unwrap();
        let found: BTreeMap<_, _> = entries.into_iter().map(|e| (e.message.id, e)).collect();
        let mut ledger = self.ledger.lock().unwrap();
        ledger.messages.retain(|id, known| {
            let Some(entry) = found.get(id) else { return false };
            known.now = Stand::of(entry);
            known.may = vec![known.now];
            true
        });
    }

    async fn put(&self, size: usize) {
        put(&self.log, &self.ledger, self.now, size, self.faulty).await;
    }

    /// Several at the same time: they share a batch.
    async fn put_together(&self, count: usize) {
        let tasks: Vec<_> = (0..count)
            .map(|n| {
                let (log, ledger) = (Arc::clone(&self.log), Arc::clone(&self.ledger));
                let (now, faulty) = (self.now, self.faulty);
                tokio::spawn(async move { put(&log, &ledger, now, 100 * n, faulty).await })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    }

    /// A client that goes away before the end.
    async fn give_up(&self, with: usize) {
        let Ok(mut draft) = self.log.draft().await else { return };
        let size = if with == 0 { LARGE } else { with };
        let _ = draft.write(body(draft.id(), size).into()).await;
    }

    async fn claim(&mut self, limit: usize) {
        let mut claims = Vec::new();
        for room in (0..ROOMS).map(u16::from).map(Room) {
            let left = limit - claims.len();
            claims.extend(self.log.claim(room, self.now, left, LEASE).await.unwrap());
        }
        for claim in claims {
            let id = claim.message.id;
            let size = self.ledger.lock().unwrap().messages[&id].size;
            let found = self.log.body(&claim).await.unwrap();
            assert!(octets(&found) == body(id, size), "{id} is not what was stored");
            self.claims.push(claim);
        }
    }

    /// The place of some claim; `None` when nothing can be claimed.
    async fn some_claim(&mut self, which: u8) -> Option<usize> {
        if self.claims.is_empty() {
            self.claim(2).await;
        }
        usize::from(which).checked_rem(self.claims.len())
    }

    async fn settle(&mut self, which: u8, settlement: Settlement) {
        let Some(place) = self.some_claim(which).await else { return };
        let mut claim = self.claims.swap_remove(place);
        let id = claim.message.id;
        claim.message.attempts += 1;
        let here = |state, due| Stand::here(&claim.message, state, due);
        let next = match settlement {
            Settlement::Finished => Stand::Gone,
            Settlement::Deferred(due) => here(QueueState::Deferred, Some(due)),
            Settlement::Held => here(QueueState::Held, None),
            Settlement::Dead => here(QueueState::Dead, None),
            Settlement::Released(..) => {
                if self.log.settle(&claim, settlement).await.is_ok()
                    && let Some(known) = self.ledger.lock().unwrap().messages.get_mut(&id)
                {
                    known.any_due = true;
                }
                return;
            }
        };
        self.ledger.lock().unwrap().begin(id, next);
        let settled = self.log.settle(&claim, settlement).await;
        self.ledger.lock().unwrap().end(id, next, &settled, self.faulty);
    }

    /// Writes a note for a claim, which goes on.
    async fn note(&mut self, which: u8) {
        let Some(place) = self.some_claim(which).await else { return };
        let claim = &mut self.claims[place];
        let id = claim.message.id;
        claim.message.attempts += 1;
        claim.message.status[0] =
            RecipientStatus::Unconfirmed { upstream: "core".into(), failure: failure() };
        let known = self.ledger.lock().unwrap().messages.get(&id).cloned();
        // It stands where it stood, with the note.
        let Some(Known { now: Stand::Here { state, due, .. }, any_due, .. }) = known else {
            assert!(self.log.note(claim).await.is_err());
            return;
        };
        let next = Stand::here(&claim.message, state, due);
        self.ledger.lock().unwrap().begin(id, next);
        let noted = self.log.note(claim).await;
        let mut ledger = self.ledger.lock().unwrap();
        ledger.end(id, next, &noted, self.faulty);
        if let Some(known) = ledger.messages.get_mut(&id) {
            known.any_due = any_due;
        }
    }

    async fn act(&self, which: u8, action: Action) {
        let mut ledger = self.ledger.lock().unwrap().clone();
        let Some(n) = usize::from(which).checked_rem(ledger.messages.len()) else { return };
        let (id, known) = ledger.messages.iter_mut().nth(n).unwrap();
        let id = *id;
        let Some(next) = known.now.after(action, self.now) else {
            assert!(self.log.act(id, action, self.now).await.is_err(), "{action:?}");
            return;
        };
        self.ledger.lock().unwrap().begin(id, next);
        let acted = self.log.act(id, action, self.now).await;
        self.ledger.lock().unwrap().end(id, next, &acted, self.faulty);
    }
}

/// Stores a message and writes down what was said of it.
async fn put(log: &SegmentLog, ledger: &Mutex<Ledger>, now: Timestamp, size: usize, faulty: bool) {
    let mut draft = match log.draft().await {
        Ok(draft) => draft,
        Err(refused) => {
            assert!(faulty, "{refused}");
            return;
        }
    };
    let id = draft.id();
    for chunk in body(id, size).chunks(100_000) {
        if let Err(refused) = draft.write(chunk.to_vec().into()).await {
            assert!(faulty, "{refused}");
            return;
        }
    }
    let stored = Stand::here(&message(id, now), QueueState::Incoming, Some(now));
    let known = Known {
        size,
        now: Stand::Gone,
        may: vec![Stand::Gone, stored],
        any_due: false,
        refused: false,
    };
    ledger.lock().unwrap().messages.insert(id, known);
    let said = draft.commit(message(id, now)).await;
    let mut ledger = ledger.lock().unwrap();
    match said {
        Ok(_) => {
            let known = ledger.messages.get_mut(&id).unwrap();
            (known.now, known.may) = (stored, vec![stored]);
            ledger.greatest = ledger.greatest.max(id.as_u64());
        }
        Err(refused) => {
            assert!(faulty, "{refused}");
            ledger.messages.get_mut(&id).unwrap().refused = true;
        }
    }
}

impl Ledger {
    /// Something is on its way to the disk.
    fn begin(&mut self, id: QueueId, next: Stand) {
        if let Some(known) = self.messages.get_mut(&id) {
            known.may.push(next);
        }
    }

    /// It is there, or it is not known whether it is.
    fn end(&mut self, id: QueueId, next: Stand, said: &Result<(), SpoolError>, faulty: bool) {
        let Some(known) = self.messages.get_mut(&id) else { return };
        match said {
            Ok(()) if next == Stand::Gone => {
                self.messages.remove(&id);
            }
            Ok(()) => (known.now, known.may, known.any_due) = (next, vec![next], false),
            Err(
                SpoolError::Stale(_)
                | SpoolError::InDelivery(_)
                | SpoolError::WrongState(..)
                | SpoolError::NotFound(_),
            ) => {
                known.may.pop();
            }
            Err(error) => assert!(faulty, "{id}: {error}"),
        }
    }

    /// Whether an opened spool holds what it must, and nothing else.
    pub async fn agrees(&self, log: &SegmentLog, recovered: &Recovered) -> Result<(), String> {
        let entries = log.list(None, usize::MAX).await.map_err(|e| e.to_string())?;
        if recovered.messages != entries.len() as u64 {
            return Err(format!("{} messages can be listed", entries.len()));
        }
        let found: BTreeMap<_, _> = entries.into_iter().map(|e| (e.message.id, e)).collect();
        for (id, known) in &self.messages {
            let stand = found.get(id).map_or(Stand::Gone, Stand::of);
            let without_body = known.refused && recovered.without_body.contains(id);
            if !known.may.iter().any(|may| may.is(stand, known.any_due)) && !without_body {
                return Err(format!("{id} is {stand:?}, and may be {:?}", known.may));
            }
        }
        if let Some(id) = found.keys().find(|id| !self.messages.contains_key(id)) {
            return Err(format!("{id} is there, and was finished or never stored"));
        }
        let sizes = found.iter().map(|(id, e)| (*id, e.message.size));
        for (id, size) in sizes {
            if size != self.messages[&id].size as u64 {
                return Err(format!("{id} has {size} octets"));
            }
        }
        match log.draft().await {
            Ok(draft) if draft.id().as_u64() > self.greatest => Ok(()),
            Ok(draft) => Err(format!("{} is given out again", draft.id())),
            Err(refused) => Err(refused.to_string()),
        }
    }

    /// The messages that are there for certain.
    pub fn ids(&self) -> BTreeSet<QueueId> {
        self.messages.keys().copied().collect()
    }

    /// Whether every body is there, octet for octet. What is held or dead comes back for it.
    pub async fn bodies_agree(&self, log: &SegmentLog, lost: &[QueueId]) -> Result<(), String> {
        let later = NOON.after(Duration::from_hours(1000));
        for entry in log.list(None, usize::MAX).await.map_err(|e| e.to_string())? {
            let action = match entry.state {
                QueueState::Held => Action::Release,
                QueueState::Dead => Action::Requeue,
                _ => continue,
            };
            log.act(entry.message.id, action, later).await.map_err(|e| e.to_string())?;
        }
        let count = log.stats().messages();
        let claims =
            log.claim(Room::ENTRY, later, usize::MAX, LEASE).await.map_err(|e| e.to_string())?;
        if claims.len() as u64 != count {
            return Err(format!("{} of {count} can be claimed", claims.len()));
        }
        for claim in claims.iter().filter(|c| !lost.contains(&c.message.id)) {
            let id = claim.message.id;
            let found = log.body(claim).await.map_err(|e| e.to_string())?;
            if octets(&found) != body(id, self.messages[&id].size) {
                return Err(format!("the body of {id} is not what was stored"));
            }
        }
        Ok(())
    }
}

/// The messages that can be delivered, each octet for octet what was stored; the others are known
/// to be damaged.
pub async fn whole(log: &SegmentLog) -> Result<BTreeSet<QueueId>, String> {
    let later = NOON.after(Duration::from_hours(1000));
    for entry in log.list(None, usize::MAX).await.map_err(|e| e.to_string())? {
        for action in [Action::Release, Action::Requeue] {
            let _ = log.act(entry.message.id, action, later).await;
        }
    }
    let mut whole = BTreeSet::new();
    for claim in
        log.claim(Room::ENTRY, later, usize::MAX, LEASE).await.map_err(|e| e.to_string())?
    {
        let (id, size) = (claim.message.id, claim.message.size);
        match log.body(&claim).await {
            Ok(found) if octets(&found) == body(id, usize::try_from(size).unwrap()) => {
                whole.insert(id);
            }
            Ok(_) => return Err(format!("the body of {id} is not what was stored")),
            Err(SpoolError::Damaged(_)) => {}
            Err(e) => return Err(format!("{id}: {e}")),
        }
    }
    Ok(whole)
}

impl Stand {
    fn of(entry: &Entry) -> Self {
        Self::here(&entry.message, entry.state, entry.due)
    }

    fn here(message: &Message, state: QueueState, due: Option<Timestamp>) -> Self {
        let unconfirmed = message.status[0].unconfirmed().is_some();
        Self::Here { state, due, attempts: message.attempts, unconfirmed }
    }

    fn is(self, other: Self, any_due: bool) -> bool {
        let without_due = |stand| match stand {
            Self::Here { state, attempts, unconfirmed, .. } => Some((state, attempts, unconfirmed)),
            Self::Gone => None,
        };
        self == other || any_due && without_due(self) == without_due(other)
    }

    /// What an operator's action makes of it; `None` when it does not fit.
    fn after(self, action: Action, now: Timestamp) -> Option<Self> {
        use QueueState::{Dead, Deferred, Held, Incoming};
        let Self::Here { state, attempts, unconfirmed, .. } = self else { return None };
        let (state, due) = match (action, state) {
            (Action::Confirm | Action::Resend, _) if !unconfirmed => return None,
            (Action::Delete | Action::Confirm, _) => return Some(Self::Gone),
            (Action::Retry, Incoming | Deferred) => (state, Some(now)),
            (Action::Hold, Incoming | Deferred) => (Held, None),
            (Action::Release, Held) if attempts == 0 => (Incoming, Some(now)),
            (Action::Resend, _) | (Action::Release, Held) | (Action::Requeue, Dead) => {
                (Deferred, Some(now))
            }
            _ => return None,
        };
        let unconfirmed = unconfirmed && action != Action::Resend;
        Some(Self::Here { state, due, attempts, unconfirmed })
    }
}

/// The body of a message: no two sectors, and no two messages' sectors, are alike.
fn body(id: QueueId, size: usize) -> Vec<u8> {
    let mut body = vec![b'x'; size];
    for (n, sector) in body.chunks_mut(256).enumerate() {
        let stamp = format!("{id} {n}\r\n");
        let len = stamp.len().min(sector.len());
        sector[..len].copy_from_slice(&stamp.as_bytes()[..len]);
    }
    body
}

fn octets(body: &Body) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let chunk = body.chunk(all.len() as u64, 256 << 10).unwrap();
        if chunk.is_empty() {
            return all;
        }
        all.extend_from_slice(&chunk);
    }
}

fn failure() -> Failure {
    Failure {
        stage: Stage::EndOfData,
        blame: Blame::Upstream,
        handoff: Handoff::Unknown,
        remedy: Remedy::Time,
        reply: None,
        status: EnhancedStatus::new(4, 4, 2),
        detail: "the answer was lost".into(),
    }
}

fn message(id: QueueId, received: Timestamp) -> Message {
    let mailbox = |s: &str| Mailbox::parse(s.as_bytes()).unwrap();
    let envelope = Envelope {
        reverse_path: ReversePath::Mailbox(mailbox("app@example.com")),
        recipients: vec![ForwardPath(mailbox("user@example.net")).into()],
        body: BodyKind::SevenBit,
        smtputf8: false,
        ret: None,
        envid: None,
    };
    let client =
        Client { address: "10.0.0.5".parse().unwrap(), helo: "app".into(), listener: "mta".into() };
    Message::new(id, received, client, envelope)
}
