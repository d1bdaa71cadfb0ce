//! What one route costs another, and a flood of clients a polite one. Postgate alone.

use std::time::{Duration, Instant};

use super::{MOST, Outcome, Scenario, load_of, slow, waits, warm};
use crate::args::Args;
use crate::load::{self, Load};
use crate::peers::{Onward, Relay, System, free_address};
use crate::report::{Figures, Metric, Row};
use crate::sink::Sink;

const SIZE: usize = 10 << 10;
const SESSIONS: usize = 50;
/// Sessions of a flood.
const FLOOD: usize = 200;
/// The polite clients, each slow enough to have its 250 before it sends again.
const POLITE: usize = 10;
const PACE: Duration = Duration::from_millis(250);

pub fn scenarios(args: &Args) -> Vec<Scenario> {
    let beside = format!("healthy route beside a dead one with {}", args.backlog);
    let mut all = vec![
        Scenario::of_ours(Row::new([0], "healthy route alone"), |args| healthy(args, false)),
        Scenario::of_ours(Row::new([1, args.backlog], beside), |args| healthy(args, true)),
        Scenario::of_ours(Row::new([2], format!("{POLITE} polite clients alone")), alone),
        Scenario::rows_of_ours(
            [
                Row::new([3], format!("{POLITE} polite clients beside {FLOOD} that flood")),
                Row::new([4], format!("the {FLOOD} that flood")),
            ],
            flooded,
        ),
    ];
    all.extend(slow::scenarios(args));
    all
}

/// The through rate of one route, while another may have a backlog that goes nowhere.
fn healthy(args: &Args, beside: bool) -> Outcome {
    let smarthost = free_address();
    let sink = Sink::listen(smarthost);
    let relay = System::Postgate.start(args, Onward::To(smarthost));
    let load = load_of(args, relay.address, SESSIONS, SIZE);
    if beside {
        let (messages, time) = (args.backlog, args.limit());
        load::run(&Load { domain: "dead.test", messages, time, ..load.clone() })?;
    }
    let warmed = warm(&load)?;
    sink.wait(warmed, args.limit());
    sink.forget();
    let begun = Instant::now();
    let loaded = load::run(&load)?;
    let arrived = sink.wait(loaded.acknowledged, args.limit());
    if arrived.unique() != loaded.acknowledged {
        return Err(format!("{} of {} arrived", arrived.unique(), loaded.acknowledged));
    }
    relay.has_put_off_nothing("default")?;
    let took = arrived.last.map_or(0.0, |last| last.duration_since(begun).as_secs_f64());
    Ok(vec![(Metric::Rate, arrived.unique() as f64 / took)])
}

/// The waits of clients that ask little.
fn alone(args: &Args) -> Outcome {
    let relay = System::Postgate.start(args, Onward::Held);
    polite(args, &relay)
}

/// The same beside those that ask for all they can get, and what these get.
fn flooded(args: &Args) -> Result<[Figures; 2], String> {
    let relay = System::Postgate.start(args, Onward::Held);
    let flood = start_flood(args, &relay);
    let polite = polite(args, &relay)?;
    let flood = flood.join().map_err(|_| "the flood failed".to_owned())??;
    if flood.acknowledged == MOST / SIZE as u64 {
        return Err("the flood was over before the others: fewer --seconds".to_owned());
    }
    let mut figures = waits(&flood);
    figures.push((Metric::Rate, flood.rate()));
    Ok([polite, figures])
}

fn polite(args: &Args, relay: &Relay) -> Outcome {
    let (time, pace) = (args.time() * 2, Some(PACE));
    let load = Load { time, pace, ..load_of(args, relay.address, POLITE, SIZE) };
    Ok(waits(&load::run(&load)?))
}

type Flood = std::thread::JoinHandle<Result<load::Loaded, String>>;

/// Lasts a little longer than the polite client does.
fn start_flood(args: &Args, relay: &Relay) -> Flood {
    let time = args.time() * 2 + Duration::from_millis(500);
    let load =
        Load { messages: MOST / SIZE as u64, time, ..load_of(args, relay.address, FLOOD, SIZE) };
    let flood = std::thread::spawn(move || load::run(&load));
    std::thread::sleep(Duration::from_millis(250));
    flood
}
