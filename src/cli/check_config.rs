//! `check-config`: everything that is wrong with the configuration, at once.

use serde_json::{Map, Value, json};

use super::args::{CheckConfig, Global};
use super::out::Out;
use super::{Failure, exit};
use crate::config::{self, Config, Location, Problem, Report, Severity};

pub(super) fn check(global: &Global, options: &CheckConfig, out: &mut Out) -> Result<(), Failure> {
    let path = global.config();
    let (loaded, report) = match config::load(&path, &config::environment()) {
        Ok((config, report)) => (Some(config), report),
        Err(report) => (None, report),
    };
    let printed = loaded.filter(|_| options.print);
    if global.json {
        out.json(&json_report(&report, printed.as_ref()))?;
    } else {
        out.complain(&report.to_string());
        for (key, value) in printed.iter().flat_map(Config::effective) {
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

/// One object for the whole: what is wrong, and what is in effect where that was asked for.
fn json_report(report: &Report, printed: Option<&Config>) -> Value {
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
