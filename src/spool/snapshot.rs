//! The state of the queue written down, so that opening reads only what came later
//! (`docs/spool.md`, "Snapshots").
//!
//! A snapshot is never needed and never believed: what does not fit the log exactly is thrown away,
//! and the log is read instead.

use std::io;
use std::path::{Path, PathBuf};

use super::Room;
use super::index::Slot;
use super::record::{state_byte, state_of, u32_at, u64_at};
use super::recovery::Where;
use super::segment::At;
use super::storage::{File, Is, Open, Storage};
use crate::clock::Timestamp;
use crate::mail::QueueId;

/// The directory of the snapshots.
pub(super) const DIR: &str = "snap";
/// How many are kept.
const KEPT: usize = 2;

const TEMPORARY: &str = "snap/new.tmp";
const MAGIC: [u8; 8] = *b"PGATESNP";
const VERSION: u32 = 1;
const HEADER: usize = 48;
const ENTRY: usize = 56;
/// What a snapshot takes is at most this part of the log it stands for, ...
const LITTLE: u64 = 16;
/// ... as long as opening need not read more of the log than this.
const REPLAY_MAX: u64 = 1 << 30;
/// The count of entries, and the checksum of everything before it.
const TRAILER: usize = 12;
/// Entries that are read or written at once.
const PAGE: usize = 16 << 10;

/// Where in the log a snapshot was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Point {
    /// The segment that was written to, and its end then.
    pub(super) segment: u32,
    pub(super) end: u32,
    /// The checksum in the header of what ends there: another log that happens to be as long is
    /// not taken for this one.
    pub(super) mark: u32,
    /// The sequence number of the next record.
    pub(super) sequence: u64,
    /// The greatest id stored before.
    pub(super) floor: u64,
}

/// All messages at one point of the log.
pub(super) struct Snapshot {
    pub(super) point: Point,
    /// By id.
    pub(super) slots: Vec<(QueueId, Slot<Where>)>,
}

/// The snapshots that are there, the newest first.
pub(super) fn names(storage: &dyn Storage) -> io::Result<Vec<PathBuf>> {
    let mut names = Vec::new();
    for listed in storage.list(Path::new(DIR))?.into_iter().filter(|l| l.is == Is::File) {
        let sequence = listed.name.strip_suffix(".snap").and_then(|s| s.parse::<u64>().ok());
        let found = Path::new(DIR).join(&listed.name);
        if sequence.is_some_and(|sequence| path(sequence) == found) {
            names.push(found);
        }
    }
    names.sort_unstable_by(|a, b| b.cmp(a));
    Ok(names)
}

/// Octets of the log between two snapshots of so many messages: at least `every`, and so many that
/// a snapshot is little beside them. Else a long queue would slow down new mail.
pub(super) fn interval(every: u64, messages: u64) -> u64 {
    let little = messages.saturating_mul(ENTRY as u64).saturating_mul(LITTLE);
    every.max(little.min(REPLAY_MAX))
}

/// Writes down what `page` gives, which is asked for all slots above an id, a page at a time.
/// Blocks.
pub(super) fn write(
    storage: &dyn Storage,
    salt: u32,
    point: &Point,
    page: impl Fn(Option<QueueId>, usize) -> Vec<(QueueId, Slot<Where>)>,
) -> io::Result<()> {
    let temporary = Path::new(TEMPORARY);
    match storage.remove(temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let file = storage.open(temporary, Open::Create)?;
    let written = fill(&*file, salt, point, page).and_then(|()| file.sync());
    if let Err(e) = written.and_then(|()| storage.rename(temporary, &path(point.sequence))) {
        let _ = storage.remove(temporary);
        return Err(e);
    }
    storage.sync_dir(Path::new(DIR))?;
    for old in names(storage)?.iter().skip(KEPT) {
        storage.remove(old)?;
    }
    Ok(())
}

/// Reads a snapshot; `None` when it is damaged, or of another spool or version. Blocks.
pub(super) fn read(storage: &dyn Storage, path: &Path, salt: u32) -> io::Result<Option<Snapshot>> {
    let file = storage.open(path, Open::Read)?;
    let size = usize::try_from(file.size()?).unwrap_or(usize::MAX);
    let Some(octets) = size.checked_sub(HEADER + TRAILER).filter(|n| n % ENTRY == 0) else {
        return Ok(None);
    };
    let mut head = [0; HEADER];
    file.read_exact_at(&mut head, 0)?;
    let Some(point) = decode_header(&head, salt) else { return Ok(None) };
    let mut crc = crc32c::crc32c(&head);
    let mut slots = Vec::with_capacity(octets / ENTRY);
    let (mut at, mut buffer) = (HEADER, vec![0; PAGE * ENTRY]);
    while at < HEADER + octets {
        let n = (HEADER + octets - at).min(buffer.len());
        let part = buffer.get_mut(..n).unwrap_or_default();
        file.read_exact_at(part, at as u64)?;
        crc = crc32c::crc32c_append(crc, part);
        slots.extend(part.chunks_exact(ENTRY).filter_map(decode_entry));
        at += n;
    }
    let mut tail = [0; TRAILER];
    file.read_exact_at(&mut tail, at as u64)?;
    let (count, sum) = tail.split_at(8);
    let sound = u64_at(count, 0) == Some(slots.len() as u64)
        && u32_at(sum, 0) == Some(crc32c::crc32c_append(crc, count))
        && slots.len() == octets / ENTRY
        && slots.is_sorted_by(|a, b| a.0 < b.0);
    Ok(sound.then_some(Snapshot { point, slots }))
}

fn path(sequence: u64) -> PathBuf {
    Path::new(DIR).join(format!("{sequence:020}.snap"))
}

fn fill(
    file: &dyn File,
    salt: u32,
    point: &Point,
    page: impl Fn(Option<QueueId>, usize) -> Vec<(QueueId, Slot<Where>)>,
) -> io::Result<()> {
    let mut buffer = encode_header(salt, point);
    let (mut at, mut crc, mut count, mut after) = (0, 0, 0_u64, None);
    loop {
        let slots = page(after, PAGE);
        for (id, slot) in &slots {
            encode_entry(&mut buffer, *id, slot);
        }
        count += slots.len() as u64;
        if slots.is_empty() {
            buffer.extend_from_slice(&count.to_le_bytes());
        }
        crc = crc32c::crc32c_append(crc, &buffer);
        if slots.is_empty() {
            buffer.extend_from_slice(&crc.to_le_bytes());
        }
        file.write_at(&buffer, at)?;
        at += buffer.len() as u64;
        buffer.clear();
        let Some((last, _)) = slots.last() else { return Ok(()) };
        after = Some(*last);
    }
}

fn encode_header(salt: u32, point: &Point) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    for n in [VERSION, salt, point.segment, point.end, point.mark, 0] {
        out.extend_from_slice(&n.to_le_bytes());
    }
    out.extend_from_slice(&point.sequence.to_le_bytes());
    out.extend_from_slice(&point.floor.to_le_bytes());
    out
}

fn decode_header(head: &[u8], salt: u32) -> Option<Point> {
    let ours = head.starts_with(&MAGIC)
        && u32_at(head, 8) == Some(VERSION)
        && u32_at(head, 12) == Some(salt);
    ours.then_some(Point {
        segment: u32_at(head, 16)?,
        end: u32_at(head, 20)?,
        mark: u32_at(head, 24)?,
        sequence: u64_at(head, 32)?,
        floor: u64_at(head, 40)?,
    })
}

fn encode_entry(out: &mut Vec<u8>, id: QueueId, slot: &Slot<Where>) {
    let place = &slot.place;
    for n in [id.as_u64(), slot.due.as_millis(), slot.size] {
        out.extend_from_slice(&n.to_le_bytes());
    }
    let At { segment, offset } = place.body;
    for n in [segment, offset, place.meta.segment, place.meta.offset, place.octets, place.update] {
        out.extend_from_slice(&n.to_le_bytes());
    }
    out.extend_from_slice(&[state_byte(slot.state), u8::from(place.big), 0, 0, 0, 0, 0, 0]);
}

fn decode_entry(entry: &[u8]) -> Option<(QueueId, Slot<Where>)> {
    let at =
        |offset| Some(At { segment: u32_at(entry, offset)?, offset: u32_at(entry, offset + 4)? });
    let place = Where {
        body: at(24)?,
        meta: at(32)?,
        octets: u32_at(entry, 40)?,
        update: u32_at(entry, 44)?,
        big: *entry.get(49)? != 0,
    };
    let slot = Slot {
        state: state_of(*entry.get(48)?)?,
        room: Room::ENTRY,
        due: Timestamp::from_millis(u64_at(entry, 8)?),
        size: u64_at(entry, 16)?,
        place,
    };
    Some((QueueId::from_u64(u64_at(entry, 0)?), slot))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_snapshot_waits_for_a_long_queue_but_never_for_more_than_can_be_read_at_a_start() {
        const EVERY: u64 = 256 << 20;
        let little = |messages: u64| messages * 56 * 16;
        let (short, long) = (EVERY / (56 * 16), REPLAY_MAX / (56 * 16));
        assert_eq!(interval(EVERY, 0), EVERY);
        assert_eq!(interval(EVERY, short), EVERY);
        assert_eq!(interval(EVERY, short + 1), little(short + 1));
        assert_eq!(interval(EVERY, long), little(long));
        assert_eq!(interval(EVERY, long + 1), REPLAY_MAX);
        assert_eq!(interval(EVERY, u64::MAX), REPLAY_MAX);
        assert_eq!(interval(2 * REPLAY_MAX, long), 2 * REPLAY_MAX);
    }
}
