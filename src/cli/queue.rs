//! `queue`: the messages, and what can be done to them.

use std::io::BufRead;
use std::ops::ControlFlow;

use serde_json::{Value, json};

use super::args::{Ids, Queue};
use super::client::{Change, Client};
use super::out::Out;
use super::{Failure, exit, explain, format};
use crate::admin::{Explanation, Selection};
use crate::clock::{Clock, SystemClock};
use crate::mail::QueueId;
use crate::spool::Entry;

pub(super) async fn queue(
    client: &Client,
    command: Queue,
    json: bool,
    out: &mut Out,
) -> Result<(), Failure> {
    match command {
        Queue::List { state } => list(client, state, json, out).await,
        Queue::Show { id } => show(client, &id, json, out).await,
        Queue::Cat { id, headers } => cat(client, &id, headers, out).await,
        Queue::Retry(ids) => act(client, &ids, Verb("retry", "due now"), json, out).await,
        Queue::Hold(ids) => act(client, &ids, Verb("hold", "held"), json, out).await,
        Queue::Release(ids) => act(client, &ids, Verb("release", "released"), json, out).await,
        Queue::Requeue(ids) => act(client, &ids, Verb("requeue", "queued again"), json, out).await,
        Queue::Confirm(ids) => act(client, &ids, Verb("confirm", "confirmed"), json, out).await,
        Queue::Resend(ids) => {
            out.note("whoever did receive it receives it twice: nobody can tell from here");
            act(client, &ids, Verb("resend", "to be sent again"), json, out).await
        }
        Queue::Delete(ids) => act(client, &ids, Verb("delete", "deleted"), json, out).await,
    }
}

/// What is asked for, and how it reads when it is done.
#[derive(Clone, Copy)]
struct Verb(&'static str, &'static str);

async fn list(
    client: &Client,
    state: Option<Selection>,
    json: bool,
    out: &mut Out,
) -> Result<(), Failure> {
    let path = state.map_or_else(
        || "/v1/queue".to_owned(),
        |state| format!("/v1/queue?state={}", state.word()),
    );
    let now = SystemClock.wall();
    let (mut messages, mut size) = (0_u64, 0_u64);
    let each = |entry: Entry| {
        if json {
            return out.json(&format::json(&entry, false));
        }
        if messages == 0 {
            out.line(format::LIST_HEAD)?;
        }
        messages += 1;
        size = size.saturating_add(entry.message.size);
        format::list_lines(&entry, now).iter().try_for_each(|line| out.line(line))
    };
    client.lines(&path, each).await?;
    if json {
        Ok(())
    } else {
        out.line(&format::list_total(state.map(Selection::word), messages, size))
    }
}

async fn show(client: &Client, id: &str, json: bool, out: &mut Out) -> Result<(), Failure> {
    let path = format!("/v1/queue/{}", parse_id(id)?);
    let entry: Entry = client.get(&path).await?;
    // It may have gone since.
    let explanation: Option<Explanation> = client.find(&format!("{path}/explain")).await?;
    let verdicts = explanation.map(|e| e.verdicts).unwrap_or_default();
    if json {
        let mut value = format::json(&entry, true);
        if let Some(members) = value.as_object_mut() {
            members.insert("upstreams".into(), json!(verdicts));
        }
        return out.json(&value);
    }
    let mut lines = format::show_lines(&entry, SystemClock.wall());
    lines.extend(explain::block(&entry, &verdicts));
    lines.iter().try_for_each(|line| out.line(line))
}

async fn cat(client: &Client, id: &str, headers: bool, out: &mut Out) -> Result<(), Failure> {
    let path = format!("/v1/queue/{}/body", parse_id(id)?);
    let mut in_empty_line = true;
    let piece = |octets: &[u8]| {
        if !headers {
            return out.octets(octets).map(|()| ControlFlow::Continue(()));
        }
        match end_of_header(octets, &mut in_empty_line) {
            None => out.octets(octets).map(|()| ControlFlow::Continue(())),
            Some(end) => {
                let header = octets.get(..end).unwrap_or_default();
                out.octets(header).map(|()| ControlFlow::Break(()))
            }
        }
    };
    client.octets(&path, piece).await
}

/// Where the header ends, its empty line included. `in_empty_line` is carried from piece to piece.
fn end_of_header(octets: &[u8], in_empty_line: &mut bool) -> Option<usize> {
    for (i, octet) in octets.iter().enumerate() {
        match octet {
            b'\n' if *in_empty_line => return Some(i + 1),
            b'\n' => *in_empty_line = true,
            b'\r' => {}
            _ => *in_empty_line = false,
        }
    }
    None
}

/// Asks for one action after another. One that fails is told and does not stop the others; no
/// answer at all does.
async fn act(
    client: &Client,
    ids: &Ids,
    Verb(action, done): Verb,
    json: bool,
    out: &mut Out,
) -> Result<(), Failure> {
    let change = Change { reason: ids.reason.as_deref(), ..Change::default() };
    let ids = read_ids(ids)?;
    let mut count = 0_usize;
    let total = |count, out: &mut Out| {
        if json { Ok(()) } else { out.line(&summary(count, done)) }
    };
    for id in &ids {
        match client.post::<Value>(&format!("/v1/queue/{id}/{action}"), change).await {
            Ok(answer) => {
                count += 1;
                if json {
                    out.json(&answer)?;
                }
            }
            Err(Failure { code: exit::FAILED | exit::SOFTWARE, message }) => {
                let error = message.unwrap_or_default();
                out.complain(&error);
                if json {
                    out.json(&json!({ "queue_id": id, "action": action, "error": error }))?;
                }
            }
            Err(failure) => {
                total(count, out)?;
                return Err(failure);
            }
        }
    }
    total(count, out)?;
    if action == "hold" && count > 0 {
        out.note("let them go again with: postgate queue release ID...");
    }
    if count == ids.len() { Ok(()) } else { Err(Failure::silent(exit::FAILED)) }
}

fn summary(count: usize, done: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{count} message{s} {done}")
}

pub(super) fn parse_id(text: &str) -> Result<QueueId, Failure> {
    text.parse().map_err(|e| Failure::new(exit::USAGE, format!("{text}: {e}")))
}

/// The ids that were given; `-` stands for the first word of every line of stdin. All are checked
/// before anything is done.
fn read_ids(ids: &Ids) -> Result<Vec<QueueId>, Failure> {
    let mut parsed = Vec::new();
    for text in &ids.ids {
        if text != "-" {
            parsed.push(parse_id(text)?);
            continue;
        }
        for line in std::io::stdin().lock().lines() {
            let line = line.map_err(|e| Failure::new(exit::USAGE, format!("stdin: {e}")))?;
            parsed.extend(line.split_whitespace().next().map(parse_id).transpose()?);
        }
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_done_when_one_id_is_wrong() {
        let ids = Ids { ids: vec!["0000000000007".into(), "ALL".into()], reason: None };
        let failure = read_ids(&ids).unwrap_err();
        assert_eq!(failure.code, exit::USAGE);
        assert!(failure.message.unwrap().starts_with("ALL: not a queue id"));
    }

    #[test]
    fn a_header_ends_with_its_empty_line_wherever_the_pieces_are_cut() {
        let message = b"A: b\r\n c\r\nD: e\r\n\r\nbody\r\n\r\nmore";
        for size in 1..message.len() {
            let (mut state, mut length) = (true, 0);
            for piece in message.chunks(size) {
                let end = end_of_header(piece, &mut state);
                length += end.unwrap_or(piece.len());
                if end.is_some() {
                    break;
                }
            }
            assert_eq!(&message[..length], b"A: b\r\n c\r\nD: e\r\n\r\n", "{size}");
        }
        assert_eq!(end_of_header(b"\r\nbody", &mut true), Some(2), "no header at all");
    }

    #[test]
    fn a_summary_counts() {
        assert_eq!(summary(0, "held"), "0 messages held");
        assert_eq!(summary(1, "held"), "1 message held");
        assert_eq!(summary(2, "held"), "2 messages held");
    }
}
