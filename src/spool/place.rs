//! Where a spool may lie: its directory, who owns it, what it lies on, and the lock on it.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The file whose lock is the spool's.
const LOCK: &str = "LOCK";

/// Why a spool was not opened. Nothing in it was changed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("spool {} is in use by process {pid}", path.display())]
    InUse {
        /// The spool's directory.
        path: PathBuf,
        /// Who has it, `unknown` when the lock file does not say.
        pid: String,
    },
    /// Its path names something else.
    #[error("spool {} is not a directory", .0.display())]
    NotADirectory(PathBuf),
    /// Someone else owns it, and could do anything with it.
    #[error("spool {} belongs to uid {owner}, and this process runs as uid {own}", path.display())]
    Owner {
        /// The spool's directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Our effective user.
        own: u32,
    },
    /// Others could read the mail in it.
    #[error("spool {} is open to others (mode {mode:03o}): chmod 700 it", path.display())]
    Mode {
        /// The spool's directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// What it lies on forgets at power-off, or does not keep the promises of a local disk.
    #[error("spool {} is on {kind}, which does not keep what it is given", path.display())]
    Volatile {
        /// The spool's directory.
        path: PathBuf,
        /// The file system's name.
        kind: &'static str,
    },
    /// It was written by another version, or is no spool.
    #[error("spool {}: {found}", path.display())]
    Format {
        /// The file that says so.
        path: PathBuf,
        /// What was found.
        found: String,
    },
    /// A setting makes no sense.
    #[error("spool setting {0}")]
    Setting(&'static str),
    /// The disk failed.
    #[error("spool {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
}

impl OpenError {
    /// An input or output error with its subject.
    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.into(), source: Arc::new(source) }
    }
}

/// The lock on a spool; let go when dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

/// Makes the directory if it is not there, checks it, and locks it.
pub(super) fn take(path: &Path, allow_volatile: bool) -> Result<Lock, OpenError> {
    let io = |action| move |e| OpenError::io(action, path, e);
    if !path.try_exists().map_err(io("find"))? {
        // Each name in it that is new must be durable, not only the last.
        let there = |p: &&Path| p.as_os_str().is_empty() || p.exists();
        let oldest = path.ancestors().find(there).map_or(0, |p| p.components().count());
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io("create"))?;
        let parents = path.ancestors().skip(1).filter(|p| p.components().count() >= oldest);
        for parent in parents {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            let synced = File::open(parent).and_then(|d| d.sync_all());
            synced.map_err(io("sync the parent of"))?;
        }
    }
    check(path, rustix::process::geteuid().as_raw())?;
    if !allow_volatile {
        let kind = rustix::fs::statfs(path).map_err(|e| io("examine")(e.into()))?.f_type;
        if let Some(kind) = volatile(u32::try_from(kind).unwrap_or(0)) {
            return Err(OpenError::Volatile { path: path.into(), kind });
        }
    }
    lock(path)
}

/// Tells who has the spool, if somebody does. Nothing is made or changed.
pub fn check_free(path: &Path) -> Result<(), OpenError> {
    match look(path) {
        Err(in_use @ OpenError::InUse { .. }) => Err(in_use),
        // What else is wrong with it, opening it will tell.
        _ => Ok(()),
    }
}

/// Keeps others from writing to a spool that is only looked at. The directory may be anyone's, and
/// a copy without its lock file.
pub(super) fn look(path: &Path) -> Result<Option<Lock>, OpenError> {
    let found = fs::metadata(path).map_err(|e| OpenError::io("examine", path, e))?;
    if !found.is_dir() {
        return Err(OpenError::NotADirectory(path.into()));
    }
    let name = path.join(LOCK);
    let io = |action| {
        let name = name.clone();
        move |e| OpenError::io(action, &name, e)
    };
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(&name);
    let file = match opened {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(io("open"))?,
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(Some(Lock { _file: file })),
        Err(TryLockError::WouldBlock) => Err(in_use(path, file)),
        Err(TryLockError::Error(e)) => Err(io("lock")(e)),
    }
}

/// Refuses a directory that others own or can look into.
fn check(path: &Path, own: u32) -> Result<(), OpenError> {
    let found = fs::metadata(path).map_err(|e| OpenError::io("examine", path, e))?;
    if !found.is_dir() {
        return Err(OpenError::NotADirectory(path.into()));
    }
    if found.uid() != own {
        return Err(OpenError::Owner { path: path.into(), owner: found.uid(), own });
    }
    let mode = found.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(OpenError::Mode { path: path.into(), mode });
    }
    Ok(())
}

/// The file systems on which a sync means nothing, or a lock and a rename mean less than they say
/// (statfs(2) lists the numbers).
const fn volatile(kind: u32) -> Option<&'static str> {
    Some(match kind {
        0x0102_1994 => "tmpfs",
        0x8584_58f6 => "ramfs",
        0x794c_7630 => "overlayfs",
        0x0000_6969 => "NFS",
        0xff53_4d42 | 0xfe53_4d42 => "SMB",
        _ => return None,
    })
}

fn lock(path: &Path) -> Result<Lock, OpenError> {
    let name = path.join(LOCK);
    let io = |action| {
        let name = name.clone();
        move |e| OpenError::io(action, &name, e)
    };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&name)
        .map_err(io("open"))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(in_use(path, file));
        }
        Err(TryLockError::Error(e)) => return Err(io("lock")(e)),
    }
    // On a full disk the pid can't be written. The lock holds without it.
    let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(Lock { _file: file })
}

fn in_use(path: &Path, lock: File) -> OpenError {
    let mut pid = String::new();
    // The pid only helps the reader; without it the refusal is the same.
    let _ = lock.take(20).read_to_string(&mut pid);
    let pid = pid.trim().parse::<u32>().map_or_else(|_| "unknown".into(), |p| p.to_string());
    OpenError::InUse { path: path.into(), pid }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_new_spool_is_for_its_owner_only_and_locked_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/spool");
        let held = take(&path, true).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        let refused = take(&path, true).unwrap_err();
        let pid = std::process::id().to_string();
        assert!(matches!(&refused, OpenError::InUse { pid: p, .. } if *p == pid), "{refused}");
        drop(held);
        take(&path, true).unwrap();
    }

    #[test]
    fn what_others_own_or_can_read_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        for mode in [0o701, 0o710, 0o750, 0o755, 0o777] {
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
            let refused = take(dir.path(), true).unwrap_err();
            assert!(matches!(refused, OpenError::Mode { mode: m, .. } if m == mode), "{refused}");
        }
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let own = fs::metadata(dir.path()).unwrap().uid();
        assert!(check(dir.path(), own).is_ok());
        assert!(matches!(check(dir.path(), own + 1), Err(OpenError::Owner { .. })));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_forgets_at_power_off_is_known_by_its_number() {
        assert_eq!(volatile(0x0102_1994), Some("tmpfs"));
        assert_eq!(volatile(0x794c_7630), Some("overlayfs"));
        assert_eq!(volatile(0x6969), Some("NFS"));
        assert_eq!(volatile(0xef53), None, "ext4");
    }
}
