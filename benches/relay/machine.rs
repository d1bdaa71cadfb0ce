//! What the figures were measured on.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::args::Args;

/// A paragraph of facts: date, processor, memory, kernel, file system, versions.
pub fn facts(args: &Args) -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let after = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory: u64 = {
        let total = after(&read("/proc/meminfo"), "MemTotal");
        total.trim_end_matches(" kB").parse().unwrap_or(0)
    };
    let versions: Vec<String> = args
        .systems()
        .into_iter()
        .filter_map(|s| Some(format!("{}: {}", s.name(), s.version()?)))
        .collect();
    let load = read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned();
    format!(
        "{date}; {cores} cores of {processor}, {memory} GiB; Linux {kernel}; queues on {disk}; \
         load before {load}. {versions}. {reps} repetitions of {seconds} s, in turn; medians, \
         (least..most), **ratio to Postfix as shipped**, part of the ceiling.",
        date = said("date", &["-u", "+%F %H:%M UTC"]),
        processor = after(&read("/proc/cpuinfo"), "model name"),
        memory = (memory + (1 << 19)) >> 20,
        kernel = read("/proc/sys/kernel/osrelease").trim(),
        disk = filesystem(&args.dir),
        versions = versions.join("; "),
        reps = args.reps,
        seconds = args.seconds,
    )
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
