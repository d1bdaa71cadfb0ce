//! A progress bar for work that takes a while, for someone who watches.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::clock::{Clock, SystemClock};
use crate::spool::tools::Progress;

/// What is done sooner needs no bar.
const PATIENCE: Duration = Duration::from_secs(1);

/// A bar on a terminal's stderr; elsewhere nothing.
pub(super) struct Bar {
    shown: ProgressBar,
    started: Instant,
    /// It may still come to be seen.
    waiting: AtomicBool,
}

/// What the numbers are.
#[derive(Clone, Copy)]
pub(super) enum Unit {
    Octets,
    Messages,
    Segments,
}

impl Bar {
    pub(super) fn new(doing: &'static str, unit: Unit, quiet: bool) -> Self {
        let numbers = match unit {
            Unit::Octets => "{binary_bytes}/{binary_total_bytes}",
            Unit::Messages => "{pos}/{len} messages",
            Unit::Segments => "{pos}/{len} segments",
        };
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        let template = format!("{{msg}} {{wide_bar}} {numbers} {{eta}}");
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style);
        }
        bar.set_message(doing);
        let waiting = !quiet && std::io::stderr().is_terminal();
        Self { shown: bar, started: SystemClock.now(), waiting: AtomicBool::new(waiting) }
    }

    /// Writes something while the bar stands below it.
    pub(super) fn aside<T>(&self, write: impl FnOnce() -> T) -> T {
        self.shown.suspend(write)
    }
}

impl Progress for Bar {
    fn total(&self, units: u64) {
        self.shown.set_length(units);
    }

    fn add(&self, units: u64) {
        self.shown.inc(units);
        if self.waiting.load(Ordering::Relaxed)
            && SystemClock.now().duration_since(self.started) > PATIENCE
        {
            self.waiting.store(false, Ordering::Relaxed);
            self.shown.set_draw_target(ProgressDrawTarget::stderr());
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.shown.finish_and_clear();
    }
}
