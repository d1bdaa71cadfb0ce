//! How fast mail is stored while its forwarding is held: every 250 is for something on the disk.
//! The ceiling is the same generator against a sink that stores nothing.

use super::{Meter, Outcome, Scenario, load_of, octets, waits, warm};
use crate::args::Args;
use crate::client::Way;
use crate::load::{self, Load};
use crate::peers::{Onward, System};
use crate::report::{Column, Metric, Row};
use crate::tools::{SmtpSink, smtp_source};

pub fn scenarios(args: &Args) -> Vec<Scenario> {
    let mut scenarios = Vec::new();
    for (size, sessions) in each(args) {
        let what = format!("{}, {sessions} sessions", octets(size));
        let row = |by: u64, end: &str| {
            Row::new([size as u64, sessions as u64, by], format!("stored, {what}{end}"))
        };
        for way in args.ways.clone() {
            let row = match way {
                Way::Plain => row(0, ""),
                Way::Pipelined => row(1, ", pipelined"),
                Way::Bdat => row(2, ", BDAT"),
            };
            let measure = move |args: &Args, column| stored(args, column, size, sessions, way);
            let mut scenario = Scenario::of_all(args, row, measure);
            // Neither Exim's queue-only mode nor smtp-sink takes BDAT.
            if way == Way::Bdat {
                scenario.columns.retain(|c| *c != Column::Relay(System::Exim));
            } else {
                scenario.columns.push(Column::Ceiling);
            }
            scenarios.push(scenario);
        }
        let measure = move |args: &Args, column| by_smtp_source(args, column, size, sessions);
        let mut scenario = Scenario::of_all(args, row(3, ", by smtp-source"), measure);
        scenario.columns.push(Column::Ceiling);
        scenarios.push(scenario);
    }
    scenarios
}

/// Sizes and numbers of sessions, in all combinations.
pub fn each(args: &Args) -> Vec<(usize, usize)> {
    let of = |size: &usize| args.sessions.iter().map(|n| (*size, *n)).collect::<Vec<_>>();
    args.sizes.iter().flat_map(of).collect()
}

fn stored(args: &Args, column: Column, size: usize, sessions: usize, way: Way) -> Outcome {
    let Column::Relay(system) = column else {
        let sink = SmtpSink::start(&args.dir);
        let load = Load { way, ..load_of(args, sink.address, sessions, size) };
        warm(&load)?;
        return Ok(vec![(Metric::Rate, load::run(&load)?.rate())]);
    };
    let relay = system.start(args, Onward::Held);
    let load = Load { way, ..load_of(args, relay.address, sessions, size) };
    warm(&load)?;
    let meter = Meter::start(&relay);
    let loaded = load::run(&load)?;
    let mut figures = meter.stop(loaded.acknowledged);
    figures.push((Metric::Rate, loaded.rate()));
    figures.extend(waits(&loaded));
    Ok(figures)
}

/// The independent generator. It has to be told a number: what our own did in a second is the
/// measure of it.
fn by_smtp_source(args: &Args, column: Column, size: usize, sessions: usize) -> Outcome {
    let (relay, sink);
    let to = if let Column::Relay(system) = column {
        relay = system.start(args, Onward::Held);
        relay.address
    } else {
        sink = SmtpSink::start(&args.dir);
        sink.address
    };
    let load = load_of(args, to, sessions, size);
    let probe = Load { time: args.time().div_f64(4.0), ..load.clone() };
    let rate = load::run(&probe)?.rate();
    let messages = ((rate * args.seconds) as u64).clamp(1, load.messages);
    let loaded = smtp_source(to, sessions, size, messages, args.limit())?;
    Ok(vec![(Metric::Rate, loaded.rate())])
}
