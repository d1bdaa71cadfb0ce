//! The relays that are compared. Each is a plan: files in a folder of its own, and commands.

pub mod aged;
mod exim;
mod postfix;
mod postgate;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::args::Args;
use super::process::{self, Part};

/// A start or a stop that takes longer has failed.
const PATIENCE: Duration = Duration::from_mins(1);

/// What is measured.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, clap::ValueEnum, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum System {
    /// This program.
    Postgate,
    /// Debian's Postfix as it comes.
    Postfix,
    /// The same, tuned as its `TUNING_README` says.
    PostfixTuned,
    /// Debian's Exim; `POSTGATE_BENCH_EXIM` says where when it is not installed.
    Exim,
}

impl System {
    pub const ALL: [Self; 4] = [Self::Postgate, Self::Postfix, Self::PostfixTuned, Self::Exim];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Postgate => "postgate",
            Self::Postfix => "postfix",
            Self::PostfixTuned => "postfix tuned",
            Self::Exim => "exim",
        }
    }

    /// What it says of its version, or `None` when it is not installed.
    pub fn version(self) -> Option<String> {
        match self {
            Self::Postgate => postgate::version(),
            Self::Postfix | Self::PostfixTuned => postfix::version(),
            Self::Exim => exim::version(),
        }
    }

    /// Starts it with an empty queue in a new folder.
    pub fn start(self, args: &Args, onward: Onward) -> Relay {
        let home = tempfile::Builder::new().prefix("relay").tempdir_in(&args.dir).unwrap();
        mode(home.path(), 0o755);
        let address = free_address();
        let plan = self.plan(home.path(), address, onward);
        if let (Self::Postgate, Some(aged)) = (self, &args.aged) {
            aged::copy(aged, &postgate::spool(home.path()));
        }
        let mut relay = Relay { address, plan, part: None, home };
        relay.up();
        relay
    }

    fn plan(self, home: &Path, address: SocketAddr, onward: Onward) -> Plan {
        match self {
            Self::Postgate => postgate::plan(home, address, onward),
            Self::Postfix => postfix::plan(home, address, onward, false),
            Self::PostfixTuned => postfix::plan(home, address, onward, true),
            Self::Exim => exim::plan(home, address, onward),
        }
    }
}

/// What becomes of the mail that a relay has taken.
#[derive(Clone, Copy, Debug)]
pub enum Onward {
    /// It stays in the queue, by the operator's word.
    Held,
    /// It is delivered there, when somebody listens.
    To(SocketAddr),
    /// There, or else somewhere that is never needed. Only Postgate makes a difference.
    ToFirst(SocketAddr),
}

/// How a relay is run.
struct Plan {
    /// In the foreground.
    run: Command,
    /// Once it greets, after each start.
    then: Vec<Command>,
    /// The smarthost is back: what an operator would say.
    flush: Vec<Command>,
    /// Prints the queue.
    list: Command,
}

/// A relay that runs. Dropping it stops it and removes its folder.
pub struct Relay {
    /// Where it takes mail.
    pub address: SocketAddr,
    plan: Plan,
    part: Option<Part>,
    home: TempDir,
}

impl Relay {
    /// Starts it; gives the time until it greeted.
    pub fn up(&mut self) -> Duration {
        let begun = Instant::now();
        let mut part = Part::spawn(&self.plan.run, "TERM", &self.log_file());
        while !greets(self.address) {
            assert!(part.is_running(), "it ended: {}", self.log());
            assert!(begun.elapsed() < PATIENCE, "no greeting: {}", self.log());
            std::thread::sleep(Duration::from_millis(1));
        }
        let took = begun.elapsed();
        self.part = Some(part);
        self.plan.then.iter().for_each(do_it);
        took
    }

    /// Stops it as an operator would.
    pub fn down(&mut self) {
        self.part = None;
    }

    pub fn flush(&self) {
        self.plan.flush.iter().for_each(do_it);
    }

    pub fn pid(&self) -> u32 {
        self.part.as_ref().unwrap().id()
    }

    /// Lists the queue: the time to the first line about a message, and to the last.
    pub fn list(&self) -> (Duration, Duration) {
        let begun = Instant::now();
        let mut list = Command::new(process::find(&self.plan.list.get_program().to_string_lossy()));
        list.args(self.plan.list.get_args()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = list.spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        // The first of Postfix's is a title, and of Postgate's perhaps, too.
        for _ in 0..2 {
            out.read_line(&mut String::new()).unwrap();
        }
        let first = begun.elapsed();
        let _ = std::io::copy(&mut out.by_ref(), &mut std::io::sink());
        child.wait().unwrap();
        (first, begun.elapsed())
    }

    /// Nothing of this route may have been put off, as its smarthost was well all the time. Only
    /// Postgate says so in its log.
    pub fn has_put_off_nothing(&self, route: &str) -> Result<(), String> {
        let log = fs::read_to_string(self.log_file()).map_err(|e| e.to_string())?;
        let route = format!("\"route\":\"{route}\"");
        let put_off =
            |line: &&str| line.contains("\"status\":\"deferred\"") && line.contains(&route);
        log.lines().find(put_off).map_or(Ok(()), |line| Err(format!("put off: {line}")))
    }

    /// Its folder, with its queue.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    pub fn log(&self) -> String {
        let log = fs::read_to_string(self.log_file()).unwrap_or_default();
        let end: Vec<&str> = log.lines().rev().take(20).collect();
        end.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    fn log_file(&self) -> PathBuf {
        self.home.path().join("output")
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.down();
    }
}

/// Lets the accounts of the relays in.
pub fn open_to_all(place: &Path) {
    mode(place, 0o755);
}

/// Whether the accounts of the relays get to a folder.
pub fn reachable(place: &Path) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt;
    fs::create_dir_all(place).map_err(|e| format!("{}: {e}", place.display()))?;
    for dir in fs::canonicalize(place).unwrap().ancestors() {
        if fs::metadata(dir).unwrap().permissions().mode() & 0o001 == 0 {
            return Err(format!(
                "{} is closed to other accounts: say another by --dir",
                dir.display()
            ));
        }
    }
    Ok(())
}

/// An address nobody listens at, below the range the system takes for outgoing connections.
pub fn free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % 4000).unwrap() + 24_000;
    loop {
        let port = start + NEXT.fetch_add(1, Ordering::Relaxed) % 4000;
        let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

fn greets(address: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(address) else { return false };
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut greeting = [0; 3];
    stream.read_exact(&mut greeting).is_ok() && &greeting == b"220"
}

/// Runs a command that has to succeed.
fn do_it(command: &Command) {
    let mut again = Command::new(command.get_program());
    again.args(command.get_args());
    process::run(&mut again, b"", PATIENCE).expect_code(0);
}

/// A command and its words.
fn command(program: impl AsRef<std::ffi::OsStr>, words: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(words);
    command
}

fn mode(path: &Path, bits: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(bits)).unwrap();
}

/// What a program says of itself, its first line.
fn first_line(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).lines().next()?.to_owned())
}
