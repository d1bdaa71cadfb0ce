//! The smarthost is away, mail piles up, the relay is restarted, and the smarthost is back.

use std::time::Instant;

use super::{Meter, Outcome, Scenario, load_of};
use crate::args::Args;
use crate::load::{self, Load};
use crate::peers::{Onward, System, free_address};
use crate::report::{Column, Metric, Row};
use crate::sink::Sink;

const SIZE: usize = 10 << 10;
const SESSIONS: usize = 50;

pub fn scenarios(args: &Args) -> Vec<Scenario> {
    let row = Row::new([args.backlog], format!("backlog of {} x 10 KiB", args.backlog));
    let mut scenario = Scenario::of_all(args, row, |args, column| {
        let Column::Relay(system) = column else { return Ok(Vec::new()) };
        backlog(args, system)
    });
    // Its queue runner takes one message after the other: it would take what it is limited to.
    scenario.columns.retain(|column| *column != Column::Relay(System::Exim));
    vec![scenario]
}

fn backlog(args: &Args, system: System) -> Outcome {
    let smarthost = free_address();
    let mut relay = system.start(args, Onward::To(smarthost));
    let load = load_of(args, relay.address, SESSIONS, SIZE);
    let meter = Meter::start(&relay);
    let loaded = load::run(&Load { messages: args.backlog, time: args.limit(), ..load })?;
    let mut figures = meter.stop(loaded.acknowledged);
    figures.push((Metric::Rate, loaded.rate()));
    let (first, whole) = relay.list();
    figures.push((Metric::Listed, first.as_secs_f64() * 1e3));
    figures.push((Metric::ListedWhole, whole.as_secs_f64() * 1e3));
    relay.down();
    let sink = Sink::listen(smarthost);
    let begun = Instant::now();
    figures.push((Metric::Reopened, relay.up().as_secs_f64() * 1e3));
    relay.flush();
    let arrived = sink.wait(loaded.acknowledged, args.limit());
    let Some(last) = arrived.last else { return Err("nothing was drained".to_owned()) };
    let rate = arrived.unique() as f64 / last.duration_since(begun).as_secs_f64();
    figures.push((Metric::Drained, rate));
    if args.quick && arrived.unique() != loaded.acknowledged {
        return Err(format!("{} of {} drained", arrived.unique(), loaded.acknowledged));
    }
    Ok(figures)
}
