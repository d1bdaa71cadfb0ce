//! What the log needs of a file system, so that a test can put another one under it: one that
//! counts, fails or freezes at a chosen call.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::ReadWriteFlags;

use crate::mail::ReadAt;

/// Files and directories below one root. All paths are relative to it.
pub trait Storage: Send + Sync + 'static {
    /// Opens a file; never through a symbolic link.
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn File>>;
    /// Renames a file, over another if there is one.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes a directory; it may be there already.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// The names in a directory.
    fn list(&self, dir: &Path) -> io::Result<Vec<Listed>>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Octets that can still be stored.
    fn free(&self) -> io::Result<u64>;
}

/// An open file.
pub trait File: ReadAt {
    /// Writes all of `octets` at `offset`.
    fn write_at(&self, octets: &[u8], offset: u64) -> io::Result<()>;
    /// Reserves room for the first `len` octets; the file is at least so long afterwards.
    fn allocate(&self, len: u64) -> io::Result<()>;
    /// Makes what was written durable.
    fn sync(&self) -> io::Result<()>;
    /// The length in octets.
    fn size(&self) -> io::Result<u64>;
    /// Fills `buf` from `offset` with what is in memory already; fails when the disk would have to
    /// be asked, or there is nothing.
    fn read_cached_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let _ = (buf, offset);
        Err(io::ErrorKind::WouldBlock.into())
    }
}

/// A file of which only that can be read which is in memory already, so that nobody waits: what
/// was written a moment ago always is.
pub(super) struct Cached<'a>(pub(super) &'a dyn File);

impl ReadAt for Cached<'_> {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_cached_at(buf, offset)
    }
}

/// How to open a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Open {
    /// One that is there, to read.
    Read,
    /// One that is there, to read and write.
    Write,
    /// One that is not there yet.
    Create,
}

/// A name in a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// The name.
    pub name: String,
    /// What it names.
    pub is: Is,
}

/// What a name in a directory is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Is {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link, a socket, a device.
    Other,
}

/// The real file system.
#[derive(Debug)]
pub(super) struct Disk {
    root: PathBuf,
}

impl Disk {
    /// The files below `root`.
    pub(super) const fn new(root: PathBuf) -> Self {
        Self { root }
    }
}

impl Storage for Disk {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn File>> {
        let file = OpenOptions::new()
            .read(true)
            .write(how != Open::Read)
            .create_new(how == Open::Create)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(self.root.join(path))?;
        Ok(Arc::new(DiskFile(file)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(self.root.join(from), self.root.join(to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(self.root.join(path))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let path = self.root.join(path);
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                let found = fs::symlink_metadata(&path)?;
                if found.is_dir() { Ok(()) } else { Err(io::ErrorKind::NotADirectory.into()) }
            }
            other => other,
        }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Listed>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.root.join(dir))? {
            let entry = entry?;
            let kind = entry.file_type()?;
            let is = match kind {
                k if k.is_file() => Is::File,
                k if k.is_dir() => Is::Directory,
                _ => Is::Other,
            };
            // A name that is not UTF-8 is none of ours.
            if let Ok(name) = entry.file_name().into_string() {
                names.push(Listed { name, is });
            }
        }
        Ok(names)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        fs::File::open(self.root.join(dir))?.sync_all()
    }

    fn free(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(&self.root)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

struct DiskFile(fs::File);

impl ReadAt for DiskFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }
}

impl File for DiskFile {
    fn write_at(&self, octets: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(octets, offset)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.0, rustix::fs::FallocateFlags::empty(), 0, len) {
            // Some file systems can't: then the file grows as it is written.
            Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            other => Ok(other?),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_cached_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let len = buf.len();
        let mut into = [io::IoSliceMut::new(buf)];
        // Less than all: the rest is on the disk, or nowhere. Whoever may wait finds out.
        let read = rustix::io::preadv2(&self.0, &mut into, offset, ReadWriteFlags::NOWAIT)?;
        if read == len { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) }
    }
}
