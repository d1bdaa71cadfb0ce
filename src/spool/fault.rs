//! Storage for tests: the disk, counted, and failing when it is told to.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::storage::{Disk, File, Listed, Open, Storage};
use crate::mail::ReadAt;

/// A disk with a counter and a plan.
pub(super) struct Faulty {
    disk: Disk,
    control: Arc<Control>,
}

/// What a test sees and sets.
#[derive(Default)]
pub(super) struct Control {
    /// Calls that change something, so far.
    pub(super) calls: AtomicU64,
    /// Syncs of files so far.
    pub(super) syncs: AtomicU64,
    /// Whether no file can be made or grow.
    pub(super) full: AtomicBool,
    /// Whether nothing can be read.
    pub(super) unreadable: AtomicBool,
    /// Whether nothing is in memory, so that a read has to wait for the disk; and reads that did.
    pub(super) cold: AtomicBool,
    pub(super) waited: AtomicU64,
    /// A file that can't be read beyond its first two pages.
    pub(super) unreadable_in: Mutex<Option<PathBuf>>,
    /// Syncs of files wait for this.
    pub(super) pause: Mutex<()>,
    /// Octets that are said to be free; zero for the truth.
    pub(super) free: AtomicU64,
    plan: Mutex<Option<Plan>>,
}

#[derive(Clone, Copy)]
struct Plan {
    from: u64,
    to: u64,
    error: i32,
}

impl Control {
    /// Fails the changing calls `from..to`, counted from now, with this error number.
    pub(super) fn fail(&self, from: u64, to: u64, error: i32) {
        let now = self.calls.load(Ordering::SeqCst);
        *self.plan.lock().unwrap() = Some(Plan { from: now + from, to: now + to, error });
    }

    /// Fails nothing more.
    pub(super) fn heal(&self) {
        *self.plan.lock().unwrap() = None;
    }

    fn room(&self) -> io::Result<()> {
        if self.full.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn call(&self) -> io::Result<()> {
        let n = self.calls.fetch_add(1, Ordering::SeqCst);
        match *self.plan.lock().unwrap() {
            Some(plan) if (plan.from..plan.to).contains(&n) => {
                Err(io::Error::from_raw_os_error(plan.error))
            }
            _ => Ok(()),
        }
    }
}

impl Faulty {
    /// The files below `root`, and the control over them.
    pub(super) fn new(root: PathBuf) -> (Arc<Self>, Arc<Control>) {
        let control = Arc::new(Control::default());
        (Arc::new(Self { disk: Disk::new(root), control: Arc::clone(&control) }), control)
    }
}

impl Storage for Faulty {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn File>> {
        if how == Open::Create {
            self.control.call()?;
            self.control.room()?;
        }
        let file = self.disk.open(path, how)?;
        let (path, control) = (path.into(), Arc::clone(&self.control));
        Ok(Arc::new(FaultyFile { path, file, control }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.control.call()?;
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.control.call()?;
        self.disk.remove(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.control.call()?;
        self.disk.create_dir(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Listed>> {
        self.disk.list(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.control.call()?;
        self.disk.sync_dir(dir)
    }

    fn free(&self) -> io::Result<u64> {
        match self.control.free.load(Ordering::SeqCst) {
            0 => self.disk.free(),
            n => Ok(n),
        }
    }
}

struct FaultyFile {
    path: PathBuf,
    file: Arc<dyn File>,
    control: Arc<Control>,
}

impl FaultyFile {
    fn check_readable(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        if self.control.unreadable.load(Ordering::SeqCst) {
            return Err(io::Error::other("told to fail"));
        }
        let beyond = offset + buf.len() as u64 > 8192;
        if beyond && self.control.unreadable_in.lock().unwrap().as_ref() == Some(&self.path) {
            return Err(io::Error::other("told to fail"));
        }
        Ok(())
    }
}

impl ReadAt for FaultyFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.check_readable(buf, offset)?;
        self.control.waited.fetch_add(1, Ordering::SeqCst);
        self.file.read_exact_at(buf, offset)
    }
}

impl File for FaultyFile {
    fn write_at(&self, octets: &[u8], offset: u64) -> io::Result<()> {
        self.control.call()?;
        self.file.write_at(octets, offset)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.control.call()?;
        if len > self.file.size()? {
            self.control.room()?;
        }
        self.file.allocate(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.control.call()?;
        drop(self.control.pause.lock().unwrap());
        self.control.syncs.fetch_add(1, Ordering::SeqCst);
        self.file.sync()
    }

    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn read_cached_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.check_readable(buf, offset)?;
        if self.control.cold.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        // Not every file system can say what is in memory; here all of it is.
        self.file.read_exact_at(buf, offset)
    }
}
