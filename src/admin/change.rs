//! What comes with a change: for how long, and why.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::problem::Problem;

/// The longest reason or name, in characters: it is shown in one line.
pub(super) const LINE_MAX: usize = 200;

/// The longest time something is asked for; without a time it is until it is taken back.
pub(super) const LASTS_MAX: Duration = Duration::from_hours(30 * 24);

/// The body of a change: a JSON object, or nothing.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) lasts: Option<Duration>,
    pub(super) reason: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Raw {
    for_seconds: Option<u64>,
    reason: Option<String>,
}

impl<S: Send + Sync> FromRequest<S> for Change {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let body = Bytes::from_request(request, state).await;
        Self::parse(&body.map_err(|e| Problem::new(e.status(), e.body_text()))?)
    }
}

impl Change {
    fn parse(body: &[u8]) -> Result<Self, Problem> {
        if body.is_empty() {
            return Ok(Self::default());
        }
        // By way of a map, or an array would do too.
        let members: serde_json::Result<Map<String, Value>> = serde_json::from_slice(body);
        let raw = members.and_then(|members| Raw::deserialize(Value::Object(members)));
        let raw = raw.map_err(|e| Problem::bad(e.to_string()))?;
        let lasts = raw.for_seconds.map(Duration::from_secs);
        if lasts.is_some_and(|lasts| lasts.is_zero() || lasts > LASTS_MAX) {
            let detail = format!(
                "a time is from one second to {} days; leave it out for longer",
                LASTS_MAX.as_secs() / 86_400
            );
            return Err(Problem::bad(detail));
        }
        Ok(Self { lasts, reason: reason(raw.reason)? })
    }

    /// The reason, of what is not for a time.
    pub(super) fn lasting(self) -> Result<Option<String>, Problem> {
        match self.lasts {
            None => Ok(self.reason),
            Some(_) => Err(Problem::bad("only pause and trip can be for a time")),
        }
    }
}

fn reason(text: Option<String>) -> Result<Option<String>, Problem> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    one_line("a reason", &text)?;
    Ok(Some(text))
}

/// Checks what will stand in logs and on terminals.
pub(super) fn one_line(what: &str, text: &str) -> Result<(), Problem> {
    if text.chars().count() > LINE_MAX {
        return Err(Problem::bad(format!("{what} has at most {LINE_MAX} characters")));
    }
    if text.contains(char::is_control) {
        return Err(Problem::bad(format!("{what} is one line without control characters")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &str) -> Option<Change> {
        Change::parse(body.as_bytes()).ok()
    }

    #[test]
    fn a_time_and_a_reason_have_their_limits() {
        assert_eq!(parse(""), Some(Change::default()));
        assert_eq!(parse("{}"), Some(Change::default()));
        let lasts = |seconds: u64| parse(&format!(r#"{{"for_seconds":{seconds}}}"#));
        let max = LASTS_MAX.as_secs();
        for (seconds, fits) in
            [(0, false), (1, true), (max - 1, true), (max, true), (max + 1, false)]
        {
            let expected = fits.then(|| Some(Duration::from_secs(seconds)));
            assert_eq!(lasts(seconds).map(|c| c.lasts), expected, "{seconds}");
        }
        let reason = |text: &str| parse(&serde_json::json!({ "reason": text }).to_string());
        for (n, fits) in [(LINE_MAX - 1, true), (LINE_MAX, true), (LINE_MAX + 1, false)] {
            // Characters, not octets.
            assert_eq!(reason(&"é".repeat(n)).is_some(), fits, "{n}");
        }
        assert_eq!(reason("").unwrap().reason, None);
        for text in ["two\nlines", "bell\u{7}", "csi\u{9b}2J", "nul\0"] {
            assert_eq!(reason(text), None, "{text:?}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for body in [
            "[]",
            "{",
            "null",
            r#"{"for_seconds":"30m"}"#,
            r#"{"for_seconds":-1}"#,
            r#"{"for_seconds":1.5}"#,
            r#"{"fro_seconds":1}"#,
            r#"{"reason":7}"#,
        ] {
            assert_eq!(parse(body), None, "{body}");
        }
        assert!(parse(r#"{"for_seconds":1}"#).unwrap().lasting().is_err());
        assert_eq!(parse(r#"{"reason":"x"}"#).unwrap().lasting().unwrap(), Some("x".into()));
    }
}
