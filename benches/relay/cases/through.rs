//! From the first message in to the last at the smarthost. A message counts there once.

use std::time::Instant;

use super::ingest::each;
use super::{Meter, Outcome, Scenario, load_of, octets, waits, warm};
use crate::args::Args;
use crate::load;
use crate::peers::{Onward, System, free_address};
use crate::report::{Column, Metric, Row};
use crate::sink::Sink;

pub fn scenarios(args: &Args) -> Vec<Scenario> {
    let rows = each(args).into_iter();
    rows.map(|(size, sessions)| {
        let name = format!("through, {}, {sessions} sessions", octets(size));
        Scenario::of_all(
            args,
            Row::new([size as u64, sessions as u64], name),
            move |args, column| {
                let Column::Relay(system) = column else { return Ok(Vec::new()) };
                through(args, system, size, sessions)
            },
        )
    })
    .collect()
}

fn through(args: &Args, system: System, size: usize, sessions: usize) -> Outcome {
    let smarthost = free_address();
    let sink = Sink::listen(smarthost);
    let relay = system.start(args, Onward::To(smarthost));
    let load = load_of(args, relay.address, sessions, size);
    let warmed = warm(&load)?;
    sink.wait(warmed, args.limit());
    sink.forget();
    let (begun, meter) = (Instant::now(), Meter::start(&relay));
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
    let took = arrived.last.map_or(0.0, |last| last.duration_since(begun).as_secs_f64());
    figures.push((Metric::Rate, arrived.unique() as f64 / took));
    figures.extend(waits(&loaded));
    Ok(figures)
}
