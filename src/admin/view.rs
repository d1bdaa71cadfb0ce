//! What the API shows and takes, beside messages. Whoever reads it must ignore members that are new,
//! and do without those that are missing.

use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::mail::{QueueId, QueueState, RecipientStatus};
use crate::spool::Entry;

/// An upstream as it is now.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct UpstreamView {
    /// Its name in the configuration.
    pub name: String,
    /// `smtp`, `ses` or `maildir`.
    pub kind: String,
    /// The routes that lead to it.
    pub routes: Vec<String>,
    /// `closed`, `open`, `half-open`, `held` or `paused`.
    pub breaker: String,
    /// When the breaker came to be so.
    pub since: Option<Timestamp>,
    /// Seconds until an open breaker lets a probe through.
    pub until_seconds: Option<u64>,
    /// Attempts at once while it comes back and takes not all yet.
    pub ramp: Option<usize>,
    /// Why it can take nothing, whatever its breaker says: no credentials yet, a quota used up.
    pub wanting: Option<String>,
    /// Why its breaker is not closed.
    pub reason: Option<String>,
    /// The last fault that was its own; `None` once it works again.
    pub last_failure: Option<String>,
    /// What an operator said of it.
    pub paused: Option<Pause>,
    /// Whether the development switch makes every attempt fail.
    pub forced: bool,
    /// Attempts it has now, and may have.
    pub connections: Connections,
    /// What it takes, as the configuration writes rates; `None`: as much as comes.
    pub rate: Option<String>,
    /// Recipients it took since the start.
    pub sent: u64,
    /// Recipients it did not take, attempt by attempt, since the start.
    pub failed: u64,
    /// What its provider says of the account; `null` where there is none.
    pub account: serde_json::Value,
}

/// An operator's word that nothing goes there.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Pause {
    /// Why, in the operator's words; may be empty.
    pub reason: String,
    /// Seconds until it is over; `None`: until it is resumed.
    pub until_seconds: Option<u64>,
}

/// How many attempts there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Connections {
    /// Now.
    pub running: usize,
    /// At most.
    pub capacity: usize,
}

/// A secret as it is now, without what is secret in it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SecretView {
    /// Its name in the configuration.
    pub name: String,
    /// Where the value in use came from: `vault secret/keybuzz/smtp`, `environment`.
    pub from: String,
    /// The version in use, where its source counts them.
    pub version: Option<u64>,
    /// When its source last gave it.
    pub read: Option<Timestamp>,
    /// `current`, `empty`, `stale` when the source does not answer now, or `missing`.
    pub state: String,
    /// Why it is not current.
    pub reason: Option<String>,
}

/// What an operator does to an upstream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Intervention {
    /// What.
    pub operation: Operation,
    /// For how long: only with [`Pause`](Operation::Pause) and [`Trip`](Operation::Trip).
    pub lasts: Option<Duration>,
    /// Why, in the operator's words: one line.
    pub reason: Option<String>,
}

/// What can be done to an upstream.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// Nothing goes there.
    Pause,
    /// The end of a pause.
    Resume,
    /// Opens the breaker, as if the upstream had failed.
    Trip,
    /// Closes the breaker, whatever was before.
    Reset,
}

impl Operation {
    /// Whether it can be for a time.
    pub const fn can_last(self) -> bool {
        matches!(self, Self::Pause | Self::Trip)
    }

    /// The word in requests and logs.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Trip => "trip",
            Self::Reset => "reset",
        }
    }
}

/// Why an operator's wish is not fulfilled.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refused {
    /// There is none of that name.
    #[error("no upstream is named {0}")]
    NoUpstream(String),
    /// There is none of that name.
    #[error("no secret is named {0}")]
    NoSecret(String),
    /// It makes no sense as things are.
    #[error("{0}")]
    NotNow(String),
}

/// Where one message may go.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Explanation {
    /// Which message.
    pub queue_id: QueueId,
    /// Its place in the queue.
    pub state: QueueState,
    /// One for each pending recipient and each upstream of its route, in the route's order.
    pub verdicts: Vec<Verdict>,
}

/// Whether one recipient of a message may go to one upstream.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Verdict {
    /// The recipient.
    pub recipient: String,
    /// The route it takes.
    pub route: String,
    /// `high`, `normal` or `low`.
    pub priority: String,
    /// The upstream.
    pub upstream: String,
    /// Whether it may go there.
    pub verdict: May,
    /// Why, where that is not plain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Whether a recipient may go to an upstream.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum May {
    /// It goes there at its next attempt.
    Next,
    /// It goes there when those before cannot have it.
    Eligible,
    /// It could go there, but for now nothing does.
    Waits,
    /// It cannot go there: it would be refused, or another upstream may have it already.
    Ineligible,
    /// It was refused there.
    Refused,
    /// It may be there already; no other upstream may have it.
    Unconfirmed,
}

impl May {
    /// The word in lists.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Next => "next",
            Self::Eligible => "eligible",
            Self::Waits => "waits",
            Self::Ineligible => "ineligible",
            Self::Refused => "refused",
            Self::Unconfirmed => "unconfirmed",
        }
    }
}

/// Which messages a list is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Selection {
    /// Those in this state.
    State(QueueState),
    /// Those that an upstream may have for some recipient, in whichever state but active: then its
    /// answer is still awaited.
    Unconfirmed,
}

impl Selection {
    const ALL: [Self; 6] = [
        Self::State(QueueState::Incoming),
        Self::State(QueueState::Active),
        Self::State(QueueState::Deferred),
        Self::State(QueueState::Held),
        Self::State(QueueState::Dead),
        Self::Unconfirmed,
    ];

    /// The word in requests.
    pub const fn word(self) -> &'static str {
        match self {
            Self::State(state) => state.word(),
            Self::Unconfirmed => "unconfirmed",
        }
    }

    /// Whether a message is one of them.
    pub fn has(self, entry: &Entry) -> bool {
        match self {
            Self::State(state) => entry.state == state,
            Self::Unconfirmed => {
                let unconfirmed = |s: &_| matches!(s, RecipientStatus::Unconfirmed { .. });
                entry.state != QueueState::Active && entry.message.status.iter().any(unconfirmed)
            }
        }
    }
}

impl FromStr for Selection {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = || Self::ALL.map(Self::word).join(", ");
        let found = Self::ALL.into_iter().find(|selection| selection.word() == text);
        found.ok_or_else(|| format!("{text} is no state; the states are {}", known()))
    }
}
