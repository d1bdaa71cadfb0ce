//! From the first message in to the last at the smarthost. A message counts there once.

use std::net::SocketAddr;
use std::time::Instant;

use super::ingest::each;
use super::{Meter, Outcome, Scenario, load_of, octets, waits, warm};
use crate::args::Args;
use crate::load;
use crate::peers::{Onward, System, free_address};
use crate::report::{Column, Metric, Row};
use crate::sink::Sink;

/// Octets and sessions of the row where a second upstream is there, but not needed: a message is
/// then noted on the disk once more, before its content leaves.
const FALLBACK: (usize, usize) = (10 << 10, 50);

pub fn scenarios(args: &Args) -> Vec<Scenario> {
    let mut scenarios = Vec::new();
    for (size, sessions) in each(args) {
        let name = format!("through, {}, {sessions} sessions", octets(size));
        let row = |fallback: u64, name| Row::new([size as u64, sessions as u64, fallback], name);
        scenarios.push(Scenario::of_all(args, row(0, name.clone()), move |args, column| {
            let Column::Relay(system) = column else { return Ok(Vec::new()) };
            through(args, system, Onward::To, size, sessions)
        }));
        if args.quick || (size, sessions) == FALLBACK {
            let row = row(1, format!("{name}, with a fallback"));
            scenarios.push(Scenario::of_ours(row, move |args| {
                through(args, System::Postgate, Onward::ToFirst, size, sessions)
            }));
        }
    }
    scenarios
}

fn through(
    args: &Args,
    system: System,
    onward: fn(SocketAddr) -> Onward,
    size: usize,
    sessions: usize,
) -> Outcome {
    let smarthost = free_address();
    let sink = Sink::listen(smarthost);
    let relay = system.start(args, onward(smarthost));
    let load = load_of(args, relay.address, sessions, size);
    let warmed = warm(&load)?;
    sink.wait(warmed, args.limit());
    sink.forget();
    let meter = Meter::start(&relay);
    let begun = Instant::now();
    let loaded = load::run(&load)?;
    let arrived = sink.wait(loaded.acknowledged, args.limit());
    let mut figures = meter.stop(loaded.acknowledged);
    if arrived.unique() != loaded.acknowledged || arrived.repeated > 0 {
        return Err(format!(
            "{} of {} arrived, {} of them again",
            arrived.unique(),
            loaded.acknowledged,
            arrived.repeated
        ));
    }
    relay.has_put_off_nothing("default")?;
    let took = arrived.last.map_or(0.0, |last| last.duration_since(begun).as_secs_f64());
    figures.push((Metric::Rate, arrived.unique() as f64 / took));
    figures.extend(waits(&loaded));
    Ok(figures)
}
