//! What operators do to a spool without a running Postgate (`docs/spool.md`, "Tools").

pub mod archive;
mod look;
mod pack;
mod restore;

pub use look::{Reader, Verdict, verify};
pub use pack::{Compacted, compact};
pub use restore::restore;

use super::{OpenError, SpoolError};

/// Is told how far a long work has come.
pub trait Progress: Send + Sync {
    /// So much there is to do, in the work's own unit.
    fn total(&self, units: u64);
    /// So much more of it is done.
    fn add(&self, units: u64);
}

/// Why a tool did not do its work.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ToolError {
    /// The spool was not opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The spool did not do it.
    #[error(transparent)]
    Spool(#[from] SpoolError),
}
