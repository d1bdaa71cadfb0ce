//! Whose fault a failure is, and what becomes of the recipient. Pure, and table-tested.
//!
//! The rule behind the rules: *a route's fault is never a message's fault.* Whatever the upstream
//! says about us (our address, our name, our login, our order of commands) defers the mail, also
//! when it says so with 5xx and in reply to RCPT, as Postfix does by default
//! (`smtpd_delay_reject`). Only a verdict about the sender, the recipient or the content bounces.

use super::error::{Cause, Problem};
use crate::mail::{
    Blame, EnhancedStatus, Failure, Handoff, RecipientOutcome, Remedy, Reply, Stage,
};

/// What a 4xx or 5xx reply at a stage means for the recipients it concerns.
pub(crate) fn refusal(stage: Stage, reply: &Reply) -> RecipientOutcome {
    let blame = match stage {
        _ if is_about_us(stage, reply) => Blame::Upstream,
        Stage::Rcpt => Blame::Recipient,
        _ => Blame::Message,
    };
    let class = if reply.is_permanent() { 5 } else { 4 };
    let failure = Failure {
        stage,
        blame,
        handoff: Handoff::NotSent,
        remedy: remedy(stage, reply),
        reply: Some(brief(reply)),
        status: reply.status().unwrap_or_else(|| EnhancedStatus::new(class, 0, 0)),
        detail: String::new(),
    };
    match blame {
        Blame::Message | Blame::Recipient if reply.is_permanent() => {
            RecipientOutcome::Bounced(failure)
        }
        _ => RecipientOutcome::Deferred(failure),
    }
}

/// What a broken dialogue means for the recipients that had no verdict yet.
///
/// With [`Handoff::Unknown`] the final dot is out, and the upstream may have the mail.
pub(crate) fn lost(problem: &Problem, handoff: Handoff) -> RecipientOutcome {
    let Problem { stage, cause } = problem;
    let blame = match cause {
        Cause::BareNewline => Blame::Local,
        _ if matches!(stage, Stage::Pool | Stage::Storage) => Blame::Local,
        _ => Blame::Upstream,
    };
    let reply = cause.reply().map(brief);
    let status = reply.as_ref().and_then(Reply::status).filter(|s| s.class != 2);
    let failure = Failure {
        stage: *stage,
        blame,
        handoff,
        remedy: cause.reply().map_or_else(Remedy::default, |reply| remedy(*stage, reply)),
        status: status.unwrap_or_else(|| status_of(*stage, cause)),
        detail: if reply.is_some() { String::new() } else { cut(cause.to_string()) },
        reply,
    };
    match handoff {
        Handoff::NotSent => RecipientOutcome::Deferred(failure),
        Handoff::Unknown => RecipientOutcome::Unconfirmed(failure),
    }
}

/// What mends a refusal: a login refused for good is not asked for again with the same password, or
/// the account would be locked (RFC 4954 section 6).
const fn remedy(stage: Stage, reply: &Reply) -> Remedy {
    if matches!(stage, Stage::Auth) && reply.is_permanent() { Remedy::Secret } else { Remedy::Time }
}

/// The upstream was not asked, for it does not offer what the message needs.
pub(crate) fn unsuited(stage: Stage, status: EnhancedStatus, detail: String) -> RecipientOutcome {
    let (blame, handoff) = (Blame::Message, Handoff::NotSent);
    let remedy = Remedy::Time;
    RecipientOutcome::Bounced(Failure {
        stage,
        blame,
        handoff,
        remedy,
        reply: None,
        status,
        detail,
    })
}

/// The most octets of a reply's text that are kept with a recipient; the spool stores them.
pub(crate) const TEXT_MAX: usize = 1024;

/// The reply as it is kept: cut off when someone sent a book.
pub(crate) fn brief(reply: &Reply) -> Reply {
    let text = reply.text();
    if text.len() <= TEXT_MAX {
        return reply.clone();
    }
    match reply.status() {
        Some(status) => Reply::new(reply.code(), status, cut(text)),
        None => Reply::bare(reply.code(), cut(text)),
    }
}

fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(TEXT_MAX));
    text
}

/// Whether a refusal says that the connection is of no more use, rather than anything else.
pub(crate) fn is_farewell(reply: &Reply) -> bool {
    reply.code() == 421 || reply.status() == Some(EnhancedStatus::new(4, 4, 2))
}

/// RFC 3463 for what came without a reply.
const fn status_of(stage: Stage, cause: &Cause) -> EnhancedStatus {
    let (subject, detail) = match (stage, cause) {
        (Stage::Dns, _) => (4, 3),
        (Stage::Pool, _) => (3, 2),
        (Stage::Storage, _) | (_, Cause::BareNewline) => (3, 0),
        (_, Cause::NoStartTls | Cause::NoMechanism(_)) => (7, 4),
        (_, Cause::Tls(_) | Cause::Injected) => (7, 5),
        (_, Cause::NoCredentials | Cause::ClearText) => (7, 0),
        (_, Cause::BadReply(_) | Cause::Surplus | Cause::Unexpected(_)) => (5, 0),
        (Stage::Connect, _) => (4, 1),
        _ => (4, 2),
    };
    EnhancedStatus::new(4, subject, detail)
}

/// Whether a refusal is about the route, not about sender, recipient or content.
fn is_about_us(stage: Stage, reply: &Reply) -> bool {
    if stage < Stage::Mail {
        return true;
    }
    // Service closing; host accepts no mail (RFC 7504); login or TLS wanted or failed (RFC 4954,
    // RFC 3207); unknown or misplaced command: the two of us do not speak the same language.
    let by_code = matches!(reply.code(), 421 | 521 | 454 | 530 | 534 | 535 | 538 | 500 | 502 | 503);
    by_code || reply.status().is_some_and(is_status_about_us) || is_text_about_us(stage, reply)
}

fn is_status_about_us(status: EnhancedStatus) -> bool {
    // Mail system and network, for a while, and throttling; then a system that takes no mail or is
    // wrongly configured (not 5.3.4, the message's size); then a login missing, too weak or failed,
    // or encryption needed (RFC 4954, RFC 5248).
    matches!(
        (status.class, status.subject, status.detail),
        (4, 3 | 4, _) | (4, 7, 0) | (5, 3, 2 | 5) | (4 | 5, 7, 8..=14)
    )
}

/// Phrases by which servers (Postfix, Sendmail, Exim, Exchange) refuse *us* with codes they also use
/// for recipients. Kept to what cannot be said of a recipient.
const ABOUT_US: [&str; 9] = [
    "relay access denied",
    "client host rejected",
    "client host [",
    "helo command rejected",
    "sender address rejected: not logged in",
    "relaying denied",
    "relay not permitted",
    "authentication required",
    "unable to relay",
];

/// Phrases by which a smarthost that checks recipients with the next hop quotes that hop's refusal:
/// then the verdict is about the recipient, whatever the quotation says.
const QUOTATIONS: [&str; 3] = [" said: ", "undeliverable address", "unverified address"];

fn is_text_about_us(stage: Stage, reply: &Reply) -> bool {
    if !matches!(stage, Stage::Mail | Stage::Rcpt) {
        return false;
    }
    let text = reply.text().to_ascii_lowercase();
    let quoted = QUOTATIONS.iter().any(|phrase| text.contains(phrase));
    !quoted && ABOUT_US.iter().any(|phrase| text.contains(phrase))
}

#[cfg(test)]
mod tests {
    use super::*;
    use Stage::{Auth, Data, Ehlo, EndOfData, Greeting, Mail, Rcpt, Tls};

    fn verdict(stage: Stage, wire: &str) -> String {
        let (code, text) = wire.split_once(' ').unwrap();
        let reply = Reply::received(code.parse().unwrap(), vec![text.to_owned()]);
        let (word, failure) = match refusal(stage, &reply) {
            RecipientOutcome::Deferred(f) => ("deferred", f),
            RecipientOutcome::Bounced(f) => ("bounced", f),
            other => panic!("{other:?}"),
        };
        assert_eq!(failure.handoff, Handoff::NotSent);
        format!("{word} {:?}", failure.blame).to_lowercase()
    }

    #[test]
    fn nothing_before_mail_from_is_ever_the_messages_fault() {
        for stage in [Greeting, Ehlo, Tls, Auth] {
            for reply in [
                "421 4.3.2 closing",
                "450 4.7.1 wait",
                "454 4.7.0 auth server down",
                "500 5.5.2 what",
                "535 5.7.8 authentication failed",
                "550 5.7.1 blocked",
                "554 5.7.1 go away",
            ] {
                assert_eq!(verdict(stage, reply), "deferred upstream", "{stage} {reply}");
            }
        }
    }

    #[test]
    fn every_stage_and_class_of_reply_has_its_verdict() {
        for (reply, mail, rcpt, later) in [
            ("421 4.3.2 closing", "deferred upstream", "deferred upstream", "deferred upstream"),
            ("421 bye", "deferred upstream", "deferred upstream", "deferred upstream"),
            ("451 4.3.0 error", "deferred upstream", "deferred upstream", "deferred upstream"),
            ("452 4.3.1 disk full", "deferred upstream", "deferred upstream", "deferred upstream"),
            ("451 4.4.1 no route", "deferred upstream", "deferred upstream", "deferred upstream"),
            ("450 4.7.0 throttled", "deferred upstream", "deferred upstream", "deferred upstream"),
            ("450 4.7.1 greylisted", "deferred message", "deferred recipient", "deferred message"),
            ("450 4.2.1 busy", "deferred message", "deferred recipient", "deferred message"),
            ("452 4.5.3 too many", "deferred message", "deferred recipient", "deferred message"),
            ("451 local error", "deferred message", "deferred recipient", "deferred message"),
            ("550 5.1.1 unknown", "bounced message", "bounced recipient", "bounced message"),
            ("552 5.3.4 too big", "bounced message", "bounced recipient", "bounced message"),
            ("550 no", "bounced message", "bounced recipient", "bounced message"),
            ("554 5.7.1 spam", "bounced message", "bounced recipient", "bounced message"),
            ("556 5.1.10 null mx", "bounced message", "bounced recipient", "bounced message"),
            ("521 5.3.2 no mail", "deferred upstream", "deferred upstream", "deferred upstream"),
            ("530 5.7.0 STARTTLS", "deferred upstream", "deferred upstream", "deferred upstream"),
            ("530 auth", "deferred upstream", "deferred upstream", "deferred upstream"),
            ("503 5.5.1 nested", "deferred upstream", "deferred upstream", "deferred upstream"),
            ("502 5.5.2 what", "deferred upstream", "deferred upstream", "deferred upstream"),
            ("550 5.7.9 weak", "deferred upstream", "deferred upstream", "deferred upstream"),
            ("554 5.3.5 config", "deferred upstream", "deferred upstream", "deferred upstream"),
        ] {
            assert_eq!(verdict(Mail, reply), mail, "MAIL {reply}");
            assert_eq!(verdict(Rcpt, reply), rcpt, "RCPT {reply}");
            assert_eq!(verdict(Data, reply), later, "DATA {reply}");
            assert_eq!(verdict(EndOfData, reply), later, "end of data {reply}");
        }
    }

    #[test]
    fn a_refusal_of_us_at_rcpt_bounces_nobody() {
        for reply in [
            "554 5.7.1 <a@b.example>: Relay access denied",
            "454 4.7.1 <a@b.example>: Relay access denied",
            "554 5.7.1 <unknown[192.0.2.1]>: Client host rejected: Access denied",
            "554 5.7.1 Service unavailable; Client host [192.0.2.1] blocked using bl.example",
            "504 5.5.2 <gw>: Helo command rejected: need fully-qualified hostname",
            "553 5.7.1 <a@b.example>: Sender address rejected: not logged in",
            "550 5.7.1 <a@b.example>... Relaying denied",
            "550 relay not permitted",
            "550 5.7.1 Unable to relay",
        ] {
            assert_eq!(verdict(Rcpt, reply), "deferred upstream", "{reply}");
        }
        for reply in [
            "554 5.7.1 <a@b.example>: Recipient address rejected: Access denied",
            "550 5.1.1 <a@b.example>: Recipient address rejected: undeliverable address: \
             host mx.b.example[192.0.2.9] said: 550 5.7.1 Relaying denied",
        ] {
            assert_eq!(verdict(Rcpt, reply), "bounced recipient", "{reply}");
        }
        let by_user = "553 5.7.1 <a@b.example>: Sender address rejected: not owned by user x";
        assert_eq!(verdict(Mail, by_user), "bounced message");
        let content = "554 5.7.1 text says relay access denied";
        assert_eq!(verdict(EndOfData, content), "bounced message");
    }

    #[test]
    fn a_long_reply_is_kept_in_part() {
        for (n, kept) in
            [(TEXT_MAX - 1, TEXT_MAX - 1), (TEXT_MAX, TEXT_MAX), (TEXT_MAX + 1, TEXT_MAX)]
        {
            let reply = Reply::received(550, vec![format!("5.1.1 {}", "x".repeat(n))]);
            let RecipientOutcome::Bounced(f) = refusal(Rcpt, &reply) else { panic!() };
            let brief = f.reply.unwrap();
            assert_eq!((brief.text().len(), brief.status()), (kept, reply.status()));
        }
    }

    #[test]
    fn a_lost_answer_to_the_final_dot_is_unconfirmed_and_everything_else_deferred() {
        let closed = Cause::Closed.at(EndOfData);
        let RecipientOutcome::Unconfirmed(f) = lost(&closed, Handoff::Unknown) else { panic!() };
        assert_eq!((f.blame, f.status), (Blame::Upstream, EnhancedStatus::new(4, 4, 2)));
        let denied = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        for (problem, blame, status) in [
            (Cause::NoAddress("h".into()).at(Stage::Dns), Blame::Upstream, "4.4.3"),
            (Cause::Io(denied).at(Stage::Connect), Blame::Upstream, "4.4.1"),
            (Cause::NoStartTls.at(Tls), Blame::Upstream, "4.7.4"),
            (Cause::Injected.at(Tls), Blame::Upstream, "4.7.5"),
            (Cause::NoCredentials.at(Auth), Blame::Upstream, "4.7.0"),
            (Cause::Surplus.at(Mail), Blame::Upstream, "4.5.0"),
            (Cause::Closed.at(Data), Blame::Upstream, "4.4.2"),
            (Cause::Closed.at(Stage::Storage), Blame::Local, "4.3.0"),
            (Cause::BareNewline.at(Data), Blame::Local, "4.3.0"),
        ] {
            let RecipientOutcome::Deferred(f) = lost(&problem, Handoff::NotSent) else { panic!() };
            assert_eq!((f.blame, f.status.to_string().as_str()), (blame, status), "{problem}");
        }
    }
}
