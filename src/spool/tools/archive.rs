//! Messages as files of a directory: what `spool export` writes and `spool import` reads.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::mail::{Body, Message, QueueId, QueueState, ReadAt};
use crate::spool::Entry;

/// The format that is written, and the only one that is read.
const VERSION: u32 = 1;
/// Octets that are read at a time.
const PIECE: usize = 256 << 10;

/// Why a message was not written to or read from a directory.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// There is something in it: what is left of an older export would be imported with this one.
    #[error("{} is not empty", .0.display())]
    NotEmpty(PathBuf),
    /// The files are not what an export writes.
    #[error("{}: {why}", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The disk failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What a directory holds.
#[derive(Debug, Default)]
pub struct Names {
    /// Messages to import, by id.
    pub waiting: Vec<QueueId>,
    /// How many were imported before.
    pub imported: usize,
}

/// The file beside the message.
#[derive(Serialize, Deserialize)]
struct Sheet {
    version: u32,
    /// CRC-32C of the content, 8 hexadecimal digits.
    crc32c: String,
    entry: Entry,
}

/// A message that is being written. Dropped before it is [finished](Self::finish), it leaves nothing
/// that would be imported.
pub struct Outgoing {
    dir: PathBuf,
    entry: Entry,
    file: File,
    written: u64,
    crc: u32,
}

/// Makes the directory for an export; one that is there must be empty.
pub fn create(dir: &Path) -> Result<(), ArchiveError> {
    match DirBuilder::new().recursive(true).mode(0o700).create(dir) {
        Err(e) => return Err(failed("create", dir)(e)),
        Ok(()) if fs::read_dir(dir).map_err(failed("list", dir))?.next().is_none() => {}
        Ok(()) => return Err(ArchiveError::NotEmpty(dir.into())),
    }
    Ok(())
}

/// Makes everything in the directory durable. Blocks.
pub fn sync(dir: &Path) -> Result<(), ArchiveError> {
    let opened = File::open(dir).and_then(|d| Ok(rustix::fs::syncfs(d)?));
    opened.map_err(failed("sync", dir))
}

/// What there is to import.
pub fn names(dir: &Path) -> Result<Names, ArchiveError> {
    let mut names = Names::default();
    for entry in fs::read_dir(dir).map_err(failed("list", dir))? {
        let name = entry.map_err(failed("list", dir))?.file_name();
        let Some((id, kind)) = name.to_str().and_then(|name| name.split_once('.')) else {
            continue;
        };
        match (id.parse(), kind) {
            (Ok(id), "json") => names.waiting.push(id),
            (Ok(_), "json.imported") => names.imported += 1,
            _ => {}
        }
    }
    names.waiting.sort_unstable();
    Ok(names)
}

/// Reads a message. What is given back was compared with its checksum. Blocks.
pub fn open(dir: &Path, id: QueueId) -> Result<(Entry, Body), ArchiveError> {
    let sheet_path = dir.join(format!("{id}.json"));
    let text = fs::read(&sheet_path).map_err(failed("read", &sheet_path))?;
    let broken = |path: &Path, why: String| ArchiveError::Broken { path: path.into(), why };
    let sheet: Sheet =
        serde_json::from_slice(&text).map_err(|e| broken(&sheet_path, e.to_string()))?;
    check(&sheet, id).map_err(|why| broken(&sheet_path, why.into()))?;

    let path = dir.join(format!("{id}.eml"));
    let io = |action| failed(action, &path);
    let file = File::open(&path).map_err(io("open"))?;
    let expected = head(&sheet.entry);
    let len = file.metadata().map_err(io("examine"))?.len();
    let mut begin = vec![0; expected.len()];
    let starts = len >= expected.len() as u64 && {
        file.read_exact_at(&mut begin, 0).map_err(io("read"))?;
        begin == expected
    };
    if !starts {
        return Err(broken(&path, "its envelope is not that of the .json file".into()));
    }
    let size = sheet.entry.message.size;
    let source = Arc::new(Tail { file, from: expected.len() as u64 });
    let body = Body::Stored { source, len: len - expected.len() as u64 };
    if body.len() != size || format!("{:08x}", crc(&body).map_err(io("read"))?) != sheet.crc32c {
        return Err(broken(&path, "it does not hold what was exported".into()));
    }
    Ok((sheet.entry, body))
}

/// Notes that a message was imported: it is not waiting any more, once the directory is
/// [synced](sync).
pub fn mark(dir: &Path, id: QueueId) -> Result<(), ArchiveError> {
    let path = dir.join(format!("{id}.json"));
    let marked = dir.join(format!("{id}.json.imported"));
    fs::rename(&path, marked).map_err(failed("mark as imported", &path))
}

/// What tells whether two messages came from the same transaction, whatever their queue ids.
pub fn fingerprint(message: &Message) -> [u8; 32] {
    let Message { received, size, client, envelope, message_id, .. } = message;
    let same = (received, size, client, envelope, message_id);
    // The types have no maps with odd keys, so this does not fail.
    Sha256::digest(serde_json::to_vec(&same).unwrap_or_default()).into()
}

impl Outgoing {
    /// Begins a message. Blocks.
    pub fn create(dir: &Path, entry: Entry) -> Result<Self, ArchiveError> {
        let path = dir.join(format!("{}.eml", entry.message.id));
        let file = create_file(&path).map_err(failed("create", &path))?;
        let mut new = Self { dir: dir.into(), entry, file, written: 0, crc: 0 };
        new.file.write_all(&head(&new.entry)).map_err(failed("write", &path))?;
        Ok(new)
    }

    /// Adds to its content. Blocks.
    pub fn write(&mut self, octets: &[u8]) -> Result<(), ArchiveError> {
        self.written += octets.len() as u64;
        self.crc = crc32c::crc32c_append(self.crc, octets);
        self.file.write_all(octets).map_err(failed("write", &self.path("eml")))
    }

    /// Adds all of a content. Blocks.
    pub fn write_all(&mut self, body: &Body) -> Result<(), ArchiveError> {
        while self.written < body.len() {
            let piece = body.chunk(self.written, PIECE).map_err(failed("read", &self.dir))?;
            self.write(&piece)?;
        }
        Ok(())
    }

    /// Ends the message: only now it would be imported. Blocks.
    pub fn finish(self) -> Result<(), ArchiveError> {
        if self.written != self.entry.message.size {
            let why = format!("{} octets of {}", self.written, self.entry.message.size);
            return Err(ArchiveError::Broken { path: self.path("eml"), why });
        }
        let path = self.path("json");
        let sheet =
            Sheet { version: VERSION, crc32c: format!("{:08x}", self.crc), entry: self.entry };
        let written = serde_json::to_vec(&sheet)
            .map_err(io::Error::from)
            .and_then(|text| create_file(&path)?.write_all(&text));
        written.map_err(failed("write", &path))
    }

    /// Takes back what was written: the message is gone from the queue.
    pub fn discard(self) -> Result<(), ArchiveError> {
        let path = self.path("eml");
        fs::remove_file(&path).map_err(failed("remove", &path))
    }

    fn path(&self, kind: &str) -> PathBuf {
        self.dir.join(format!("{}.{kind}", self.entry.message.id))
    }
}

/// What stands before the content of a message. Paths hold no line ends.
fn head(entry: &Entry) -> Vec<u8> {
    let Message { id, envelope, .. } = &entry.message;
    let mut head = format!("X-Queue-Id: {id}\r\nX-Envelope-From: <{}>\r\n", envelope.reverse_path);
    let to = envelope.recipients.iter().map(|r| format!("X-Envelope-To: <{}>\r\n", r.path));
    head.extend(to);
    head.into_bytes()
}

fn check(sheet: &Sheet, id: QueueId) -> Result<(), &'static str> {
    let message = &sheet.entry.message;
    if sheet.version != VERSION {
        Err("another version wrote it")
    } else if message.id != id {
        Err("it is that of another message")
    } else if sheet.entry.state == QueueState::Sent {
        Err("the message is finished")
    } else if message.envelope.recipients.is_empty()
        || message.envelope.recipients.len() != message.status.len()
    {
        Err("not every recipient has a status")
    } else {
        Ok(())
    }
}

fn crc(body: &Body) -> io::Result<u32> {
    let (mut at, mut crc) = (0, 0);
    while at < body.len() {
        let piece = body.chunk(at, PIECE)?;
        crc = crc32c::crc32c_append(crc, &piece);
        at += piece.len() as u64;
    }
    Ok(crc)
}

fn create_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ArchiveError {
    let path = path.to_owned();
    move |source| ArchiveError::Io { action, path, source }
}

/// A file from some octet on.
struct Tail {
    file: File,
    from: u64,
}

impl ReadAt for Tail {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let at = self.from.checked_add(offset).ok_or(ErrorKind::InvalidInput)?;
        self.file.read_exact_at(buf, at)
    }
}
