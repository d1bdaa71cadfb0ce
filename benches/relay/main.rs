//! Postgate beside Postfix and others: the same load, the same smarthost, the same disk, in turn.
//! `just bench`; what comes of it is in `docs/benchmarks.md`.
//!
//! Run by a test runner it is one test: a little of everything works.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::disallowed_methods,
    unreachable_pub,
    missing_docs,
    reason = "a measurement stops at the first thing that is not as it should be, and reads clocks"
)]

mod args;
mod cases;
mod client;
mod keep;
mod load;
mod machine;
mod peers;
#[allow(dead_code, reason = "the end-to-end tests use the rest")]
#[path = "../../tests/e2e/support/process.rs"]
mod process;
mod report;
mod sink;
mod tools;
mod usage;

use std::fmt::Write as _;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;

use self::args::Args;
use self::cases::Scenario;
use self::keep::{Kept, Measured};
use self::machine::Circumstances;
use self::peers::System;
use self::report::{Column, Figures, Report};

/// Its name as a test.
const TEST: &str = "a_little_of_the_benchmark_runs";
/// The page, and what is around the result in it.
const PAGE: &str = "docs/benchmarks.md";
const BEGIN: &str = "<!-- measured: just bench --write -->\n";
const END: &str = "<!-- /measured -->\n";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let said = |word: &str| words.iter().any(|w| w == word);
    if !said("--bench") {
        return as_a_test(&words, said("--list"), said("--ignored"));
    }
    let args = Args::parse().settled();
    if let Err(e) = fit(&args) {
        eprintln!("{e}");
        return ExitCode::from(2);
    }
    let mut kept = match kept(&args) {
        Ok(kept) => kept,
        Err(e) => {
            eprintln!("{e}");
            return ExitCode::from(2);
        }
    };
    let failures = measure(&args, &mut kept);
    let text = text(&kept.all, &failures);
    println!("{text}");
    if args.write {
        write(&text);
    }
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn kept(args: &Args) -> Result<Kept, String> {
    let kept = Kept::open(args.keep.as_deref())?;
    let version = System::Postgate.version();
    if args.reps > 0 && !kept.is_of(version.as_deref(), args.new_spool) {
        return Err("--keep: the file is of another build, or another kind of spool".to_owned());
    }
    Ok(kept)
}

/// What test runners expect of a program without the usual harness.
fn as_a_test(words: &[String], list: bool, ignored: bool) -> ExitCode {
    if list && !ignored {
        println!("{TEST}: test");
    }
    let filters = || words.iter().filter(|word| !word.starts_with('-'));
    let chosen = filters().next().is_none() || filters().any(|filter| TEST.contains(filter));
    if list || ignored || !chosen {
        return ExitCode::SUCCESS;
    }
    let place = tempfile::Builder::new().prefix("bench").tempdir().unwrap();
    peers::open_to_all(place.path());
    let dir = place.path().to_string_lossy();
    quick(&format!("bench --quick --dir {dir}"));
    // Others take long to start and to stop.
    quick(&format!(
        "bench --quick --dir {dir} --only ingest,through --ways plain --systems postfix"
    ));
    ExitCode::SUCCESS
}

/// Every figure is there, and every message has arrived.
fn quick(words: &str) {
    let file = tempfile::NamedTempFile::new().unwrap();
    let words = format!("{words} --keep {}", file.path().display());
    let args = Args::parse_from(words.split(' ')).settled();
    assert_eq!(args.systems(), args.systems, "not installed");
    let mut kept = Kept::open(args.keep.as_deref()).unwrap();
    let failures = measure(&args, &mut kept);
    println!("{}", text(&kept.all, &failures));
    assert!(failures.is_empty(), "{failures:#?}");
    let rows: usize = cases::scenarios(&args).iter().map(|s| s.rows.len() * s.columns.len()).sum();
    assert_eq!(kept.all.len(), rows);
    let again = Kept::open(args.keep.as_deref()).unwrap();
    let whose = |kept: &Kept| {
        let whose = |one: &Measured| (one.row.clone(), one.column, one.figures.len());
        kept.all.iter().map(whose).collect::<Vec<_>>()
    };
    assert_eq!(whose(&again), whose(&kept), "the file does not hold what was measured");
}

/// Whether the figures will mean something.
fn fit(args: &Args) -> Result<(), String> {
    if args.reps == 0 {
        return args.keep.as_ref().map(|_| ()).ok_or_else(|| "nothing to show: no --keep".into());
    }
    let disk = machine::filesystem(&args.dir);
    if !args.quick && (disk.starts_with("tmpfs") || disk.starts_with("overlay")) {
        return Err(format!("{} is no disk ({disk}): say another by --dir", args.dir.display()));
    }
    peers::reachable(&args.dir)
}

/// Every column of every row in turn, and all of that again: what disturbs one disturbs all.
/// Gives what failed.
fn measure(args: &Args, kept: &mut Kept) -> Vec<String> {
    let circumstances = Circumstances::now(args);
    let (scenarios, mut failures) = (cases::scenarios(args), Vec::new());
    let ours = |scenario: &Scenario| scenario.columns.contains(&Column::Relay(System::Postgate));
    let ages = args.reps > 0 && !args.new_spool && scenarios.iter().any(ours);
    let aged = match ages.then(|| peers::aged::spool(args)).transpose() {
        Ok(aged) => aged,
        Err(e) => return vec![format!("an aged spool: {e}")],
    };
    let args = &Args { aged: aged.as_ref().map(|dir| dir.path().to_owned()), ..args.clone() };
    for rep in 1..=args.reps {
        for scenario in &scenarios {
            for column in &scenario.columns {
                let (begun, at) = (Instant::now(), machine::date());
                let what = format!("{}, {}", scenario.rows[0].name, column.name());
                match once(args, scenario, *column) {
                    Ok(of_rows) => {
                        for (row, figures) in scenario.rows.iter().zip(of_rows) {
                            kept.add(Measured {
                                row: row.clone(),
                                column: *column,
                                figures,
                                at: at.clone(),
                                version: column.version(),
                                circumstances: circumstances.clone(),
                            });
                        }
                    }
                    Err(e) => failures.push(format!("{what}: {e}")),
                }
                eprintln!("{rep}/{} {what}: {:.1} s", args.reps, begun.elapsed().as_secs_f64());
            }
        }
    }
    failures
}

/// A relay that fails is a line in the report, not the end of the hour.
fn once(args: &Args, scenario: &Scenario, column: Column) -> Result<Vec<Figures>, String> {
    let measured = catch_unwind(AssertUnwindSafe(|| (scenario.measure)(args, column)));
    let of_rows = measured.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map_or("it failed", String::as_str);
        Err(text.to_owned())
    })?;
    match of_rows.iter().flatten().find(|(_, value)| !value.is_finite()) {
        Some((metric, value)) => Err(format!("{metric:?} is {value}")),
        None if of_rows.iter().any(Vec::is_empty) => Err("no figures".to_owned()),
        None => Ok(of_rows),
    }
}

/// What is printed: on what it was measured, the tables, and what failed in this run.
fn text(all: &[Measured], failures: &[String]) -> String {
    let report = Report::of(all);
    let facts = machine::facts(all, report.repetitions());
    let mut text = format!("{facts}\n\n{}", report.markdown());
    for failure in failures {
        let _ = writeln!(text, "- not measured: {failure}");
    }
    text
}

fn write(text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    let page = fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).expect("the page has a place for the result");
    let (_, after) = rest.split_once(END).expect("the place has an end");
    fs::write(&path, format!("{before}{BEGIN}{text}{END}{after}")).unwrap();
}
