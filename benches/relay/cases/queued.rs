//! What a long queue costs new mail: two of Postgate run beside each other, one with that queue and
//! one with none, and get the same load in turn. Were one after the other, what had filled the queue
//! would have changed the machine, too: what is new memory to a virtual one costs it 10 us a page.
//!
//! Both spools are new: where nothing is delivered, no segment is used again.

use std::time::Duration;

use super::{Meter, Outcome, Scenario, load_of, octets, waits, warm};
use crate::args::Args;
use crate::client::Way;
use crate::load::{self, Load};
use crate::peers::{Onward, Relay, System};
use crate::report::{Figures, Metric, Row, medians};
use crate::usage::Usage;

const SIZES: [usize; 2] = [1 << 10, 10 << 10];
const SESSIONS: usize = 50;
/// Octets of each message that is queued before.
const SMALL: usize = 1 << 10;
/// One or the other may be looking through what came in the last minute.
const ROUNDS: usize = 5;

pub fn scenarios(args: &Args) -> Vec<Scenario> {
    let row = |size: usize, queued: u64| {
        let name = format!("stored, {}, {SESSIONS} sessions, {queued} queued", octets(size));
        Row::new([size as u64, queued], name)
    };
    let [small, large] = SIZES;
    let rows = [row(small, 0), row(small, args.queued), row(large, 0), row(large, args.queued)];
    vec![Scenario::rows_of_ours(rows, in_turn)]
}

/// Filling takes longest: it is done once for all.
fn in_turn(args: &Args) -> Result<[Figures; 4], String> {
    let relays = [start(args, 0)?, start(args, args.queued)?];
    let mut rounds: [Vec<Figures>; 4] = std::array::from_fn(|_| Vec::new());
    for _ in 0..if args.quick { 1 } else { ROUNDS } {
        let each = SIZES.iter().flat_map(|size| relays.iter().map(|relay| (relay, *size)));
        for (row, (relay, size)) in rounds.iter_mut().zip(each) {
            row.push(stored(args, relay, size)?);
        }
    }
    Ok(rounds.map(|row| medians(&row)))
}

/// With so many messages that stay.
fn start(args: &Args, queued: u64) -> Result<Relay, String> {
    let args = &Args { aged: None, ..args.clone() };
    let relay = System::Postgate.start(args, Onward::Held);
    if queued > 0 {
        let load = load_of(args, relay.address, SESSIONS, SMALL);
        let (messages, time) = (queued, args.limit());
        let filled = load::run(&Load { way: Way::Pipelined, messages, time, ..load })?;
        if filled.acknowledged != queued {
            return Err(format!("{} of {queued} were queued in time", filled.acknowledged));
        }
        if !args.quick {
            rest(&relay);
        }
    }
    Ok(relay)
}

/// Once a minute, while nothing can be forwarded, each message that came since is looked at once and
/// put where it waits: 10 us each, beside all else. What a queue costs that only grew is of interest
/// here, and not what its growth did.
fn rest(relay: &Relay) {
    std::thread::sleep(Duration::from_secs(65));
    loop {
        let before = Usage::of(relay.pid());
        std::thread::sleep(Duration::from_secs(1));
        if Usage::of(relay.pid()).since(before).cpu < 0.05 {
            return;
        }
    }
}

fn stored(args: &Args, relay: &Relay, size: usize) -> Outcome {
    let load = load_of(args, relay.address, SESSIONS, size);
    warm(&load)?;
    let meter = Meter::start(relay);
    let loaded = load::run(&load)?;
    let mut figures = meter.stop(loaded.acknowledged);
    figures.push((Metric::Rate, loaded.rate()));
    figures.extend(waits(&loaded));
    Ok(figures)
}
