//! The one thread that writes the log (`docs/spool.md`, "Writing").

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::big;
use super::lanes::{Batch, Job};
use super::record::{self, Decoded, Kind, Seed, SegmentHeader};
use super::recovery::Tail;
use super::segment::{self, At, FIRST, Pool, Segment};
use super::shared::Shared;
use super::snapshot::{self, Point};
use super::storage::File;
use super::{SpoolError, io_error};
use crate::event::SpoolSnapshotFailed;
use crate::mail::QueueId;

/// The most that one batch writes.
const BATCH: u64 = 16 << 20;
/// How long the writer waits before it looks at the disk again; and how many octets it writes.
const LOOK_AFTER: Duration = Duration::from_secs(1);
const LOOK_EVERY: u64 = 16 << 20;
/// A snapshot of so many messages takes less than a mebibyte.
const SMALL: u64 = 16 << 10;
/// So much of a batch is gathered before it is written: large memory, taken anew for each batch,
/// would cost more than the calls.
const PIECE: usize = 1 << 20;
/// A buffer larger than this, which a huge record needed, is given back after the batch.
const BUFFER: usize = 2 * PIECE;

/// The owner of the log's end.
pub(super) struct Writer {
    pub(super) core: Arc<Shared>,
    pool: Pool,
    current: Option<Current>,
    next_number: u32,
    sequence: u64,
    floor: u64,
    buffer: Vec<u8>,
    unlooked: u64,
    /// Octets of the log that no snapshot covers, and messages in the newest one.
    uncovered: u64,
    covered: u64,
    /// What is copied forward: messages of the oldest segment.
    pub(super) copying: Vec<QueueId>,
    /// The segment they are in; it is not chosen again before the next look at the disk.
    pub(super) oldest: Option<u32>,
    /// A segment with a record that can't be read.
    pub(super) unmovable: Option<u32>,
}

/// The segment that is written to.
struct Current {
    number: u32,
    file: Arc<dyn File>,
    end: u32,
    /// The checksum in the last header before the end, where there is a good one.
    mark: Option<u32>,
    /// Nothing more may be written to it.
    sealed: bool,
}

/// What was appended to a segment.
struct Appended {
    places: Vec<At>,
    /// The checksum in the last header.
    mark: Option<u32>,
}

impl Current {
    /// Writes a batch behind the end, in pieces, and syncs. The end stays where it is.
    fn append(
        &self,
        jobs: &[Job],
        seed: Seed,
        first: u64,
        buffer: &mut Vec<u8>,
    ) -> io::Result<Appended> {
        let (mut at, mut last) = (u64::from(self.end), 0);
        let mut places = Vec::with_capacity(jobs.len());
        buffer.clear();
        for (job, sequence) in jobs.iter().zip(first..) {
            if buffer.len() >= PIECE {
                self.file.write_at(buffer, at)?;
                at += buffer.len() as u64;
                buffer.clear();
            }
            last = buffer.len();
            let offset = u32::try_from(at + last as u64).unwrap_or(u32::MAX);
            places.push(At { segment: self.number, offset });
            record::encode(buffer, seed, sequence, &job.header, &job.meta, &job.body);
        }
        self.file.write_at(buffer, at)?;
        self.file.sync()?;
        Ok(Appended { places, mark: record::mark(buffer, last) })
    }
}

impl Writer {
    /// A writer that goes on at `tail`.
    pub(super) fn new(
        core: Arc<Shared>,
        pool: Pool,
        tail: Option<Tail>,
        next: (u32, u64, u64),
        (uncovered, covered): (u64, u64),
    ) -> Self {
        let current = tail.and_then(|tail| {
            let file = core.state().ledger.segments.get(&tail.number).map(|s| Arc::clone(&s.file));
            let Tail { number, end, mark, open, .. } = tail;
            file.map(|file| Current { number, file, end, mark, sealed: !open })
        });
        let (next_number, sequence, floor) = next;
        let buffer = Vec::new();
        let mut writer = Self {
            core,
            pool,
            current,
            next_number,
            sequence,
            floor,
            buffer,
            unlooked: 0,
            uncovered,
            covered,
            copying: Vec::new(),
            oldest: None,
            unmovable: None,
        };
        writer.reclaim();
        writer.look();
        writer
    }

    /// Writes until the lanes are closed and empty.
    pub(super) fn run(mut self) {
        let core = Arc::clone(&self.core);
        let octets = BATCH.min(core.settings.segment_size - u64::from(FIRST));
        let idle =
            |copying: &[QueueId]| if copying.is_empty() { LOOK_AFTER } else { Duration::ZERO };
        let mut looked = core.clock.now();
        while let Some(batch) = core.lanes.take(octets, idle(&self.copying)) {
            let is_idle = batch.state.is_empty() && batch.mail.is_empty();
            if !is_idle {
                self.commit(batch);
            }
            // Others fill the disk too, also while a little is always to be written.
            let now = core.clock.now();
            if (is_idle && self.copying.is_empty()) || now.duration_since(looked) >= LOOK_AFTER {
                self.look();
                looked = now;
            }
            self.compact();
            if self.is_snapshot_due() {
                self.snapshot();
            }
        }
        if self.uncovered > 0 {
            self.snapshot();
        }
    }

    /// Whether much was written since the last snapshot, or most of what is in it is gone: it would
    /// keep room on the disk that a drained spool gives back.
    fn is_snapshot_due(&self) -> bool {
        let messages = self.core.state().ledger.index.stats().messages();
        let shrunk = self.covered > SMALL && self.uncovered > 0 && messages < self.covered / 2;
        shrunk || self.uncovered >= snapshot::interval(self.core.settings.snapshot_every, messages)
    }

    /// Writes down the state of the queue. Nothing is lost when that fails: the log has it all.
    fn snapshot(&mut self) {
        self.uncovered = 0;
        self.covered = self.core.state().ledger.index.stats().messages();
        let Some(Current { number, end, mark: Some(mark), .. }) = self.current else { return };
        let (sequence, floor) = (self.sequence, self.floor);
        let point = Point { segment: number, end, mark, sequence, floor };
        let state = self.core.state();
        if state.gate.is_low() || state.ledger.incomplete {
            return;
        }
        drop(state);
        // Only this thread puts messages in and takes them out, so the pages fit together.
        let page = |after, limit| self.core.state().ledger.index.slots_after(after, limit);
        let storage = &*self.core.storage;
        if let Err(e) = snapshot::write(storage, self.core.salt, &point, page) {
            let error = io_error("snapshot", &self.core.settings.path.join(snapshot::DIR), e);
            SpoolSnapshotFailed { error: &error }.emit();
        }
    }

    /// Makes a batch durable and answers everyone in it.
    fn commit(&mut self, batch: Batch) {
        let Batch { mut state, mail } = batch;
        let mail = self.admitted(mail);
        let states = state.len();
        state.extend(mail);
        if state.is_empty() {
            return;
        }
        match self.write(&state, state.len() == states) {
            Ok(places) => self.finish(state, &places),
            Err(error) => {
                let mail = state.split_off(states);
                self.retry(state, mail, &error);
            }
        }
        self.reclaim();
        if self.unlooked >= LOOK_EVERY {
            self.look();
        }
        if self.buffer.capacity() > BUFFER {
            self.buffer = Vec::new();
        }
    }

    /// The mail there is room for; the rest is refused.
    fn admitted(&self, mail: Vec<Job>) -> Vec<Job> {
        let mut admitted = Vec::with_capacity(mail.len());
        let state = self.core.state();
        let mut stats = state.ledger.index.stats();
        for job in mail {
            match state.gate.admit(stats, job.header.body_len) {
                Ok(()) => {
                    stats.incoming += 1;
                    stats.bytes += job.header.body_len;
                    admitted.push(job);
                }
                Err(refusal) => job.answer(Err(refusal)),
            }
        }
        admitted
    }

    /// A batch failed: its mail is refused, its state changes go to the next segment.
    fn retry(&mut self, state: Vec<Job>, mail: Vec<Job>, error: &SpoolError) {
        self.core.state().gate.failed(error.clone());
        if state.is_empty() {
            // The mail may be on the disk all the same. Only when the next segment says that it
            // does not count is it told so.
            if self.current.as_ref().is_some_and(|c| c.sealed) {
                let _ = self.rotate(false);
            }
        } else {
            match self.write(&state, true) {
                Ok(places) => self.finish(state, &places),
                Err(error) => {
                    self.core.state().gate.failed(error.clone());
                    self.fail(state, &error);
                }
            }
        }
        self.fail(mail, error);
    }

    /// Writes and syncs; where each record is. Nothing counts when it fails.
    pub(super) fn write(
        &mut self,
        jobs: &[Job],
        from_reserve: bool,
    ) -> Result<Vec<At>, SpoolError> {
        let total: u64 = jobs.iter().map(Job::len).sum();
        let size = self.core.settings.segment_size;
        let fits = |c: &Current| !c.sealed && (c.end == FIRST || u64::from(c.end) + total <= size);
        if !self.current.as_ref().is_some_and(fits) {
            self.rotate(from_reserve)?;
        }
        let Some(current) = &mut self.current else { return Err(SpoolError::Closed) };
        self.unlooked += total;
        let seed = Seed::new(self.core.salt, current.number);
        let appended = current.append(jobs, seed, self.sequence, &mut self.buffer);
        let Appended { places, mark } = appended.map_err(|e| {
            // After a failed sync the pages may be clean and the disk may not have them: they are
            // never written again.
            current.sealed = true;
            let path = segment::path(current.number);
            io_error("write", &self.core.settings.path.join(path), e)
        })?;
        current.end = u32::try_from(u64::from(current.end) + total).unwrap_or(u32::MAX);
        current.mark = mark;
        self.uncovered += total;
        self.sequence += jobs.len() as u64;
        let greatest = jobs.iter().map(|j| j.header.id.as_u64()).max();
        self.floor = self.floor.max(greatest.unwrap_or(0));
        Ok(places)
    }

    /// Goes on to the next segment.
    fn rotate(&mut self, from_reserve: bool) -> Result<(), SpoolError> {
        let number = self.next_number;
        let path = self.core.settings.path.join(segment::path(number));
        // A number is used once: what a failure leaves of it is never taken for another.
        self.next_number = number.saturating_add(1);
        let file =
            self.pool.take(number, from_reserve).map_err(|e| io_error("create", &path, e))?;
        let header = SegmentHeader {
            number,
            salt: self.core.salt,
            floor: self.floor,
            sequence: self.sequence,
            previous: self.current.as_ref().map_or(0, |c| c.number),
            previous_end: self.current.as_ref().map_or(0, |c| c.end),
        };
        if let Some(current) = &mut self.current {
            // From here on a header may be on the disk that says where this one ends.
            current.sealed = true;
        }
        self.pool.install(&*file, &header).map_err(|e| io_error("begin", &path, e))?;
        let segment = Segment { file: Arc::clone(&file), needed: 0 };
        self.core.state().ledger.segments.insert(number, segment);
        let mark = Some(header.mark());
        self.current = Some(Current { number, file, end: FIRST, mark, sealed: false });
        Ok(())
    }

    /// The batch is durable: tells the index, then everyone who waits.
    fn finish(&self, mut jobs: Vec<Job>, places: &[At]) {
        let mut gone = Vec::new();
        let mut state = self.core.state();
        state.gate.succeeded();
        for (job, at) in jobs.iter_mut().zip(places) {
            if job.is_note {
                state.ledger.noted(job.header.id, *at, job.len());
                continue;
            }
            let decoded = Decoded { header: job.header, sequence: 0, meta_len: job.meta.len() };
            gone.extend(state.ledger.apply(&decoded, *at));
            if let Some(big) = &mut job.big {
                big.keep();
            }
            if let Some(message) = job.finished.take() {
                state.recent.push(message);
            }
        }
        drop(state);
        let waits = jobs.iter().any(|j| j.header.kind != Kind::Done && !j.is_note);
        for job in jobs {
            job.answer(Ok(()));
        }
        if waits {
            self.core.announce();
        }
        self.remove_bodies(&gone);
    }

    /// Removes the files of finished messages. What can't be removed now is at the next start.
    fn remove_bodies(&self, ids: &[QueueId]) {
        for id in ids {
            let _ = self.core.storage.remove(&big::path(*id));
        }
    }

    fn fail(&self, jobs: Vec<Job>, error: &SpoolError) {
        for job in jobs {
            if !job.is_mail() {
                self.core.state().ledger.index.resume(job.header.id);
            }
            job.answer(Err(error.clone()));
        }
        self.core.announce();
    }

    /// Reuses the oldest segments that nothing needs. Oldest first, or a forgotten end of a message
    /// would bring the message back.
    pub(super) fn reclaim(&mut self) {
        loop {
            let (log, oldest) = {
                let segments = &self.core.state().ledger.segments;
                (segments.len(), segments.first_key_value().map(|(n, s)| (*n, s.needed)))
            };
            let Some((number, 0)) = oldest else { break };
            if self.current.as_ref().is_none_or(|c| c.number == number)
                || self.pool.recycle(number, log).is_err()
            {
                break;
            }
            self.core.state().ledger.segments.remove(&number);
        }
        let reserve = self.pool.has_reserve();
        self.core.state().gate.reserve(reserve);
    }

    /// Looks at the room on the disk.
    fn look(&mut self) {
        self.unlooked = 0;
        self.oldest = None;
        // Without a reserve new mail is refused, which is all that can be done.
        let _ = self.pool.ensure_reserve();
        if self.core.state().gate.is_failing() && self.rotate(false).is_ok() {
            // No mail comes that could show that the disk is well again; a new segment shows it.
            self.core.state().gate.succeeded();
        }
        let free = self.core.storage.free();
        let mut state = self.core.state();
        state.gate.reserve(self.pool.has_reserve());
        if let Ok(free) = free {
            state.gate.free(free);
        }
    }
}

/// The directories of a spool.
pub(super) const DIRS: [&str; 3] = [segment::DIR, big::DIR, snapshot::DIR];

/// Makes the directories of a spool.
pub(super) fn prepare(storage: &dyn super::storage::Storage) -> io::Result<()> {
    for dir in DIRS {
        storage.create_dir(Path::new(dir))?;
    }
    storage.sync_dir(Path::new(""))
}
