//! The wait for the 250 under little load: one session, a message every 10 ms, whatever comes back.

use std::time::Duration;

use super::{Meter, Outcome, Scenario, load_of, octets, waits, warm};
use crate::args::Args;
use crate::load::{self, Load};
use crate::peers::{Onward, System};
use crate::report::{Column, Row};

const PACE: Duration = Duration::from_millis(10);

pub fn scenarios(args: &Args) -> Vec<Scenario> {
    // A large message takes longer to write than the pace allows.
    let sizes = args.sizes.clone().into_iter().filter(|size| *size <= 100 << 10);
    sizes
        .map(|size| {
            let row = Row::new([size as u64], format!("100/s, {}, 1 session", octets(size)));
            Scenario::of_all(args, row, move |args, column| {
                let Column::Relay(system) = column else { return Ok(Vec::new()) };
                paced(args, system, size)
            })
        })
        .collect()
}

fn paced(args: &Args, system: System, size: usize) -> Outcome {
    let relay = system.start(args, Onward::Held);
    // What the disk still has to do for the last one's end and this one's start would be in the waits.
    std::thread::sleep(args.time());
    // Enough of them for a hundredth to be some.
    let time = args.time() * 2;
    let load = Load { pace: Some(PACE), time, ..load_of(args, relay.address, 1, size) };
    warm(&load)?;
    let meter = Meter::start(&relay);
    let loaded = load::run(&load)?;
    let mut figures = meter.stop(loaded.acknowledged);
    figures.extend(waits(&loaded));
    Ok(figures)
}
