//! What is wrong with a configuration: everything at once, each with its place and its cure.

use std::fmt;
use std::path::{Path, PathBuf};

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Severity {
    /// Postgate does not start with it.
    Error,
    /// Postgate starts, and does perhaps not what was meant.
    Warning,
}

/// Where it stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Location {
    /// In the file; both count from 1, the column in characters.
    File {
        /// The line.
        line: usize,
        /// The column.
        column: usize,
    },
    /// In this environment variable.
    Environment(String),
    /// In something that is missing, or in the whole.
    Nowhere,
}

/// One thing that is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, in an operator's words. Never holds a value that could be secret.
    pub message: String,
    /// What to write or do instead.
    pub cure: Option<String>,
    /// Where.
    pub location: Location,
}

/// Everything that is wrong with one configuration, in the order of the file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// The file.
    pub file: PathBuf,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
}

impl Report {
    /// A report that consists of one error about the file as a whole.
    pub(super) fn unreadable(file: &Path, error: &std::io::Error) -> Self {
        let cure = match error.kind() {
            std::io::ErrorKind::NotFound => "name the file with -c FILE",
            std::io::ErrorKind::PermissionDenied => "run this as root or as Postgate's own user",
            _ => "it must be a text file",
        };
        let problem = Problem {
            severity: Severity::Error,
            message: format!("cannot be read: {error}"),
            cure: Some(cure.into()),
            location: Location::Nowhere,
        };
        Self { file: file.into(), problems: vec![problem] }
    }

    /// How many errors there are.
    pub fn errors(&self) -> usize {
        self.problems.iter().filter(|p| p.severity == Severity::Error).count()
    }

    /// How many warnings there are.
    pub fn warnings(&self) -> usize {
        self.problems.len() - self.errors()
    }

    /// `3 errors, 1 warning`; empty when there is nothing to say.
    pub fn summary(&self) -> String {
        let count = |n, one: &str| match n {
            0 => None,
            1 => Some(format!("1 {one}")),
            n => Some(format!("{n} {one}s")),
        };
        let counts = [count(self.errors(), "error"), count(self.warnings(), "warning")];
        counts.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

/// The problems, each with its place and, indented below it, its cure.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.problems {
            let label = match problem.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
            };
            let head = format!("{label}: {}", problem.message);
            match &problem.location {
                Location::File { line, column } => {
                    writeln!(f, "{head:<64}  {}:{line}:{column}", self.file.display())?;
                }
                Location::Environment(name) => writeln!(f, "{head:<64}  ${name}")?,
                Location::Nowhere => writeln!(f, "{head:<64}  {}", self.file.display())?,
            }
            if let Some(cure) = &problem.cure {
                writeln!(f, "       {cure}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Report {}
