//! One attempt: a message to at most fifty recipients, in as few requests as it takes.
//!
//! SES serves all recipients of a request or none. When it refuses one for the sake of a recipient
//! it seldom says whose; then the recipients are halved until the bad ones stand alone. Each request
//! settles its recipients, splits them or takes some out, so *n* of them need at most 2 *n* - 1.

use std::io;

use aws_sdk_sesv2::operation::send_email::builders::SendEmailFluentBuilder;
use aws_sdk_sesv2::primitives::Blob;
use aws_sdk_sesv2::types::{Destination, EmailContent, MessageTag, RawMessage};
use tokio::time::Instant;

use super::classify::{self, Consequence, Problem, Scope};
use super::client::problem;
use super::settings::Settings;
use super::{RECIPIENTS_MAX, Shared, message};
use crate::mail::{
    Blame, Body, EnhancedStatus, Envelope, ForwardPath, Outcome, RecipientOutcome, Reply, Stage,
};
use crate::upstream::{Label, Leaving};

/// Octets read at a time.
const BLOCK: usize = 256 * 1024;
/// The longest name and value of a tag.
const TAG_MAX: usize = 256;
/// The most tags of a message (SES quotas).
const TAGS_MAX: usize = 50;

/// Hands a message over.
pub(super) async fn run(
    shared: &Shared,
    envelope: &Envelope,
    body: &Body,
    leaving: &dyn Leaving,
    deadline: Instant,
) -> Outcome {
    let begun = Instant::now();
    let mut ledger = Ledger::new(envelope);
    let place = tokio::time::timeout_at(deadline, shared.places.acquire()).await;
    let waited = begun.elapsed();
    let done = if let Ok(Ok(_place)) = &place {
        hand_over(shared, &mut ledger, body, leaving, deadline).await
    } else {
        Err(classify::unasked(Stage::Pool, "all connections are in use".to_owned()))
    };
    if let Err(outcome) = done {
        ledger.settle_rest(&outcome);
    }
    Outcome {
        recipients: ledger.outcomes(),
        relay: Some(shared.client.host()),
        tls: None,
        connection_setup: waited,
        transmission: begun.elapsed().saturating_sub(waited),
    }
}

/// Makes the requests. What it returns holds for every recipient that has no outcome yet.
async fn hand_over(
    shared: &Shared,
    ledger: &mut Ledger,
    body: &Body,
    leaving: &dyn Leaving,
    deadline: Instant,
) -> Result<(), RecipientOutcome> {
    let settings = &shared.settings;
    let places = ledger.pending();
    if places.is_empty() {
        return Ok(());
    }
    let octets = read(body, settings.max_size).await?;
    let sender = settings.sender.filled(shared.credentials.borrow().as_deref());
    let octets = message::edit(octets, &sender, settings.keep_dkim)
        .map_err(|unfit| classify::unsuited(Blame::Message, (7, 1), unfit.to_string()))?;
    let base = shared.client.send_email().await;
    let base = base.map_err(|problem| classify::judge(&problem).outcome)?;
    let base = filled_in(base, settings, leaving.label(), octets)?;
    leaving
        .content_leaves(&ledger.settled())
        .await
        .map_err(|why| classify::unasked(Stage::Request, why))?;
    let mut waiting = vec![places];
    while let Some(places) = waiting.pop() {
        if Instant::now() >= deadline {
            let late = "the attempt's time was over before this recipient's turn".to_owned();
            return Err(classify::unasked(Stage::Request, late));
        }
        match request(shared, &base, ledger.addresses(&places), deadline).await {
            Ok(reply) => {
                shared.account.sent(places.len(), shared.clock.now());
                ledger.settle(&places, &RecipientOutcome::Sent { reply });
            }
            Err(problem) => waiting.extend(weigh(shared, ledger, &places, &problem)?),
        }
    }
    Ok(())
}

/// What a refused request means: who is to be asked for again, the first of them last.
fn weigh(
    shared: &Shared,
    ledger: &mut Ledger,
    places: &[usize],
    problem: &Problem,
) -> Result<Vec<Vec<usize>>, RecipientOutcome> {
    let mut verdict = classify::judge(problem);
    if !shared.settings.secret {
        verdict.outcome = classify::mended_by_time(verdict.outcome);
    }
    match verdict.consequence {
        Consequence::None => {}
        Consequence::Ask => shared.account.ask_soon(),
        Consequence::Stopped(reason) => shared.account.stopped(reason, shared.clock.now()),
    }
    if matches!(verdict.outcome, RecipientOutcome::Unconfirmed(_)) {
        shared.account.sent(places.len(), shared.clock.now());
    }
    let alone = places.len() <= 1;
    match verdict.scope {
        Scope::Upstream => {
            ledger.settle(places, &verdict.outcome);
            Err(classify::behind(verdict.outcome))
        }
        // One that is refused is enough: it is said of the content, which all of them share.
        Scope::Message => Err(verdict.outcome),
        Scope::Named(names) => {
            let (bad, good) = ledger.part(places, &names);
            if bad.is_empty() {
                return Err(verdict.outcome);
            }
            ledger.settle(&bad, &classify::of_recipient(verdict.outcome));
            Ok(if good.is_empty() { vec![] } else { vec![good] })
        }
        Scope::Somebody if alone => {
            ledger.refuse(places, &verdict.outcome);
            Ok(vec![])
        }
        Scope::Somebody => {
            let (first, second) = places.split_at(places.len() / 2);
            Ok(vec![second.to_vec(), first.to_vec()])
        }
    }
}

/// Sends to some of the recipients.
async fn request(
    shared: &Shared,
    base: &SendEmailFluentBuilder,
    addresses: Vec<String>,
    deadline: Instant,
) -> Result<Reply, Problem> {
    let destination = Destination::builder().set_to_addresses(Some(addresses)).build();
    let call = base.clone().destination(destination).send();
    let answer = match tokio::time::timeout_at(deadline, call).await {
        Ok(answer) => answer.map_err(|e| problem(&e))?,
        Err(_) => return Err(Problem::Lost("no answer before the attempt's time was over".into())),
    };
    let host = shared.client.message_id_host();
    let text = match answer.message_id().filter(|id| !id.is_empty()) {
        Some(id) => format!("<{id}@{host}>"),
        None => "accepted by SES, which named no message id".to_owned(),
    };
    Ok(Reply::new(250, EnhancedStatus::new(2, 0, 0), text))
}

/// All of a request but its recipients.
fn filled_in(
    request: SendEmailFluentBuilder,
    settings: &Settings,
    label: Option<Label>,
    octets: Vec<u8>,
) -> Result<SendEmailFluentBuilder, RecipientOutcome> {
    let unmade =
        |e: &dyn std::fmt::Display| classify::judge(&Problem::Unmade(e.to_string())).outcome;
    let raw = RawMessage::builder().data(Blob::new(octets)).build().map_err(|e| unmade(&e))?;
    let mut tags = Vec::new();
    for (name, value) in tag_texts(&settings.tags, label) {
        tags.push(MessageTag::builder().name(name).value(value).build().map_err(|e| unmade(&e))?);
    }
    let tags = if tags.is_empty() { None } else { Some(tags) };
    Ok(request
        .content(EmailContent::builder().raw(raw).build())
        .set_configuration_set_name(settings.configuration_set.clone())
        .set_feedback_forwarding_email_address(settings.feedback_address.clone())
        .set_email_tags(tags))
}

/// Ours and the configuration's tags. A bad tag would fail the mail, so none is bad.
fn tag_texts(configured: &[(String, String)], label: Option<Label>) -> Vec<(String, String)> {
    let ours = label.into_iter().flat_map(|label| {
        [
            ("postgate-queue-id".to_owned(), label.id.to_string()),
            ("postgate-attempt".to_owned(), label.attempt.to_string()),
        ]
    });
    let mut tags: Vec<(String, String)> = Vec::new();
    for (name, value) in ours.chain(configured.iter().cloned()) {
        let name = sanitised(&name);
        if tags.len() < TAGS_MAX && tags.iter().all(|(known, _)| *known != name) {
            tags.push((name, sanitised(&value)));
        }
    }
    tags
}

/// 1 to 256 of `A-Z a-z 0-9 _ -` (`MessageTag`).
fn sanitised(text: &str) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    let text: String = text.chars().map(|c| if safe(c) { c } else { '_' }).take(TAG_MAX).collect();
    if text.is_empty() { "_".into() } else { text }
}

/// The whole message; there is no streaming to SES.
async fn read(body: &Body, max: u64) -> Result<Vec<u8>, RecipientOutcome> {
    let size = body.len();
    if size > max {
        let detail = format!("{size} octets; the upstream takes at most {max}");
        return Err(classify::unsuited(Blame::Message, (3, 4), detail));
    }
    let octets = if body.is_stored() {
        let body = body.clone();
        let reading = tokio::task::spawn_blocking(move || read_now(&body));
        reading.await.unwrap_or_else(|e| Err(io::Error::other(e)))
    } else {
        read_now(body)
    };
    octets.map_err(|e| classify::unasked(Stage::Storage, e.to_string()))
}

fn read_now(body: &Body) -> io::Result<Vec<u8>> {
    let mut octets = Vec::with_capacity(usize::try_from(body.len()).unwrap_or(0));
    while (octets.len() as u64) < body.len() {
        let block = body.chunk(octets.len() as u64, BLOCK)?;
        if block.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        octets.extend_from_slice(&block);
    }
    Ok(octets)
}

/// The recipients of an attempt, and what came of each.
struct Ledger {
    entries: Vec<Entry>,
}

struct Entry {
    /// The address as SES takes it; empty where it cannot.
    address: String,
    outcome: Option<RecipientOutcome>,
    /// Whether the outcome is a refusal of this recipient alone.
    alone: bool,
}

impl Ledger {
    fn new(envelope: &Envelope) -> Self {
        let null = envelope.reverse_path.mailbox().is_none();
        let too_many = envelope.recipients.len() > RECIPIENTS_MAX;
        let entry = |path: &ForwardPath| {
            let (address, outcome) = if null {
                (String::new(), Some(null_sender()))
            } else if too_many {
                let detail = format!("an attempt has at most {RECIPIENTS_MAX} recipients");
                (String::new(), Some(classify::unasked(Stage::Request, detail)))
            } else {
                match address_for_ses(path) {
                    Ok(address) => (address, None),
                    Err(outcome) => (String::new(), Some(outcome)),
                }
            };
            Entry { address, outcome, alone: false }
        };
        Self { entries: envelope.recipients.iter().map(|r| entry(&r.path)).collect() }
    }

    fn pending(&self) -> Vec<usize> {
        let pending = self.entries.iter().enumerate().filter(|(_, e)| e.outcome.is_none());
        pending.map(|(place, _)| place).collect()
    }

    fn settled(&self) -> Vec<usize> {
        let settled = self.entries.iter().enumerate().filter(|(_, e)| e.outcome.is_some());
        settled.map(|(place, _)| place).collect()
    }

    fn addresses(&self, places: &[usize]) -> Vec<String> {
        places.iter().filter_map(|p| self.entries.get(*p)).map(|e| e.address.clone()).collect()
    }

    fn settle(&mut self, places: &[usize], outcome: &RecipientOutcome) {
        for place in places {
            if let Some(entry) = self.entries.get_mut(*place) {
                entry.outcome = Some(outcome.clone());
            }
        }
    }

    /// Refused when asked for alone: whether for its own sake is known when all are.
    fn refuse(&mut self, places: &[usize], outcome: &RecipientOutcome) {
        self.settle(places, outcome);
        for place in places {
            if let Some(entry) = self.entries.get_mut(*place) {
                entry.alone = true;
            }
        }
    }

    fn settle_rest(&mut self, outcome: &RecipientOutcome) {
        self.settle(&self.pending(), outcome);
    }

    /// Those of `places` that are among the identities, and the others.
    fn part(&self, places: &[usize], identities: &[String]) -> (Vec<usize>, Vec<usize>) {
        let named = |place: &usize| {
            let Some(entry) = self.entries.get(*place) else { return false };
            let address = entry.address.to_ascii_lowercase();
            let domain = address.rsplit_once('@').map(|(_, domain)| domain);
            identities.iter().any(|name| *name == address || Some(name.as_str()) == domain)
        };
        places.iter().partition(|place| named(place))
    }

    /// One for each recipient. One that was refused alone while another was taken was refused for
    /// its own sake.
    fn outcomes(self) -> Vec<RecipientOutcome> {
        let sent = |e: &Entry| matches!(e.outcome, Some(RecipientOutcome::Sent { .. }));
        let taken = self.entries.iter().any(sent);
        let outcomes = self.entries.into_iter().map(|entry| match entry.outcome {
            Some(outcome) if entry.alone && taken => classify::of_recipient(outcome),
            Some(outcome) => outcome,
            None => classify::unasked(Stage::Request, "not asked for".into()),
        });
        outcomes.collect()
    }
}

fn null_sender() -> RecipientOutcome {
    let detail = "the null sender cannot be sent by the SES API".to_owned();
    classify::unsuited(Blame::Message, (7, 1), detail)
}

/// The address with its domain in ASCII. SES has no SMTPUTF8, so the local part must be as it is.
fn address_for_ses(path: &ForwardPath) -> Result<String, RecipientOutcome> {
    let mailbox = &path.0;
    if mailbox.is_ascii() {
        return Ok(mailbox.as_str().to_owned());
    }
    let (local, domain) = (mailbox.local_part(), mailbox.domain());
    if !local.is_ascii() {
        let detail = "SES takes no address with such a local part (SMTPUTF8)".to_owned();
        return Err(classify::unsuited(Blame::Recipient, (6, 7), detail));
    }
    idna::domain_to_ascii(domain).map(|domain| format!("{local}@{domain}")).map_err(|_| {
        let detail = "the domain has no ASCII form (IDNA)".to_owned();
        classify::unsuited(Blame::Recipient, (1, 2), detail)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::{BodyKind, Mailbox, QueueId, ReversePath};

    fn envelope(recipients: &[&str]) -> Envelope {
        let mailbox = |s: &str| Mailbox::parse(s.as_bytes()).unwrap();
        Envelope {
            reverse_path: ReversePath::Mailbox(mailbox("app@x.example")),
            recipients: recipients.iter().map(|r| ForwardPath(mailbox(r)).into()).collect(),
            body: BodyKind::SevenBit,
            smtputf8: true,
            ret: None,
            envid: None,
        }
    }

    #[test]
    fn an_international_domain_is_put_in_ascii_and_a_local_part_is_not() {
        let ledger = Ledger::new(&envelope(&[
            "a@b\u{fc}cher.example",
            "\u{e4}@b.example",
            "A@B.example",
            "a@xn--a\u{e4}.example",
        ]));
        assert_eq!(ledger.pending(), [0, 2]);
        assert_eq!(ledger.addresses(&[0, 2]), ["a@xn--bcher-kva.example", "A@B.example"]);
        let statuses: Vec<_> =
            ledger.outcomes().iter().map(|o| o.failure().unwrap().status.to_string()).collect();
        assert_eq!(statuses, ["4.3.0", "5.6.7", "4.3.0", "5.1.2"]);
    }

    #[test]
    fn an_attempt_has_fifty_recipients_and_not_one_more() {
        for (n, pending) in [(49, 49), (50, 50), (51, 0)] {
            assert_eq!(Ledger::new(&envelope(&vec!["a@b"; n])).pending().len(), pending);
        }
    }

    #[test]
    fn no_tag_can_fail_the_mail() {
        let label = Label { id: QueueId::from_u64(7), attempt: 3 };
        let configured = [
            ("team".to_owned(), "a b@c,\u{e4}".to_owned()),
            (String::new(), "x".repeat(TAG_MAX + 1)),
            ("postgate-attempt".to_owned(), "forged".to_owned()),
        ];
        let tags = tag_texts(&configured, Some(label));
        let shown: Vec<_> = tags.iter().map(|(n, v)| format!("{n}={v}")).collect();
        assert_eq!(
            shown[..3],
            ["postgate-queue-id=0000000000007", "postgate-attempt=3", "team=a_b_c__"]
        );
        assert_eq!((tags.len(), tags[3].0.as_str(), tags[3].1.len()), (4, "_", TAG_MAX));
        let many: Vec<_> = (0..60).map(|n| (n.to_string(), "x".to_owned())).collect();
        assert_eq!(tag_texts(&many, Some(label)).len(), TAGS_MAX);
    }
}
