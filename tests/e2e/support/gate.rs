//! The program under test.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use super::postfix::{PASSWORD, Postfix, USER};
use super::process::{Output, Part, run};
use super::{PATIENCE, eventually, free_port, local};

/// The program.
pub const BINARY: &str = env!("CARGO_BIN_EXE_postgate");

/// What goes into the configuration file.
#[derive(Clone)]
pub struct Settings<'a> {
    pub mynetworks: Vec<&'static str>,
    /// The listener's address without the port.
    pub listen: &'static str,
    /// More lines of `[[listener]]`.
    pub listener: &'a str,
    /// Lines of `[upstreams.core]`.
    pub upstream: String,
    /// Lines of `[limits]`.
    pub limits: &'a str,
    /// Where the spool is, when not in the folder of its own.
    pub spool_path: Option<PathBuf>,
    /// More lines of `[spool]`.
    pub spool: &'a str,
    /// Lines of `[retry]`.
    pub retry: &'a str,
    /// Lines of `[[route]]`.
    pub route: &'a str,
    /// Lines of `[delivery]`.
    pub delivery: &'a str,
    /// Lines of `[breaker]`.
    pub breaker: &'a str,
    /// Whole sections.
    pub more: &'a str,
}

impl Settings<'_> {
    /// Relays to a plain smarthost, with timeouts and retries short enough to wait for.
    pub fn plain(smarthost: SocketAddr) -> Self {
        Self {
            mynetworks: vec!["127.0.0.1/32"],
            listen: "127.0.0.1",
            listener: "",
            upstream: format!(
                "type = \"smtp\"\nhost = \"127.0.0.1\"\nport = {}\ntls = \"none\"\n\
                 timeouts = {{ connect = \"2s\", greeting = \"1s\", command = \"1s\", \
                 data = \"1s\", end_of_data = \"1s\" }}",
                smarthost.port()
            ),
            limits: "",
            spool_path: None,
            spool: "allow_volatile = true\nmin_free = \"1MiB\"",
            retry: "initial = \"1s\"\nmax_interval = \"1s\"\njitter = 0.0\nmax_age = \"1h\"",
            route: "upstreams = [\"core\"]",
            delivery: "drain_timeout = \"3s\"",
            // Never opens.
            breaker: "failures = 10000",
            more: "",
        }
    }

    /// Relays to a Postfix without a login. Its timeouts are a busy machine's.
    pub fn postfix_plain(postfix: &Postfix) -> Self {
        let upstream = format!(
            "type = \"smtp\"\nhost = \"127.0.0.1\"\nport = {}\ntls = \"none\"",
            postfix.plain.port()
        );
        Self { upstream, ..Self::plain(postfix.plain) }
    }

    /// Relays to a Postfix's submission service: STARTTLS, its own certificate pinned, PLAIN.
    pub fn postfix_submission(postfix: &Postfix, password_file: &Path) -> Self {
        let upstream = format!(
            "type = \"smtp\"\nhost = \"127.0.0.1\"\nport = {}\ntls = \"starttls\"\n\
             verify = \"full\"\nca_file = {:?}\ntls_server_name = \"core.test\"\n\
             auth = {{ username = \"{USER}\", password_file = {password_file:?} }}",
            postfix.submission.port(),
            postfix.ca_file(),
        );
        Self { upstream, ..Self::plain(postfix.submission) }
    }

    fn toml(&self, dir: &Path, port: u16) -> String {
        let Self { mynetworks, listen, listener, upstream, limits, retry, .. } = self;
        let Self { route, delivery, breaker, more, .. } = self;
        format!(
            "hostname = \"gate.example.test\"
mynetworks = {mynetworks:?}

[[listener]]
name = \"test\"
address = \"{listen}:{port}\"
{listener}

[limits]
{limits}

[spool]
path = {spool_path:?}
{spool}

[retry]
{retry}

[upstreams.core]
{upstream}

[[route]]
name = \"default\"
{route}

[delivery]
{delivery}

[breaker]
{breaker}

[admin]
socket = {socket:?}

[log]
level = \"debug\"
format = \"json\"

{more}
",
            spool_path = self.spool_path.clone().unwrap_or_else(|| dir.join("spool")),
            spool = self.spool,
            socket = dir.join("admin.sock"),
        )
    }
}

/// A file with the right password, readable by us alone.
pub fn password_file(dir: &Path, password: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = dir.join("password");
    fs::write(&path, format!("{password}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

/// The right password for a Postfix's submission service, in a file.
pub fn right_password(dir: &Path) -> PathBuf {
    password_file(dir, PASSWORD)
}

/// A running Postgate in a folder of its own.
pub struct Gate {
    pub dir: TempDir,
    /// Where clients connect.
    pub address: SocketAddr,
    part: Option<Part>,
}

impl Gate {
    pub fn start(settings: &Settings<'_>) -> Self {
        let mut gate = Self::stopped(settings);
        gate.up();
        gate
    }

    /// One that is configured and not started.
    pub fn stopped(settings: &Settings<'_>) -> Self {
        let dir = tempfile::Builder::new().prefix("gate").tempdir().unwrap();
        let port = free_port();
        let address = match settings.listen {
            "127.0.0.1" => local(port),
            other => format!("{}:{port}", other.replace("[::]", "[::1]")).parse().unwrap(),
        };
        let gate = Self { dir, address, part: None };
        gate.configure(settings);
        gate
    }

    /// Writes the configuration file anew; a running process learns of it by [`hup`](Self::hup).
    pub fn configure(&self, settings: &Settings<'_>) {
        fs::write(self.config(), settings.toml(self.dir.path(), self.address.port())).unwrap();
    }

    pub fn config(&self) -> PathBuf {
        self.dir.path().join("postgate.toml")
    }

    /// Starts it and waits until it greets.
    #[track_caller]
    pub fn up(&mut self) {
        self.up_with(&[]);
    }

    #[track_caller]
    fn run(&mut self, command: &Command) {
        let mut part = Part::spawn(command, "KILL", &self.log_file());
        let mut wait = |what, opened: &dyn Fn() -> bool| {
            eventually(PATIENCE, what, || {
                assert!(part.is_running(), "postgate ended: {}", self.log());
                opened().then_some(())
            });
        };
        // Once: each connection is one in the log.
        wait("the door for mail", &|| TcpStream::connect(self.address).is_ok());
        // The operator's door opens last.
        let door = self.dir.path().join("admin.sock");
        wait("the operator's door", &|| UnixStream::connect(&door).is_ok());
        self.part = Some(part);
    }

    /// Starts it as systemd does at the first connection: the listening socket is handed over.
    #[track_caller]
    pub fn activate(&mut self, listen: &str) {
        let mut activate = Command::new("systemd-socket-activate");
        activate.arg("--fdname=test").arg(format!("--listen={listen}"));
        activate.args([BINARY, "-c"]).arg(self.config()).arg("run");
        self.run(&activate);
    }

    /// Starts it by a command of one's own.
    #[track_caller]
    pub fn up_as(&mut self, command: &Command) {
        self.run(command);
    }

    /// Starts it with more in its environment.
    #[track_caller]
    pub fn up_with(&mut self, environment: &[(&str, &str)]) {
        let mut command = Command::new(BINARY);
        command.arg("-c").arg(self.config()).arg("run").envs(environment.iter().copied());
        self.run(&command);
    }

    /// The spool, where it was not put elsewhere.
    pub fn spool(&self) -> PathBuf {
        self.dir.path().join("spool")
    }

    /// As a crash would.
    pub fn kill(&mut self) {
        self.part.take().unwrap().kill();
    }

    /// Asks it to stop.
    pub fn term(&self) {
        self.part().signal(Signal::TERM);
    }

    /// Asks it to read its configuration again.
    pub fn hup(&self) {
        self.part().signal(Signal::HUP);
    }

    /// Waits until it has ended.
    #[track_caller]
    pub fn ended(&mut self, limit: Duration) -> ExitStatus {
        let mut part = self.part.take().unwrap();
        part.wait(limit).unwrap_or_else(|| panic!("still running after {limit:?}: {}", self.log()))
    }

    pub fn pid(&self) -> u32 {
        self.part().id()
    }

    /// Resident memory in KiB.
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.part().id())).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Another run of the program with this configuration.
    pub fn cli(&self, args: &[&str]) -> Output {
        self.cli_with(&[], args)
    }

    /// The same with more in its environment.
    pub fn cli_with(&self, environment: &[(&str, &str)], args: &[&str]) -> Output {
        let mut command = Command::new(BINARY);
        command.arg("-c").arg(self.config()).args(args).envs(environment.iter().copied());
        run(&mut command, b"", PATIENCE)
    }

    /// What `upstream list --json` says of one.
    pub fn upstream(&self, name: &str) -> Value {
        let list = lines(&self.cli(&["upstream", "list", "--json"]).expect_code(0).stdout);
        list.into_iter().find(|upstream| upstream["name"] == name).unwrap()
    }

    /// What `queue list --json` says.
    pub fn queue(&self) -> Vec<Value> {
        lines(&self.cli(&["queue", "list", "--json"]).expect_code(0).stdout)
    }

    /// What `queue show --json` says of one message.
    pub fn show(&self, id: &str) -> Value {
        let output = self.cli(&["queue", "show", "--json", id]).expect_code(0);
        serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", output.stdout))
    }

    /// Waits until nothing is queued.
    #[track_caller]
    pub fn wait_empty(&self, limit: Duration) {
        eventually(limit, "an empty queue", || self.queue().is_empty().then_some(()));
    }

    /// The log's events of this name.
    pub fn events(&self, name: &str) -> Vec<Value> {
        let mut events = lines(&self.log());
        events.retain(|event| event["event"] == name);
        events
    }

    /// Waits for an event of this name that `matches`.
    #[track_caller]
    pub fn wait_event(&self, name: &str, matches: impl Fn(&Value) -> bool) -> Value {
        eventually(PATIENCE, name, || self.events(name).into_iter().find(&matches))
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    #[track_caller]
    fn part(&self) -> &Part {
        self.part.as_ref().expect("postgate is running")
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of postgate at {}\n{}", self.address, self.log());
        }
    }
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}
