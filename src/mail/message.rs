//! A message as the queue knows it: envelope, origin, and how far each recipient has come.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::envelope::{Envelope, Recipient};
use super::facts::Facts;
use super::outcome::{Blame, Failure, Handoff, Outcome, RecipientOutcome};
use super::queue_id::QueueId;
use super::reply::Reply;
use crate::clock::Timestamp;

/// How many attempts a message remembers; the oldest are forgotten first.
pub const HISTORY_MAX: usize = 16;

/// Everything that is stored beside the body.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Message {
    /// Its name.
    pub id: QueueId,
    /// When it was received.
    pub received: Timestamp,
    /// When the operator took it back into the queue, from where mail does not grow old: its time
    /// there counts anew from then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub returned: Option<Timestamp>,
    /// Octets of the body as stored.
    pub size: u64,
    /// Who handed it in.
    pub client: Client,
    /// Sender and recipients.
    pub envelope: Envelope,
    /// The Message-ID header's value with its brackets; empty when it could not be read.
    pub message_id: String,
    /// One status for each recipient of the envelope, in its order.
    pub status: Vec<RecipientStatus>,
    /// What was seen in the content.
    #[serde(default)]
    pub facts: Facts,
    /// Attempts made so far.
    pub attempts: u32,
    /// Those of them after which the message is to wait longer: all but those that the upstream's
    /// fault ended before the content was out.
    #[serde(default)]
    pub deferrals: u32,
    /// Upstreams that will not have it. Others may.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refusals: Vec<Refusal>,
    /// Recipients, by their places, that are to be left alone until a time, while others of this
    /// message are tried. Those that are not here are due when the message is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rests: Vec<(usize, Timestamp)>,
    /// The latest attempts, oldest first, at most [`HISTORY_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<Attempt>,
}

/// Who handed a message in.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Client {
    /// The peer's address, IPv4-mapped addresses unwrapped.
    pub address: IpAddr,
    /// Its EHLO or HELO name.
    pub helo: String,
    /// The name of the listener it came in by.
    pub listener: String,
}

/// How far one recipient has come.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum RecipientStatus {
    /// Not tried yet.
    Queued,
    /// Tried and put off.
    Deferred {
        /// Why.
        failure: Failure,
    },
    /// An upstream may have it; only that upstream may be asked again.
    Unconfirmed {
        /// The upstream's name in the configuration.
        upstream: String,
        /// What was lost.
        failure: Failure,
    },
    /// Handed over.
    Sent {
        /// The upstream's name in the configuration.
        upstream: String,
        /// Its reply.
        reply: Reply,
        /// When.
        at: Timestamp,
    },
    /// Refused for good.
    Bounced {
        /// Why.
        failure: Failure,
    },
    /// Given up after the longest time in the queue.
    Expired {
        /// The last failure; `None` if it was never tried.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        failure: Option<Failure>,
        /// The upstream that may have it, if it was unconfirmed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        unconfirmed: Option<String>,
    },
}

impl RecipientStatus {
    /// Whether there is still something to do.
    pub const fn is_pending(&self) -> bool {
        matches!(self, Self::Queued | Self::Deferred { .. } | Self::Unconfirmed { .. })
    }

    /// Whether the mail did not reach its next hop and never will.
    pub const fn is_failed(&self) -> bool {
        matches!(self, Self::Bounced { .. } | Self::Expired { .. })
    }

    /// The last failure, if there was one.
    pub const fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Deferred { failure }
            | Self::Unconfirmed { failure, .. }
            | Self::Bounced { failure }
            | Self::Expired { failure: Some(failure), .. } => Some(failure),
            Self::Queued | Self::Sent { .. } | Self::Expired { failure: None, .. } => None,
        }
    }

    /// The upstream that may have it, where that is not known; given up or not.
    pub fn unconfirmed(&self) -> Option<&str> {
        match self {
            Self::Unconfirmed { upstream, .. } => Some(upstream),
            Self::Expired { unconfirmed, .. } => unconfirmed.as_deref(),
            Self::Queued | Self::Deferred { .. } | Self::Sent { .. } | Self::Bounced { .. } => None,
        }
    }

    /// Postfix's word for it, as logs and lists show it.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Deferred { .. } => "deferred",
            Self::Unconfirmed { .. } => "unconfirmed",
            Self::Sent { .. } => "sent",
            Self::Bounced { .. } => "bounced",
            Self::Expired { .. } => "expired",
        }
    }
}

/// An upstream's verdict that it will not have a message for some recipients. It binds nobody else.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Refusal {
    /// The upstream's name in the configuration.
    pub upstream: String,
    /// Which recipients, by their places in the envelope.
    pub recipients: Vec<usize>,
    /// Why.
    pub failure: Failure,
}

/// One attempt, as `queue show` tells it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Attempt {
    /// When it ended.
    pub at: Timestamp,
    /// The upstream's name in the configuration.
    pub upstream: String,
    /// Whom it talked to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay: Option<String>,
    /// Recipients handed over by it.
    pub sent: usize,
    /// Recipients not handed over by it.
    pub failed: usize,
    /// The first failure, in one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// Where a message stands in the queue.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QueueState {
    /// Stored, not yet tried.
    Incoming,
    /// Being delivered.
    Active,
    /// Waiting for its next attempt.
    Deferred,
    /// Waiting for the operator.
    Held,
    /// Given up; kept for the operator.
    Dead,
    /// Finished, still remembered.
    Sent,
}

impl QueueState {
    /// The word in lists and filters.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Incoming => "incoming",
            Self::Active => "active",
            Self::Deferred => "deferred",
            Self::Held => "held",
            Self::Dead => "dead",
            Self::Sent => "sent",
        }
    }
}

impl Message {
    /// A message that was just received.
    pub fn new(id: QueueId, received: Timestamp, client: Client, envelope: Envelope) -> Self {
        let status = vec![RecipientStatus::Queued; envelope.recipients.len()];
        Self {
            id,
            received,
            returned: None,
            size: 0,
            client,
            envelope,
            message_id: String::new(),
            status,
            facts: Facts::default(),
            attempts: 0,
            deferrals: 0,
            refusals: Vec::new(),
            rests: Vec::new(),
            history: Vec::new(),
        }
    }

    /// From when on its age in the queue counts.
    pub fn waits_since(&self) -> Timestamp {
        self.returned.map_or(self.received, |returned| returned.max(self.received))
    }

    /// Each recipient with its status.
    pub fn recipients(&self) -> impl Iterator<Item = (&Recipient, &RecipientStatus)> {
        self.envelope.recipients.iter().zip(&self.status)
    }

    /// The places of the recipients there is still something to do for.
    pub fn pending(&self) -> impl Iterator<Item = usize> {
        self.status.iter().enumerate().filter(|(_, s)| s.is_pending()).map(|(place, _)| place)
    }

    /// The envelope of an attempt for some of the recipients, by their places.
    pub fn envelope_for(&self, places: &[usize]) -> Envelope {
        let all = &self.envelope.recipients;
        let recipients = places.iter().filter_map(|place| all.get(*place).cloned()).collect();
        Envelope { recipients, ..self.envelope.clone() }
    }

    /// Until when a recipient is to be left alone.
    pub fn rest(&self, place: usize) -> Timestamp {
        let rest = self.rests.iter().find(|(rests, _)| *rests == place);
        rest.map_or_else(Timestamp::default, |(_, until)| *until)
    }

    /// Why an upstream will not have the message for a recipient, if it said so.
    pub fn refusal(&self, upstream: &str, place: usize) -> Option<&Failure> {
        let mut refusals = self.refusals.iter();
        let found = refusals.find(|r| r.upstream == upstream && r.recipients.contains(&place));
        found.map(|refusal| &refusal.failure)
    }

    /// Whether a recipient is still to be served.
    pub fn is_pending(&self) -> bool {
        self.status.iter().any(RecipientStatus::is_pending)
    }

    /// Whether a recipient was given up.
    pub fn has_failed(&self) -> bool {
        self.status.iter().any(RecipientStatus::is_failed)
    }

    /// Writes down what an attempt for the recipients at `places` came to.
    ///
    /// An upstream that is `authoritative` bounces what it refuses for good. The verdict of another
    /// one only keeps the recipient away from it.
    pub fn record(
        &mut self,
        (upstream, authoritative): (&str, bool),
        places: &[usize],
        outcome: &Outcome,
        at: Timestamp,
    ) {
        for (place, outcome) in places.iter().zip(&outcome.recipients) {
            let unconfirmed =
                matches!(self.status.get(*place), Some(RecipientStatus::Unconfirmed { .. }));
            let now = match outcome.clone() {
                RecipientOutcome::Sent { reply } => {
                    RecipientStatus::Sent { upstream: upstream.into(), reply, at }
                }
                // A later attempt that failed before the dot does not make the earlier, unanswered
                // one undone.
                RecipientOutcome::Deferred(_) if unconfirmed => continue,
                RecipientOutcome::Deferred(failure) => RecipientStatus::Deferred { failure },
                RecipientOutcome::Bounced(failure) if authoritative => {
                    RecipientStatus::Bounced { failure }
                }
                RecipientOutcome::Bounced(failure) => {
                    self.refuse(upstream, *place, failure.clone());
                    if unconfirmed {
                        continue;
                    }
                    RecipientStatus::Deferred { failure }
                }
                RecipientOutcome::Unconfirmed(failure) => {
                    RecipientStatus::Unconfirmed { upstream: upstream.into(), failure }
                }
            };
            if let Some(status) = self.status.get_mut(*place) {
                *status = now;
            }
        }
        self.remember(upstream, outcome, at);
    }

    fn refuse(&mut self, upstream: &str, place: usize, failure: Failure) {
        let same = |r: &&mut Refusal| r.upstream == upstream && r.failure == failure;
        match self.refusals.iter_mut().find(same) {
            Some(refusal) if refusal.recipients.contains(&place) => {}
            Some(refusal) => refusal.recipients.push(place),
            None => {
                let (upstream, recipients) = (upstream.to_owned(), vec![place]);
                self.refusals.push(Refusal { upstream, recipients, failure });
            }
        }
    }

    /// Counts an attempt and adds it to the history.
    fn remember(&mut self, upstream: &str, outcome: &Outcome, at: Timestamp) {
        let failures = || outcome.recipients.iter().filter_map(RecipientOutcome::failure);
        self.attempts = self.attempts.saturating_add(1);
        if failures().any(|f| f.blame != Blame::Upstream || f.handoff == Handoff::Unknown) {
            self.deferrals = self.deferrals.saturating_add(1);
        }
        if self.history.len() >= HISTORY_MAX {
            self.history.remove(0);
        }
        self.history.push(Attempt {
            at,
            upstream: upstream.into(),
            relay: outcome.relay.clone(),
            sent: outcome.recipients.len() - failures().count(),
            failed: failures().count(),
            failure: failures().next().map(ToString::to_string),
        });
    }

    /// Gives up on every recipient that is still pending. What was unconfirmed is not forgotten.
    pub fn expire(&mut self) {
        for status in self.status.iter_mut().filter(|s| s.is_pending()) {
            let unconfirmed = status.unconfirmed().map(str::to_owned);
            *status = RecipientStatus::Expired { failure: status.failure().cloned(), unconfirmed };
        }
    }
}

#[cfg(test)]
impl Message {
    /// A message to these recipients, for tests.
    pub(crate) fn sample(id: QueueId, received: Timestamp, recipients: &[&str]) -> Self {
        use super::address::{ForwardPath, Mailbox, ReversePath};
        let mailbox = |s: &str| Mailbox::parse(s.as_bytes()).unwrap();
        let envelope = Envelope {
            reverse_path: ReversePath::Mailbox(mailbox("app@example.com")),
            recipients: recipients.iter().map(|r| ForwardPath(mailbox(r)).into()).collect(),
            body: super::envelope::BodyKind::SevenBit,
            smtputf8: false,
            ret: None,
            envid: None,
        };
        let address = "10.0.1.12".parse().unwrap();
        let client = Client { address, helo: "app-7".into(), listener: "backends".into() };
        let facts = Facts { from: vec!["app@example.com".into()], ..Facts::default() };
        Self { facts, ..Self::new(id, received, client, envelope) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::{Blame, EnhancedStatus, Handoff, Remedy, Stage};

    fn message(recipients: &[&str]) -> Message {
        Message::sample(QueueId::from_u64(7), Timestamp::from_millis(1), recipients)
    }

    fn failure(handoff: Handoff) -> Failure {
        Failure {
            stage: Stage::Rcpt,
            blame: Blame::Recipient,
            handoff,
            remedy: Remedy::Time,
            reply: None,
            status: EnhancedStatus::new(4, 2, 2),
            detail: "full".into(),
        }
    }

    fn outcome(recipients: Vec<RecipientOutcome>) -> Outcome {
        Outcome {
            recipients,
            ..Outcome::all(0, &RecipientOutcome::Deferred(failure(Handoff::NotSent)))
        }
    }

    fn sent() -> RecipientOutcome {
        RecipientOutcome::Sent {
            reply: Reply::new(250, EnhancedStatus::new(2, 0, 0), "queued as 1"),
        }
    }

    #[test]
    fn only_pending_recipients_are_tried_again_and_each_outcome_finds_its_own() {
        let mut m = message(&["a@x", "b@x", "c@x"]);
        let at = Timestamp::from_millis(9);
        let deferred = RecipientOutcome::Deferred(failure(Handoff::NotSent));
        let bounced = RecipientOutcome::Bounced(failure(Handoff::NotSent));
        m.record(("core", true), &[0, 1, 2], &outcome(vec![sent(), deferred, bounced]), at);
        let words: Vec<_> = m.status.iter().map(RecipientStatus::word).collect();
        assert_eq!(words, ["sent", "deferred", "bounced"]);
        assert_eq!(m.pending().collect::<Vec<_>>(), [1]);
        m.record(("core", true), &[1], &outcome(vec![sent()]), at);
        assert!(!m.is_pending() && m.has_failed());
        assert_eq!((m.attempts, m.history.len()), (2, 2));
        let json = serde_json::to_string(&m).unwrap();
        assert_eq!(serde_json::from_str::<Message>(&json).unwrap(), m);
    }

    #[test]
    fn an_unconfirmed_recipient_stays_so_until_the_same_upstream_answers() {
        let mut m = message(&["a@x"]);
        let at = Timestamp::from_millis(9);
        m.record(
            ("core", true),
            &[0],
            &outcome(vec![RecipientOutcome::Unconfirmed(failure(Handoff::Unknown))]),
            at,
        );
        m.record(
            ("core", true),
            &[0],
            &outcome(vec![RecipientOutcome::Deferred(failure(Handoff::NotSent))]),
            at,
        );
        assert_eq!(m.status[0].word(), "unconfirmed");
        m.record(("core", true), &[0], &outcome(vec![sent()]), at);
        assert_eq!(m.status[0].word(), "sent");
    }

    #[test]
    fn what_expires_unconfirmed_still_names_the_upstream_that_may_have_it() {
        let mut m = message(&["a@x", "b@x", "c@x"]);
        let lost = RecipientOutcome::Unconfirmed(failure(Handoff::Unknown));
        let deferred = RecipientOutcome::Deferred(failure(Handoff::NotSent));
        let at = Timestamp::from_millis(9);
        m.record(("core", true), &[0, 1], &outcome(vec![lost, deferred]), at);
        m.expire();
        let unconfirmed: Vec<_> = m.status.iter().map(RecipientStatus::unconfirmed).collect();
        assert_eq!(unconfirmed, [Some("core"), None, None]);
        assert!(!m.is_pending() && m.has_failed());
        let json = serde_json::to_string(&m).unwrap();
        assert_eq!(serde_json::from_str::<Message>(&json).unwrap(), m);
        let older: RecipientStatus = serde_json::from_str(r#"{"status":"expired"}"#).unwrap();
        assert_eq!(older, m.status[2]);
    }

    #[test]
    fn the_history_is_bounded() {
        let mut m = message(&["a@x"]);
        for n in 0..=HISTORY_MAX as u64 {
            let deferred = RecipientOutcome::Deferred(failure(Handoff::NotSent));
            m.record(("core", true), &[0], &outcome(vec![deferred]), Timestamp::from_millis(n));
        }
        assert_eq!(m.history.len(), HISTORY_MAX);
        assert_eq!(m.history[0].at, Timestamp::from_millis(1));
    }
}
