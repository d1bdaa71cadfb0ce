//! What came of an attempt to deliver: per recipient, with blame and handoff.
//!
//! Two questions decide everything that follows a failure. *Whose fault was it?* Only
//! [`Blame::Upstream`] opens a breaker, and only a verdict about the message or the recipient may
//! bounce it. *May the upstream have taken it?* After [`Handoff::Unknown`] no other upstream is
//! tried, for that could send a second copy.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::reply::{EnhancedStatus, Reply};

/// How far an attempt had come when it failed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Choosing an upstream.
    Routing,
    /// Waiting for a connection of our own pool.
    Pool,
    /// Looking up the upstream's name.
    Dns,
    /// Opening the connection.
    Connect,
    /// Waiting for the 220.
    Greeting,
    /// EHLO or HELO.
    Ehlo,
    /// STARTTLS, the handshake, the certificate.
    Tls,
    /// AUTH.
    Auth,
    /// MAIL FROM.
    Mail,
    /// RCPT TO.
    Rcpt,
    /// DATA or BDAT, and the content.
    Data,
    /// From the final dot to its reply.
    EndOfData,
    /// Handing an HTTP request over, up to its last octet.
    Request,
    /// From the last octet of an HTTP request to its answer.
    Response,
    /// Reading the message from, or writing it to, our own disk.
    Storage,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Routing => "routing",
            Self::Pool => "pool",
            Self::Dns => "dns",
            Self::Connect => "connect",
            Self::Greeting => "greeting",
            Self::Ehlo => "ehlo",
            Self::Tls => "tls",
            Self::Auth => "auth",
            Self::Mail => "mail",
            Self::Rcpt => "rcpt",
            Self::Data => "data",
            Self::EndOfData => "end_of_data",
            Self::Request => "request",
            Self::Response => "response",
            Self::Storage => "storage",
        })
    }
}

/// Whose fault a failure is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Blame {
    /// The route's: down, unreachable, misconfigured, busy, our login refused.
    Upstream,
    /// This message's: its sender, size or content.
    Message,
    /// This recipient's.
    Recipient,
    /// Ours: our disk, our limits.
    Local,
}

/// Whether the upstream may have taken the message.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Handoff {
    /// It surely has not.
    NotSent,
    /// The final dot, or the whole HTTP request, went out and no answer came back: it may have.
    Unknown,
}

/// What mends a fault of the upstream's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Remedy {
    /// Nothing but time.
    #[default]
    Time,
    /// Asking less often: it works, and we are too quick for it.
    Slower,
    /// Other credentials: it refused our login.
    Secret,
}

impl Remedy {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
    const fn is_time(&self) -> bool {
        matches!(self, Self::Time)
    }
}

/// Why a recipient was not served.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// How far the attempt came.
    pub stage: Stage,
    /// Whose fault it was.
    pub blame: Blame,
    /// Whether the upstream may have taken it all the same.
    pub handoff: Handoff,
    /// What would mend it, where the fault is the upstream's.
    #[serde(default, skip_serializing_if = "Remedy::is_time")]
    pub remedy: Remedy,
    /// The upstream's reply, when there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<Reply>,
    /// The status for reports and logs; the reply's own where it has one.
    pub status: EnhancedStatus,
    /// One line for the operator; empty where the reply says it all.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// `greeting: timed out after 60 s`, or the upstream's reply.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reply {
            Some(reply) => write!(f, "{reply}"),
            None => write!(f, "{}: {}", self.stage, self.detail),
        }
    }
}

/// What came of one recipient.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RecipientOutcome {
    /// The upstream answered 2xx to the whole: it is theirs now.
    Sent {
        /// Its reply, which often names its own queue id.
        reply: Reply,
    },
    /// Not now; try again.
    Deferred(Failure),
    /// Never.
    Bounced(Failure),
    /// It may have been taken: the answer was lost. Stays with the same upstream.
    Unconfirmed(Failure),
}

impl RecipientOutcome {
    /// The failure, unless it was sent.
    pub const fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Sent { .. } => None,
            Self::Deferred(f) | Self::Bounced(f) | Self::Unconfirmed(f) => Some(f),
        }
    }
}

/// What came of one attempt to deliver one envelope.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// One for each recipient of the envelope, in its order.
    pub recipients: Vec<RecipientOutcome>,
    /// Whom we talked to, `host[address]:port`; `None` when there was no connection.
    pub relay: Option<String>,
    /// `TLSv1.3` and the like; `None` in clear.
    pub tls: Option<String>,
    /// Time spent getting a connection.
    pub connection_setup: Duration,
    /// Time from MAIL FROM to the last reply.
    pub transmission: Duration,
}

impl Outcome {
    /// The same failure for each of `n` recipients: deferred when it is temporary or not theirs.
    pub fn all(n: usize, outcome: &RecipientOutcome) -> Self {
        Self {
            recipients: vec![outcome.clone(); n],
            relay: None,
            tls: None,
            connection_setup: Duration::ZERO,
            transmission: Duration::ZERO,
        }
    }

    /// How many recipients were handed over.
    pub fn sent(&self) -> usize {
        self.recipients.iter().filter(|o| matches!(o, RecipientOutcome::Sent { .. })).count()
    }

    /// The failure that is the upstream's own fault, if there is one: what the breaker hears.
    pub fn upstream_failure(&self) -> Option<&Failure> {
        self.recipients
            .iter()
            .filter_map(RecipientOutcome::failure)
            .find(|f| f.blame == Blame::Upstream)
    }
}
