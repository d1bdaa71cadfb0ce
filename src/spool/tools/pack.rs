//! Giving back the room that finished messages took.

use std::path::Path;
use std::sync::Arc;

use super::{Progress, ToolError};
use crate::clock::Clock;
use crate::spool::segment::{self, Names};
use crate::spool::storage::{Disk, Open, Storage};
use crate::spool::{OpenError, SegmentLog, Settings, format, place};

/// What [`compact`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Compacted {
    /// Messages in the spool.
    pub messages: u64,
    /// Octets of its log before, files kept for reuse included.
    pub before: u64,
    /// And after.
    pub after: u64,
    /// The segment where it stopped: a message in it can't be read, or its damage not copied away.
    pub stuck: Option<u32>,
}

/// Copies what is needed to the end of the log, and gives the emptied segments back to the file
/// system. Every copy is durable before what it replaces is let go. Progress is in segments. Blocks.
pub fn compact(
    settings: Settings,
    clock: Arc<dyn Clock>,
    progress: &dyn Progress,
) -> Result<Compacted, ToolError> {
    settings.check()?;
    // A mistyped path is not made a new spool.
    format::salt_of(&Disk::new(settings.path.clone()), &settings.path)?;
    let _lock = place::take(&settings.path, settings.allow_volatile)?;
    let path = settings.path.clone();
    let io = |action| {
        let path = path.join(segment::DIR);
        move |e| OpenError::io(action, &path, e)
    };
    let disk: Arc<dyn Storage> = Arc::new(Disk::new(settings.path.clone()));
    let before = octets(&*disk).map_err(io("measure"))?;
    let (core, mut writer, report) = SegmentLog::assemble(Arc::clone(&disk), settings, clock)?;
    let stuck = writer.pack(progress)?;
    drop((writer, core));
    for spare in segment::names(&*disk).map_err(io("list"))?.spares {
        disk.remove(&spare).map_err(io("remove a spare of"))?;
    }
    disk.sync_dir(Path::new(segment::DIR)).map_err(io("sync"))?;
    let after = octets(&*disk).map_err(io("measure"))?;
    Ok(Compacted { messages: report.messages, before, after, stuck })
}

/// Octets of the segments, spares included; the reserve stays as it is and does not count.
fn octets(disk: &dyn Storage) -> std::io::Result<u64> {
    let names = match segment::names(disk) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Names::default(),
        other => other?,
    };
    let segments = names.segments.into_iter().map(segment::path);
    let mut octets = 0;
    for file in segments.chain(names.spares) {
        octets += disk.open(&file, Open::Read)?.size()?;
    }
    Ok(octets)
}
