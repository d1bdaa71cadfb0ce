//! Looking into a spool that no process has, without changing an octet of it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Progress, ToolError};
use crate::mail::{Body, QueueId, ReadAt};
use crate::spool::place::{self, Lock, OpenError};
use crate::spool::record::Seed;
use crate::spool::recovery::{self, Log, Recovered, Where};
use crate::spool::segment::{self, At};
use crate::spool::storage::{Disk, File, Is, Listed, Open, Storage};
use crate::spool::{Entry, SpoolError, big, format, io_error};

/// What is in a spool, read as [`SegmentLog::open`](crate::spool::SegmentLog::open) would.
pub struct Reader {
    path: PathBuf,
    storage: Arc<dyn Storage>,
    salt: u32,
    log: Log,
    /// Nobody writes to it meanwhile.
    _lock: Option<Lock>,
}

/// What [`verify`] found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// What opening would find.
    pub recovered: Recovered,
    /// Messages whose body file has the right length and not what was written.
    pub damaged_bodies: Vec<QueueId>,
    /// Segments of the log.
    pub segments: usize,
    /// Octets of all bodies.
    pub octets: u64,
}

impl Verdict {
    /// Whether everything is there that was acknowledged, as far as the disk can tell. A torn tail
    /// and body files of no message are what a crash leaves, and no damage.
    pub fn is_sound(&self) -> bool {
        let Recovered { damage, without_body, .. } = &self.recovered;
        damage.is_empty() && without_body.is_empty() && self.damaged_bodies.is_empty()
    }
}

/// Reads the whole spool at `path`, the body files included, and says what is wrong with it.
/// Progress is in octets. Blocks.
pub fn verify(path: &Path, progress: Arc<dyn Progress>) -> Result<Verdict, ToolError> {
    let reader = Reader::open(path, progress)?;
    let damaged_bodies = reader.damaged_bodies()?;
    Ok(Verdict {
        damaged_bodies,
        segments: reader.log.ledger.segments.len(),
        octets: reader.log.ledger.index.stats().bytes,
        recovered: reader.log.report,
    })
}

impl Reader {
    /// Reads the spool's log. While this lives no Postgate can open the spool. Progress is in
    /// octets. Blocks.
    pub fn open(path: &Path, progress: Arc<dyn Progress>) -> Result<Self, OpenError> {
        let lock = place::look(path)?;
        let disk = Disk::new(path.to_owned());
        let failed = |action| move |e| OpenError::io(action, path, e);
        progress.total(size(&disk).map_err(failed("measure"))?);
        let storage: Arc<dyn Storage> = Arc::new(ReadOnly { disk, progress });
        let salt = format::salt_of(&*storage, path)?;
        let log = recovery::read(&storage, salt)?;
        Ok(Self { path: path.into(), storage, salt, log, _lock: lock })
    }

    /// What opening would find.
    pub const fn recovered(&self) -> &Recovered {
        &self.log.report
    }

    /// All messages, by id.
    pub fn ids(&self) -> Vec<QueueId> {
        self.log.ledger.index.slots().map(|(id, _)| id).collect()
    }

    /// One message and its content. Blocks.
    pub fn read(&self, id: QueueId) -> Result<(Entry, Body), SpoolError> {
        let view = self.log.ledger.index.view(id).ok_or(SpoolError::NotFound(id))?;
        let record = view.place.meta_record();
        let read = segment::read_meta(&*self.segment(id, record.at)?, self.seed(record.at), record);
        let read = read.map_err(|e| self.failed(&segment::path(record.at.segment), e))?;
        let (_, meta) = read.map_err(|_| SpoolError::Damaged(id))?;
        let message = serde_json::from_slice(&meta).map_err(|_| SpoolError::Damaged(id))?;
        let body = self.body(id, view.place)?;
        Ok((Entry { message, state: view.state, due: view.due }, body))
    }

    fn body(&self, id: QueueId, place: Where) -> Result<Body, SpoolError> {
        if place.big {
            let source = self.body_file(id, place)?.ok_or(SpoolError::Damaged(id))?;
            let len = source.size().map_err(|e| self.failed(&big::path(id), e))?;
            return Ok(Body::Stored { source, len });
        }
        let record = place.body_record();
        let read = segment::read_body(&*self.segment(id, record.at)?, self.seed(record.at), record);
        let body = read.map_err(|e| self.failed(&segment::path(record.at.segment), e))?;
        body.map(Body::Memory).map_err(|_| SpoolError::Damaged(id))
    }

    /// The file of a large body, when it holds what was written. Reads all of it.
    fn body_file(&self, id: QueueId, place: Where) -> Result<Option<Arc<dyn File>>, SpoolError> {
        let record = place.body_record();
        let read = segment::read_meta(&*self.segment(id, record.at)?, self.seed(record.at), record);
        let read = read.map_err(|e| self.failed(&segment::path(record.at.segment), e))?;
        let (decoded, _) = read.map_err(|_| SpoolError::Damaged(id))?;
        let (len, crc) = (decoded.header.body_len, decoded.header.body_crc);
        match big::open(&*self.storage, id, len, crc) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.map_err(|e| self.failed(&big::path(id), e)),
        }
    }

    /// Those whose body file is there, and is not what was written.
    fn damaged_bodies(&self) -> Result<Vec<QueueId>, SpoolError> {
        let missing = &self.log.report.without_body;
        let mut damaged = Vec::new();
        for (id, slot) in self.log.ledger.index.slots().filter(|(_, slot)| slot.place.big) {
            if missing.binary_search(&id).is_err() && self.body_file(id, slot.place)?.is_none() {
                damaged.push(id);
            }
        }
        Ok(damaged)
    }

    fn segment(&self, id: QueueId, at: At) -> Result<Arc<dyn File>, SpoolError> {
        let segment = self.log.ledger.segments.get(&at.segment);
        segment.map(|s| Arc::clone(&s.file)).ok_or(SpoolError::Damaged(id))
    }

    fn seed(&self, at: At) -> Seed {
        Seed::new(self.salt, at.segment)
    }

    fn failed(&self, file: &Path, error: io::Error) -> SpoolError {
        io_error("read", &self.path.join(file), error)
    }
}

/// Octets of the files that are read when all is read.
fn size(disk: &Disk) -> io::Result<u64> {
    let mut octets = 0;
    let mut add = |file: &Path| -> io::Result<()> {
        octets += disk.open(file, Open::Read)?.size()?;
        Ok(())
    };
    for number in segment::names(disk).or_else(none)?.segments {
        add(&segment::path(number))?;
    }
    for folder in disk.list(Path::new(big::DIR)).or_else(none)? {
        let folder = Path::new(big::DIR).join(folder.name);
        // A message may be there without its file, and a file that is no folder.
        for listed in disk.list(&folder).unwrap_or_default() {
            if listed.is == Is::File {
                add(&folder.join(listed.name))?;
            }
        }
    }
    Ok(octets)
}

/// Nothing, where there is no directory yet.
fn none<T: Default>(error: io::Error) -> io::Result<T> {
    if error.kind() == io::ErrorKind::NotFound { Ok(T::default()) } else { Err(error) }
}

/// The disk, for readers only. What opening would clean up, or write once more to be sure of it, it
/// is told was done.
struct ReadOnly {
    disk: Disk,
    progress: Arc<dyn Progress>,
}

impl Storage for ReadOnly {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn File>> {
        if how == Open::Create {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        let file = self.disk.open(path, Open::Read)?;
        Ok(Arc::new(ReadOnlyFile { file, progress: Arc::clone(&self.progress) }))
    }

    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn remove(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn create_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    /// Only what holds mail: what opening keeps aside to be faster is not believed here.
    fn list(&self, dir: &Path) -> io::Result<Vec<Listed>> {
        if dir.starts_with(segment::DIR) || dir.starts_with(big::DIR) {
            self.disk.list(dir).or_else(none)
        } else {
            Ok(Vec::new())
        }
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn free(&self) -> io::Result<u64> {
        self.disk.free()
    }
}

struct ReadOnlyFile {
    file: Arc<dyn File>,
    progress: Arc<dyn Progress>,
}

impl ReadAt for ReadOnlyFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let read = self.file.read_exact_at(buf, offset);
        self.progress.add(buf.len() as u64);
        read
    }
}

impl File for ReadOnlyFile {
    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Ok(())
    }

    fn allocate(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }
}
