//! The files of the log: their names, where they come from and where they go.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::record::{self, Bad, Decoded, Kind, SEGMENT_HEADER, Seed, SegmentHeader};
use super::storage::{File, Is, Open, Storage};
use crate::mail::ReadAt;

/// The directory of the segments.
pub(super) const DIR: &str = "seg";
/// Drained segments kept for reuse, at most: their blocks are there, so a sync in them costs less.
pub(super) const SPARES: usize = 4;
/// One spare for so many segments of the log, so that a drained spool gives the disk back.
const LOG_PER_SPARE: usize = 4;

const RESERVE: &str = "seg/reserve.seg";
/// Read at once to see a record's header and, nearly always, its metadata.
pub(super) const GLANCE: u32 = 4096;

/// Where a record starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct At {
    pub(super) segment: u32,
    pub(super) offset: u32,
}

/// Where a record is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Extent {
    pub(super) at: At,
    pub(super) octets: u32,
}

/// A segment that is part of the log.
pub(super) struct Segment {
    pub(super) file: Arc<dyn File>,
    /// How many records in it are needed.
    pub(super) needed: u64,
}

/// The files that are not part of the log yet, or any more.
pub(super) struct Pool {
    storage: Arc<dyn Storage>,
    size: u64,
    spares: Vec<PathBuf>,
    reserve: bool,
    /// A segment that was taken in, and the directory not synced since.
    leaving: Option<u32>,
}

/// The names in the segments' directory.
#[derive(Clone, Default)]
pub(super) struct Names {
    pub(super) segments: Vec<u32>,
    pub(super) spares: Vec<PathBuf>,
    pub(super) reserve: bool,
}

/// The file of a segment.
pub(super) fn path(number: u32) -> PathBuf {
    Path::new(DIR).join(format!("{number:010}.seg"))
}

fn spare_path(number: u32) -> PathBuf {
    Path::new(DIR).join(format!("spare-{number:010}.seg"))
}

/// Reads the directory; other names than ours are left alone.
pub(super) fn names(storage: &dyn Storage) -> io::Result<Names> {
    let mut names = Names::default();
    for listed in storage.list(Path::new(DIR))?.into_iter().filter(|l| l.is == Is::File) {
        let path = Path::new(DIR).join(&listed.name);
        let number = |s: &str| s.strip_suffix(".seg")?.parse::<u32>().ok();
        if path == Path::new(RESERVE) {
            names.reserve = true;
        } else if let Some(n) = listed.name.strip_prefix("spare-").and_then(number) {
            if path == spare_path(n) {
                names.spares.push(path);
            }
        } else if let Some(n) = number(&listed.name).filter(|n| path == self::path(*n)) {
            names.segments.push(n);
        }
    }
    names.segments.sort_unstable();
    Ok(names)
}

/// Reads the header and metadata of one record.
pub(super) fn read_meta(
    file: &dyn ReadAt,
    seed: Seed,
    record: Extent,
) -> io::Result<Result<(Decoded, Vec<u8>), Bad>> {
    let Some(mut bytes) = read(file, record, GLANCE as usize)? else { return Ok(Err(Bad::Header)) };
    let decoded = match record::decode_header(&bytes, seed) {
        Ok(decoded) => decoded,
        Err(bad) => return Ok(Err(bad)),
    };
    let len = record::HEADER + decoded.meta_len;
    if len > bytes.len() {
        bytes = match read(file, record, len)? {
            Some(whole) if whole.len() == len => whole,
            _ => return Ok(Err(Bad::Payload(decoded))),
        };
    }
    Ok(record::decode(&bytes, seed).map(|(decoded, meta)| (decoded, meta.to_vec())))
}

/// Reads the inline body of one record. One whose body has a file of its own is as bad as one that
/// does not hold what was written.
pub(super) fn read_body(
    file: &dyn ReadAt,
    seed: Seed,
    record: Extent,
) -> io::Result<Result<Bytes, Bad>> {
    let Some(bytes) = read(file, record, usize::MAX)? else { return Ok(Err(Bad::Header)) };
    let decoded = match record::decode_header(&bytes, seed) {
        Ok(decoded) if decoded.header.kind == Kind::Enqueue => decoded,
        Ok(other) => return Ok(Err(Bad::Payload(other))),
        Err(bad) => return Ok(Err(bad)),
    };
    let start = record::HEADER + decoded.meta_len;
    let end = usize::try_from(decoded.inline_len()).ok().and_then(|len| start.checked_add(len));
    let bytes = Bytes::from(bytes);
    Ok(match end.filter(|end| *end <= bytes.len()).map(|end| bytes.slice(start..end)) {
        Some(body) if crc32c::crc32c(&body) == decoded.header.body_crc => Ok(body),
        _ => Err(Bad::Payload(decoded)),
    })
}

/// The first octets of a record, `max` at most; `None` when the file was cut off before it, which
/// is no error of the disk that may pass. Never more than the record: behind the end of the log the
/// disk would be read for nothing.
fn read(file: &dyn ReadAt, record: Extent, max: usize) -> io::Result<Option<Vec<u8>>> {
    let len = usize::try_from(record.octets).unwrap_or(usize::MAX).min(max);
    let mut bytes = vec![0; len];
    match file.read_exact_at(&mut bytes, u64::from(record.at.offset)) {
        Ok(()) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(e) => Err(e),
    }
}

impl Pool {
    /// The files that `names` found, for segments of `size` octets.
    pub(super) fn new(storage: Arc<dyn Storage>, size: u64, names: Names) -> Self {
        Self { storage, size, spares: names.spares, reserve: names.reserve, leaving: None }
    }

    /// Whether state changes still have a segment when the disk is full.
    pub(super) const fn has_reserve(&self) -> bool {
        self.reserve
    }

    /// A file for segment `number`, its blocks allocated. From the reserve only when there is
    /// nothing else and `from_reserve` allows it.
    pub(super) fn take(&mut self, number: u32, from_reserve: bool) -> io::Result<Arc<dyn File>> {
        let path = path(number);
        match self.raw(&path) {
            Err(_) if from_reserve && self.reserve => {
                self.storage.rename(Path::new(RESERVE), &path)?;
                self.reserve = false;
                self.storage.open(&path, Open::Write)
            }
            other => other,
        }
    }

    /// Makes a file a segment: empty, durable, with its header.
    pub(super) fn install(&self, file: &dyn File, header: &SegmentHeader) -> io::Result<()> {
        let ready = file
            .write_at(&header.encode(), 0)
            .and_then(|()| file.sync())
            .and_then(|()| self.storage.sync_dir(Path::new(DIR)));
        if ready.is_err() {
            // Half-made it would only eat the room that is wanted.
            let _ = self.storage.remove(&path(header.number));
        }
        ready
    }

    /// A file with the blocks of a segment: a spare, or a new one.
    fn raw(&mut self, path: &Path) -> io::Result<Arc<dyn File>> {
        if let Some(spare) = self.spares.pop() {
            self.storage.rename(&spare, path)?;
            return self.storage.open(path, Open::Write);
        }
        self.create(path)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let file = self.storage.open(path, Open::Create)?;
        if let Err(e) = file.allocate(self.size) {
            let _ = self.storage.remove(path);
            return Err(e);
        }
        Ok(file)
    }

    /// Takes in a drained segment: as the reserve, as a spare, or not at all.
    /// The log has `log` segments.
    pub(super) fn recycle(&mut self, number: u32, log: usize) -> io::Result<()> {
        let spares = (log / LOG_PER_SPARE).clamp(1, SPARES);
        // After a sync that failed only the sync is left to do.
        if self.leaving != Some(number) {
            self.take_in(number, spares)?;
            self.leaving = Some(number);
        }
        while self.spares.len() > spares
            && let Some(spare) = self.spares.pop()
        {
            self.storage.remove(&spare)?;
        }
        // In order: a later segment may only go when this one is gone for good.
        self.storage.sync_dir(Path::new(DIR))?;
        self.leaving = None;
        Ok(())
    }

    fn take_in(&mut self, number: u32, spares: usize) -> io::Result<()> {
        let path = path(number);
        if !self.reserve {
            self.storage.rename(&path, Path::new(RESERVE))?;
            self.reserve = true;
        } else if self.spares.len() < spares {
            let spare = spare_path(number);
            self.storage.rename(&path, &spare)?;
            self.spares.push(spare);
        } else {
            self.storage.remove(&path)?;
        }
        Ok(())
    }

    /// Makes sure of the reserve.
    pub(super) fn ensure_reserve(&mut self) -> io::Result<()> {
        let path = Path::new(RESERVE);
        if self.reserve {
            return Ok(());
        }
        // One may be there that lacked its blocks.
        let file = match self.storage.open(path, Open::Write) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => self.raw(path)?,
            other => other?,
        };
        let ready = file.allocate(self.size).and_then(|()| file.sync());
        if let Err(e) = ready.and_then(|()| self.storage.sync_dir(Path::new(DIR))) {
            let _ = self.storage.remove(path);
            return Err(e);
        }
        self.reserve = true;
        Ok(())
    }

    /// Makes sure that a reserve which was found has all its blocks.
    pub(super) fn check_reserve(&mut self) -> io::Result<()> {
        if self.reserve {
            self.reserve = false;
            self.storage.open(Path::new(RESERVE), Open::Write)?.allocate(self.size)?;
            self.reserve = true;
        }
        Ok(())
    }
}

/// Where the first record of a segment starts.
pub(super) const FIRST: u32 = 64;
const _: () = assert!(FIRST as usize == SEGMENT_HEADER, "records follow the header");
