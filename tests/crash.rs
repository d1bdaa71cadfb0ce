//! The power goes at every sync there is, and whatever was not synced is there, is not there, or is
//! torn: the spool opens, and holds what it promised.
//!
//! `POSTGATE_CRASH_STEPS` and `POSTGATE_CRASH_SEED` make a longer or another life.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::indexing_slicing,
    reason = "a test stops at the first thing that is not as it should be"
)]

#[path = "support/machine.rs"]
mod machine;
#[path = "support/spool.rs"]
mod spool;

use std::fs;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;

use machine::{Image, Machine};
use proptest::prelude::*;
use spool::{EIO, ENOSPC, Ledger, Life, open};

/// A moment at which the power may go.
struct Moment {
    number: u64,
    image: Image,
    ledger: Ledger,
}

#[test]
fn at_every_sync_the_power_may_go_and_what_was_acknowledged_is_there() {
    let steps = number("POSTGATE_CRASH_STEPS", 3000);
    let seed = number("POSTGATE_CRASH_SEED", 20_261_121);
    eprintln!("seed {seed}, {steps} steps");
    let (send, receive) = sync_channel(64);
    let receive = Arc::new(Mutex::new(receive));
    let checkers: Vec<_> = (0..2)
        .map(|_| {
            let receive = Arc::clone(&receive);
            thread::spawn(move || check_all(&receive, seed))
        })
        .collect();
    drop(receive);
    live(steps, seed, send);
    let checked: u64 = checkers.into_iter().map(|c| c.join().unwrap()).sum();
    eprintln!("{checked} power cuts");
    assert!(checked > steps / 2, "{checked}");
}

/// Lives, and hands out what the machine is like at every sync.
fn live(steps: u64, seed: u64, moments: SyncSender<Moment>) {
    let mut random = fastrand::Rng::with_seed(seed);
    let machine = Machine::new(seed);
    let ledger = Arc::new(Mutex::new(Arc::<Mutex<Ledger>>::default()));
    let mut number = 0;
    let watch = {
        let ledger = Arc::clone(&ledger);
        move |image: &Image| {
            number += 1;
            let ledger = ledger.lock().unwrap().lock().unwrap().clone();
            // Nobody receives any more when a check failed; its panic tells.
            let _ = moments.send(Moment { number, image: image.clone(), ledger });
        }
    };
    machine.watch(watch);
    runtime().block_on(async {
        let mut life = Life::begin(Arc::clone(&machine));
        *ledger.lock().unwrap() = Arc::clone(&life.ledger);
        for n in 1..=steps {
            // Between none and some dozens of messages.
            let what = random.u8(..);
            let what = if life.len() > 40 && what < 72 { 130 } else { what };
            life.step(what, random.u8(..)).await;
            if n % 1000 == 0 {
                life.restart().await;
            }
        }
    });
    machine.unwatch();
}

/// The process is killed at this sync and started again, and works a little. What it found is in
/// the machine's memory, and must be on the disk before it counts: then the power goes.
async fn kill(moment: &Moment, fate: u64) {
    let mut random = fastrand::Rng::with_seed(fate);
    let machine = Machine::with(moment.image.clone(), fate);
    let mut life = Life::resume(machine, moment.ledger.clone()).await;
    for _ in 0..random.u8(..8) {
        life.step(random.u8(..), random.u8(..)).await;
    }
    life.cut(random.u64(..)).await;
}

fn check_all(moments: &Mutex<Receiver<Moment>>, seed: u64) -> u64 {
    let runtime = runtime();
    let mut checked = 0;
    loop {
        let moment = moments.lock().unwrap().recv();
        let Ok(moment) = moment else { return checked };
        runtime.block_on(check(&moment, seed));
        checked += 1;
    }
}

/// Cuts the power, each time in another way, and opens the spool.
async fn check(moment: &Moment, seed: u64) {
    let number = moment.number;
    let fate = seed.wrapping_mul(4).wrapping_add(number);
    if number % 4 == 1 {
        kill(moment, fate).await;
    }
    let image = moment.image.cut(fate);
    if number % 4 == 2 {
        // A snapshot only saves time.
        let bare = Machine::with(image.clone().without("snap"), fate);
        expect(&bare, &moment.ledger, &format!("seed {seed}, sync {number}, no snapshots"), false)
            .await;
    }
    let machine = Machine::with(image, fate);
    // Opening writes too: now and then the power goes once more.
    let cuts = Arc::new(Mutex::new(Vec::new()));
    if number.is_multiple_of(16) {
        let cuts = Arc::clone(&cuts);
        machine.watch(move |image| cuts.lock().unwrap().push(image.clone()));
    }
    expect(&machine, &moment.ledger, &format!("seed {seed}, sync {number}"), fate % 4 != 3).await;
    machine.unwatch();
    let cuts = std::mem::take(&mut *cuts.lock().unwrap());
    for (n, image) in cuts.into_iter().enumerate() {
        let again = Machine::with(image.cut(fate + n as u64), fate);
        let context = format!("seed {seed}, sync {number}, then {n} of the next start");
        expect(&again, &moment.ledger, &context, false).await;
    }
}

/// Fails unless the spool of this machine holds what it must.
async fn expect(machine: &Arc<Machine>, ledger: &Ledger, context: &str, undamaged: bool) {
    let (log, recovered) = open(machine);
    let agreed = ledger.agrees(&log, &recovered).await;
    machine.unwatch();
    let agreed = match agreed {
        Ok(()) => ledger.bodies_agree(&log, &[]).await,
        wrong => wrong,
    };
    if let Err(wrong) = agreed {
        panic!("{wrong}\n{context}\n{recovered:?}");
    }
    // Unsynced writes that come in order can't look like damage.
    assert!(!undamaged || recovered.damage.is_empty(), "{context}\n{recovered:?}");
    assert!(recovered.without_body.is_empty(), "{context}\n{recovered:?}");
}

#[test]
fn calls_that_fail_and_then_a_power_cut_lose_nothing_that_was_acknowledged() {
    let rounds = number("POSTGATE_CRASH_ROUNDS", 150);
    let seed = number("POSTGATE_CRASH_SEED", 20_261_121);
    for round in 0..rounds {
        let seed = seed + round;
        eprintln!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let machine = Machine::new(seed);
        runtime().block_on(async {
            let mut life = Life::begin(machine);
            for _ in 0..3 {
                for _ in 0..random.u8(5..30) {
                    life.step(random.u8(..), random.u8(..)).await;
                }
                // One call, some, or all from there on.
                let count = [1, random.u64(1..9), u64::MAX][random.usize(..3)];
                life.fail(random.u64(..60), count, random.choice([EIO, ENOSPC]).unwrap());
                for _ in 0..20 {
                    life.step(random.u8(..), random.u8(..)).await;
                }
                if random.bool() { life.restart().await } else { life.cut(random.u64(..)).await }
            }
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_life_with_any_faults_keeps_its_promises(
        steps in prop::collection::vec((any::<u8>(), any::<u8>()), 1..150),
    ) {
        let octets: Vec<u8> = steps.into_iter().flat_map(|(what, with)| [what, with]).collect();
        spool::property(&octets);
    }
}

#[test]
fn the_corpus_of_the_fuzzer_keeps_its_promises() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/spool");
    let mut seen = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        eprintln!("{}", path.display());
        spool::property(&fs::read(path).unwrap());
        seen += 1;
    }
    assert!(seen > 0);
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |v| v.parse().expect("a number"))
}
