//! `check-config`: everything that is wrong with the configuration, at once.

use std::path::Path;

use super::args::CheckConfig;
use super::out::Out;
use super::{Failure, exit};
use crate::config;

pub(super) fn check(path: &Path, options: &CheckConfig, out: &mut Out) -> Result<(), Failure> {
    let (loaded, report) = match config::load(path, &config::environment()) {
        Ok((config, report)) => (Some(config), report),
        Err(report) => (None, report),
    };
    out.complain(&report.to_string());
    if let Some(config) = loaded.filter(|_| options.print) {
        for (key, value) in config.effective() {
            out.line(&format!("{key} = {value}"))?;
        }
    }
    let summary = report.summary();
    if report.errors() > 0 || (options.deny_warnings && report.warnings() > 0) {
        out.note(&format!("{summary}. A running Postgate was not touched."));
        return Err(Failure::silent(exit::CONFIG));
    }
    let summary = if summary.is_empty() { summary } else { format!(" ({summary})") };
    out.note(&format!("{} is valid{summary}.", path.display()));
    Ok(())
}
