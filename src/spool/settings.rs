//! What the configuration says about the spool.

use std::path::PathBuf;

use super::place::OpenError;

const MIB: u64 = 1 << 20;

/// Where the spool is and how much it may hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Its directory; made, with mode 0700, when it is not there.
    pub path: PathBuf,
    /// Open it also where a power cut loses everything (tmpfs, overlayfs, NFS).
    pub allow_volatile: bool,
    /// New mail is refused while fewer octets than these are free on its file system.
    pub min_free: u64,
    /// Messages it holds at most, dead letters included.
    pub max_messages: u64,
    /// Octets of bodies it holds at most.
    pub max_bytes: u64,
    /// Octets of bodies that may be in memory on their way in, over all sessions.
    pub memory: u64,
    /// Octets written to the log after which the state of the queue is written down, so that opening
    /// reads only what came later.
    pub snapshot_every: u64,
    /// Octets of one segment.
    pub segment_size: u64,
}

impl Settings {
    /// The defaults, for a spool at `path`.
    pub const fn new(path: PathBuf) -> Self {
        Self {
            path,
            allow_volatile: false,
            min_free: 1024 * MIB,
            max_messages: 1_000_000,
            max_bytes: u64::MAX,
            memory: 128 * MIB,
            snapshot_every: 256 * MIB,
            segment_size: 64 * MIB,
        }
    }

    /// Refuses what can't work.
    pub(super) fn check(&self) -> Result<(), OpenError> {
        if !(4096..=1024 * MIB).contains(&self.segment_size) {
            return Err(OpenError::Setting("segment_size: 4 KiB to 1 GiB is expected"));
        }
        if self.memory < 2 * MIB {
            return Err(OpenError::Setting("memory: 2 MiB or more is expected"));
        }
        Ok(())
    }
}
