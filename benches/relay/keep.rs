//! Figures outlive the run: each is appended to a file as soon as it is there.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::machine::Circumstances;
use super::peers::System;
use super::report::{Column, Figures, Row};

/// One measurement, a line of the file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    #[serde(flatten)]
    pub row: Row,
    pub column: Column,
    pub figures: Figures,
    /// When, in UTC.
    pub at: String,
    /// What the relay says of its version.
    pub version: Option<String>,
    pub circumstances: Circumstances,
}

/// All measurements: those the file had, and those that came to it.
#[derive(Default)]
pub struct Kept {
    file: Option<File>,
    pub all: Vec<Measured>,
}

impl Kept {
    /// With what the file holds, if there is one.
    pub fn open(path: Option<&Path>) -> Result<Self, String> {
        let Some(path) = path else { return Ok(Self::default()) };
        let named = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
        let file = File::options().create(true).append(true).open(path).map_err(|e| named(&e))?;
        let text = fs::read_to_string(path).map_err(|e| named(&e))?;
        let all: Result<_, _> = text.lines().map(serde_json::from_str).collect();
        Ok(Self { file: Some(file), all: all.map_err(|e| named(&e))? })
    }

    /// Whether figures of this build and this kind of spool go together with what is there: a median
    /// over different ones would be of none.
    pub fn is_of(&self, version: Option<&str>, new_spool: bool) -> bool {
        let ours = self.all.iter().filter(|one| one.column == Column::Relay(System::Postgate));
        ours.into_iter().all(|one| {
            one.version.as_deref() == version && one.circumstances.new_spool == new_spool
        })
    }

    pub fn add(&mut self, measured: Measured) {
        if let Some(file) = &mut self.file {
            // In one piece: what is cut off in its middle leaves whole lines.
            let line = serde_json::to_string(&measured).unwrap() + "\n";
            file.write_all(line.as_bytes()).unwrap();
        }
        self.all.push(measured);
    }
}
