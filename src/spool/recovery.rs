//! Reading the log at the start (`docs/spool.md`, "Opening").

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::Room;
use super::big;
use super::index::{Index, Slot};
use super::place::OpenError;
use super::record::{self, Bad, Decoded, Header, Kind, MAGIC, SEGMENT_HEADER, Seed, SegmentHeader};
use super::segment::{self, At, Extent, FIRST, Names, Segment};
use super::snapshot::{self, Point, Snapshot};
use super::storage::{File, Open, Storage};
use crate::mail::QueueId;

/// Read at once; when the disk can't give it, what it can give of it.
const BLOCK: usize = 1 << 20;
const SECTOR: usize = 4096;
const QUARANTINE: &str = "quarantine";

/// What opening a spool found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Recovered {
    /// Messages in it.
    pub messages: u64,
    /// What could not be read, each copied to `quarantine/` where there was something to copy.
    pub damage: Vec<Damage>,
    /// Whether the last batch was cut off in the middle: it was never acknowledged.
    pub torn_tail: bool,
    /// Messages whose body file is missing or has another length; they are held.
    pub without_body: Vec<QueueId>,
    /// Body files of no message, removed.
    pub orphans: u64,
}

/// A range of a segment that does not hold what was written there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damage {
    /// The segment.
    pub segment: u32,
    /// Where in it, in octets.
    pub range: Range<u64>,
    /// The message, where that can still be told.
    pub id: Option<QueueId>,
}

/// Where a message's records are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Where {
    pub(super) body: At,
    pub(super) meta: At,
    /// Octets of the first record, and of the one that replaced its metadata.
    pub(super) octets: u32,
    pub(super) update: u32,
    pub(super) big: bool,
}

impl Where {
    /// The record that has the body, or names its file.
    pub(super) const fn body_record(&self) -> Extent {
        Extent { at: self.body, octets: self.octets }
    }

    /// The record that has the metadata.
    pub(super) const fn meta_record(&self) -> Extent {
        Extent { at: self.meta, octets: if self.update == 0 { self.octets } else { self.update } }
    }
}

/// What is known of the messages, and the segments that hold them.
#[derive(Default)]
pub(super) struct Ledger {
    pub(super) index: Index<Where>,
    pub(super) segments: BTreeMap<u32, Segment>,
    /// Octets of the records that are needed.
    pub(super) live: u64,
    /// There is damage. No snapshot is taken then: what a disk does not give back today it may give
    /// back tomorrow, and every start is to tell of it.
    pub(super) incomplete: bool,
}

/// Where writing goes on.
pub(super) struct Tail {
    pub(super) number: u32,
    pub(super) end: u32,
    /// Up to here it is known to be on the disk.
    kept: u32,
    /// The checksum in the last header before the end, where there is a good one.
    pub(super) mark: Option<u32>,
    /// Whether more may be written to it.
    pub(super) open: bool,
}

/// A million messages must fit in 200 MB: this, its id, and its place in the due order.
const _: () = assert!(size_of::<Slot<Where>>() <= 48, "entries of the index are small");

/// A log that was read.
pub(super) struct Log {
    pub(super) ledger: Ledger,
    pub(super) tail: Option<Tail>,
    /// The greatest id ever stored.
    pub(super) floor: u64,
    /// The sequence number of the next record.
    pub(super) sequence: u64,
    /// Octets that no snapshot covers, and messages in the one that was used.
    pub(super) uncovered: u64,
    pub(super) covered: u64,
    pub(super) names: Names,
    pub(super) report: Recovered,
}

/// Reads the spool: the newest snapshot that fits the log and what came after it, or all of it.
pub(super) fn read(storage: &Arc<dyn Storage>, salt: u32) -> Result<Log, OpenError> {
    let io = |action, path: &Path| {
        let path = path.to_owned();
        move |e| OpenError::io(action, &path, e)
    };
    let source = Source::open(&**storage, salt)?;
    let mut useless = Vec::new();
    let mut covered = None;
    let snapshots = snapshot::names(&**storage).map_err(io("list", Path::new(snapshot::DIR)))?;
    for path in snapshots {
        // One that the disk does not give back is no better than a damaged one.
        let snapshot = snapshot::read(&**storage, &path, salt).ok().flatten();
        let fits = snapshot.map(|snapshot| source.after(snapshot)).transpose()?.flatten();
        if let Some(log) = fits {
            covered = Some(log);
            break;
        }
        useless.push(path);
    }
    let mut log = match covered {
        Some(log) => log,
        None => source.all()?,
    };
    for path in useless {
        // Later it might seem to fit. Its mark says it doesn't, and nobody needs it.
        storage.remove(&path).map_err(io("remove", &path))?;
    }
    if let Some(tail) = &log.tail {
        source.keep(tail).map_err(io("sync", &segment::path(tail.number)))?;
    }
    big::sweep(&**storage, &mut log).map_err(io("sweep", Path::new(big::DIR)))?;
    let Recovered { damage, without_body, .. } = &log.report;
    log.ledger.incomplete = !damage.is_empty() || !without_body.is_empty();
    log.report.messages = log.ledger.index.stats().messages();
    Ok(log)
}

/// The files of a log, opened.
struct Source<'a> {
    storage: &'a dyn Storage,
    salt: u32,
    names: Names,
    files: BTreeMap<u32, Arc<dyn File>>,
    /// The headers that are sound.
    headers: BTreeMap<u32, SegmentHeader>,
}

impl<'a> Source<'a> {
    fn open(storage: &'a dyn Storage, salt: u32) -> Result<Self, OpenError> {
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |e| OpenError::io(action, &path, e)
        };
        let names = segment::names(storage).map_err(io("list", Path::new(segment::DIR)))?;
        let (mut files, mut headers) = (BTreeMap::new(), BTreeMap::new());
        for number in &names.segments {
            let path = segment::path(*number);
            let file = storage.open(&path, Open::Write).map_err(io("open", &path))?;
            let mut bytes = [0; SEGMENT_HEADER];
            let read = file.read_exact_at(&mut bytes, 0);
            let header = read.ok().and_then(|()| SegmentHeader::decode(&bytes));
            if let Some(header) = header.filter(|h| h.number == *number) {
                if header.salt != salt {
                    // No record in it would pass, and the file would be reused as an empty one.
                    let found =
                        format!("its salt is {:08x}, and that of FORMAT is not", header.salt);
                    return Err(OpenError::Format { path, found });
                }
                headers.insert(*number, header);
            }
            files.insert(*number, file);
        }
        Ok(Self { storage, salt, names, files, headers })
    }

    /// The log, read from its beginning.
    fn all(&self) -> Result<Log, OpenError> {
        let mut log = self.begin();
        for number in &self.names.segments {
            self.replay(&mut log, *number, None)?;
        }
        Ok(log)
    }

    /// The log as a snapshot has it, and what came after; `None` when the snapshot is not one of
    /// this log, or something it needs is not there any more.
    fn after(&self, snapshot: Snapshot) -> Result<Option<Log>, OpenError> {
        let Snapshot { point, slots } = snapshot;
        if !self.headers.contains_key(&point.segment) {
            return Ok(None);
        }
        let mut log = self.begin();
        (log.sequence, log.floor, log.covered) = (point.sequence, point.floor, slots.len() as u64);
        for (_, slot) in &slots {
            log.ledger.need(slot.place, true);
        }
        log.ledger.index = Index::of(slots);
        for number in self.names.segments.iter().filter(|n| **n >= point.segment) {
            let from = (*number == point.segment).then_some(&point);
            if !self.replay(&mut log, *number, from)? {
                return Ok(None);
            }
        }
        let there = |at: At| self.files.contains_key(&at.segment);
        let whole =
            log.ledger.index.slots().all(|(_, s)| there(s.place.body) && there(s.place.meta));
        // Where there is damage everything is read, to tell of all of it.
        Ok((whole && log.report.damage.is_empty()).then_some(log))
    }

    /// Makes durable what was found. The last process may have died before it synced a name, or
    /// what it wrote; or a sync failed, and then memory has pages that the disk does not have, and
    /// that only another write would bring there.
    fn keep(&self, tail: &Tail) -> std::io::Result<()> {
        if let Some(file) = self.files.get(&tail.number) {
            let mut block = vec![0; BLOCK];
            let mut at = tail.kept;
            while at < tail.end {
                let n = BLOCK.min((tail.end - at) as usize);
                let part = block.get_mut(..n).unwrap_or_default();
                // What can't be read was not found either.
                if file.read_exact_at(part, u64::from(at)).is_ok() {
                    file.write_at(part, u64::from(at))?;
                }
                at = at.saturating_add(u32::try_from(n).unwrap_or(u32::MAX));
            }
            file.sync()?;
        }
        self.storage.sync_dir(Path::new(segment::DIR))
    }

    /// A log of which nothing was read.
    fn begin(&self) -> Log {
        let segments = self.files.iter().map(|(number, file)| {
            let file = Arc::clone(file);
            (*number, Segment { file, needed: 0 })
        });
        let ledger = Ledger { segments: segments.collect(), ..Ledger::default() };
        let names = self.names.clone();
        let report = Recovered { damage: self.missing(), ..Recovered::default() };
        Log { ledger, tail: None, floor: 0, sequence: 1, uncovered: 0, covered: 0, names, report }
    }

    /// The segments that a later one names and that are not there.
    fn missing(&self) -> Vec<Damage> {
        let Some(oldest) = self.names.segments.first().copied() else { return Vec::new() };
        let named = self.headers.values().filter(|h| h.previous > oldest);
        let missing = named.filter(|h| !self.files.contains_key(&h.previous));
        let damage = |h: &SegmentHeader| {
            let range = 0..u64::from(h.previous_end);
            Damage { segment: h.previous, range, id: None }
        };
        missing.map(damage).collect()
    }

    /// Replays one segment, or what comes after a point in it; `false` when the point is not in it.
    fn replay(&self, log: &mut Log, number: u32, from: Option<&Point>) -> Result<bool, OpenError> {
        let path = segment::path(number);
        let Some(file) = self.files.get(&number) else { return Ok(true) };
        let (bytes, lost) = read_lossy(&**file).map_err(|e| OpenError::io("read", &path, e))?;
        let end = self.headers.values().find(|h| h.previous == number).map(|h| h.previous_end);
        let header = self.headers.get(&number);
        if let Some(header) = header {
            log.floor = log.floor.max(header.floor);
            log.sequence = log.sequence.max(header.sequence);
        }
        let mut scan = scan(&bytes, Seed::new(self.salt, number), end);
        if let Some(until) =
            lost.last().map(|l| l.end.next_multiple_of(8)).filter(|_| end.is_none())
            && until > u64::from(scan.end)
        {
            // Acknowledged mail may be there: no torn tail that is written over.
            scan.damage.push((u64::from(scan.end)..until, None));
            scan.end = u32::try_from(until).unwrap_or(u32::MAX);
        }
        if from.is_some_and(|p| scan.mark(&bytes, header, p.end) != Some(p.mark)) {
            return Ok(false);
        }
        let start = from.map_or(0, |p| p.end);
        for (offset, decoded) in scan.records.iter().filter(|(offset, _)| *offset >= start) {
            let at = At { segment: number, offset: *offset };
            log.sequence = log.sequence.max(decoded.sequence.saturating_add(1));
            log.floor = log.floor.max(decoded.header.id.as_u64());
            log.ledger.apply(decoded, at);
        }
        log.uncovered += u64::from(scan.end.saturating_sub(start.max(FIRST)));
        if self.names.segments.last() == Some(&number) {
            let next = bytes.get(scan.end as usize..).and_then(record::claimed_sequence);
            log.report.torn_tail = next.is_some_and(|s| s >= log.sequence);
            let mark = scan.mark(&bytes, header, scan.end);
            let (end, open) = (scan.end, header.is_some() && lost.is_empty());
            log.tail = Some(Tail { number, end, kept: start, mark, open });
        }
        for (range, id) in scan.damage {
            let kept = quarantine(self.storage, number, &range, &bytes);
            // A copy of what was not read is none, and tomorrow the disk may give it back.
            let unread = lost.iter().any(|l| l.start < range.end && range.start < l.end);
            if (unread || kept.is_err())
                && let Some(segment) = log.ledger.segments.get_mut(&number)
            {
                // As long as there is no copy the segment is not reused.
                segment.needed += 1;
            }
            log.report.damage.push(Damage { segment: number, range, id });
        }
        Ok(true)
    }
}

impl Ledger {
    /// Takes note of a record that is durable. Gives back the body file that is no longer needed.
    pub(super) fn apply(&mut self, decoded: &Decoded, at: At) -> Option<QueueId> {
        let header = &decoded.header;
        let known = self.index.slot(header.id).copied();
        let octets = u32::try_from(decoded.len()).unwrap_or(u32::MAX);
        let place = match (header.kind, known) {
            (Kind::Enqueue | Kind::EnqueueBig, _) => Where {
                body: at,
                meta: at,
                octets,
                update: 0,
                big: header.kind == Kind::EnqueueBig,
            },
            (Kind::State, Some(slot)) => Where { meta: at, update: octets, ..slot.place },
            (Kind::Done, Some(slot)) => {
                self.index.remove(header.id);
                self.need(slot.place, false);
                return slot.place.big.then_some(header.id);
            }
            // Of a message that is finished already, or whose first record is damaged.
            (Kind::State | Kind::Done, None) => return None,
        };
        let size = known.filter(|_| header.kind == Kind::State).map_or(header.body_len, |s| s.size);
        self.need(place, true);
        let Header { state, due, .. } = *header;
        let slot = Slot { state, room: Room::ENTRY, due, size, place };
        if let Some(old) = self.index.put(header.id, slot) {
            self.need(old, false);
        }
        None
    }

    /// A message was copied, whole, to another place.
    pub(super) fn moved(&mut self, id: QueueId, at: At, octets: u64) {
        let Some(old) = self.index.slot(id).map(|slot| slot.place) else { return };
        let octets = u32::try_from(octets).unwrap_or(u32::MAX);
        let place = Where { body: at, meta: at, octets, update: 0, big: old.big };
        self.relocate(id, old, place);
    }

    /// The metadata of a claimed message was replaced; the claim goes on.
    pub(super) fn noted(&mut self, id: QueueId, at: At, octets: u64) {
        let Some(old) = self.index.slot(id).map(|slot| slot.place) else { return };
        let update = u32::try_from(octets).unwrap_or(u32::MAX);
        self.relocate(id, old, Where { meta: at, update, ..old });
        self.index.resume(id);
    }

    fn relocate(&mut self, id: QueueId, old: Where, place: Where) {
        self.index.relocate(id, place);
        self.need(place, true);
        self.need(old, false);
    }

    fn need(&mut self, place: Where, needed: bool) {
        let octets = u64::from(place.octets) + u64::from(place.update);
        self.live = if needed { self.live + octets } else { self.live.saturating_sub(octets) };
        for at in [place.body, place.meta] {
            if let Some(segment) = self.segments.get_mut(&at.segment) {
                let n = segment.needed;
                segment.needed = if needed { n + 1 } else { n.saturating_sub(1) };
            }
        }
    }
}

/// What a segment's octets hold.
struct Scan {
    records: Vec<(u32, Decoded)>,
    damage: Vec<(Range<u64>, Option<QueueId>)>,
    /// Where the next record goes.
    end: u32,
}

/// Finds all good records. `end` is where the segment ends, when the next one says so.
fn scan(bytes: &[u8], seed: Seed, end: Option<u32>) -> Scan {
    let limit = end.map_or(bytes.len(), |e| bytes.len().min(e as usize));
    let bytes = bytes.get(..limit).unwrap_or_default();
    let mut scan = Scan { records: Vec::new(), damage: Vec::new(), end: FIRST };
    let mut bad: Vec<(usize, Option<QueueId>)> = Vec::new();
    let mut at = FIRST as usize;
    while let Some(rest) = bytes.get(at..).filter(|r| r.len() >= record::HEADER) {
        let (decoded, found) = match record::decode_whole(rest, seed) {
            Ok((decoded, _, _)) => (Some(decoded), true),
            Err(Bad::Payload(decoded)) => (Some(decoded), false),
            Err(Bad::Header) => (None, false),
        };
        let next = match decoded {
            Some(decoded) => at.saturating_add(usize::try_from(decoded.len()).unwrap_or(limit)),
            None => next_magic(bytes, at + 8).unwrap_or(limit),
        };
        if let Some(decoded) = decoded.filter(|_| found) {
            scan.ruin(&mut bad, at);
            scan.records.push((u32::try_from(at).unwrap_or(u32::MAX), decoded));
            scan.end = u32::try_from(next).unwrap_or(u32::MAX);
        } else if decoded.is_some() || bad.last().is_none_or(|(_, id)| id.is_some()) {
            bad.push((at, decoded.map(|d| d.header.id)));
        }
        at = next;
    }
    if let Some(end) = end.filter(|e| *e > scan.end) {
        if bad.is_empty() {
            bad.push((scan.end as usize, None));
        }
        scan.ruin(&mut bad, end as usize);
        scan.end = end;
    }
    scan
}

impl Scan {
    /// The checksum in the header of what ends at `end`: a record, or the segment's own header.
    fn mark(&self, bytes: &[u8], header: Option<&SegmentHeader>, end: u32) -> Option<u32> {
        if end == FIRST {
            return header.map(SegmentHeader::mark);
        }
        let before = self.records.partition_point(|(at, _)| *at < end).checked_sub(1)?;
        let (at, decoded) = self.records.get(before)?;
        let ends = u64::from(*at) + decoded.len() == u64::from(end);
        if ends { record::mark(bytes, *at as usize) } else { None }
    }

    /// The bad ranges before `until` are damage: something good follows.
    fn ruin(&mut self, bad: &mut Vec<(usize, Option<QueueId>)>, until: usize) {
        let ends = bad.iter().skip(1).map(|(at, _)| *at).chain([until]).collect::<Vec<_>>();
        for ((start, id), end) in bad.drain(..).zip(ends) {
            self.damage.push((start as u64..end as u64, id));
        }
    }
}

/// The next offset from `from` at which a record may start.
fn next_magic(bytes: &[u8], from: usize) -> Option<usize> {
    let rest = bytes.get(from..)?;
    memchr::memmem::find_iter(rest, &MAGIC).map(|i| from + i).find(|at| at % 8 == 0)
}

/// All octets of a file, and where the disk did not give them back: there they are zeros.
fn read_lossy(file: &dyn File) -> std::io::Result<(Vec<u8>, Vec<Range<u64>>)> {
    let mut lost = Vec::new();
    let mut bytes = vec![0; usize::try_from(file.size()?).unwrap_or(usize::MAX)];
    for (i, block) in bytes.chunks_mut(BLOCK).enumerate() {
        let offset = (i * BLOCK) as u64;
        if file.read_exact_at(block, offset).is_err() {
            for (j, sector) in block.chunks_mut(SECTOR).enumerate() {
                let at = offset + (j * SECTOR) as u64;
                if file.read_exact_at(sector, at).is_err() {
                    sector.fill(0);
                    lost.push(at..at + sector.len() as u64);
                }
            }
        }
    }
    Ok((bytes, lost))
}

/// Keeps a copy of damaged octets for whoever wants to look.
fn quarantine(
    storage: &dyn Storage,
    number: u32,
    range: &Range<u64>,
    bytes: &[u8],
) -> std::io::Result<()> {
    let name = format!("{number:010}-{}.bin", range.start);
    let place = |n: u64| usize::try_from(n).unwrap_or(usize::MAX).min(bytes.len());
    let octets = bytes.get(place(range.start)..place(range.end)).unwrap_or_default();
    let path = Path::new(QUARANTINE).join(name);
    storage.create_dir(Path::new(QUARANTINE))?;
    let file = match storage.open(&path, Open::Create) {
        // From an earlier start.
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => return Ok(()),
        other => other?,
    };
    let written = file.write_at(octets, 0).and_then(|()| file.sync());
    let named = written.and_then(|()| storage.sync_dir(Path::new(QUARANTINE)));
    if named.is_err() {
        let _ = storage.remove(&path);
    }
    // The directory itself may be new.
    named.and_then(|()| storage.sync_dir(Path::new("")))
}

/// The messages whose bodies are in files.
pub(super) fn big_messages(index: &Index<Where>) -> HashSet<QueueId> {
    index.slots().filter(|(_, slot)| slot.place.big).map(|(id, _)| id).collect()
}
