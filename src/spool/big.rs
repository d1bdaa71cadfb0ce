//! Bodies that are too large for the log: one file each.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::recovery::{Log, big_messages};
use super::storage::{File, Is, Open, Storage};
use crate::mail::QueueId;

/// The directory of the large bodies.
pub(super) const DIR: &str = "big";
/// The largest body that goes into the log.
pub(super) const INLINE_MAX: usize = 512 << 10;

const BLOCK: usize = 256 << 10;

/// The file of a message's body.
pub(super) fn path(id: QueueId) -> PathBuf {
    folder(id).join(format!("{id}.eml"))
}

/// Two characters that change with the millisecond, so that no directory grows too large.
fn folder(id: QueueId) -> PathBuf {
    Path::new(DIR).join(id.to_string().get(7..9).unwrap_or("00"))
}

fn temporary(id: QueueId) -> PathBuf {
    folder(id).join(format!("{id}.tmp"))
}

/// A body that is being written. Dropped before it is [`kept`](Self::keep), it is removed.
pub(super) struct BigFile {
    storage: Arc<dyn Storage>,
    file: Arc<dyn File>,
    path: PathBuf,
    id: QueueId,
    written: u64,
    keep: bool,
}

impl BigFile {
    /// Begins the body of a message. Blocks.
    pub(super) fn create(storage: Arc<dyn Storage>, id: QueueId) -> io::Result<Self> {
        storage.create_dir(&folder(id))?;
        let path = temporary(id);
        let file = storage.open(&path, Open::Create)?;
        Ok(Self { storage, file, path, id, written: 0, keep: false })
    }

    /// Adds to it. Blocks.
    pub(super) fn write(&mut self, octets: &[u8]) -> io::Result<()> {
        self.file.write_at(octets, self.written)?;
        self.written += octets.len() as u64;
        Ok(())
    }

    /// Makes it durable under its final name. Blocks.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        self.file.sync()?;
        let path = path(self.id);
        self.storage.rename(&self.path, &path)?;
        self.path = path;
        self.storage.sync_dir(&folder(self.id))?;
        // The folder itself may be new.
        self.storage.sync_dir(Path::new(DIR))
    }

    /// A record names it now.
    pub(super) const fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for BigFile {
    fn drop(&mut self) {
        if !self.keep {
            // Left behind, it is removed when the spool is next opened.
            let _ = self.storage.remove(&self.path);
        }
    }
}

/// Opens a stored body and reads it through once; `None` when it is not what was written. Blocks.
pub(super) fn open(
    storage: &dyn Storage,
    id: QueueId,
    len: u64,
    crc: u32,
) -> io::Result<Option<Arc<dyn File>>> {
    let file = storage.open(&path(id), Open::Read)?;
    if file.size()? != len {
        return Ok(None);
    }
    let mut buf = vec![0; BLOCK];
    let (mut at, mut found) = (0, 0);
    while at < len {
        let n = usize::try_from(len - at).unwrap_or(BLOCK).min(BLOCK);
        let part = buf.get_mut(..n).unwrap_or_default();
        file.read_exact_at(part, at)?;
        found = crc32c::crc32c_append(found, part);
        at += n as u64;
    }
    Ok((found == crc).then_some(file))
}

/// Removes the files of no message, and holds the messages of no file.
pub(super) fn sweep(storage: &dyn Storage, log: &mut Log) -> io::Result<()> {
    let mut wanted = big_messages(&log.ledger.index);
    for folder in storage.list(Path::new(DIR))?.into_iter().filter(|l| l.is == Is::Directory) {
        let folder = Path::new(DIR).join(folder.name);
        for listed in storage.list(&folder)?.into_iter().filter(|l| l.is == Is::File) {
            let found = folder.join(&listed.name);
            let Some((name, _)) = listed.name.rsplit_once('.') else { continue };
            let Ok(id) = name.parse::<QueueId>() else { continue };
            if found == path(id) && wanted.contains(&id) {
                let size = storage.open(&found, Open::Read).and_then(|f| f.size()).ok();
                if size.is_some() && size == log.ledger.index.slot(id).map(|s| s.size) {
                    wanted.remove(&id);
                }
            } else if found == temporary(id)
                // The record that named it may be what is damaged.
                || (found == path(id) && log.report.damage.is_empty())
            {
                storage.remove(&found)?;
                log.report.orphans += 1;
            }
        }
    }
    for id in wanted {
        log.ledger.index.hold(id);
        log.report.without_body.push(id);
    }
    log.report.without_body.sort_unstable();
    Ok(())
}
