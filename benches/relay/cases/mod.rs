//! What is measured: each case is a function from a column to its figures.

mod backlog;
mod fairness;
mod ingest;
mod latency;
mod memory;
mod queued;
mod slow;
mod through;

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;

use super::args::{Args, Subject};
use super::client::Way;
use super::load::{self, Load, Loaded};
use super::peers::{Relay, System};
use super::report::{Column, Figures, Metric, Row};
use super::usage::{Usage, Watch, memory, written_by_disk};

/// What a measurement gave, or why it gave nothing.
pub type Outcome = Result<Figures, String>;

/// Octets of mail in a measurement, at most: all of it may stay on the disk until the end.
const MOST: u64 = 4 << 30;

/// Gives the figures of each row.
type Measure = dyn Fn(&Args, Column) -> Result<Vec<Figures>, String>;

/// What gives a row of the tables, or several in one go.
pub struct Scenario {
    pub rows: Vec<Row>,
    pub columns: Vec<Column>,
    pub measure: Box<Measure>,
}

/// Everything the arguments ask for.
pub fn scenarios(args: &Args) -> Vec<Scenario> {
    let of = |subject: Subject| match subject {
        Subject::Ingest => ingest::scenarios(args),
        Subject::Queued => queued::scenarios(args),
        Subject::Through => through::scenarios(args),
        Subject::Latency => latency::scenarios(args),
        Subject::Backlog => backlog::scenarios(args),
        Subject::Memory => memory::scenarios(args),
        Subject::Fairness => fairness::scenarios(args),
    };
    let placed = |subject: Subject| {
        of(subject).into_iter().map(move |mut scenario| {
            scenario.rows.iter_mut().for_each(|row| row.place.insert(0, subject as u64));
            scenario
        })
    };
    let wanted = Subject::value_variants().iter().copied().filter(|subject| args.wants(*subject));
    let ours = args.systems().contains(&System::Postgate);
    let measured = |scenario: &Scenario| ours || !scenario.is_ours();
    wanted.flat_map(placed).filter(measured).collect()
}

impl Scenario {
    /// Of all relays.
    fn of_all(args: &Args, row: Row, measure: impl Fn(&Args, Column) -> Outcome + 'static) -> Self {
        let columns = args.systems().into_iter().map(Column::Relay).collect();
        let measure = move |args: &Args, column| measure(args, column).map(|figures| vec![figures]);
        Self { rows: vec![row], columns, measure: Box::new(measure) }
    }

    /// Of Postgate alone.
    fn of_ours(row: Row, measure: impl Fn(&Args) -> Outcome + 'static) -> Self {
        Self::rows_of_ours([row], move |args| measure(args).map(|figures| [figures]))
    }

    /// Whether it is of Postgate alone.
    fn is_ours(&self) -> bool {
        self.columns == [Column::Relay(System::Postgate)]
    }

    /// Of Postgate alone, several rows in one measurement.
    fn rows_of_ours<const N: usize>(
        rows: [Row; N],
        measure: impl Fn(&Args) -> Result<[Figures; N], String> + 'static,
    ) -> Self {
        let measure = move |args: &Args, _| measure(args).map(Vec::from);
        let columns = vec![Column::Relay(System::Postgate)];
        Self { rows: rows.into(), columns, measure: Box::new(measure) }
    }
}

/// The load of most cases.
fn load_of(args: &Args, to: std::net::SocketAddr, sessions: usize, size: usize) -> Load {
    Load {
        to,
        domain: "sink.test",
        sessions,
        size,
        way: Way::Plain,
        messages: args.messages.min(MOST / size as u64),
        time: args.time(),
        pace: None,
    }
}

/// A few messages over as many sessions, so that processes and files are there.
fn warm(load: &Load) -> Result<u64, String> {
    let messages = (load.sessions as u64 * 2).max(20);
    let warm = Load { messages, time: Duration::from_secs(2), pace: None, ..load.clone() };
    load::run(&warm).map(|loaded| loaded.acknowledged)
}

/// What a relay used while something was done to it.
struct Meter {
    pid: u32,
    home: PathBuf,
    disk: Option<f64>,
    idle: f64,
    before: Usage,
    watch: Watch,
}

impl Meter {
    fn start(relay: &Relay) -> Self {
        // What was done before is not to be written now.
        rustix::fs::sync();
        let (pid, home) = (relay.pid(), relay.home().to_owned());
        let (disk, watch) = (written_by_disk(&home), Watch::start(pid));
        Self { pid, home, disk, idle: memory(pid), before: Usage::of(pid), watch }
    }

    fn stop(self, messages: u64) -> Figures {
        let used = Usage::of(self.pid).since(self.before);
        let thousands = messages as f64 / 1e3;
        let disk = self.disk.and_then(|before| Some(written_by_disk(&self.home)? - before));
        let mut figures = vec![
            (Metric::Cpu, used.cpu / thousands),
            (Metric::Written, used.written / 1_048_576.0 / thousands),
            (Metric::IdleMemory, self.idle),
            (Metric::PeakMemory, self.watch.peak()),
        ];
        figures.extend(disk.map(|octets| (Metric::Disk, octets / 1_048_576.0 / thousands)));
        figures
    }
}

fn waits(loaded: &Loaded) -> Figures {
    vec![(Metric::P50, loaded.wait(0.5)), (Metric::P99, loaded.wait(0.99))]
}

/// `10k`, as on the command line.
fn octets(size: usize) -> String {
    match size {
        size if size % (1 << 20) == 0 => format!("{} MiB", size >> 20),
        size if size % (1 << 10) == 0 => format!("{} KiB", size >> 10),
        size => format!("{size} octets"),
    }
}
