//! The operator's pauses, kept over a restart: whoever paused an upstream relies on it.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::clock::{Clock, SystemClock, Timestamp};
use crate::delivery::Plan;
use crate::delivery::lane::Intervention;

/// The file in the spool's directory.
const FILE: &str = "pauses.json";

/// One pause.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Kept {
    upstream: String,
    reason: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<Timestamp>,
}

/// Where the pauses are kept.
#[derive(Clone, Debug)]
pub(super) struct Pauses(PathBuf);

impl Pauses {
    /// Those of a spool.
    pub(super) fn of(spool: &Path) -> Self {
        Self(spool.join(FILE))
    }

    /// Pauses what was paused, for as long as was left. An upstream that is gone is forgotten.
    pub(super) fn restore(&self, plan: &Plan) -> io::Result<()> {
        let (now, wall) = (SystemClock.now(), SystemClock.wall());
        for Kept { upstream, reason, until } in self.read()? {
            let lasting = until.map(|until| until.since(wall));
            if lasting.is_some_and(|left| left.is_zero()) {
                continue;
            }
            if let Some(lane) = plan.lane(&upstream) {
                lane.intervene(Intervention::Pause { lasting, reason }, now, wall);
            }
        }
        Ok(())
    }

    /// Writes down what is paused now.
    pub(super) fn keep(&self, plan: &Plan) -> io::Result<()> {
        let (now, wall) = (SystemClock.now(), SystemClock.wall());
        let pinned = plan.lanes().iter().filter_map(|lane| {
            let (reason, left) = lane.view(now, wall).pin?;
            let until = left.map(|left| wall.after(left));
            Some(Kept { upstream: lane.name().to_owned(), reason, until })
        });
        let text = serde_json::to_vec(&pinned.collect::<Vec<_>>())?;
        let new = self.0.with_extension("new");
        let mut file = fs::File::create(&new)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&new, &self.0)?;
        let directory = self.0.parent().unwrap_or_else(|| Path::new("."));
        fs::File::open(directory)?.sync_all()
    }

    fn read(&self) -> io::Result<Vec<Kept>> {
        match fs::read(&self.0) {
            Ok(text) => Ok(serde_json::from_slice(&text)?),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(e),
        }
    }
}
