//! What the figures were measured on.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

use super::args::Args;
use super::keep::Measured;
use super::report::Column;

/// What all measurements of a run share.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Circumstances {
    /// Processor, memory, kernel, file system.
    pub machine: String,
    /// What ran before, as processes.
    pub load: f64,
    /// Of load in a measurement.
    pub seconds: f64,
    /// Whether Postgate's spools were new.
    pub new_spool: bool,
}

impl Circumstances {
    pub fn now(args: &Args) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let after = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
        };
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let total = after(&read("/proc/meminfo"), "MemTotal");
        let memory: u64 = total.trim_end_matches(" kB").parse().unwrap_or(0);
        let machine = format!(
            "{cores} cores of {processor}, {memory} GiB; Linux {kernel}; queues on {disk}",
            processor = after(&read("/proc/cpuinfo"), "model name"),
            memory = (memory + (1 << 19)) >> 20,
            kernel = read("/proc/sys/kernel/osrelease").trim(),
            disk = filesystem(&args.dir),
        );
        let load = read("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok());
        Self {
            machine,
            load: load.unwrap_or(0.0),
            seconds: args.seconds,
            new_spool: args.new_spool,
        }
    }
}

/// A paragraph of facts about all these figures, and what differed among them.
pub fn facts(all: &[Measured], repetitions: (usize, usize)) -> String {
    let versions: BTreeSet<(Column, &str)> =
        all.iter().filter_map(|one| Some((one.column, one.version.as_deref()?))).collect();
    let versions = versions.into_iter().map(|(column, said)| format!("{}: {said}", column.name()));
    let of = |value: fn(&Circumstances) -> f64| {
        let values = || all.iter().map(|one| value(&one.circumstances));
        span(values().fold(f64::INFINITY, f64::min), values().fold(0.0, f64::max))
    };
    let spools: BTreeSet<bool> = all.iter().map(|one| one.circumstances.new_spool).collect();
    let spools = spools.into_iter().map(|new| if new { "new" } else { "aged" });
    let machines: BTreeSet<&str> = all.iter().map(|one| &*one.circumstances.machine).collect();
    format!(
        "{dates} UTC; {machines}; load before {load}. {versions}. {repetitions} repetitions of \
         {seconds} s, in turn; Postgate's spools {spools}; medians, (least..most), **ratio to Postfix as shipped**, part of \
         the ceiling.",
        dates = span(
            all.iter().map(|one| &*one.at).min().unwrap_or_default(),
            all.iter().map(|one| &*one.at).max().unwrap_or_default(),
        ),
        machines = Vec::from_iter(machines).join("; "),
        load = of(|c| c.load),
        versions = versions.collect::<Vec<_>>().join("; "),
        repetitions = span(repetitions.0, repetitions.1),
        seconds = of(|c| c.seconds),
        spools = spools.collect::<Vec<_>>().join(" and "),
    )
}

/// `3`, or `3 to 6`.
fn span<T: Copy + PartialEq + std::fmt::Display>(from: T, to: T) -> String {
    if from == to { from.to_string() } else { format!("{from} to {to}") }
}

/// The time in UTC.
pub fn date() -> String {
    said("date", &["-u", "+%F %H:%M"])
}

/// The name of the file system a folder is on, with its device.
pub fn filesystem(dir: &Path) -> String {
    let dir = dir.to_string_lossy();
    let line = said("df", &["--output=fstype,source", &dir]);
    line.split_whitespace().collect::<Vec<_>>().join(" of ")
}

/// The last line that a command prints.
fn said(command: &str, words: &[&str]) -> String {
    let output = Command::new(command).args(words).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    text.unwrap_or_default().lines().last().unwrap_or_default().to_owned()
}
