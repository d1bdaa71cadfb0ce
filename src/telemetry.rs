//! Where the lines and the numbers of [`crate::event`] go.

use std::io::{self, BufWriter, IsTerminal, Write};
use std::time::Duration;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

/// Lines that wait for a slow reader; of about a kilobyte each.
const LINES_MAX: usize = 8192;

/// Octets of lines that are written at once.
const LINES_AT_ONCE: usize = 64 * 1024;

/// How long lines gather before they are written: a thread that wakes for each of many costs more
/// than all else that is done for it. A process that is killed takes the lines of this time with it.
const GATHER: Duration = Duration::from_millis(2);

/// How often measurements are summed up.
const UPKEEP: Duration = Duration::from_secs(5);

/// How lines are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Format {
    /// One JSON object a line.
    #[default]
    Json,
    /// For people.
    Text,
}

/// What is logged. The level can be changed while running.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// The least severe level that is written.
    pub level: LevelFilter,
    /// How.
    pub format: Format,
}

impl Default for Settings {
    fn default() -> Self {
        Self { level: LevelFilter::INFO, format: Format::default() }
    }
}

/// Keeps logging alive; dropping it writes out what is left.
pub struct Telemetry {
    filter: reload::Handle<Targets, Registry>,
    dropped: ErrorCounter,
    /// `None` when something in this process counts already.
    numbers: Option<PrometheusHandle>,
    _writer: WorkerGuard,
}

/// Starts counting, and logging to standard error, once for the process.
///
/// A reader that stalls does not stall mail: lines are handed to a writer thread through a bounded
/// queue and the newest are dropped when it is full.
pub fn start(settings: Settings) -> Telemetry {
    let out = Gathering(BufWriter::with_capacity(LINES_AT_ONCE, io::stderr()));
    let (writer, guard) = NonBlockingBuilder::default().buffered_lines_limit(LINES_MAX).finish(out);
    let dropped = writer.error_counter();
    let (filter, handle) = reload::Layer::new(targets(settings.level));
    let lines = tracing_subscriber::fmt::layer().with_span_events(FmtSpan::NONE).with_target(false);
    let lines = match settings.format {
        Format::Json => {
            lines.with_writer(writer).json().flatten_event(true).with_current_span(false).boxed()
        }
        Format::Text => lines.with_writer(writer).with_ansi(io::stderr().is_terminal()).boxed(),
    };
    // A second start in one process (tests) keeps the first subscriber.
    let _ = tracing_subscriber::registry().with(filter).with(lines).try_init();
    Telemetry { filter: handle, dropped, numbers: start_counting().ok(), _writer: guard }
}

/// Writes what is there when it is told that no more is, and lets more gather before it looks again.
struct Gathering<W: Write>(BufWriter<W>);

impl<W: Write> Write for Gathering<W> {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        self.0.write(octets)
    }

    /// What could not be written is kept, and tried again with the next lines; nobody could be told.
    fn flush(&mut self) -> io::Result<()> {
        let _ = self.0.flush();
        std::thread::sleep(GATHER);
        Ok(())
    }
}

impl Telemetry {
    /// A counter of the lines that were dropped because the reader of the log was too slow.
    pub fn dropped(&self) -> ErrorCounter {
        self.dropped.clone()
    }

    /// Sums up what was measured, for ever. Without it every measurement waits in memory for the
    /// next scrape, and there may be none.
    pub fn upkeep(&self) -> impl Future<Output = ()> + Send + 'static {
        let numbers = self.numbers.clone();
        async move {
            let mut tick = tokio::time::interval(UPKEEP);
            while let Some(numbers) = &numbers {
                tick.tick().await;
                numbers.run_upkeep();
            }
        }
    }

    /// What was counted, in Prometheus' text format, asked anew each time.
    pub fn numbers(&self) -> impl Fn() -> String + Send + Sync + 'static {
        let numbers = self.numbers.clone();
        move || numbers.as_ref().map(PrometheusHandle::render).unwrap_or_default()
    }

    /// Changes the level.
    pub fn set_level(&self, level: LevelFilter) {
        // It fails only when the subscriber is gone, and then nothing logs.
        let _ = self.filter.reload(targets(level));
    }
}

/// Our own lines at `level`; libraries only when something is wrong.
fn targets(level: LevelFilter) -> Targets {
    Targets::new().with_default(level.min(LevelFilter::WARN)).with_target("postgate", level)
}

/// The upper bounds of a commit's duration, in seconds.
const COMMIT_BUCKETS: [f64; 9] = [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.1, 0.5, 5.0];

/// The upper bounds of the time from our 250 to the upstream's, in seconds.
const LATENCY_BUCKETS: [f64; 9] = [0.1, 1.0, 10.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0];

fn start_counting() -> Result<PrometheusHandle, BuildError> {
    let buckets = |name: &str| Matcher::Full(format!("postgate_{name}_seconds"));
    PrometheusBuilder::new()
        .set_buckets_for_metric(buckets("spool_commit_duration"), &COMMIT_BUCKETS)?
        .set_buckets_for_metric(buckets("message_latency"), &LATENCY_BUCKETS)?
        .install_recorder()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Takes lines once it is mended.
    #[derive(Clone, Default)]
    struct Out {
        mended: Arc<Mutex<bool>>,
        lines: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Out {
        fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
            if !*self.mended.lock().unwrap() {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.lines.lock().unwrap().extend_from_slice(octets);
            Ok(octets.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_could_not_be_written_are_written_with_the_next() {
        let out = Out::default();
        let mut gathering = Gathering(BufWriter::new(out.clone()));
        gathering.write_all(b"one\n").unwrap();
        gathering.flush().unwrap();
        *out.mended.lock().unwrap() = true;
        gathering.write_all(b"two\n").unwrap();
        gathering.flush().unwrap();
        assert_eq!(*out.lines.lock().unwrap(), b"one\ntwo\n");
    }

    #[test]
    fn the_last_lines_are_written_when_logging_ends() {
        let out = Out { mended: Arc::new(Mutex::new(true)), ..Out::default() };
        let gathering = Gathering(BufWriter::new(out.clone()));
        let (mut writer, guard) = NonBlockingBuilder::default().finish(gathering);
        writer.write_all(b"last\n").unwrap();
        drop(guard);
        assert_eq!(*out.lines.lock().unwrap(), b"last\n");
    }
}
