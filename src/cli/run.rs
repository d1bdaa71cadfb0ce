//! `postgate run`: the program itself.

use std::path::Path;

use super::out::Out;
use super::{Failure, exit};
use crate::app::{self, BuildError, RunError};
use crate::config::Config;
use crate::server::ListenerTls;
use crate::telemetry::Format;

pub(super) fn run(path: &Path, out: &Out) -> Result<(), Failure> {
    let started = |config: &Config| {
        // Who reads the log as text sits in front of it.
        if config.log.format == Format::Text {
            out.note(&hints(path, config));
        }
    };
    app::run(path, started).map_err(|error| {
        let code = match &error {
            RunError::Bind(_)
            | RunError::Admin(_)
            | RunError::Spool(_)
            // The disk may be well again at the next start.
            | RunError::Build(BuildError::Maildir { .. }) => exit::UNAVAILABLE,
            RunError::Config(_) | RunError::Build(_) => exit::CONFIG,
            RunError::System { .. } => exit::SOFTWARE,
        };
        Failure::new(code, error.to_string())
    })
}

/// What to try next.
fn hints(path: &Path, config: &Config) -> String {
    let (path, program) = (path.display(), program());
    let clear = config.listeners.iter().find(|l| !matches!(l.tls, ListenerTls::Implicit(_)));
    let swaks = clear.map_or_else(String::new, |l| {
        format!("  swaks --server {} --from app@example.com --to you@example.com\n", l.address)
    });
    format!(
        "Taking mail. In another terminal:\n{swaks}  \
         {program} -c {path} send you@example.com\n  \
         {program} -c {path} queue list\n  \
         {program} -c {path} status"
    )
}

/// What this program was called as, so that the lines can be pasted.
fn program() -> String {
    let called = std::env::args_os().next();
    called.map_or_else(|| "postgate".into(), |name| name.to_string_lossy().into_owned())
}
