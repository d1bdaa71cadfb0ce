//! Processes with a time limit, stopped by their id.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

/// A running part. Dropping it stops it.
pub struct Part {
    name: String,
    child: Child,
}

impl Part {
    /// Starts it, its output in `log`; the kernel ends it should the test die.
    pub fn spawn(command: &Command, end: &str, log: &Path) -> Self {
        let name = command.get_program().to_string_lossy().into_owned();
        let out = File::options().create(true).append(true).open(log).unwrap();
        let mut tied = Command::new("setpriv");
        tied.args(["--pdeathsig", end, "--"]).arg(find(&name)).args(command.get_args());
        for (key, value) in command.get_envs() {
            tied.env(key, value.unwrap_or_default());
        }
        if let Some(dir) = command.get_current_dir() {
            tied.current_dir(dir);
        }
        tied.stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out).process_group(0);
        let child = tied.spawn().unwrap_or_else(|e| panic!("{name}: {e}"));
        Self { name, child }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn signal(&self, signal: Signal) {
        rustix::process::kill_process(self.pid(), signal).unwrap();
    }

    /// How it ended, or `None` when it still runs after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        wait(&mut self.child, limit)
    }

    /// Ends it at once, with whatever it started, and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = rustix::process::kill_process_group(self.pid(), Signal::KILL);
        self.child.wait().unwrap();
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.is_running() {
            return;
        }
        let _ = rustix::process::kill_process(self.pid(), Signal::TERM);
        if self.wait(Duration::from_secs(5)).is_none() {
            eprintln!("{} did not stop on SIGTERM", self.name);
        }
        let _ = rustix::process::kill_process_group(self.pid(), Signal::KILL);
        let _ = self.child.wait();
    }
}

/// What a command said.
#[derive(Debug)]
pub struct Output {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// Itself, when it ended with this code.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}\n--- stderr\n{}", self.stdout, self.stderr);
        self
    }
}

/// Runs a command to its end, at most `limit` long, with `input` as its standard input.
pub fn run(command: &mut Command, input: &[u8], limit: Duration) -> Output {
    let name = command.get_program().to_string_lossy().into_owned();
    let dir = tempfile::tempdir().unwrap();
    let path = |file: &str| dir.path().join(file);
    std::fs::write(path("in"), input).unwrap();
    let mut found = Command::new(find(&name));
    found.args(command.get_args());
    for (key, value) in command.get_envs() {
        found.env(key, value.unwrap_or_default());
    }
    found.stdin(File::open(path("in")).unwrap());
    found.stdout(File::create(path("out")).unwrap()).stderr(File::create(path("err")).unwrap());
    let mut child = found.spawn().unwrap_or_else(|e| panic!("{name}: {e}"));
    let status = wait(&mut child, limit);
    if status.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let text =
        |file: &str| String::from_utf8_lossy(&std::fs::read(path(file)).unwrap()).into_owned();
    let output =
        Output { code: status.and_then(|s| s.code()), stdout: text("out"), stderr: text("err") };
    assert!(status.is_some(), "{name} took longer than {limit:?}: {output:?}");
    output
}

/// Where a program is; fails when it is not installed.
pub fn find(name: &str) -> PathBuf {
    if name.contains('/') {
        return name.into();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(OsStr::new(name)))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("{name} is not installed; tests/run installs it"))
}

fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if start.elapsed() > limit {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
