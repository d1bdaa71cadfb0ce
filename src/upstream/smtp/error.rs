//! Why a dialogue with an upstream could not go on.

use std::io;
use std::time::Duration;

use super::reply::BadReply;
use crate::mail::{Reply, Stage};

/// What went wrong, and how far the dialogue had come.
#[derive(Debug, thiserror::Error)]
#[error("{stage}: {cause}")]
pub(crate) struct Problem {
    /// How far it came.
    pub(crate) stage: Stage,
    /// What went wrong.
    pub(crate) cause: Cause,
}

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Cause {
    /// Neither the settings nor the secret say where to connect.
    #[error("neither the configuration nor the secret names a host")]
    NoHost,
    /// The name could not be looked up.
    #[error("cannot look up {host}: {source}")]
    Resolve {
        /// The name.
        host: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// The name has no address.
    #[error("{0} has no address")]
    NoAddress(String),
    /// The connection, or our disk at [`Stage::Storage`], failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The peer closed the connection.
    #[error("connection closed by the upstream")]
    Closed,
    /// Nothing came, or nothing could be sent, for this long.
    #[error("timed out after {}", seconds(*.0))]
    TimedOut(Duration),
    /// What came is no SMTP reply.
    #[error("{0}")]
    BadReply(#[from] BadReply),
    /// Octets came that no command had asked for.
    #[error("the upstream sent a reply that nothing had asked for")]
    Surplus,
    /// A reply that does not belong to the command: 354 to MAIL, 250 to DATA.
    #[error("unexpected reply: {0}")]
    Unexpected(Reply),
    /// The upstream said no, and by that ended the dialogue.
    #[error("{0}")]
    Refused(Reply),
    /// TLS is wanted, and STARTTLS is not offered.
    #[error("STARTTLS is required and not offered")]
    NoStartTls,
    /// Octets came after the 220 to STARTTLS and before TLS: someone is forging replies.
    #[error("octets in clear after the reply to STARTTLS")]
    Injected,
    /// The handshake failed or the certificate is not trusted.
    #[error("{0}")]
    Tls(Box<rustls::Error>),
    /// A login is configured, and there is nothing to log in with.
    #[error("no credentials available")]
    NoCredentials,
    /// A login is configured, and the connection is in clear.
    #[error("will not log in without TLS")]
    ClearText,
    /// No mechanism of ours is offered; the names of theirs.
    #[error("no usable AUTH mechanism offered (offered: {})", list(.0))]
    NoMechanism(Vec<String>),
    /// Our own side would not let the content go.
    #[error("{0}")]
    NoLeave(String),
    /// The stored message cannot be sent as it is.
    #[error("the stored message has a bare CR or LF")]
    BareNewline,
}

impl Cause {
    /// This cause at a stage.
    pub(crate) fn at(self, stage: Stage) -> Problem {
        Problem { stage, cause: self }
    }

    /// The upstream's words, if it said something.
    pub(crate) const fn reply(&self) -> Option<&Reply> {
        match self {
            Self::Refused(reply) | Self::Unexpected(reply) => Some(reply),
            _ => None,
        }
    }
}

fn seconds(d: Duration) -> String {
    if d.as_secs() == 0 {
        format!("{} ms", d.as_millis())
    } else {
        format!("{} s", d.as_secs_f64().round())
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".into() } else { names.join(" ") }
}
