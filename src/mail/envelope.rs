//! The envelope: who sends, to whom, and what the client asked for about notifications.

use serde::{Deserialize, Serialize};

use super::address::{ForwardPath, ReversePath};

/// What MAIL FROM and RCPT TO said.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Envelope {
    /// MAIL FROM.
    pub reverse_path: ReversePath,
    /// RCPT TO, in order, duplicates kept. Never empty.
    pub recipients: Vec<Recipient>,
    /// The BODY parameter.
    #[serde(default, skip_serializing_if = "is_default")]
    pub body: BodyKind,
    /// Whether the client gave SMTPUTF8 (RFC 6531).
    #[serde(default, skip_serializing_if = "is_default")]
    pub smtputf8: bool,
    /// The RET parameter (RFC 3461 section 4.3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ret: Option<Ret>,
    /// The ENVID parameter as received, xtext-encoded (RFC 3461 section 4.4).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envid: Option<String>,
}

fn is_default<T: Default + PartialEq>(v: &T) -> bool {
    *v == T::default()
}

/// One RCPT TO.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Recipient {
    /// To whom.
    pub path: ForwardPath,
    /// The NOTIFY parameter (RFC 3461 section 4.1); `None` when it was not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notify: Option<Notify>,
    /// The ORCPT parameter as received, `type;xtext` (RFC 3461 section 4.2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub orcpt: Option<String>,
}

impl From<ForwardPath> for Recipient {
    fn from(path: ForwardPath) -> Self {
        Self { path, notify: None, orcpt: None }
    }
}

/// The BODY parameter of MAIL (RFC 6152).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BodyKind {
    /// Not given, or `BODY=7BIT`.
    #[default]
    SevenBit,
    /// `BODY=8BITMIME`.
    EightBitMime,
}

/// How much of the message a report returns (RFC 3461 section 4.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ret {
    /// The whole message.
    Full,
    /// Its header only.
    Hdrs,
}

/// When the sender wants a report about a recipient (RFC 3461 section 4.1). All false is NEVER.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Notify {
    /// SUCCESS.
    pub success: bool,
    /// FAILURE.
    pub failure: bool,
    /// DELAY.
    pub delay: bool,
}

impl Notify {
    /// The parameter's value: `NEVER`, or the events joined by commas.
    pub fn keyword(self) -> String {
        let events = [(self.success, "SUCCESS"), (self.failure, "FAILURE"), (self.delay, "DELAY")];
        let wanted: Vec<&str> =
            events.iter().filter(|(on, _)| *on).map(|(_, name)| *name).collect();
        if wanted.is_empty() { "NEVER".into() } else { wanted.join(",") }
    }
}

impl Envelope {
    /// Whether an address needs SMTPUTF8 to travel; the flag alone may be set for header text only.
    pub fn has_utf8_address(&self) -> bool {
        !self.reverse_path.is_ascii() || self.recipients.iter().any(|r| !r.path.0.is_ascii())
    }
}
