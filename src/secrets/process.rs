//! Keeping what is in memory out of files: no core dumps, no reading by others.

use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// Forbids core dumps of this process, and reading its memory by others of the same user
/// (`ptrace`, `/proc/PID/mem`, `/proc/PID/environ`). Root still can.
pub fn harden() -> io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}
