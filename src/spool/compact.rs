//! Copying live records forward, so that one message that waits for days does not keep every
//! segment behind it.

use super::lanes::Job;
use super::record::{Header, Kind};
use super::recovery::Where;
use super::segment::{self, FIRST};
use super::shared::Shared;
use super::tools::Progress;
use super::writer::Writer;
use super::{SpoolError, encode_message};
use crate::mail::QueueId;

/// A log of fewer segments is left as it is.
const SEGMENTS: usize = 4;
/// Records, and about as many octets, that are copied between two batches of others.
const RECORDS: usize = 64;
const OCTETS: u64 = 4 << 20;

impl Writer {
    /// Copies some records of the oldest segment to the end of the log, when less than half
    /// of the log is needed. Always the oldest: what is left behind there can only be older copies
    /// and the ends of messages that are gone.
    pub(super) fn compact(&mut self) {
        if self.copying.is_empty() && !self.choose() {
            return;
        }
        if let Err(error) = self.copy_some(false) {
            self.core.state().gate.failed(error);
            self.copying.clear();
            self.oldest = None;
        }
    }

    /// Copies the oldest segments to the end of the log, one after another, until no segment can be
    /// saved. Gives back the one it got stuck at.
    pub(super) fn pack(&mut self, progress: &dyn Progress) -> Result<Option<u32>, SpoolError> {
        let numbers: Vec<u32> = self.core.state().ledger.segments.keys().copied().collect();
        progress.total(numbers.len() as u64);
        // What is copied out of the newest would go into the newest.
        for number in numbers.into_iter().rev().skip(1).rev() {
            if !self.has_waste() {
                break;
            }
            self.copying = self.messages_in(number);
            self.oldest = Some(number);
            while !self.copying.is_empty() {
                self.copy_some(true)?;
            }
            self.reclaim();
            if self.core.state().ledger.segments.contains_key(&number) {
                return Ok(Some(number));
            }
            progress.add(1);
        }
        Ok(None)
    }

    /// Whether what is needed would fit into fewer segments, one being filled aside.
    fn has_waste(&self) -> bool {
        let state = self.core.state();
        let room = self.core.settings.segment_size - u64::from(FIRST);
        (state.ledger.segments.len() as u64) > state.ledger.live.div_ceil(room) + 1
    }

    /// Copies a few of the messages that were chosen.
    fn copy_some(&mut self, from_reserve: bool) -> Result<(), SpoolError> {
        let mut jobs = Vec::new();
        let mut octets = 0;
        while jobs.len() < RECORDS && octets < OCTETS {
            let Some(id) = self.copying.pop() else { break };
            match copy(&self.core, id) {
                Ok(job) => {
                    octets += job.len();
                    jobs.push(job);
                }
                // What is damaged can not be moved: its segment stays until it is dealt with.
                Err(SpoolError::Damaged(_)) => self.unmovable = self.oldest,
                // Finished meanwhile; or the disk fails, and is asked again in a second.
                Err(_) => {}
            }
        }
        if jobs.is_empty() {
            return Ok(());
        }
        let places = self.write(&jobs, from_reserve)?;
        let mut state = self.core.state();
        for (job, at) in jobs.iter().zip(places) {
            state.ledger.moved(job.header.id, at, job.len());
        }
        drop(state);
        self.reclaim();
        Ok(())
    }

    /// Chooses what to copy next; whether there is something.
    fn choose(&mut self) -> bool {
        let state = self.core.state();
        let segments = &state.ledger.segments;
        let Some(oldest) = segments.keys().next().copied() else { return false };
        let log = segments.len() as u64 * self.core.settings.segment_size;
        let wasteful = segments.len() >= SEGMENTS && state.ledger.live * 2 < log;
        if !wasteful || self.oldest == Some(oldest) || self.unmovable == Some(oldest) {
            return false;
        }
        drop(state);
        self.copying = self.messages_in(oldest);
        self.oldest = Some(oldest);
        !self.copying.is_empty()
    }

    /// The messages that need a record of a segment.
    fn messages_in(&self, number: u32) -> Vec<QueueId> {
        let state = self.core.state();
        let here = state.ledger.index.slots().filter(|(_, slot)| {
            slot.place.body.segment == number || slot.place.meta.segment == number
        });
        here.map(|(id, _)| id).collect()
    }
}

/// The whole of a message as one record.
fn copy(core: &Shared, id: QueueId) -> Result<Job, SpoolError> {
    let message = core.read(id)?;
    let slot = *core.state().ledger.index.slot(id).ok_or(SpoolError::NotFound(id))?;
    let (record, file) = core.locate(id, Where::body_record)?;
    let (seed, io) = (core.seed(record.at), |e| core.failed_read(record.at, e));
    let (kind, body, body_crc) = if slot.place.big {
        let read = segment::read_meta(&*file, seed, record).map_err(io)?;
        let (decoded, _) = read.map_err(|_| SpoolError::Damaged(id))?;
        (Kind::EnqueueBig, Vec::new(), decoded.header.body_crc)
    } else {
        let read = segment::read_body(&*file, seed, record).map_err(io)?;
        let body = Vec::from(read.map_err(|_| SpoolError::Damaged(id))?);
        let crc = crc32c::crc32c(&body);
        (Kind::Enqueue, body, crc)
    };
    let (state, due) = (slot.state, slot.due);
    let header = Header { kind, state, id, due, body_len: slot.size, body_crc };
    Ok(Job::copy(header, encode_message(&message)?, body))
}
