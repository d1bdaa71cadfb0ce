//! Whether Amazon SES would take a message at all, told from what was seen in it.
//!
//! It is asked before a message is sent there, so that what can't pass waits for the smarthost
//! without an attempt, and the operator hears why. It is no promise: SES may refuse more. What it
//! refuses is in its developer guide ("quotas", "header fields", "MIME types", "verified
//! identities").
//!
//! The reverse-path is of no account here, but for the null one: SES puts its own in its place.

use crate::mail::{EnhancedStatus, Mailbox, Message};
use crate::policy::routing::Pattern;

/// Octets of a message, before base64, that are 40 MiB after it: no request may be larger.
pub const SIZE_MAX: u64 = (40 << 20) / 4 * 3;

/// Octets of a line, its CRLF included.
pub const LINE_MAX: u64 = 1000;

/// The domain of addresses that SES takes whatever is verified, for trying it out.
const SIMULATOR: &str = "simulator.amazonses.com";

/// Extensions of attachments that SES refuses.
const BLOCKED: [&str; 90] = [
    "ade", "adp", "app", "asp", "bas", "bat", "cer", "chm", "cmd", "com", "cpl", "crt", "csh",
    "der", "exe", "fxp", "gadget", "hlp", "hta", "inf", "ins", "isp", "its", "js", "jse", "ksh",
    "lib", "lnk", "mad", "maf", "mag", "mam", "maq", "mar", "mas", "mat", "mau", "mav", "maw",
    "mda", "mdb", "mde", "mdt", "mdw", "mdz", "msc", "msh", "msh1", "msh2", "mshxml", "msh1xml",
    "msh2xml", "msi", "msp", "mst", "ops", "pcd", "pif", "plg", "prf", "prg", "reg", "scf", "scr",
    "sct", "shb", "shs", "sys", "ps1", "ps1xml", "ps2", "ps2xml", "psc1", "psc2", "tmp", "url",
    "vb", "vbe", "vbs", "vps", "vsmacros", "vss", "vst", "vsw", "vxd", "ws", "wsc", "wsf", "wsh",
    "xnk",
];

/// What an upstream is known to refuse.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rules {
    /// Octets of a message, before base64. More than [`SIZE_MAX`] never pass.
    pub max_size: u64,
    /// The senders it may send for; empty: all.
    pub senders: Vec<Pattern>,
    /// Whether another sender is put in place of one that is not allowed.
    pub rewrites_sender: bool,
    /// Whether DKIM-Signature headers are kept. Only one may be there; those that are taken out do
    /// not count.
    pub keeps_dkim: bool,
    /// Extensions of attachments that are refused, with or without their dot.
    pub blocked: Vec<String>,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            max_size: SIZE_MAX,
            senders: Vec::new(),
            rewrites_sender: false,
            keeps_dkim: false,
            blocked: BLOCKED.map(str::to_owned).to_vec(),
        }
    }
}

/// Why an upstream would refuse a message, or one recipient of it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Ineligible {
    /// `MAIL FROM:<>` cannot be expressed there.
    #[error("the null sender cannot be sent by the SES API")]
    NullSender,
    /// SMTPUTF8 is not understood there (RFC 6531). A domain can be written otherwise, a local part
    /// not.
    #[error("the address {address} needs SMTPUTF8, which SES does not know")]
    Utf8 {
        /// The recipient, or the address of the From header.
        address: String,
    },
    /// There is no From header with an address in it, which SES takes the sender from.
    #[error("the message has no From header that can be read")]
    NoFrom,
    /// An address of the From header is not among [`Rules::senders`].
    #[error("the sender {address} is not allowed there")]
    Sender {
        /// It.
        address: String,
    },
    /// The account is in the sandbox, and sends to its own identities only.
    #[error("the account is in the SES sandbox, and {recipient} is none of its identities")]
    Sandbox {
        /// To whom.
        recipient: String,
    },
    /// More octets than allowed.
    #[error("the message has {size} octets, more than {max}")]
    Size {
        /// Octets of the message.
        size: u64,
        /// The limit, before base64.
        max: u64,
    },
    /// A line longer than [`LINE_MAX`].
    #[error("the message has a line of {octets} octets, more than 1000")]
    Line {
        /// Octets of the line, its end included.
        octets: u64,
    },
    /// A header that may be there once.
    #[error("the header {header} is there more than once")]
    Repeated {
        /// Its name, in lower case.
        header: String,
    },
    /// An attachment whose name ends in one of [`Rules::blocked`].
    #[error("SES refuses attachments whose name ends in .{extension}")]
    Attachment {
        /// In lower case, without its dot.
        extension: String,
    },
}

impl Ineligible {
    /// A stable word for it, for machines.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NullSender => "null_sender",
            Self::Utf8 { .. } => "smtputf8",
            Self::NoFrom => "no_from",
            Self::Sender { .. } => "sender",
            Self::Sandbox { .. } => "sandbox",
            Self::Size { .. } => "size",
            Self::Line { .. } => "line",
            Self::Repeated { .. } => "repeated_header",
            Self::Attachment { .. } => "attachment",
        }
    }

    /// Its status for reports, where no other upstream can take the message (RFC 3463, RFC 6531).
    pub const fn status(&self) -> EnhancedStatus {
        match self {
            Self::NullSender | Self::Sender { .. } | Self::Sandbox { .. } => {
                EnhancedStatus::new(5, 7, 1)
            }
            Self::Utf8 { .. } => EnhancedStatus::new(5, 6, 7),
            Self::Size { .. } => EnhancedStatus::new(5, 3, 4),
            Self::NoFrom | Self::Line { .. } | Self::Repeated { .. } | Self::Attachment { .. } => {
                EnhancedStatus::new(5, 6, 0)
            }
        }
    }
}

/// What an upstream is today, whatever its configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Today {
    /// It sends to verified identities only; which they are is told by [`Rules::senders`].
    pub sandbox: bool,
    /// It puts another sender in place of one that is not allowed, as with
    /// [`Rules::rewrites_sender`].
    pub rewrites_sender: bool,
}

/// Whether the upstream would take the message for the recipient at `place`.
pub fn judge(
    rules: &Rules,
    message: &Message,
    place: usize,
    today: Today,
) -> Result<(), Ineligible> {
    if message.envelope.reverse_path.mailbox().is_none() {
        return Err(Ineligible::NullSender);
    }
    if let Some(recipient) = message.envelope.recipients.get(place) {
        judge_recipient(rules, &recipient.path.0, today.sandbox)?;
    }
    judge_sender(rules, &message.facts.from, today)?;
    judge_content(rules, message)
}

fn judge_recipient(rules: &Rules, recipient: &Mailbox, sandbox: bool) -> Result<(), Ineligible> {
    if !recipient.local_part().is_ascii() {
        return Err(Ineligible::Utf8 { address: recipient.to_string() });
    }
    let verified = rules.senders.is_empty()
        || rules.senders.iter().any(|identity| identity.contains(recipient))
        || recipient.domain().eq_ignore_ascii_case(SIMULATOR);
    if sandbox && !verified {
        return Err(Ineligible::Sandbox { recipient: recipient.to_string() });
    }
    Ok(())
}

fn judge_sender(rules: &Rules, from: &[String], today: Today) -> Result<(), Ineligible> {
    if from.is_empty() {
        return Err(Ineligible::NoFrom);
    }
    let is_allowed = |address: &String| {
        let mailbox = Mailbox::parse(address.as_bytes());
        rules.senders.is_empty()
            || mailbox.is_ok_and(|m| rules.senders.iter().any(|pattern| pattern.contains(&m)))
    };
    if let Some(address) = from.iter().find(|address| !is_allowed(address)) {
        let address = address.clone();
        let rewrites = rules.rewrites_sender || today.rewrites_sender;
        return if rewrites { Ok(()) } else { Err(Ineligible::Sender { address }) };
    }
    let needs_utf8 =
        |address: &&String| address.rsplit_once('@').is_none_or(|(local, _)| !local.is_ascii());
    match from.iter().find(needs_utf8) {
        Some(address) => Err(Ineligible::Utf8 { address: address.clone() }),
        None => Ok(()),
    }
}

fn judge_content(rules: &Rules, message: &Message) -> Result<(), Ineligible> {
    let (facts, size, max) = (&message.facts, message.size, rules.max_size.min(SIZE_MAX));
    if size > max {
        return Err(Ineligible::Size { size, max });
    }
    if facts.longest_line > LINE_MAX {
        return Err(Ineligible::Line { octets: facts.longest_line });
    }
    let counts = |header: &&String| rules.keeps_dkim || *header != "dkim-signature";
    if let Some(header) = facts.repeated.iter().find(counts) {
        return Err(Ineligible::Repeated { header: header.clone() });
    }
    let is_blocked = |extension: &&String| {
        let same = |blocked: &String| {
            blocked.trim_start_matches('.').eq_ignore_ascii_case(extension.as_str())
        };
        rules.blocked.iter().any(same)
    };
    match facts.attachments.iter().find(is_blocked) {
        Some(extension) => Err(Ineligible::Attachment { extension: extension.clone() }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SANDBOX: Today = Today { sandbox: true, rewrites_sender: false };
    use crate::clock::Timestamp;
    use crate::mail::{QueueId, ReversePath};

    /// A message that SES takes.
    fn message(recipient: &str) -> Message {
        let id = QueueId::from_u64(1);
        let mut message = Message::sample(id, Timestamp::from_millis(1), &[recipient]);
        message.facts.from = vec!["app@example.com".into()];
        message.size = 1000;
        message
    }

    fn rules(senders: &[&str]) -> Rules {
        let senders = senders.iter().map(|s| Pattern::parse(s).unwrap()).collect();
        Rules { senders, ..Rules::default() }
    }

    /// The code of the verdict; empty when it may pass.
    fn code(rules: &Rules, message: &Message) -> &'static str {
        judge(rules, message, 0, Today::default()).map_or_else(|e| e.code(), |()| "")
    }

    #[test]
    fn an_ordinary_message_passes() {
        let m = message("bob@example.org");
        assert_eq!(judge(&Rules::default(), &m, 0, Today::default()), Ok(()));
        assert_eq!(judge(&rules(&["@example.com"]), &m, 0, Today::default()), Ok(()));
    }

    #[test]
    fn the_null_sender_does_not_pass() {
        let mut m = message("bob@example.org");
        m.envelope.reverse_path = ReversePath::Null;
        assert_eq!(judge(&Rules::default(), &m, 0, Today::default()), Err(Ineligible::NullSender));
    }

    #[test]
    fn a_local_part_beyond_ascii_does_not_pass_and_a_domain_does() {
        let r = Rules::default();
        assert_eq!(code(&r, &message("gr\u{e5}@example.org")), "smtputf8");
        assert_eq!(code(&r, &message("gra@gr\u{e5}.org")), "");
        let from = |address: &str| {
            let mut m = message("bob@example.org");
            m.facts.from = vec![address.into()];
            code(&r, &m)
        };
        assert_eq!(from("gr\u{e5}@example.org"), "smtputf8");
        assert_eq!(from("gra@gr\u{e5}.org"), "");
    }

    #[test]
    fn only_the_recipient_that_is_asked_for_is_judged() {
        let id = QueueId::from_u64(1);
        let to = ["bob@example.org", "gr\u{e5}@example.org"];
        let facts = message("x@example.org").facts;
        let m = Message { facts, ..Message::sample(id, Timestamp::from_millis(1), &to) };
        assert!(judge(&Rules::default(), &m, 0, Today::default()).is_ok());
        assert!(judge(&Rules::default(), &m, 1, Today::default()).is_err());
    }

    #[test]
    fn every_address_of_from_must_be_allowed_or_is_replaced() {
        let allowed = rules(&["@example.com", "ana@example.net"]);
        let rewriting = Rules { rewrites_sender: true, ..allowed.clone() };
        for (from, expected, rewritten) in [
            (&["app@EXAMPLE.com"][..], "", ""),
            (&["ana@example.net"], "", ""),
            (&["bob@example.net"], "sender", ""),
            (&["app@sub.example.com"], "sender", ""),
            (&["app@example.com", "x@evil.example"], "sender", ""),
            (&["not an address"], "sender", ""),
            (&["gr\u{e5}@evil.example"], "sender", ""),
            (&["gr\u{e5}@example.com"], "smtputf8", "smtputf8"),
            (&[], "no_from", "no_from"),
        ] {
            let mut m = message("bob@example.org");
            m.facts.from = from.iter().map(|&s| s.to_owned()).collect();
            assert_eq!(
                (code(&allowed, &m), code(&rewriting, &m)),
                (expected, rewritten),
                "{from:?}"
            );
        }
        let mut m = message("bob@example.org");
        m.facts.from.clear();
        assert_eq!(code(&Rules::default(), &m), "no_from", "also when all senders are allowed");
    }

    #[test]
    fn the_sandbox_sends_to_its_own_identities_and_the_simulator() {
        let r = rules(&["@example.com", "ana@example.net"]);
        for (recipient, passes) in [
            ("x@example.com", true),
            ("ana@example.net", true),
            ("bob@example.net", false),
            ("success@simulator.amazonses.com", true),
        ] {
            let m = message(recipient);
            assert_eq!(judge(&r, &m, 0, SANDBOX).is_ok(), passes, "{recipient}");
            assert!(judge(&r, &m, 0, Today::default()).is_ok());
        }
        let unknown = judge(&Rules::default(), &message("bob@example.net"), 0, SANDBOX);
        assert_eq!(unknown, Ok(()), "which identities there are is not known: SES decides");
    }

    #[test]
    fn a_message_is_as_large_as_ses_or_the_configuration_allows() {
        let larger = Rules { max_size: u64::MAX, ..Rules::default() };
        let smaller = Rules { max_size: 5000, ..Rules::default() };
        for (rules, max) in [(Rules::default(), SIZE_MAX), (larger, SIZE_MAX), (smaller, 5000)] {
            for (size, passes) in [(max - 1, true), (max, true), (max + 1, false)] {
                let m = Message { size, ..message("bob@example.org") };
                let expected = if passes { Ok(()) } else { Err(Ineligible::Size { size, max }) };
                assert_eq!(judge(&rules, &m, 0, Today::default()), expected);
            }
        }
        assert_eq!(SIZE_MAX.div_ceil(3) * 4, 40 << 20);
        assert!((SIZE_MAX + 1).div_ceil(3) * 4 > 40 << 20);
    }

    #[test]
    fn a_line_has_at_most_a_thousand_octets() {
        for (octets, expected) in [(999, ""), (1000, ""), (1001, "line")] {
            let mut m = message("bob@example.org");
            m.facts.longest_line = octets;
            assert_eq!(code(&Rules::default(), &m), expected, "{octets}");
        }
    }

    #[test]
    fn a_header_that_may_be_there_once_may_not_repeat() {
        let mut m = message("bob@example.org");
        m.facts.repeated = vec!["dkim-signature".into()];
        assert_eq!(code(&Rules::default(), &m), "", "it is taken out");
        assert_eq!(code(&Rules { keeps_dkim: true, ..Rules::default() }, &m), "repeated_header");
        m.facts.repeated.push("subject".into());
        let verdict = judge(&Rules::default(), &m, 0, Today::default());
        assert_eq!(verdict, Err(Ineligible::Repeated { header: "subject".into() }));
    }

    #[test]
    fn blocked_attachments_do_not_pass_and_which_they_are_can_be_changed() {
        let mut m = message("bob@example.org");
        m.facts.attachments = vec!["pdf".into(), "exe".into()];
        let verdict = judge(&Rules::default(), &m, 0, Today::default());
        assert_eq!(verdict, Err(Ineligible::Attachment { extension: "exe".into() }));
        let other = Rules { blocked: vec![".PDF".into()], ..Rules::default() };
        assert_eq!(code(&other, &m), "attachment");
        assert_eq!(code(&Rules { blocked: Vec::new(), ..other }, &m), "");
    }

    #[test]
    fn every_verdict_has_a_line_a_word_and_a_permanent_status_of_its_own() {
        let text = || "x@example.com".to_owned();
        let all = [
            (Ineligible::NullSender, "5.7.1"),
            (Ineligible::Utf8 { address: text() }, "5.6.7"),
            (Ineligible::NoFrom, "5.6.0"),
            (Ineligible::Sender { address: text() }, "5.7.1"),
            (Ineligible::Sandbox { recipient: text() }, "5.7.1"),
            (Ineligible::Size { size: 2, max: 1 }, "5.3.4"),
            (Ineligible::Line { octets: 1001 }, "5.6.0"),
            (Ineligible::Repeated { header: text() }, "5.6.0"),
            (Ineligible::Attachment { extension: text() }, "5.6.0"),
        ];
        let words: std::collections::BTreeSet<_> = all.iter().map(|(e, _)| e.code()).collect();
        assert_eq!(words.len(), all.len());
        for (verdict, status) in all {
            assert_eq!(verdict.status().to_string(), status);
            let line = verdict.to_string();
            assert!(!line.contains('\n') && !line.ends_with('.') && line.len() < 120, "{line}");
        }
    }
}
