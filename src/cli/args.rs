//! What can be said on the command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};

use crate::admin::Selection;
use crate::config::{self, DEFAULT_PATH};
use crate::mail::Mailbox;

/// Takes mail from your backends, keeps it safe on disk, and delivers it through your smarthost.
#[derive(Debug, Parser)]
#[command(
    name = "postgate",
    version,
    arg_required_else_help = true,
    disable_help_subcommand = true
)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, clap::Args)]
pub(super) struct Global {
    /// The configuration [default: /etc/postgate/postgate.toml]
    #[arg(short, long, global = true, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// The running Postgate's socket [default: the configuration's admin.socket]
    #[arg(long, global = true, value_name = "PATH")]
    pub(super) socket: Option<PathBuf>,
    /// Print JSON, one object a line
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// Say nothing but data and errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(super) quiet: bool,
    /// Say more
    #[arg(short, long, global = true)]
    pub(super) verbose: bool,
}

impl Global {
    pub(super) fn config(&self) -> PathBuf {
        self.config.clone().unwrap_or_else(|| DEFAULT_PATH.into())
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run in the foreground, as systemd wants it
    Run,
    /// Check the configuration and tell all that is wrong with it
    CheckConfig(CheckConfig),
    /// Show the queue and act on its messages
    #[command(subcommand, arg_required_else_help = true)]
    Queue(Queue),
    /// Look into, tidy and move the spool
    Spool(SpoolArgs),
    /// The same as: queue list
    Mailq,
    /// Show what the running Postgate is doing
    Status,
    /// Show the upstreams and act on them
    #[command(subcommand, arg_required_else_help = true)]
    Upstream(Upstream),
    /// Tell which upstreams may have a message, and why not the others
    Explain {
        /// Its queue id
        id: String,
    },
    /// Show where passwords and keys come from, and have them read again
    #[command(subcommand, arg_required_else_help = true)]
    Secrets(Secrets),
    /// Make the running Postgate read its configuration again
    Reload,
    /// Send a test message and follow it to the upstream's answer
    Send(Send),
    /// Walk the way to a smarthost: DNS, TCP, greeting, EHLO, STARTTLS, certificate, login
    Probe(Probe),
    /// End with 0 when Postgate is well, for containers and scripts
    Healthcheck(Healthcheck),
}

#[derive(Debug, clap::Args)]
pub(super) struct CheckConfig {
    /// Fail on warnings too
    #[arg(long)]
    pub(super) deny_warnings: bool,
    /// Print every key with its value in effect
    #[arg(long)]
    pub(super) print: bool,
    /// Read each secret once, and tell where every upstream's values come from
    #[arg(long)]
    pub(super) probe: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum Queue {
    /// List messages, the oldest first
    List {
        /// Only messages that are incoming, active, deferred, held, dead, or unconfirmed
        #[arg(long, value_name = "STATE")]
        state: Option<Selection>,
    },
    /// Show all that is known of one message
    Show {
        /// Its queue id
        id: String,
    },
    /// Print a message as it was received
    Cat {
        /// Its queue id
        id: String,
        /// Only its header
        #[arg(long)]
        headers: bool,
    },
    /// Try messages again now
    Retry(Ids),
    /// Keep messages back until they are released
    Hold(Ids),
    /// Let held messages go
    Release(Ids),
    /// Put dead letters back into the queue
    Requeue(Ids),
    /// Say that what is unconfirmed has arrived: it is not sent again
    Confirm(Ids),
    /// Say that what is unconfirmed has not arrived: it is sent again, by any way
    Resend(Ids),
    /// Delete messages for good
    Delete(Ids),
}

#[derive(Debug, Subcommand)]
pub(super) enum Upstream {
    /// List the upstreams with their breakers and what is wrong with them
    List,
    /// Let nothing go to an upstream: its mail takes other ways, or waits
    Pause(Timed),
    /// End a pause
    Resume(Lasting),
    /// Open an upstream's breaker, as if it had failed
    Trip(Timed),
    /// Close an upstream's breaker, whatever was before
    Reset(Lasting),
}

/// What is done to an upstream for good.
#[derive(Debug, clap::Args)]
pub(super) struct Lasting {
    /// The upstream's name
    pub(super) name: String,
    /// Why, for the log
    #[arg(long, value_name = "TEXT")]
    pub(super) reason: Option<String>,
}

/// What is done to an upstream, perhaps for a time.
#[derive(Debug, clap::Args)]
pub(super) struct Timed {
    #[command(flatten)]
    pub(super) what: Lasting,
    /// For how long: 30s, 30m, 2h [default: a pause until it is resumed, a trip as after a failure]
    #[arg(long = "for", value_name = "TIME", value_parser = span)]
    pub(super) lasts: Option<Duration>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Secrets {
    /// List the secrets with their sources and versions; never what they are
    Status,
    /// Read secrets again now
    Refresh {
        /// Only this one
        name: Option<String>,
    },
}

#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub(super) struct SpoolArgs {
    /// The spool's directory [default: the configuration's spool.path]
    #[arg(long, global = true, value_name = "DIR")]
    pub(super) path: Option<PathBuf>,
    #[command(subcommand)]
    pub(super) command: SpoolTool,
}

#[derive(Debug, Subcommand)]
pub(super) enum SpoolTool {
    /// Read all of a stopped or copied spool and tell what is damaged; changes nothing
    Verify,
    /// Give the room of finished messages back to the file system, while Postgate is stopped
    Compact,
    /// Write every message to a file, also while Postgate runs
    Export {
        /// A new or empty directory
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
    /// Queue what was exported, under new ids, while Postgate is stopped
    Import {
        /// What export wrote
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// Also what is in the spool already
        #[arg(long)]
        duplicates: bool,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct Ids {
    /// Queue ids; - reads them from stdin, one a line
    #[arg(required = true, value_name = "ID")]
    pub(super) ids: Vec<String>,
    /// Why, for the log
    #[arg(long, value_name = "TEXT")]
    pub(super) reason: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Send {
    /// To whom
    #[arg(value_parser = parse_mailbox)]
    pub(super) to: Mailbox,
    /// From whom [default: the configuration's postmaster]
    #[arg(long, value_name = "ADDRESS", value_parser = parse_mailbox)]
    pub(super) from: Option<Mailbox>,
    /// Another server than the configuration's first listener, as HOST:PORT
    #[arg(long, value_name = "HOST:PORT")]
    pub(super) server: Option<String>,
    /// How long to follow the message
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = span)]
    pub(super) wait: Duration,
}

#[derive(Debug, clap::Args)]
pub(super) struct Probe {
    /// An upstream's name, or any HOST:PORT [default: the route's first smarthost]
    #[arg(value_name = "NAME|HOST:PORT")]
    pub(super) target: Option<String>,
    /// Also ask whether this recipient would be accepted
    #[arg(long, value_name = "ADDRESS", value_parser = parse_mailbox)]
    pub(super) rcpt: Option<Mailbox>,
    /// The sender to ask with [default: the null one]
    #[arg(long, value_name = "ADDRESS", value_parser = parse_mailbox, requires = "rcpt")]
    pub(super) from: Option<Mailbox>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Healthcheck {
    /// live: it answers; ready: it takes mail
    #[arg(default_value = "ready")]
    pub(super) what: Health,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Health {
    Live,
    Ready,
}

/// A time span; clap shows what was given before the error.
fn span(text: &str) -> Result<Duration, String> {
    config::parse_duration(text)
        .map_err(|e| format!("it {e}; write a whole number and ms, s, m, h or d: 30s, 30m, 2h"))
}

fn parse_mailbox(text: &str) -> Result<Mailbox, crate::mail::AddressError> {
    Mailbox::parse(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::mail::QueueState;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn options_may_stand_behind_the_command() {
        let words = ["postgate", "queue", "list", "--state", "held", "--json", "-c", "x.toml"];
        let args = Args::try_parse_from(words).unwrap();
        assert!(args.global.json && args.global.config().ends_with("x.toml"));
        let Command::Queue(Queue::List { state }) = args.command else { panic!("list") };
        assert_eq!(state, Some(Selection::State(QueueState::Held)));
        assert!(Args::try_parse_from(["postgate", "queue", "list", "--state", "lost"]).is_err());
        assert!(Args::try_parse_from(["postgate", "queue", "delete"]).is_err());
        assert!(Args::try_parse_from(["postgate", "send", "a\r\n@b"]).is_err());
    }
    #[test]
    fn only_what_can_end_by_itself_takes_a_time() {
        let parse = |line: &str| Args::try_parse_from(line.split(' ').map(String::from));
        let args = parse("postgate upstream pause core --for 30m --reason kernel").unwrap();
        let Command::Upstream(Upstream::Pause(Timed { what, lasts })) = args.command else {
            panic!("pause")
        };
        assert_eq!((what.name.as_str(), what.reason.as_deref()), ("core", Some("kernel")));
        assert_eq!(lasts, Some(Duration::from_mins(30)));
        for line in [
            "postgate upstream trip ses --for 90s",
            "postgate upstream resume core --reason mended",
            "postgate upstream reset core",
            "postgate queue list --state unconfirmed",
            "postgate queue confirm - --reason seen",
            "postgate secrets refresh",
            "postgate secrets refresh smtp",
        ] {
            assert!(parse(line).is_ok(), "{line}");
        }
        for line in [
            "postgate upstream",
            "postgate upstream pause",
            "postgate upstream pause core --for 30",
            "postgate upstream resume core --for 30m",
            "postgate upstream reset core --for 30m",
            "postgate queue resend",
            "postgate explain",
            "postgate secrets",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
