//! Delivery as a whole in virtual time: the real scheduler, plan, lanes, breakers and buckets, a spool
//! in memory, and two upstreams that fail by chance in every way there is, while the process dies
//! between any two steps, the operator intervenes, and the configuration is read again. Afterwards the
//! five promises are checked (see [`oracle`]).
//!
//! A failing history prints its seed. Run it alone with
//! `POSTGATE_SEED=n cargo nextest run --test sim`, and keep it: add it to `regressions.txt`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    reason = "a test stops at the first thing that is not as it should be, and counts are small"
)]

mod cases;
mod history;
mod oracle;
mod upstreams;
mod world;

/// Histories of one run; `POSTGATE_HISTORIES` overrides it.
const HISTORIES: u64 = 2_000;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

/// Runs one history on a clock of its own.
fn run(seed: u64) -> oracle::Tally {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(history::play(seed))
}

#[test]
fn histories_that_went_wrong_once_go_right() {
    let seeds = include_str!("regressions.txt").lines().filter(|line| !line.starts_with('#'));
    for seed in seeds.filter_map(|line| line.split_whitespace().next()) {
        run(seed.parse().expect("each line begins with a seed"));
    }
}

#[test]
fn no_history_loses_doubles_or_misjudges_a_message() {
    if let Some(seed) = number("POSTGATE_SEED") {
        println!("{:#?}", run(seed));
        return;
    }
    let histories = number("POSTGATE_HISTORIES").unwrap_or(HISTORIES);
    let first = number("POSTGATE_FIRST_SEED").unwrap_or(0);
    let mut total = oracle::Tally::default();
    for seed in first..first + histories {
        total += run(seed);
    }
    println!("{histories} histories: {total:#?}");
    // What never happens is not tested.
    for (what, times) in total.counts() {
        assert!(times > 0, "in {histories} histories there was never: {what}");
    }
}
