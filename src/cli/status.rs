//! `status`, `reload` and `healthcheck`.

use serde_json::Value;

use super::Failure;
use super::args::{Health, Healthcheck};
use super::client::Client;
use super::out::Out;

pub(super) async fn status(client: &Client, json: bool, out: &mut Out) -> Result<(), Failure> {
    let status: Value = client.get("/v1/status").await?;
    if json {
        return out.line(&status.to_string());
    }
    let mut rows = Vec::new();
    flatten("", &status, &mut rows);
    let width = rows.iter().map(|(key, _)| key.chars().count()).max().unwrap_or(0);
    rows.iter().try_for_each(|(key, value)| out.line(&format!("{key:width$}  {value}")))
}

pub(super) async fn reload(client: &Client, out: &mut Out) -> Result<(), Failure> {
    let answer: Value = client.post("/v1/reload").await?;
    let message = answer.get("message").and_then(Value::as_str).unwrap_or("reloaded");
    message.lines().try_for_each(|line| out.line(line))
}

pub(super) async fn healthcheck(
    client: &Client,
    options: Healthcheck,
    out: &mut Out,
) -> Result<(), Failure> {
    match options.what {
        Health::Live => {
            client.get::<Value>("/v1/status").await?;
            out.line("live")
        }
        Health::Ready => {
            client.get::<Value>("/v1/ready").await?;
            out.line("ready")
        }
    }
}

/// One row for each value: `spool.deferred  41`.
fn flatten(key: &str, value: &Value, rows: &mut Vec<(String, String)>) {
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
            "upstreams": [{ "name": "core", "breaker": "open" }, 7],
        });
        let mut rows = Vec::new();
        flatten("", &status, &mut rows);
        let rows: Vec<String> = rows.into_iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(
            rows,
            [
                "spool.deferred=41",
                "spool.refusal=-",
                "state=running",
                "upstreams.core.breaker=open",
                "upstreams.core.name=core",
                "upstreams.1=7",
            ]
        );
    }
}
