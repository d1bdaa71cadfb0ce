//! `check-config`: everything that is wrong with the configuration, at once; with `--probe`, also
//! what the secrets make of it.

use serde_json::{Map, Value, json};

use super::args::{CheckConfig, Global};
use super::origins::Origins;
use super::out::Out;
use super::{Failure, exit};
use crate::clock::{Clock, SystemClock};
use crate::config::{self, Config, Location, Problem, Report, Severity};

pub(super) async fn check(
    global: &Global,
    options: &CheckConfig,
    out: &mut Out,
) -> Result<(), Failure> {
    let path = global.config();
    let (loaded, report) = match config::load(&path, &config::environment()) {
        Ok((config, report)) => (Some(config), report),
        Err(report) => (None, report),
    };
    let printed = loaded.as_ref().filter(|_| options.print);
    let origins = match loaded.as_ref().filter(|_| options.probe) {
        Some(config) => Some(Origins::find(config).await?),
        None => None,
    };
    if global.json {
        out.json(&json_report(&report, printed, origins.as_ref()))?;
    } else {
        out.complain(&report.to_string());
        for (key, value) in printed.into_iter().flat_map(Config::effective) {
            out.line(&format!("{key} = {value}"))?;
        }
        for line in origins.iter().flat_map(|origins| origins.lines(SystemClock.wall())) {
            out.line(&line)?;
        }
        let problems = origins.iter().flat_map(Origins::problems);
        problems.for_each(|problem| out.complain(problem));
    }
    let summary = report.summary();
    if report.errors() > 0 || (options.deny_warnings && report.warnings() > 0) {
        out.note(&format!("{summary}. A running Postgate was not touched."));
        return Err(Failure::silent(exit::CONFIG));
    }
    let summary = if summary.is_empty() { summary } else { format!(" ({summary})") };
    out.note(&format!("{} is valid{summary}.", path.display()));
    match origins.as_ref().map_or(exit::OK, Origins::code) {
        exit::OK => Ok(()),
        code => Err(Failure::silent(code)),
    }
}

/// One object for the whole: what is wrong, and what is in effect where that was asked for.
fn json_report(report: &Report, printed: Option<&Config>, origins: Option<&Origins>) -> Value {
    let problems: Vec<Value> = report.problems.iter().map(json_problem).collect();
    let mut value = json!({
        "file": report.file.to_string_lossy(),
        "valid": report.errors() == 0,
        "errors": report.errors(),
        "warnings": report.warnings(),
        "problems": problems,
    });
    if let (Some(config), Some(members)) = (printed, value.as_object_mut()) {
        // The values are as the file writes them, so that both can be compared.
        let effective = config.effective().map(|(k, v)| (k.to_owned(), json!(v))).collect();
        members.insert("effective".into(), Value::Object(effective));
    }
    if let (Some(origins), Some(members)) = (origins, value.as_object_mut()) {
        members.insert("probe".into(), json!(origins));
    }
    value
}

fn json_problem(problem: &Problem) -> Value {
    let mut value = Map::new();
    let severity = match problem.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    value.insert("severity".into(), json!(severity));
    value.insert("message".into(), json!(problem.message));
    if let Some(cure) = &problem.cure {
        value.insert("cure".into(), json!(cure));
    }
    match &problem.location {
        Location::File { line, column } => {
            value.insert("line".into(), json!(line));
            value.insert("column".into(), json!(column));
        }
        Location::Environment(name) => {
            value.insert("environment".into(), json!(name));
        }
        Location::Nowhere => {}
    }
    value.into()
}
