//! Keeping what is in memory out of files: no core dumps, no reading by others.

use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// Forbids core dumps of this process, and reading its memory by others of the same user
/// (`ptrace`, `/proc/PID/mem`, `/proc/PID/environ`). Root still can.
pub fn harden() -> io::Result<()> {
    // Enough by itself; and our own systemd unit sets the limit and then forbids to touch limits.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    Ok(())
}
