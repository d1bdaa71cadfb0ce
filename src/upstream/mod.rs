//! Upstreams: what a message can be handed to.

pub mod forced;
pub mod maildir;
pub mod probe;
pub mod ses;
pub mod smtp;

use std::time::Instant;

use async_trait::async_trait;

use crate::mail::{Body, Envelope, Outcome, QueueId};
use crate::policy::bucket::Rate;

/// Why an upstream whose secret was never read can take nothing.
const NO_CREDENTIALS: &str = "no credentials yet; `postgate secrets status` says why";

/// A next hop: a smarthost, Amazon SES, or a Maildir.
#[async_trait]
pub trait Upstream: Send + Sync + 'static {
    /// Its name in the configuration.
    fn name(&self) -> &str;

    /// What it says of itself without being asked for a delivery. Cheap: looked at before every
    /// attempt.
    fn standing(&self) -> Standing {
        Standing::default()
    }

    /// What it is, for people.
    fn about(&self) -> About {
        About { kind: "smtp", account: serde_json::Value::Null, forced: false }
    }

    /// Hands a message over.
    ///
    /// There is no `Result`: a failed attempt is data. The outcome holds one entry for each recipient
    /// of `envelope`, in its order. An attempt that is not over at `deadline` ends as it would at a
    /// time-out of the stage it is in. The future must not be dropped before it ends, or it is not
    /// known whether the upstream took the message.
    ///
    /// `leaving` is asked before the first octet of content leaves, and at most once for a
    /// connection that is used. An attempt that gets no leave ends as not sent, by our fault.
    async fn deliver(
        &self,
        envelope: &Envelope,
        body: &Body,
        leaving: &dyn Leaving,
        deadline: Instant,
    ) -> Outcome;
}

/// Told that the content is about to leave: the last moment at which nothing can have been taken.
#[async_trait]
pub trait Leaving: Send + Sync {
    /// Returns when the content may leave; an error says why it must not. It goes to nobody of
    /// `refused`, by their places in the attempt's envelope.
    async fn content_leaves(&self, refused: &[usize]) -> Result<(), String>;

    /// What the attempt is called, for an upstream that keeps such a name beside the message.
    fn label(&self) -> Option<Label> {
        None
    }
}

/// The name of an attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Label {
    /// The message.
    pub id: QueueId,
    /// Which attempt it is, counted from 1.
    pub attempt: u32,
}

/// Leave that is always given, for tests and probes.
#[cfg(test)]
pub(crate) struct Free;

#[cfg(test)]
#[async_trait]
impl Leaving for Free {
    async fn content_leaves(&self, _: &[usize]) -> Result<(), String> {
        Ok(())
    }
}

/// What an upstream is, for people.
#[derive(Clone, PartialEq, Debug)]
pub struct About {
    /// Its type in the configuration.
    pub kind: &'static str,
    /// What its provider says of the account; `null` where there is none.
    pub account: serde_json::Value,
    /// Whether it is made to fail.
    pub forced: bool,
}

/// What an upstream says of itself.
#[derive(Clone, PartialEq, Debug)]
pub struct Standing {
    /// Why it can take nothing now, whatever its breaker says: no credentials yet, sending paused,
    /// the day's quota used up.
    pub wanting: Option<String>,
    /// Changes whenever its credentials do; a login that was refused waits for that.
    pub secret: u64,
    /// How much it takes, where its provider says so. The configuration may allow less.
    pub rate: Option<Rate>,
    /// Recipients one attempt may have. At least 1.
    pub max_recipients: usize,
    /// Whether it takes verified recipients only.
    pub sandbox: bool,
    /// Whether it puts another sender in place of one it may not send for, though its configuration
    /// names none; also where that is not known yet.
    pub rewrites_sender: bool,
}

impl Default for Standing {
    fn default() -> Self {
        Self {
            wanting: None,
            secret: 0,
            rate: None,
            max_recipients: usize::MAX,
            sandbox: false,
            rewrites_sender: false,
        }
    }
}
