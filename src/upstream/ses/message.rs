//! The copy of a message that SES is given. What is not named here stays octet for octet.
//!
//! Left out: Bcc and Resent-Bcc, for SES is told the recipients apart; Return-Path, which it would
//! take for where bounces go; X-SES fields, which are instructions to the account; and the
//! DKIM-Signature, which does not hold once SES has changed Date and Message-ID.

use super::sender::{Mailboxes, write_field, write_from, write_reply_to};
use super::settings::SenderPolicy;
use crate::mail::header::{Line, classify, line_end};

/// SES would not take the message.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum Unfit {
    /// It may not send for the From or Sender.
    #[error("{field} {address:?} is not one of the upstream's senders")]
    Sender {
        /// Which of the two.
        field: &'static str,
        /// What stands there; cut off when it is long.
        address: String,
    },
}

/// Makes the copy in place.
pub(super) fn edit(
    mut octets: Vec<u8>,
    policy: &SenderPolicy,
    keep_dkim: bool,
) -> Result<Vec<u8>, Unfit> {
    let (fields, end) = fields(&octets);
    let changes = Changes::for_sender(policy, &fields)?;
    // Another From is not what was signed.
    let keep_dkim = keep_dkim && changes.from.is_none();
    let mut head = Vec::with_capacity(end + 512);
    if let (Some(default), false) = (changes.from, fields.iter().any(|f| f.is("From"))) {
        write_from(default, None, &mut head);
    }
    let mut first = true;
    for field in fields.iter().filter(|f| !f.is_removed(keep_dkim)) {
        match changes.from {
            Some(default) if field.is("From") => {
                changes.replace_from(default, field, first, &mut head);
                first = false;
            }
            _ if changes.sender && field.is("Sender") => {
                write_field("X-Original-Sender", field.value(), &mut head);
            }
            _ => head.extend_from_slice(field.octets),
        }
    }
    let rest = octets.get(end..).unwrap_or_default();
    if changes.from.is_some() && !rest.starts_with(b"\r\n") && !rest.starts_with(b"\n") {
        // No line of a text without an empty line before it is to become a part of a new From.
        head.extend_from_slice(b"\r\n");
    }
    octets.splice(..end, head);
    Ok(octets)
}

/// A field with its continuation lines.
struct Field<'a> {
    name: &'a [u8],
    octets: &'a [u8],
}

impl<'a> Field<'a> {
    fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name.as_bytes())
    }

    /// What stands behind the colon, with all line ends.
    fn value(&self) -> &'a [u8] {
        let colon = self.octets.iter().position(|b| *b == b':');
        colon.and_then(|at| self.octets.get(at + 1..)).unwrap_or_default()
    }

    fn is_removed(&self, keep_dkim: bool) -> bool {
        let control = self.name.get(..6).is_some_and(|n| n.eq_ignore_ascii_case(b"X-SES-"));
        let names = ["Bcc", "Resent-Bcc", "Return-Path"];
        control
            || names.iter().any(|name| self.is(name))
            || (!keep_dkim && self.is("DKIM-Signature"))
    }
}

/// The fields of a message, and where they end.
fn fields(message: &[u8]) -> (Vec<Field<'_>>, usize) {
    let mut fields = Vec::new();
    let (mut at, mut start) = (0, 0);
    let mut name: Option<&[u8]> = None;
    loop {
        let end = line_end(message, at).unwrap_or(message.len());
        let line = message.get(at..end).unwrap_or_default();
        let kind = if line.is_empty() { Line::Empty } else { classify(line, at == 0) };
        if !matches!(kind, Line::Continuation) {
            let octets = message.get(start..at).unwrap_or_default();
            fields.extend(name.take().map(|name| Field { name, octets }));
        }
        match kind {
            Line::Field(of) => (name, start) = (Some(of), at),
            Line::Continuation => {}
            Line::Empty | Line::Text => return (fields, at),
        }
        at = end;
    }
}

/// What the sender policy makes of a message.
#[derive(Default)]
struct Changes<'a> {
    /// The address for From, unless it stays.
    from: Option<&'a str>,
    /// Whether Sender goes.
    sender: bool,
    /// Whether the message says itself where replies go.
    has_reply_to: bool,
}

impl<'a> Changes<'a> {
    fn for_sender(policy: &'a SenderPolicy, fields: &[Field<'_>]) -> Result<Self, Unfit> {
        if policy.allowed.is_empty() {
            return Ok(Self::default());
        }
        let named = |name: &'static str| fields.iter().filter(move |f| f.is(name));
        let allowed = |field: &Field<'_>| {
            Mailboxes::read(field.value()).is_some_and(|m| m.are_allowed(policy))
        };
        let from = named("From").find(|f| !allowed(f));
        let sender = named("Sender").find(|f| !allowed(f));
        let missing = named("From").next().is_none();
        if from.is_none() && sender.is_none() && !missing {
            return Ok(Self::default());
        }
        let Some(default) = policy.default.as_deref() else {
            let unfit = |name, field: Option<&Field<'_>>| {
                let address = field.map(shown).unwrap_or_default();
                Unfit::Sender { field: name, address }
            };
            return Err(match (from, missing) {
                (None, false) => unfit("Sender", sender),
                _ => unfit("From", from),
            });
        };
        let has_reply_to = named("Reply-To").next().is_some();
        let replaced = from.is_some() || missing;
        Ok(Self { from: replaced.then_some(default), sender: sender.is_some(), has_reply_to })
    }

    /// The new From, where replies go, and what stood there; a further From only leaves the last.
    fn replace_from(&self, default: &str, field: &Field<'_>, first: bool, out: &mut Vec<u8>) {
        let value = field.value();
        if first {
            let from = Mailboxes::read(value);
            write_from(default, from.as_ref(), out);
            if let (Some(from), false) = (&from, self.has_reply_to) {
                write_reply_to(from, value, out);
            }
        }
        write_field("X-Original-From", value, out);
    }
}

/// The addresses of a field, or its text.
fn shown(field: &Field<'_>) -> String {
    let addresses = Mailboxes::read(field.value()).map(|mailboxes| {
        mailboxes.list.iter().map(|m| m.address.to_string()).collect::<Vec<_>>().join(", ")
    });
    let raw = || String::from_utf8_lossy(field.value().trim_ascii()).into_owned();
    let mut text = addresses.filter(|text| !text.is_empty()).unwrap_or_else(raw);
    text.truncate(text.floor_char_boundary(256));
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::routing::Pattern;

    fn policy(default: Option<&str>) -> SenderPolicy {
        let allowed = vec![Pattern::Domain("ok.example".into())];
        SenderPolicy { allowed, default: default.map(Into::into) }
    }

    fn edited(input: &str, policy: &SenderPolicy) -> String {
        let out = edit(input.as_bytes().to_vec(), policy, false).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_must_not_travel_is_left_out_and_the_rest_stays_as_it_came() {
        let none = SenderPolicy::default();
        let input = "Received: from a\r\n\tby b; x\r\nBCC: a@x,\r\n b@y\r\nFrom:  Ann\r\n <a@x>\r\n\
                     x-ses-configuration-set : other\r\nDkim-Signature: v=1;\r\n\tb=abc\r\n\
                     Return-Path: <a@x>\r\nresent-bcc: q@x\r\nSubject:\r\n  odd \r\n\r\n\
                     Bcc: stays\r\n.\r\n\tx\r\n";
        let output = "Received: from a\r\n\tby b; x\r\nFrom:  Ann\r\n <a@x>\r\nSubject:\r\n  odd \
                      \r\n\r\nBcc: stays\r\n.\r\n\tx\r\n";
        assert_eq!(edited(input, &none), output);
        let kept = edit(input.as_bytes().to_vec(), &none, true).unwrap();
        assert!(String::from_utf8(kept).unwrap().contains("Dkim-Signature: v=1;\r\n\tb=abc\r\n"));
        for same in ["", "\r\n", "\r\nbody", "A: b", "A: b\r\n", "no header\r\nBcc: x\r\n"] {
            assert_eq!(edited(same, &none), same);
        }
    }

    #[test]
    fn a_sender_that_is_not_allowed_gives_way_and_is_found_where_replies_go() {
        let policy = policy(Some("relay@ok.example"));
        for (input, output) in [
            ("From: Ann <a@ok.example>\r\n", "From: Ann <a@ok.example>\r\n"),
            (
                "A: 1\r\nFrom: =?utf-8?Q?=C3=84nn?= <a@x.example>\r\nB: 2\r\n",
                "A: 1\r\nFrom: =?utf-8?Q?=C3=84nn?= <relay@ok.example>\r\n\
                 Reply-To: =?utf-8?Q?=C3=84nn?= <a@x.example>\r\n\
                 X-Original-From: =?utf-8?Q?=C3=84nn?= <a@x.example>\r\nB: 2\r\n",
            ),
            (
                "from : a@x.example\r\nreply-to: b@y\r\n",
                "From: relay@ok.example\r\nX-Original-From: a@x.example\r\nreply-to: b@y\r\n",
            ),
            (
                "From: \"Doe, Ann\"\r\n\t<a@x.example>, Bob <b@ok.example>\r\n",
                "From: \"Doe, Ann\" <relay@ok.example>\r\n\
                 Reply-To: \"Doe, Ann\"\r\n\t<a@x.example>, Bob <b@ok.example>\r\n\
                 X-Original-From: \"Doe, Ann\"\r\n\t<a@x.example>, Bob <b@ok.example>\r\n",
            ),
            (
                "From: team: a@x.example, b@x.example;\r\n",
                "From: relay@ok.example\r\nReply-To: a@x.example,\r\n b@x.example\r\n\
                 X-Original-From: team: a@x.example, b@x.example;\r\n",
            ),
            (
                "From: not an address\r\n",
                "From: relay@ok.example\r\nX-Original-From: not an address\r\n",
            ),
            (
                "From: a@x.example\r\nFrom: b@x.example\r\n",
                "From: relay@ok.example\r\nReply-To: a@x.example\r\n\
                 X-Original-From: a@x.example\r\nX-Original-From: b@x.example\r\n",
            ),
            ("Subject: x\r\n", "From: relay@ok.example\r\nSubject: x\r\n"),
            (
                "From: a@ok.example\r\nSender: s@x.example\r\n",
                "From: a@ok.example\r\nX-Original-Sender: s@x.example\r\n",
            ),
        ] {
            let (input, output) =
                (format!("{input}\r\nFrom: b\r\n"), format!("{output}\r\nFrom: b\r\n"));
            assert_eq!(edited(&input, &policy), output);
        }
    }

    #[test]
    fn a_long_display_name_is_followed_by_the_address_on_a_line_of_its_own() {
        let policy = policy(Some("relay@ok.example"));
        let name = "x".repeat(60);
        let out = edited(&format!("From: {name} <a@x>\r\n\r\n"), &policy);
        assert!(out.starts_with(&format!("From: {name}\r\n <relay@ok.example>\r\nReply-To: ")));
    }

    #[test]
    fn a_new_from_is_not_what_was_signed() {
        let message = "From: a@x\r\nDKIM-Signature: v=1\r\n\r\n".as_bytes().to_vec();
        let out = edit(message, &policy(Some("relay@ok.example")), true).unwrap();
        assert!(!String::from_utf8(out).unwrap().contains("DKIM"));
    }

    #[test]
    fn without_a_default_sender_the_message_is_not_for_ses() {
        for (input, field, address) in [
            ("From: Ann <a@x.example>\r\n\r\n", "From", "a@x.example"),
            ("From: a@ok.example\r\nSender: s@x.example\r\n\r\n", "Sender", "s@x.example"),
            ("Subject: x\r\n\r\n", "From", ""),
            ("From: odd\r\n\r\n", "From", "odd"),
        ] {
            let unfit = edit(input.as_bytes().to_vec(), &policy(None), false).unwrap_err();
            assert_eq!(unfit, Unfit::Sender { field, address: address.into() });
        }
    }

    proptest! {
        #[test]
        fn any_octets_are_edited_without_a_panic_and_no_body_is_touched(
            head in "([A-Za-z:<>@\", \t]{0,30}\r\n){0,8}",
            from in "[a@<>\"\\\\(),:; \t]{0,40}",
            body in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            let head = format!("{}From: {from}\r\n\r\n", head.replace("\r\n\r\n", ""));
            let mut input = head.into_bytes();
            input.extend_from_slice(&body);
            let (_, end) = fields(&input);
            let policy = policy(Some("relay@ok.example"));
            let out = edit(input.clone(), &policy, false).unwrap();
            prop_assert!(out.ends_with(&input[end..]));
            prop_assert_eq!(edit(out.clone(), &policy, false).unwrap(), out);
        }
    }
}
