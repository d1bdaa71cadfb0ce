//! `secrets`: where passwords and keys come from; never what they are.

use serde_json::Value;

use super::args::Secrets;
use super::client::{Change, Client, segment};
use super::out::Out;
use super::table::table;
use super::{Failure, exit, format};
use crate::admin::SecretView;
use crate::clock::{Clock, SystemClock, Timestamp};

pub(super) async fn secrets(
    client: &Client,
    command: Secrets,
    json: bool,
    out: &mut Out,
) -> Result<(), Failure> {
    match command {
        Secrets::Status => status(client, json, out).await,
        Secrets::Refresh { name } => refresh(client, name.as_deref(), json, out).await,
    }
}

async fn status(client: &Client, json: bool, out: &mut Out) -> Result<(), Failure> {
    if json {
        let secrets: Vec<Value> = client.get("/v1/secrets").await?;
        return secrets.iter().try_for_each(|secret| out.json(secret));
    }
    let secrets: Vec<SecretView> = client.get("/v1/secrets").await?;
    if secrets.is_empty() {
        return out.line("No secrets are configured.");
    }
    lines(&secrets, SystemClock.wall()).iter().try_for_each(|line| out.line(line))
}

async fn refresh(
    client: &Client,
    name: Option<&str>,
    json: bool,
    out: &mut Out,
) -> Result<(), Failure> {
    let path = name.map_or_else(
        || "/v1/secrets/refresh".to_owned(),
        |name| format!("/v1/secrets/{}/refresh", segment(name)),
    );
    let answer: Value = client.post(&path, Change::default()).await.map_err(|failure| {
        failure.advise(exit::FAILED, "see what there is with: postgate secrets status")
    })?;
    if json {
        return out.json(&answer);
    }
    let what = name.map_or("all secrets are", |_| "the secret is");
    out.line(&format!("{what} read again within ten seconds"))?;
    out.note("see what came of it with: postgate secrets status");
    Ok(())
}

/// A table.
pub(super) fn lines(secrets: &[SecretView], now: Timestamp) -> Vec<String> {
    let rows: Vec<[String; 5]> = secrets.iter().map(|secret| row(secret, now)).collect();
    table(["NAME", "FROM", "VERSION", "AGE", "STATE"], &rows)
}

fn row(secret: &SecretView, now: Timestamp) -> [String; 5] {
    let dash = || "-".to_owned();
    let why = secret.reason.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
    [
        secret.name.clone(),
        secret.from.clone(),
        secret.version.map_or_else(dash, |version| version.to_string()),
        secret.read.map_or_else(dash, |read| format::age(now.since(read))),
        format!("{}{why}", secret.state),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_has_a_row_for_each() {
        let now = Timestamp::from_millis(4_000_000);
        let smtp = SecretView {
            name: "smtp".into(),
            from: "vault secret/keybuzz/smtp".into(),
            version: Some(7),
            read: Some(Timestamp::from_millis(328_000)),
            state: "stale".into(),
            reason: Some("vault is sealed".into()),
        };
        let ses = SecretView {
            name: "ses".into(),
            from: "username from $SES_KEY".into(),
            state: "missing".into(),
            reason: Some("$SES_KEY is not set".into()),
            ..SecretView::default()
        };
        assert_eq!(
            lines(&[smtp, ses], now),
            [
                "NAME  FROM                       VERSION  AGE   STATE",
                "smtp  vault secret/keybuzz/smtp  7        1h1m  stale: vault is sealed",
                "ses   username from $SES_KEY     -        -     missing: $SES_KEY is not set",
            ]
        );
    }
}
