//! `upstream`: where mail goes, and what an operator can do about it.

use serde_json::Value;

use super::args::{Lasting, Timed, Upstream};
use super::client::{Change, Client, segment};
use super::out::Out;
use super::table::table;
use super::{Failure, exit, format, status};
use crate::admin::{Operation, UpstreamView};
use crate::clock::{Clock, SystemClock, Timestamp};

pub(super) async fn upstream(
    client: &Client,
    command: Upstream,
    json: bool,
    out: &mut Out,
) -> Result<(), Failure> {
    let (operation, asked) = match command {
        Upstream::List => return list(client, json, out).await,
        Upstream::Pause(timed) => (Operation::Pause, timed),
        Upstream::Trip(timed) => (Operation::Trip, timed),
        Upstream::Resume(what) => (Operation::Resume, Timed { what, lasts: None }),
        Upstream::Reset(what) => (Operation::Reset, Timed { what, lasts: None }),
    };
    operate(client, operation, &asked, json, out).await
}

async fn list(client: &Client, json: bool, out: &mut Out) -> Result<(), Failure> {
    if json {
        let upstreams: Vec<Value> = client.get("/v1/upstreams").await?;
        return upstreams.iter().try_for_each(|upstream| out.json(upstream));
    }
    let upstreams: Vec<UpstreamView> = client.get("/v1/upstreams").await?;
    lines(&upstreams, SystemClock.wall()).iter().try_for_each(|line| out.line(line))
}

async fn operate(
    client: &Client,
    operation: Operation,
    Timed { what: Lasting { name, reason }, lasts }: &Timed,
    json: bool,
    out: &mut Out,
) -> Result<(), Failure> {
    // A part of a second counts as one: less than was asked for is never done.
    let for_seconds = lasts.map(|d| d.as_secs() + u64::from(d.subsec_nanos() > 0));
    let change = Change { for_seconds, reason: reason.as_deref() };
    let path = format!("/v1/upstreams/{}/{}", segment(name), operation.word());
    let answer: Value = client.post(&path, change).await.map_err(|failure| {
        failure.advise(exit::FAILED, "see what there is with: postgate upstream list")
    })?;
    if json {
        return out.json(&answer);
    }
    let span = lasts.map(|d| format!(" for {}", format::age(d))).unwrap_or_default();
    let (done, next) = match operation {
        Operation::Pause => (format!("{name} is paused{span}"), Some("resume")),
        Operation::Resume => (format!("{name} is not paused any more"), None),
        Operation::Trip => (format!("{name}'s breaker is open{span}"), Some("reset")),
        Operation::Reset => (format!("{name}'s breaker is closed"), None),
    };
    out.line(&done)?;
    if let Some(next) = next {
        out.note(&format!("undo it with: postgate upstream {next} {name}"));
        return Ok(());
    }
    // A pause and a breaker are two things: who ended one of them may have meant the other.
    let upstreams: Vec<UpstreamView> = client.get("/v1/upstreams").await.unwrap_or_default();
    let other = upstreams.iter().find(|upstream| upstream.name == *name).and_then(still);
    if let Some(other) = other {
        out.note(&other);
    }
    Ok(())
}

/// What keeps mail from an upstream after a pause or an open breaker was ended.
fn still(upstream: &UpstreamView) -> Option<String> {
    let name = &upstream.name;
    match upstream.breaker.as_str() {
        "paused" => {
            Some(format!("it is still paused; end that with: postgate upstream resume {name}"))
        }
        shut @ ("open" | "held") => {
            Some(format!("its breaker is {shut}; close it with: postgate upstream reset {name}"))
        }
        _ => None,
    }
}

/// A table, with what else is to be said of an upstream below its row.
pub(super) fn lines(upstreams: &[UpstreamView], now: Timestamp) -> Vec<String> {
    const HEAD: [&str; 9] =
        ["NAME", "TYPE", "BREAKER", "SINCE", "CONN", "RATE", "SENT", "FAILED", "LAST ERROR"];
    let rows: Vec<[String; 9]> = upstreams.iter().map(|u| row(u, now)).collect();
    let mut lines = table(HEAD, &rows).into_iter();
    let mut all: Vec<String> = lines.by_ref().take(1).collect();
    for (line, upstream) in lines.zip(upstreams) {
        all.push(line);
        all.extend(remarks(upstream).into_iter().map(|remark| format!("      {remark}")));
    }
    all
}

fn row(upstream: &UpstreamView, now: Timestamp) -> [String; 9] {
    let dash = || "-".to_owned();
    let breaker = match upstream.breaker.as_str() {
        calm @ ("closed" | "half-open") => calm.to_owned(),
        loud => loud.to_uppercase(),
    };
    let taken = &upstream.connections;
    [
        upstream.name.clone(),
        upstream.kind.clone(),
        breaker,
        upstream.since.map_or_else(dash, |since| format::age(now.since(since))),
        format!("{}/{}", taken.running, taken.capacity),
        upstream.rate.clone().unwrap_or_else(dash),
        upstream.sent.to_string(),
        upstream.failed.to_string(),
        upstream.last_failure.clone().unwrap_or_else(dash),
    ]
}

/// Why not everything goes there, and what to do about it.
fn remarks(upstream: &UpstreamView) -> Vec<String> {
    let name = &upstream.name;
    let mut remarks = Vec::new();
    if upstream.forced {
        remarks.push("FORCED TO FAIL by POSTGATE_FORCE_FAIL".into());
    }
    if let Some(pause) = &upstream.paused {
        let rest = pause.until_seconds.map(|s| format!(" for another {}", seconds(s)));
        let why = Some(&pause.reason).filter(|why| !why.is_empty()).map(|why| format!(": {why}"));
        let (rest, why) = (rest.unwrap_or_default(), why.unwrap_or_default());
        remarks.push(format!("paused{rest}{why}; go on with: postgate upstream resume {name}"));
    }
    if let Some(wanting) = &upstream.wanting {
        remarks.push(format!("can take nothing now: {wanting}"));
    }
    let reason = upstream.reason.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
    match upstream.breaker.as_str() {
        "open" => {
            let next = upstream.until_seconds.map(|s| format!("; next try in {}", seconds(s)));
            remarks.push(format!("nothing goes there{reason}{}", next.unwrap_or_default()));
        }
        "held" => remarks.push(format!(
            "nothing goes there until its credentials change{reason}; \
             see: postgate secrets status, or try again with: postgate upstream reset {name}"
        )),
        "half-open" => {
            remarks.push(format!("a message is tried, to see whether it is back{reason}"));
        }
        _ => {}
    }
    if let Some(ramp) = upstream.ramp {
        remarks.push(format!("it is coming back: {ramp} at once for now"));
    }
    if !upstream.account.is_null() {
        let mut rows = Vec::new();
        status::flatten("", &upstream.account, &mut rows);
        // What SES does not say is not shown.
        let rows = rows.into_iter().filter(|(_, value)| value != "-");
        let rows: Vec<String> = rows.map(|(key, value)| key + "=" + &value).collect();
        remarks.push(format!("account: {}", rows.join(" ")));
    }
    remarks
}

fn seconds(n: u64) -> String {
    format::age(std::time::Duration::from_secs(n))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::admin::{Connections, Pause};

    const NOW: Timestamp = Timestamp::from_millis(1_795_252_321_431);

    fn upstream(name: &str, kind: &str, breaker: &str) -> UpstreamView {
        UpstreamView {
            name: name.into(),
            kind: kind.into(),
            breaker: breaker.into(),
            since: Some(Timestamp::from_millis(NOW.as_millis() - 250_000)),
            connections: Connections { running: 0, capacity: 8 },
            ..UpstreamView::default()
        }
    }

    #[test]
    fn the_list_has_a_row_for_each_and_says_what_is_wrong() {
        let core = UpstreamView {
            until_seconds: Some(20),
            reason: Some("5 failures in 30s".into()),
            last_failure: Some("connect: refused".into()),
            failed: 5,
            ..upstream("core", "smtp", "open")
        };
        let ses = UpstreamView {
            connections: Connections { running: 3, capacity: 14 },
            rate: Some("14/s".into()),
            sent: 212,
            ramp: Some(4),
            account: json!({ "sandbox": true, "max_24_hours": 200 }),
            ..upstream("ses", "ses", "closed")
        };
        assert_eq!(
            lines(&[core, ses], NOW),
            [
                "NAME  TYPE  BREAKER  SINCE  CONN  RATE  SENT  FAILED  LAST ERROR",
                "core  smtp  OPEN     4m10s  0/8   -     0     5       connect: refused",
                "      nothing goes there: 5 failures in 30s; next try in 20s",
                "ses   ses   closed   4m10s  3/14  14/s  212   0       -",
                "      it is coming back: 4 at once for now",
                "      account: max_24_hours=200 sandbox=true",
            ]
        );
        assert_eq!(lines(&[], NOW).len(), 1);
    }

    #[test]
    fn whatever_keeps_mail_from_an_upstream_is_said_with_what_to_do() {
        let pause = |reason: &str, until_seconds| UpstreamView {
            paused: Some(Pause { reason: reason.into(), until_seconds }),
            ..upstream("core", "smtp", "paused")
        };
        assert_eq!(
            remarks(&pause("new kernel", Some(1500))),
            ["paused for another 25m: new kernel; go on with: postgate upstream resume core"]
        );
        assert_eq!(
            remarks(&pause("", None)),
            ["paused; go on with: postgate upstream resume core"]
        );
        let held = UpstreamView {
            reason: Some("535 5.7.8 authentication failed".into()),
            ..upstream("core", "smtp", "held")
        };
        let held = remarks(&held).join("\n");
        assert!(held.contains("credentials change: 535 5.7.8") && held.contains("reset core"));
        let forced = UpstreamView {
            forced: true,
            wanting: Some("no credentials yet".into()),
            ..upstream("core", "smtp", "closed")
        };
        assert_eq!(
            remarks(&forced),
            ["FORCED TO FAIL by POSTGATE_FORCE_FAIL", "can take nothing now: no credentials yet"]
        );
        assert!(remarks(&upstream("core", "smtp", "closed")).is_empty());
    }

    #[test]
    fn who_ends_a_pause_is_told_of_an_open_breaker_and_the_other_way_round() {
        let still = |breaker| still(&upstream("core", "smtp", breaker)).unwrap_or_default();
        assert!(still("paused").ends_with("postgate upstream resume core"));
        assert!(still("open").ends_with("postgate upstream reset core"));
        assert!(still("held").starts_with("its breaker is held"));
        assert_eq!(still("closed"), "");
    }

    #[test]
    fn of_the_account_only_what_is_known_is_shown() {
        let ses = UpstreamView {
            account: json!({ "endpoint": "127.0.0.1:1", "error": "404", "sandbox": null }),
            ..upstream("ses", "ses", "closed")
        };
        assert_eq!(remarks(&ses), ["account: endpoint=127.0.0.1:1 error=404"]);
    }
}
