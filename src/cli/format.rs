//! How messages look: for eyes, and as `postqueue -j` writes them.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::clock::Timestamp;
use crate::mail::{QueueState, Recipient, RecipientStatus, ReversePath};
use crate::spool::Entry;

/// What Postfix shows for the null reverse-path.
const NULL_SENDER: &str = "MAILER-DAEMON";

/// The head of the list.
pub(super) const LIST_HEAD: &str = "ID             STATE     AGE       SIZE    FROM → TO";

/// A message in the list: one line, and a second one that says why it waits and until when.
pub(super) fn list_lines(entry: &Entry, now: Timestamp) -> Vec<String> {
    let m = &entry.message;
    let waiting: Vec<&Recipient> =
        m.recipients().filter(|(_, s)| !is_sent(s)).map(|(r, _)| r).collect();
    let to = match waiting.as_slice() {
        [] => "-".to_owned(),
        [one] => one.path.to_string(),
        [first, rest @ ..] => format!("{} (+{})", first.path, rest.len()),
    };
    let mut lines = vec![format!(
        "{}  {:8}  {:8}  {:>6}  {} → {to}",
        m.id,
        entry.state.word(),
        age(now.since(m.received)),
        octets(m.size),
        sender(&m.envelope.reverse_path),
    )];
    let reason = reason(&m.status);
    let next = next_attempt(entry, now).map(|when| match when.as_str() {
        "now" => "due: waits for an upstream or its turn".to_owned(),
        when => format!("next attempt {when}"),
    });
    let why: Vec<String> = reason.into_iter().chain(next).collect();
    if !why.is_empty() {
        lines.push(format!("               {}", why.join("; ")));
    }
    lines
}

/// The first failure; what needs the operator comes before what only needs time.
fn reason(status: &[RecipientStatus]) -> Option<String> {
    let unconfirmed = status.iter().find_map(|s| match s {
        RecipientStatus::Unconfirmed { upstream, failure } => {
            Some(format!("unconfirmed at {upstream}: {failure}"))
        }
        _ => None,
    });
    unconfirmed
        .or_else(|| status.iter().find_map(RecipientStatus::failure).map(ToString::to_string))
}

/// What stands below the list.
pub(super) fn list_total(state: Option<&str>, messages: u64, size: u64) -> String {
    match messages {
        0 => state
            .map_or_else(|| "The queue is empty.".into(), |state| format!("No {state} messages.")),
        1 => format!("1 message, {}", octets(size)),
        n => format!("{n} messages, {}", octets(size)),
    }
}

/// Everything about one message.
pub(super) fn show_lines(entry: &Entry, now: Timestamp) -> Vec<String> {
    let m = &entry.message;
    let mut lines = vec![format!("{}  {}", m.id, entry.state.word())];
    let mut row = |key: &str, value: String| lines.push(format!("  {key:<11} {value}"));
    row("received", format!("{} ({} ago)", m.received, age(now.since(m.received))));
    row("from", format!("<{}>", m.envelope.reverse_path));
    row("message-id", m.message_id.clone());
    row("size", octets(m.size));
    row(
        "client",
        format!("{} helo={} listener={}", m.client.address, m.client.helo, m.client.listener),
    );
    row("attempts", m.attempts.to_string());
    if let Some(next) = next_attempt(entry, now) {
        row("next", next);
    }
    lines.push("Recipients".into());
    for (recipient, status) in m.recipients() {
        lines.push(format!("  {:<11} <{}>{}", status.word(), recipient.path, told(status)));
    }
    if !m.history.is_empty() {
        lines.push("Attempts".into());
    }
    for a in &m.history {
        let relay = a.relay.as_deref().map(|r| format!(" at {r}")).unwrap_or_default();
        let failure = a.failure.as_deref().map(|f| format!(": {f}")).unwrap_or_default();
        let counts = format!("sent {}, not sent {}", a.sent, a.failed);
        lines.push(format!("  {} {}{relay}  {counts}{failure}", a.at, a.upstream));
    }
    lines
}

/// What an upstream said about a recipient.
pub(super) fn told(status: &RecipientStatus) -> String {
    match status {
        RecipientStatus::Sent { upstream, reply, at } => {
            format!("  by {upstream} at {at}: {reply}")
        }
        RecipientStatus::Unconfirmed { upstream, failure } => format!("  by {upstream}: {failure}"),
        other => other.failure().map(|f| format!("  {f}")).unwrap_or_default(),
    }
}

/// A message with the member names of `postqueue -j`, and more; whoever reads it must ignore
/// members that are new. `all` adds the recipients that are served and the history.
pub(super) fn json(entry: &Entry, all: bool) -> Value {
    let m = &entry.message;
    let recipients: Vec<Value> = m
        .recipients()
        .filter(|(_, status)| all || !is_sent(status))
        .map(|(recipient, status)| json_recipient(recipient, status))
        .collect();
    let mut value = json!({
        "queue_name": queue_name(entry.state),
        "queue_id": m.id,
        "arrival_time": m.received.as_secs(),
        "message_size": m.size,
        "forced_expire": false,
        "sender": sender(&m.envelope.reverse_path),
        "recipients": recipients,
        "message_id": m.message_id,
        "attempts": m.attempts,
        "client_address": m.client.address,
        "helo": m.client.helo,
        "listener": m.client.listener,
    });
    if let Some(object) = value.as_object_mut() {
        if let Some(due) = entry.due {
            object.insert("next_attempt_time".into(), json!(due.as_secs()));
        }
        if all {
            object.insert("history".into(), json!(m.history));
            object.insert("refusals".into(), json!(m.refusals));
        }
    }
    value
}

/// One recipient and how far it has come.
pub(super) fn json_recipient(recipient: &Recipient, status: &RecipientStatus) -> Value {
    let mut object = Map::new();
    object.insert("address".into(), json!(recipient.path));
    object.insert("status".into(), json!(status.word()));
    if let Some(failure) = status.failure() {
        object.insert("delay_reason".into(), json!(failure.to_string()));
        object.insert("dsn".into(), json!(failure.status.to_string()));
    }
    if let RecipientStatus::Unconfirmed { upstream, .. } = status {
        object.insert("upstream".into(), json!(upstream));
    }
    if let RecipientStatus::Sent { upstream, reply, at } = status {
        object.insert("upstream".into(), json!(upstream));
        object.insert("reply".into(), json!(reply.to_string()));
        object.insert("sent_time".into(), json!(at.as_secs()));
    }
    object.into()
}

/// The state in Postfix's words, where it has one.
const fn queue_name(state: QueueState) -> &'static str {
    match state {
        QueueState::Held => "hold",
        other => other.word(),
    }
}

fn sender(path: &ReversePath) -> String {
    path.mailbox().map_or_else(|| NULL_SENDER.into(), ToString::to_string)
}

const fn is_sent(status: &RecipientStatus) -> bool {
    matches!(status, RecipientStatus::Sent { .. })
}

fn next_attempt(entry: &Entry, now: Timestamp) -> Option<String> {
    let due = entry.due?;
    let wait = due.since(now);
    Some(if wait.is_zero() { "now".into() } else { format!("in {}", age(wait)) })
}

/// A time span in its two largest units: `6m12s`, `3d4h`, `2m`.
pub(super) fn age(d: Duration) -> String {
    let s = d.as_secs();
    let units = [(s / 86_400, "d"), (s / 3600 % 24, "h"), (s / 60 % 60, "m"), (s % 60, "s")];
    let largest = units.iter().skip_while(|(n, _)| *n == 0).take(2);
    let text: String = largest.filter(|(n, _)| *n > 0).map(|(n, u)| n.to_string() + u).collect();
    if text.is_empty() { "0s".into() } else { text }
}

/// A size in decimal units with two digits: `999B`, `2.3kB`, `26MB`.
pub(super) fn octets(n: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if n < 1000 {
        return format!("{n}B");
    }
    let (mut tenths, mut unit) = (n / 100, 0);
    while tenths >= 10_000 && unit + 1 < UNITS.len() {
        tenths /= 1000;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or_default();
    if tenths < 100 {
        format!("{}.{}{name}", tenths / 10, tenths % 10)
    } else {
        format!("{}{name}", tenths / 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::{
        Attempt, Blame, EnhancedStatus, Failure, Handoff, Message, QueueId, Remedy, Reply, Stage,
    };

    const NOW: Timestamp = Timestamp::from_millis(1_795_252_321_431);

    /// One recipient is served, one deferred, one not tried; received 372 seconds ago.
    fn entry() -> Entry {
        let recipients = ["sent@example.com", "ana@example.com", "bob@example.com"];
        let received = Timestamp::from_millis(NOW.as_millis() - 372_000);
        let id: QueueId = "0K3X8QZ1M7RWT".parse().unwrap();
        let mut m = Message::sample(id, received, &recipients);
        (m.size, m.attempts, m.message_id) = (2310, 1, "<a1@app>".into());
        let failure = Failure {
            stage: Stage::Rcpt,
            blame: Blame::Recipient,
            handoff: Handoff::NotSent,
            remedy: Remedy::Time,
            reply: Some(Reply::new(450, EnhancedStatus::new(4, 2, 0), "greylisted")),
            status: EnhancedStatus::new(4, 2, 0),
            detail: String::new(),
        };
        let reply = Reply::new(250, EnhancedStatus::new(2, 0, 0), "Ok: queued as 4XYZ");
        m.status[0] = RecipientStatus::Sent { upstream: "core".into(), reply, at: received };
        m.status[1] = RecipientStatus::Deferred { failure };
        m.history.push(Attempt {
            at: received,
            upstream: "core".into(),
            relay: Some("mail-core-01[10.0.0.5]:25".into()),
            sent: 1,
            failed: 1,
            failure: Some("450 4.2.0 greylisted".into()),
        });
        Entry {
            message: m,
            state: QueueState::Deferred,
            due: Some(NOW.after(Duration::from_mins(2))),
        }
    }

    #[test]
    fn the_list_says_who_waits_why_and_until_when() {
        assert_eq!(
            list_lines(&entry(), NOW),
            [
                "0K3X8QZ1M7RWT  deferred  6m12s      2.3kB  \
                 app@example.com → ana@example.com (+1)",
                "               450 4.2.0 greylisted; next attempt in 2m",
            ]
        );
        let mut lost = entry();
        let failure = lost.message.status[1].failure().unwrap().clone();
        lost.message.status[2] = RecipientStatus::Unconfirmed { upstream: "ses".into(), failure };
        let lines = list_lines(&lost, NOW);
        assert!(lines[1].contains("  unconfirmed at ses: 450 4.2.0"), "{}", lines[1]);
        assert_eq!(json(&lost, false)["recipients"][1]["upstream"], "ses");
        let mut quiet = entry();
        quiet.message.status.fill(RecipientStatus::Queued);
        quiet.message.envelope.reverse_path = ReversePath::Null;
        (quiet.state, quiet.due) = (QueueState::Incoming, None);
        let lines = list_lines(&quiet, NOW);
        assert_eq!(lines.len(), 1);
        assert!(lines[0].ends_with("MAILER-DAEMON → sent@example.com (+2)"), "{}", lines[0]);
        quiet.due = Some(NOW);
        assert!(list_lines(&quiet, NOW)[1].ends_with(" due: waits for an upstream or its turn"));
    }

    #[test]
    fn one_message_is_shown_with_every_recipient_and_attempt() {
        assert_eq!(
            show_lines(&entry(), NOW),
            [
                "0K3X8QZ1M7RWT  deferred",
                "  received    2026-11-21T09:05:49.431Z (6m12s ago)",
                "  from        <app@example.com>",
                "  message-id  <a1@app>",
                "  size        2.3kB",
                "  client      10.0.1.12 helo=app-7 listener=backends",
                "  attempts    1",
                "  next        in 2m",
                "Recipients",
                "  sent        <sent@example.com>  \
                 by core at 2026-11-21T09:05:49.431Z: 250 2.0.0 Ok: queued as 4XYZ",
                "  deferred    <ana@example.com>  450 4.2.0 greylisted",
                "  queued      <bob@example.com>",
                "Attempts",
                "  2026-11-21T09:05:49.431Z core at mail-core-01[10.0.0.5]:25  \
                 sent 1, not sent 1: 450 4.2.0 greylisted",
            ]
        );
    }

    #[test]
    fn json_has_the_member_names_of_postqueue() {
        let mut held = entry();
        held.state = QueueState::Held;
        let value = json(&held, false);
        assert_eq!(value["queue_name"], "hold");
        assert_eq!(value["queue_id"], "0K3X8QZ1M7RWT");
        assert_eq!(value["arrival_time"], 1_795_251_949);
        assert_eq!(value["message_size"], 2310);
        assert_eq!(value["sender"], "app@example.com");
        let recipients = value["recipients"].as_array().unwrap();
        assert_eq!(recipients.len(), 2);
        assert_eq!(recipients[0]["address"], "ana@example.com");
        assert_eq!(recipients[0]["delay_reason"], "450 4.2.0 greylisted");
        assert!(recipients[1].get("delay_reason").is_none());
        assert!(!value.to_string().contains('\n'));
        let all = json(&held, true);
        assert_eq!(all["recipients"][0]["reply"], "250 2.0.0 Ok: queued as 4XYZ");
        assert_eq!(all["history"][0]["upstream"], "core");
        held.message.envelope.reverse_path = ReversePath::Null;
        assert_eq!(json(&held, false)["sender"], "MAILER-DAEMON");
    }

    #[test]
    fn spans_and_sizes_are_short() {
        for (s, text) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (61, "1m1s"),
            (3599, "59m59s"),
            (3600, "1h"),
            (90_000, "1d1h"),
        ] {
            assert_eq!(age(Duration::from_secs(s)), text);
        }
        for (n, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1.0kB"),
            (9999, "9.9kB"),
            (10_000, "10kB"),
            (999_999, "999kB"),
            (1_000_000, "1.0MB"),
            (26_214_400, "26MB"),
            (5_000_000_000_000_000, "5000TB"),
        ] {
            assert_eq!(octets(n), text);
        }
    }
}
