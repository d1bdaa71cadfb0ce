//! The operator's pauses, kept over a restart: whoever paused an upstream relies on it.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::clock::{Clock, SystemClock, Timestamp};
use crate::delivery::Plan;
use crate::delivery::lane::Intervention;
use crate::event;

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
#[derive(Debug)]
pub(super) struct Pauses {
    path: PathBuf,
    /// Two operators at once would write into the same new file.
    writing: Mutex<()>,
}

impl Pauses {
    /// Those of a spool.
    pub(super) fn of(spool: &Path) -> Self {
        Self { path: spool.join(FILE), writing: Mutex::new(()) }
    }

    /// Pauses what was paused, for as long as was left. An upstream that is gone is forgotten. What
    /// cannot be understood is put aside and told: no mail is refused for the sake of a note.
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
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let (now, wall) = (SystemClock.now(), SystemClock.wall());
        let pinned = plan.lanes().iter().filter_map(|lane| {
            let (reason, left) = lane.view(now, wall).pin?;
            let until = left.map(|left| wall.after(left));
            Some(Kept { upstream: lane.name().to_owned(), reason, until })
        });
        let text = serde_json::to_vec(&pinned.collect::<Vec<_>>())?;
        let new = self.path.with_extension("new");
        let mut file = fs::File::create(&new)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        let directory = self.path.parent().unwrap_or_else(|| Path::new("."));
        fs::File::open(directory)?.sync_all()
    }

    fn read(&self) -> io::Result<Vec<Kept>> {
        let text = match fs::read(&self.path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            text => text?,
        };
        let error = match serde_json::from_slice(&text) {
            Ok(kept) => return Ok(kept),
            Err(error) => error,
        };
        let aside = self.path.with_extension("damaged");
        fs::rename(&self.path, &aside)?;
        event::PausesLost { kept: &aside, error: &error }.emit();
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_list_of_pauses_is_put_aside_and_keeps_nothing_from_starting() {
        let spool = tempfile::tempdir().unwrap();
        let pauses = Pauses::of(spool.path());
        assert_eq!(pauses.read().unwrap(), [], "none yet");
        let file = |extension| spool.path().join(FILE).with_extension(extension);
        for garbage in ["", "{", "[{\"upstream\":1}]", "[]]", "\0\0\0\0"] {
            fs::write(file("json"), garbage).unwrap();
            assert_eq!(pauses.read().unwrap(), [], "{garbage:?}");
            assert!(!file("json").exists());
            assert_eq!(fs::read(file("damaged")).unwrap(), garbage.as_bytes());
        }
        fs::write(file("json"), r#"[{"upstream":"core","reason":"x","until":7}]"#).unwrap();
        let until = Some(Timestamp::from_millis(7));
        let kept = Kept { upstream: "core".into(), reason: "x".into(), until };
        assert_eq!(pauses.read().unwrap(), [kept]);
    }
}
