//! `status`, `reload` and `healthcheck`.

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::args::{Health, Healthcheck};
use super::client::{Change, Client};
use super::out::Out;
use super::{Failure, secrets, upstream};
use crate::clock::{Clock, SystemClock, Timestamp};

pub(super) async fn status(client: &Client, json: bool, out: &mut Out) -> Result<(), Failure> {
    let status: Value = client.get("/v1/status").await?;
    if json {
        return out.json(&status);
    }
    lines(status, SystemClock.wall()).iter().try_for_each(|line| out.line(line))
}

pub(super) async fn reload(client: &Client, json: bool, out: &mut Out) -> Result<(), Failure> {
    let answer: Value = client.post("/v1/reload", Change::default()).await?;
    if json {
        return out.json(&answer);
    }
    let message = answer.get("message").and_then(Value::as_str).unwrap_or("reloaded");
    message.lines().try_for_each(|line| out.line(line))
}

pub(super) async fn healthcheck(
    client: &Client,
    options: Healthcheck,
    json: bool,
    out: &mut Out,
) -> Result<(), Failure> {
    let (path, word) = match options.what {
        Health::Live => ("/v1/status", "live"),
        Health::Ready => ("/v1/ready", "ready"),
    };
    client.get::<Value>(path).await?;
    if json { out.json(&json!({ word: true })) } else { out.line(word) }
}

/// The program as a whole in one row for each value, then its upstreams and secrets as tables.
fn lines(mut status: Value, now: Timestamp) -> Vec<String> {
    let upstreams = upstream::lines(&take(&mut status, "upstreams"), now);
    let secrets = secrets::lines(&take(&mut status, "secrets"), now);
    let mut rows = Vec::new();
    flatten("", &status, &mut rows);
    let width = rows.iter().map(|(key, _)| key.chars().count()).max().unwrap_or(0);
    let mut lines: Vec<String> =
        rows.iter().map(|(key, value)| format!("{key:width$}  {value}")).collect();
    for (head, table) in [("Upstreams", upstreams), ("Secrets", secrets)] {
        if table.len() > 1 {
            lines.push(head.into());
            lines.extend(table.into_iter().map(|line| format!("  {line}")));
        }
    }
    lines
}

/// A list that is shown in its own way. One that is not understood stays among the others.
fn take<T: DeserializeOwned>(status: &mut Value, key: &str) -> Vec<T> {
    let Some(members) = status.as_object_mut() else { return Vec::new() };
    let found = members.get(key).cloned().map(serde_json::from_value);
    let Some(Ok(items)) = found else { return Vec::new() };
    members.remove(key);
    items
}

/// One row for each value: `spool.deferred  41`.
pub(super) fn flatten(key: &str, value: &Value, rows: &mut Vec<(String, String)>) {
    let name = |k: &str| if key.is_empty() { k.to_owned() } else { format!("{key}.{k}") };
    match value {
        Value::Object(members) => {
            members.iter().for_each(|(k, v)| flatten(&name(k), v, rows));
        }
        Value::Array(items) => {
            // Items that have a name go by it.
            items.iter().enumerate().for_each(|(i, item)| {
                let own = item.get("name").and_then(Value::as_str);
                flatten(&name(own.map_or_else(|| i.to_string(), Into::into).as_str()), item, rows);
            });
        }
        Value::String(text) => rows.push((key.into(), text.clone())),
        Value::Null => rows.push((key.into(), "-".into())),
        other => rows.push((key.into(), other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_status_is_one_row_for_each_value() {
        let status = json!({
            "state": "running",
            "spool": { "deferred": 41, "refusal": null },
            "listeners": [{ "name": "backends", "open": 3 }, 7],
        });
        let mut rows = Vec::new();
        flatten("", &status, &mut rows);
        let rows: Vec<String> = rows.into_iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(
            rows,
            [
                "listeners.backends.name=backends",
                "listeners.backends.open=3",
                "listeners.1=7",
                "spool.deferred=41",
                "spool.refusal=-",
                "state=running",
            ]
        );
    }
    #[test]
    fn upstreams_and_secrets_are_tables_below_the_rest() {
        let now = Timestamp::from_millis(600_000);
        let status = json!({
            "state": "running",
            "upstreams": [{
                "name": "core", "kind": "smtp", "breaker": "closed", "since": 0, "forced": true,
                "connections": { "running": 1, "capacity": 8 }, "sent": 7, "member": "new",
            }],
            "secrets": [{
                "name": "smtp", "from": "vault secret/mail", "version": 3, "read": 588_000,
                "state": "current",
            }],
        });
        assert_eq!(
            lines(status, now),
            [
                "state  running",
                "Upstreams",
                "  NAME  TYPE  BREAKER  SINCE  CONN  RATE  SENT  FAILED  LAST ERROR",
                "  core  smtp  closed   10m    1/8   -     7     0       -",
                "        FORCED TO FAIL by POSTGATE_FORCE_FAIL",
                "Secrets",
                "  NAME  FROM               VERSION  AGE  STATE",
                "  smtp  vault secret/mail  3        12s  current",
            ]
        );
        // What another version says in another way is shown as it is.
        let status = json!({ "upstreams": "none", "secrets": [] });
        assert_eq!(lines(status, now), ["upstreams  none"]);
    }
}
