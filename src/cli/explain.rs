//! `explain`: where a message may go, and why not elsewhere.

use serde_json::Value;

use super::Failure;
use super::client::Client;
use super::out::Out;
use super::queue::parse_id;
use super::table::table;
use crate::admin::{Explanation, May, Verdict};
use crate::mail::{QueueId, QueueState};
use crate::spool::Entry;

pub(super) async fn explain(
    client: &Client,
    id: &str,
    json: bool,
    out: &mut Out,
) -> Result<(), Failure> {
    let path = format!("/v1/queue/{}/explain", parse_id(id)?);
    if json {
        return out.json(&client.get::<Value>(&path).await?);
    }
    let explanation: Explanation = client.get(&path).await?;
    lines(&explanation).iter().try_for_each(|line| out.line(line))
}

/// The same in short, for `queue show`: one line for each upstream.
pub(super) fn block(entry: &Entry, verdicts: &[Verdict]) -> Vec<String> {
    let mut lines = Vec::new();
    let refusals = &entry.message.refusals;
    // Among verdicts the refusals have their place already.
    if verdicts.is_empty() && !refusals.is_empty() {
        lines.push("Refusals".into());
        let paths: Vec<String> =
            entry.message.envelope.recipients.iter().map(|r| r.path.to_string()).collect();
        for refusal in refusals {
            let whom = refusal.recipients.iter().filter_map(|place| paths.get(*place));
            let whom: Vec<&str> = whom.map(String::as_str).collect();
            lines.push(format!("  {}  {}  {}", refusal.upstream, some(&whom), refusal.failure));
        }
    }
    if !verdicts.is_empty() {
        lines.push("Upstreams".into());
    }
    for group in groups(verdicts) {
        lines.push(format!("  {}  {}", some(&group.recipients), group.route()));
        let rows: Vec<[String; 3]> = group.verdicts.iter().map(|v| short(v)).collect();
        // No head: the words speak for themselves.
        lines.extend(table(["", "", ""], &rows).iter().skip(1).map(|line| format!("    {line}")));
    }
    lines.extend(hints(entry.message.id, entry.state, verdicts));
    lines
}

fn short(verdict: &Verdict) -> [String; 3] {
    let reason = verdict.reason.clone().unwrap_or_default();
    [verdict.upstream.clone(), verdict.verdict.word().into(), reason]
}

/// One recipient, and how many more.
fn some(recipients: &[&str]) -> String {
    match recipients {
        [] => "-".into(),
        [one] => format!("<{one}>"),
        [first, rest @ ..] => format!("<{first}> (+{})", rest.len()),
    }
}

/// Everything, in plain words.
fn lines(explanation: &Explanation) -> Vec<String> {
    let Explanation { queue_id, state, verdicts } = explanation;
    let mut lines = vec![format!("{queue_id}  {}", state.word())];
    for group in groups(verdicts) {
        lines.extend(group.recipients.iter().map(|recipient| format!("<{recipient}>")));
        lines.push(format!("  {}", group.route()));
        let rows: Vec<[String; 2]> =
            group.verdicts.iter().map(|v| [v.upstream.clone(), plain(v)]).collect();
        lines.extend(table(["", ""], &rows).iter().skip(1).map(|line| format!("  {line}")));
    }
    if verdicts.is_empty() {
        lines.push(nowhere(*state).into());
    }
    lines.extend(hints(*queue_id, *state, verdicts));
    lines
}

fn plain(verdict: &Verdict) -> String {
    let words = match verdict.verdict {
        May::Next => "it goes there next",
        May::Eligible => "it may go there, when none before can have it",
        May::Waits => "it may go there, but waits",
        May::Ineligible => "it cannot go there",
        May::Refused => "it was refused there",
        May::Unconfirmed => "it may be there already",
    };
    let reason = verdict.reason.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
    format!("{words}{reason}")
}

const fn nowhere(state: QueueState) -> &'static str {
    match state {
        QueueState::Sent | QueueState::Dead => "nothing of it is to be sent any more",
        QueueState::Incoming | QueueState::Active | QueueState::Deferred | QueueState::Held => {
            "no upstream is known for it"
        }
    }
}

/// What the operator can do next.
fn hints(id: QueueId, state: QueueState, verdicts: &[Verdict]) -> Vec<String> {
    let mut hints = Vec::new();
    let any = |may: May| verdicts.iter().any(|v| v.verdict == may);
    let barred = |v: &&Verdict| matches!(v.verdict, May::Ineligible | May::Refused);
    if any(May::Unconfirmed) {
        hints.extend([
            "It may have arrived: the answer was lost. Look for it in the upstream's log, then"
                .into(),
            format!("  postgate queue confirm {id}  it has: nothing is sent again"),
            format!("  postgate queue resend {id}   it has not: it is sent again, by any way"),
        ]);
    } else if state == QueueState::Held {
        hints.push(format!("It is held; let it go with: postgate queue release {id}"));
    }
    if groups(verdicts).iter().any(|group| group.verdicts.iter().all(barred)) {
        hints.extend([
            "No upstream may have it as things are. Change its route or what the upstream may send,".into(),
            format!("or give it up with: postgate queue delete {id}"),
        ]);
    }
    if any(May::Waits) && !any(May::Next) {
        hints.push("See what it waits for with: postgate upstream list".into());
        if any(May::Refused) {
            hints.push(format!(
                "Once its refusal is mended, ask again with: postgate queue retry {id}"
            ));
        }
    }
    if state == QueueState::Dead {
        hints.push(format!("Try it again with: postgate queue requeue {id}"));
    }
    hints
}

/// Recipients with the same prospects.
struct Group<'a> {
    recipients: Vec<&'a str>,
    verdicts: Vec<&'a Verdict>,
}

impl<'a> Group<'a> {
    fn route(&self) -> String {
        let first = self.verdicts.first();
        first.map(|v| format!("route {}, priority {}", v.route, v.priority)).unwrap_or_default()
    }

    /// What makes the difference between two groups.
    fn prospects(&self) -> Vec<(&'a str, &'a str, &'a str, May, Option<&'a str>)> {
        let one = |v: &&'a Verdict| {
            let v: &'a Verdict = v;
            let (route, priority) = (v.route.as_str(), v.priority.as_str());
            (route, priority, v.upstream.as_str(), v.verdict, v.reason.as_deref())
        };
        self.verdicts.iter().map(one).collect()
    }
}

/// Ten thousand recipients of one message mostly have the same prospects.
fn groups(verdicts: &[Verdict]) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for one in by_recipient(verdicts) {
        let prospects = one.prospects();
        match groups.iter_mut().find(|group| group.prospects() == prospects) {
            Some(group) => group.recipients.extend(one.recipients),
            None => groups.push(one),
        }
    }
    groups
}

/// The verdicts of each recipient stand together, and name each upstream once.
fn by_recipient(verdicts: &[Verdict]) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for verdict in verdicts {
        match groups.last_mut() {
            Some(group)
                if group.recipients == [verdict.recipient.as_str()]
                    && group.verdicts.iter().all(|v| v.upstream != verdict.upstream) =>
            {
                group.verdicts.push(verdict);
            }
            _ => {
                let recipients = vec![verdict.recipient.as_str()];
                groups.push(Group { recipients, verdicts: vec![verdict] });
            }
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::mail::{
        Blame, EnhancedStatus, Failure, Handoff, Message, Refusal, Remedy, Reply, Stage,
    };

    const ID: &str = "0K3X8QZ1M7RWT";

    fn verdict(recipient: &str, upstream: &str, verdict: May, reason: Option<&str>) -> Verdict {
        Verdict {
            recipient: recipient.into(),
            route: "default".into(),
            priority: "normal".into(),
            upstream: upstream.into(),
            verdict,
            reason: reason.map(Into::into),
        }
    }

    fn explanation(state: QueueState, verdicts: Vec<Verdict>) -> Explanation {
        Explanation { queue_id: ID.parse().unwrap(), state, verdicts }
    }

    fn entry(state: QueueState) -> Entry {
        let id: QueueId = ID.parse().unwrap();
        let to = ["ana@example.com", "bob@example.com"];
        Entry { message: Message::sample(id, Timestamp::from_millis(1), &to), state, due: None }
    }

    /// Two recipients wait for the smarthost; a third goes by the fallback.
    fn mixed() -> Vec<Verdict> {
        let waits = |to| {
            [
                verdict(to, "core", May::Waits, Some("its breaker is open: connect: refused")),
                verdict(to, "ses", May::Ineligible, Some("the null sender cannot be sent")),
            ]
        };
        let goes = [
            verdict("eve@example.org", "core", May::Refused, Some("554 5.7.1 no")),
            verdict("eve@example.org", "ses", May::Next, None),
        ];
        [waits("ana@example.com"), waits("bob@example.com"), goes].concat()
    }

    #[test]
    fn every_recipient_and_upstream_is_explained_in_plain_words() {
        assert_eq!(
            lines(&explanation(QueueState::Deferred, mixed())),
            [
                "0K3X8QZ1M7RWT  deferred",
                "<ana@example.com>",
                "<bob@example.com>",
                "  route default, priority normal",
                "  core  it may go there, but waits: its breaker is open: connect: refused",
                "  ses   it cannot go there: the null sender cannot be sent",
                "<eve@example.org>",
                "  route default, priority normal",
                "  core  it was refused there: 554 5.7.1 no",
                "  ses   it goes there next",
            ]
        );
        assert_eq!(
            lines(&explanation(QueueState::Sent, Vec::new())),
            ["0K3X8QZ1M7RWT  sent", "nothing of it is to be sent any more"]
        );
    }

    #[test]
    fn queue_show_has_one_line_for_each_upstream() {
        assert_eq!(
            block(&entry(QueueState::Deferred), &mixed()),
            [
                "Upstreams",
                "  <ana@example.com> (+1)  route default, priority normal",
                "    core  waits       its breaker is open: connect: refused",
                "    ses   ineligible  the null sender cannot be sent",
                "  <eve@example.org>  route default, priority normal",
                "    core  refused  554 5.7.1 no",
                "    ses   next",
            ]
        );
        assert!(block(&entry(QueueState::Active), &[]).is_empty());
    }

    #[test]
    fn a_message_without_verdicts_still_tells_who_refused_it() {
        let mut dead = entry(QueueState::Dead);
        let failure = Failure {
            stage: Stage::Response,
            blame: Blame::Message,
            handoff: Handoff::NotSent,
            remedy: Remedy::Time,
            reply: Some(Reply::new(554, EnhancedStatus::new(5, 6, 0), "bad content")),
            status: EnhancedStatus::new(5, 6, 0),
            detail: String::new(),
        };
        dead.message.refusals =
            vec![Refusal { upstream: "ses".into(), recipients: vec![1, 0, 9], failure }];
        assert_eq!(
            block(&dead, &[]),
            [
                "Refusals",
                "  ses  <bob@example.com> (+1)  554 5.6.0 bad content",
                "Try it again with: postgate queue requeue 0K3X8QZ1M7RWT",
            ]
        );
    }

    #[test]
    fn what_the_operator_can_do_is_said_where_there_is_something() {
        let hints =
            |state, verdicts: &[Verdict]| hints(ID.parse().unwrap(), state, verdicts).join("\n");
        let one = |may| verdict("a@x", "core", may, None);
        let two = |may| verdict("a@x", "ses", may, None);
        assert_eq!(hints(QueueState::Deferred, &[one(May::Next), two(May::Eligible)]), "");
        assert_eq!(hints(QueueState::Deferred, &[one(May::Waits), two(May::Next)]), "");
        for (state, verdicts, says) in [
            (QueueState::Held, [one(May::Next), two(May::Eligible)], "queue release"),
            (QueueState::Deferred, [one(May::Waits), two(May::Ineligible)], "upstream list"),
            (QueueState::Deferred, [one(May::Waits), two(May::Refused)], "queue retry"),
            (QueueState::Deferred, [one(May::Refused), two(May::Ineligible)], "queue delete"),
            (QueueState::Held, [one(May::Unconfirmed), two(May::Ineligible)], "queue confirm"),
        ] {
            let said = hints(state, &verdicts);
            assert!(said.contains(says), "{said}");
            assert_eq!(said.contains("queue resend"), says == "queue confirm", "{said}");
            assert_eq!(said.contains("queue release"), says == "queue release", "{said}");
        }
    }

    #[test]
    fn a_recipient_that_is_named_twice_stays_two() {
        let twice =
            [verdict("a@x", "core", May::Next, None), verdict("a@x", "core", May::Next, None)];
        let groups = groups(&twice);
        assert_eq!(groups.len(), 1);
        assert_eq!((groups[0].recipients.len(), groups[0].verdicts.len()), (2, 1));
    }
}
