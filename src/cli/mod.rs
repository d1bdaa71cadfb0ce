//! The command line. `run` is the program itself; every other command asks it over its unix socket
//! or needs no running program at all.
//!
//! Data goes to stdout, talk to stderr.

mod args;
mod check_config;
mod client;
mod explain;
mod format;
mod origins;
mod out;
mod probe;
mod progress;
mod queue;
mod run;
mod secrets;
mod send;
mod spool;
mod status;
mod table;
mod upstream;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;

use self::args::{Args, Command, Global};
use self::client::Client;
use self::out::Out;
use crate::config;
use crate::secrets::harden;

/// The numbers commands end with: sysexits(3), and for `send` those of swaks(1).
pub mod exit {
    /// Done.
    pub const OK: u8 = 0;
    /// The running Postgate refused, or a message could not be delivered.
    pub const FAILED: u8 = 1;
    /// `send`: no connection.
    pub const CONNECT: u8 = 2;
    /// `send`: no or a negative greeting.
    pub const GREETING: u8 = 21;
    /// `send`: EHLO was refused.
    pub const EHLO: u8 = 22;
    /// `send`: MAIL was refused.
    pub const MAIL: u8 = 23;
    /// `send`: RCPT was refused.
    pub const RCPT: u8 = 24;
    /// `send`: DATA was refused.
    pub const DATA: u8 = 25;
    /// `send`: the message was refused.
    pub const END_OF_DATA: u8 = 26;
    /// The command line is wrong.
    pub const USAGE: u8 = 64;
    /// Postgate does not run; or, with `check-config --probe`, a secret cannot be read.
    pub const UNAVAILABLE: u8 = 69;
    /// An error of our own.
    pub const SOFTWARE: u8 = 70;
    /// `send`: the message waits for its next attempt.
    pub const DEFERRED: u8 = 75;
    /// No permission.
    pub const PERMISSION: u8 = 77;
    /// The configuration is wrong.
    pub const CONFIG: u8 = 78;
}

/// Why a command ends otherwise than well.
#[derive(Debug)]
struct Failure {
    code: u8,
    /// What to tell on stderr; nothing when all has been told.
    message: Option<String>,
}

impl Failure {
    fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: Some(message.into()) }
    }

    const fn silent(code: u8) -> Self {
        Self { code, message: None }
    }

    /// Adds what to do next to a failure of that code.
    fn advise(mut self, code: u8, advice: &str) -> Self {
        if self.code == code {
            self.message = self.message.map(|message| format!("{message}\n  {advice}"));
        }
        self
    }
}

/// Reads the command line and does what it says.
pub fn main() -> ExitCode {
    let args = match Args::try_parse_from(command_line(std::env::args_os())) {
        Ok(args) => args,
        Err(e) => {
            let code = if e.use_stderr() { exit::USAGE } else { exit::OK };
            // There is nobody left to tell when this fails.
            let _ = e.print();
            return code.into();
        }
    };
    let mut out = Out::new(args.global.quiet);
    // First of all: commands that probe read secrets, too.
    let hardened = harden()
        .map_err(|e| Failure::new(exit::SOFTWARE, format!("cannot forbid core dumps: {e}")));
    let done = hardened.and_then(|()| dispatch(args, &mut out)).and_then(|()| out.flush());
    match done {
        Ok(()) => exit::OK.into(),
        Err(Failure { code, message }) => {
            // What was told before is told also when the end is bad.
            let _ = out.flush();
            if let Some(message) = message {
                out.complain(&format!("postgate: {message}"));
            }
            code.into()
        }
    }
}

/// Called as `mailq`, Postgate lists its queue.
fn command_line(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut args: Vec<OsString> = args.collect();
    let name = args.first().map(Path::new).and_then(Path::file_name);
    if name.is_some_and(|name| name == "mailq") {
        args.insert(1, "mailq".into());
    }
    args
}

fn dispatch(args: Args, out: &mut Out) -> Result<(), Failure> {
    let Args { global, command } = args;
    if matches!(command, Command::Run) {
        return run::run(&global.config(), out);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::new(exit::SOFTWARE, e.to_string()))?;
    runtime.block_on(talk(&global, command, out))
}

/// The commands that talk to someone.
async fn talk(global: &Global, command: Command, out: &mut Out) -> Result<(), Failure> {
    let json = global.json;
    match command {
        Command::Queue(queue) => queue::queue(&client(global)?, queue, json, out).await,
        Command::Spool(args) => spool::spool(global, args, || client(global), out).await,
        Command::Mailq => {
            let list = args::Queue::List { state: None };
            queue::queue(&client(global)?, list, json, out).await
        }
        Command::Status => status::status(&client(global)?, json, out).await,
        Command::Upstream(command) => {
            upstream::upstream(&client(global)?, command, json, out).await
        }
        Command::Explain { id } => explain::explain(&client(global)?, &id, json, out).await,
        Command::Secrets(command) => secrets::secrets(&client(global)?, command, json, out).await,
        Command::Reload => status::reload(&client(global)?, json, out).await,
        Command::Healthcheck(options) => {
            status::healthcheck(&client(global)?, options, json, out).await
        }
        Command::Probe(options) => probe::run(global, options, out).await,
        Command::Send(options) => send::send(global, options, out).await,
        Command::CheckConfig(options) => check_config::check(global, &options, out).await,
        // It has a runtime of its own.
        Command::Run => Ok(()),
    }
}

/// The client for the socket that was named, or that the configuration names.
fn client(global: &Global) -> Result<Client, Failure> {
    let socket = global.socket.clone().map_or_else(|| configured_socket(global), Ok)?;
    Ok(Client::new(socket))
}

/// A file that was not asked for need not be there, nor be readable by everyone. One that was asked
/// for and names no socket must not lead to that of another Postgate.
fn configured_socket(global: &Global) -> Result<PathBuf, Failure> {
    let path = global.config();
    let environment = config::environment();
    if let Some(socket) = config::socket(&path, &environment) {
        return Ok(socket);
    }
    match config::load(&path, &environment) {
        Ok((config, _)) => Ok(config.admin.socket),
        Err(_) if global.config.is_none() => Ok(config::DEFAULT_SOCKET.into()),
        Err(_) => {
            let path = path.display();
            let message = format!(
                "{path} is not usable, so the socket is not known; name it with --socket\n  \
                 see: postgate -c {path} check-config"
            );
            Err(Failure::new(exit::CONFIG, message))
        }
    }
}
