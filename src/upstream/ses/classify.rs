//! What an answer of SES means, or the lack of one. Pure, and table-tested.
//!
//! SES documents no request that can be repeated without a second mail, so everything between the
//! last octet of a request and a clear answer is unconfirmed, and so is every 5xx. A clear 4xx says
//! that none of the request's recipients was served.

use crate::mail::{Blame, EnhancedStatus, Failure, Handoff, RecipientOutcome, Remedy, Stage};

/// The most octets of an answer's text that are kept with a recipient; the spool stores them.
const TEXT_MAX: usize = 1024;

/// Why a request came to nothing.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum Problem {
    /// SES answered with an error.
    #[error("{}", answer(*.status, .code.as_deref(), .message))]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The error's name, as `MessageRejected`.
        code: Option<String>,
        /// Its text.
        message: String,
    },
    /// There was no connection: name, TCP or TLS.
    #[error("{0}")]
    Unreachable(String),
    /// The request may have been received; its answer was not.
    #[error("{0}")]
    Lost(String),
    /// There is nothing to sign with.
    #[error("no AWS credentials: {0}")]
    NoCredentials(String),
    /// Neither the configuration nor the credentials say where.
    #[error("no AWS region is configured")]
    NoRegion,
    /// The request could not be made.
    #[error("cannot make the request: {0}")]
    Unmade(String),
}

fn answer(status: u16, code: Option<&str>, message: &str) -> String {
    let mut text = format!("{status} {}", code.unwrap_or("without an error code"));
    if !message.is_empty() {
        text = format!("{text}: {message}");
    }
    text.truncate(text.floor_char_boundary(TEXT_MAX));
    text
}

/// What a problem means.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Verdict {
    /// What becomes of each recipient of the request.
    pub(super) outcome: RecipientOutcome,
    /// Whom it concerns.
    pub(super) scope: Scope,
    /// What it says about the account.
    pub(super) consequence: Consequence,
}

/// Whom a problem concerns.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Scope {
    /// Every request: those after it need not be made.
    Upstream,
    /// This message, whoever its recipients are.
    Message,
    /// Some of the recipients, and nobody knows which; or the message.
    Somebody,
    /// These identities, of which some may be recipients.
    Named(Vec<String>),
}

/// What a problem says about the account.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Consequence {
    /// Nothing.
    None,
    /// It is worth asking for.
    Ask,
    /// Nothing can be sent until it says otherwise, for this reason.
    Stopped(&'static str),
}

/// What `problem` means for the recipients of the request.
pub(super) fn judge(problem: &Problem) -> Verdict {
    match problem {
        Problem::Refused { status, code, message } => {
            let row = row(*status, code.as_deref().unwrap_or_default(), message);
            row.verdict(problem, message)
        }
        Problem::Unreachable(_) => Row::upstream((4, 1)).at(Stage::Connect).verdict(problem, ""),
        Problem::Lost(_) => Row::unknown((4, 2)).verdict(problem, ""),
        Problem::NoCredentials(_) => Row::upstream((7, 0)).at(Stage::Auth).verdict(problem, ""),
        Problem::NoRegion => Row::upstream((3, 5)).at(Stage::Connect).verdict(problem, ""),
        Problem::Unmade(_) => {
            Row { blame: Blame::Local, stage: Stage::Request, ..Row::upstream((3, 0)) }
                .verdict(problem, "")
        }
    }
}

/// A row of the table of errors.
struct Row {
    stage: Stage,
    blame: Blame,
    handoff: Handoff,
    remedy: Remedy,
    /// Whether it is for good.
    permanent: bool,
    /// Subject and detail of the status.
    status: (u16, u16),
    scope: Scope,
    consequence: Consequence,
}

impl Row {
    /// The route's fault; nothing was taken.
    fn upstream(status: (u16, u16)) -> Self {
        Self {
            stage: Stage::Response,
            blame: Blame::Upstream,
            handoff: Handoff::NotSent,
            remedy: Remedy::Time,
            permanent: false,
            status,
            scope: Scope::Upstream,
            consequence: Consequence::None,
        }
    }

    /// The route's fault; it may have been taken.
    fn unknown(status: (u16, u16)) -> Self {
        Self { handoff: Handoff::Unknown, ..Self::upstream(status) }
    }

    /// The message is refused for good.
    fn message(status: (u16, u16), scope: Scope) -> Self {
        Self { blame: Blame::Message, permanent: true, scope, ..Self::upstream(status) }
    }

    fn at(self, stage: Stage) -> Self {
        Self { stage, ..self }
    }

    fn mended_by(self, remedy: Remedy) -> Self {
        Self { remedy, ..self }
    }

    fn then(self, consequence: Consequence) -> Self {
        Self { consequence, ..self }
    }

    fn verdict(self, problem: &Problem, message: &str) -> Verdict {
        let class = if self.permanent { 5 } else { 4 };
        let mut detail = problem.to_string();
        detail.truncate(detail.floor_char_boundary(TEXT_MAX));
        let failure = Failure {
            stage: self.stage,
            blame: self.blame,
            handoff: self.handoff,
            remedy: self.remedy,
            reply: None,
            status: EnhancedStatus::new(class, self.status.0, self.status.1),
            detail: detail.replace(char::is_control, " "),
        };
        let outcome = match (self.handoff, self.permanent) {
            (Handoff::Unknown, _) => RecipientOutcome::Unconfirmed(failure),
            (Handoff::NotSent, true) => RecipientOutcome::Bounced(failure),
            (Handoff::NotSent, false) => RecipientOutcome::Deferred(failure),
        };
        let scope = match self.scope {
            Scope::Named(_) => named(message).map_or(Scope::Somebody, Scope::Named),
            scope => scope,
        };
        Verdict { outcome, scope, consequence: self.consequence }
    }
}

/// The table of errors: those of the SES v2 model, and those every AWS service has.
fn row(status: u16, code: &str, message: &str) -> Row {
    let text = message.to_ascii_lowercase();
    match code {
        _ if status >= 500 || status == 408 => Row::unknown((4, 2)),
        "TooManyRequestsException"
        | "ThrottlingException"
        | "Throttling"
        | "RequestThrottled"
        | "RequestThrottledException"
        | "SlowDown" => throttled(&text),
        "LimitExceededException" if is_daily(&text) => throttled(&text),
        "LimitExceededException" => Row::upstream((4, 5)).then(Consequence::Ask),
        "SendingPausedException" => Row::upstream((7, 0))
            .then(Consequence::Stopped("Amazon has paused sending for this account")),
        "AccountSuspendedException" => {
            Row::upstream((7, 0)).then(Consequence::Stopped("Amazon has suspended this account"))
        }
        "MailFromDomainNotVerifiedException" => Row {
            // A fault of the configuration that concerns the mail of one domain: it is never
            // dropped for it, and the other domains' mail goes on.
            blame: Blame::Message,
            scope: Scope::Message,
            ..Row::upstream((3, 5))
        },
        "MessageRejected" | "MessageRejectedException" => rejected(&text),
        "NotFoundException" => Row::upstream((3, 5)),
        "BadRequestException"
        | "InvalidParameterValue"
        | "ValidationException"
        | "ValidationError" => bad_request(&text),
        "RequestEntityTooLargeException" => Row::message((3, 4), Scope::Message),
        // Our clock or the permissions of the key: other keys would not mend it.
        "RequestExpired" | "RequestTimeTooSkewed" => Row::upstream((7, 0)).at(Stage::Auth),
        _ if is_refused_key(code) && is_skew(&text) => Row::upstream((7, 0)).at(Stage::Auth),
        _ if is_refused_key(code) => {
            Row::upstream((7, 0)).at(Stage::Auth).mended_by(Remedy::Secret)
        }
        "AccessDeniedException" | "AccessDenied" | "OptInRequired" | "NotAuthorized" => {
            Row::upstream((7, 0)).at(Stage::Auth)
        }
        _ => match status {
            413 => Row::message((3, 4), Scope::Message),
            429 => throttled(&text),
            401 | 403 => Row::upstream((7, 0)).at(Stage::Auth),
            200..=299 => Row::unknown((5, 0)),
            // What is not known is the route's fault and no verdict about the mail: a proxy, another
            // service at this address, an error that is newer than this table.
            _ => Row::upstream((3, 0)),
        },
    }
}

fn is_refused_key(code: &str) -> bool {
    matches!(
        code,
        "UnrecognizedClientException"
            | "UnrecognizedClient"
            | "InvalidClientTokenId"
            | "InvalidAccessKeyId"
            | "ExpiredTokenException"
            | "ExpiredToken"
            | "TokenRefreshRequired"
            | "InvalidSignatureException"
            | "InvalidSignature"
            | "SignatureDoesNotMatch"
            | "IncompleteSignature"
            | "IncompleteSignatureException"
            | "MissingAuthenticationToken"
            | "MissingAuthenticationTokenException"
    )
}

/// `Signature expired: 20261121T... is now earlier than ...`, `Signature not yet current: ...`.
fn is_skew(text: &str) -> bool {
    text.contains("signature expired") || text.contains("signature not yet current")
}

fn throttled(text: &str) -> Row {
    let row = Row::upstream((4, 5)).mended_by(Remedy::Slower);
    if is_daily(text) { row.then(Consequence::Stopped("the day's quota is used up")) } else { row }
}

/// `Daily message quota exceeded.`
fn is_daily(text: &str) -> bool {
    text.contains("daily") && text.contains("quota")
}

fn rejected(text: &str) -> Row {
    if text.contains("not verified") {
        return Row::message((7, 1), Scope::Named(Vec::new()));
    }
    if text.contains("authority to send") {
        return Row::message((7, 1), Scope::Message);
    }
    bad_request(text)
}

/// What SES says of content; it says none of it of a recipient.
const OF_CONTENT: [&str; 12] = [
    "header",
    "virus",
    "mime",
    "boundary",
    "attachment",
    "disposition",
    "filename",
    "file name",
    "encoding",
    "message length",
    "message size",
    "content",
];

fn bad_request(text: &str) -> Row {
    if text.contains("message length") || text.contains("message size") {
        return Row::message((3, 4), Scope::Message);
    }
    let of_content = OF_CONTENT.iter().any(|phrase| text.contains(phrase));
    Row::message((6, 0), if of_content { Scope::Message } else { Scope::Somebody })
}

/// The identities in `Email address is not verified. The following identities failed the check in
/// region EU-WEST-1: a@example.com, example.org`, in lower case.
fn named(message: &str) -> Option<Vec<String>> {
    let (_, behind) = message.split_once("failed the check in region")?;
    let (_, list) = behind.split_once(':')?;
    let names = list.split(',').map(|name| {
        let name = name.trim().trim_end_matches('.');
        let address = name.rsplit_once('<').and_then(|(_, rest)| rest.strip_suffix('>'));
        address.unwrap_or(name).to_ascii_lowercase()
    });
    let names: Vec<_> = names.filter(|name| !name.is_empty()).collect();
    if names.is_empty() { None } else { Some(names) }
}

/// The same refusal, now that it is known to be this recipient's fault.
pub(super) fn of_recipient(outcome: RecipientOutcome) -> RecipientOutcome {
    match outcome {
        RecipientOutcome::Bounced(failure) => {
            let (subject, detail) = match (failure.status.subject, failure.status.detail) {
                (6, 0) => (1, 3),
                other => other,
            };
            RecipientOutcome::Bounced(Failure {
                blame: Blame::Recipient,
                status: EnhancedStatus::new(5, subject, detail),
                ..failure
            })
        }
        other => other,
    }
}

/// The same, where the credentials are not a secret of ours: their changes are not seen, so nobody
/// can wait for one.
pub(super) fn mended_by_time(outcome: RecipientOutcome) -> RecipientOutcome {
    match outcome {
        RecipientOutcome::Deferred(failure) if failure.remedy == Remedy::Secret => {
            RecipientOutcome::Deferred(Failure { remedy: Remedy::Time, ..failure })
        }
        other => other,
    }
}

/// A recipient or message that SES is not asked about, for it could not take it.
pub(super) fn unsuited(
    blame: Blame,
    (subject, status): (u16, u16),
    detail: String,
) -> RecipientOutcome {
    RecipientOutcome::Bounced(Failure {
        stage: Stage::Request,
        blame,
        handoff: Handoff::NotSent,
        remedy: Remedy::Time,
        reply: None,
        status: EnhancedStatus::new(5, subject, status),
        detail,
    })
}

/// A recipient that SES was not asked about, for a reason of ours.
pub(super) fn unasked(stage: Stage, detail: String) -> RecipientOutcome {
    RecipientOutcome::Deferred(Failure {
        stage,
        blame: Blame::Local,
        handoff: Handoff::NotSent,
        remedy: Remedy::Time,
        reply: None,
        status: EnhancedStatus::new(4, 3, if stage == Stage::Pool { 2 } else { 0 }),
        detail,
    })
}

/// The failure for those whose turn would have come after a request that failed by the route's fault.
pub(super) fn behind(outcome: RecipientOutcome) -> RecipientOutcome {
    match outcome {
        RecipientOutcome::Unconfirmed(failure) => RecipientOutcome::Deferred(Failure {
            handoff: Handoff::NotSent,
            detail: format!("not tried after: {}", failure.detail),
            ..failure
        }),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, code: &str, message: &str) -> Verdict {
        let code = Some(code.to_owned()).filter(|c| !c.is_empty());
        judge(&Problem::Refused { status, code, message: message.into() })
    }

    /// `deferred upstream slower 4.4.5 response`.
    fn summary(verdict: &Verdict) -> String {
        let (word, f) = match &verdict.outcome {
            RecipientOutcome::Deferred(f) => ("deferred", f),
            RecipientOutcome::Bounced(f) => ("bounced", f),
            RecipientOutcome::Unconfirmed(f) => ("unconfirmed", f),
            RecipientOutcome::Sent { .. } => panic!(),
        };
        let unknown = f.handoff == Handoff::Unknown;
        assert_eq!(unknown, word == "unconfirmed");
        format!("{word} {:?} {:?} {} {}", f.blame, f.remedy, f.status, f.stage).to_lowercase()
    }

    const SLOWER: &str = "deferred upstream slower 4.4.5 response";
    const SECRET: &str = "deferred upstream secret 4.7.0 auth";
    const DENIED: &str = "deferred upstream time 4.7.0 auth";
    const DOWN: &str = "deferred upstream time 4.7.0 response";
    const WRONG: &str = "deferred upstream time 4.3.5 response";
    const ODD: &str = "deferred upstream time 4.3.0 response";
    const UNKNOWN: &str = "unconfirmed upstream time 4.4.2 response";
    const LIMIT: &str = "deferred upstream time 4.4.5 response";
    const MAIL_FROM: &str = "deferred message time 4.3.5 response";
    const IDENTITY: &str = "bounced message time 5.7.1 response";
    const REFUSED: &str = "bounced message time 5.6.0 response";
    const LARGE: &str = "bounced message time 5.3.4 response";
    const STRANGE: &str = "unconfirmed upstream time 4.5.0 response";
    const NONE: Consequence = Consequence::None;
    const ASK: Consequence = Consequence::Ask;
    const PAUSED: Consequence = Consequence::Stopped("Amazon has paused sending for this account");
    const SUSPENDED: Consequence = Consequence::Stopped("Amazon has suspended this account");
    const USED_UP: Consequence = Consequence::Stopped("the day's quota is used up");

    /// HTTP status, code and text; then the summary, the scope, and the consequence.
    #[rustfmt::skip]
    const ROWS: [(u16, &str, &str, &str, &str, Consequence); 38] = [
        (429, "TooManyRequestsException", "Rate exceeded", SLOWER, "up", NONE),
        (400, "ThrottlingException", "Maximum sending rate exceeded.", SLOWER, "up", NONE),
        (400, "Throttling", "Daily message quota exceeded.", SLOWER, "up", USED_UP),
        (429, "TooManyRequestsException", "Daily message quota exceeded", SLOWER, "up", USED_UP),
        (429, "", "", SLOWER, "up", NONE),
        (400, "LimitExceededException", "", LIMIT, "up", ASK),
        (400, "LimitExceededException", "daily quota", SLOWER, "up", USED_UP),
        (400, "SendingPausedException", "paused", DOWN, "up", PAUSED),
        (400, "AccountSuspendedException", "x", DOWN, "up", SUSPENDED),
        (400, "MailFromDomainNotVerifiedException", "x", MAIL_FROM, "message", NONE),
        (400, "MessageRejected", "Email address is not verified.", IDENTITY, "somebody", NONE),
        (400, "MessageRejected", "Did not have authority to send from email a@b",
            IDENTITY, "message", NONE),
        (400, "MessageRejected", "Message content contains a virus.", REFUSED, "message", NONE),
        (400, "MessageRejected", "Duplicate header 'From'.", REFUSED, "message", NONE),
        (400, "MessageRejected", "Transaction failed: x", REFUSED, "somebody", NONE),
        (404, "NotFoundException", "Configuration set <x> does not exist.", WRONG, "up", NONE),
        (400, "BadRequestException", "Missing final '@domain'", REFUSED, "somebody", NONE),
        (400, "BadRequestException", "Message length is more than 10485760 bytes long",
            LARGE, "message", NONE),
        (413, "RequestEntityTooLargeException", "", LARGE, "message", NONE),
        (413, "", "", LARGE, "message", NONE),
        (403, "AccessDeniedException", "not authorized", DENIED, "up", NONE),
        (403, "", "", DENIED, "up", NONE),
        (403, "UnrecognizedClientException", "token is invalid", SECRET, "up", NONE),
        (403, "InvalidClientTokenId", "x", SECRET, "up", NONE),
        (403, "ExpiredTokenException", "x", SECRET, "up", NONE),
        (403, "InvalidSignatureException", "does not match", SECRET, "up", NONE),
        (403, "InvalidSignatureException", "Signature expired: 2026", DENIED, "up", NONE),
        (403, "InvalidSignatureException", "Signature not yet current", DENIED, "up", NONE),
        (400, "RequestExpired", "x", DENIED, "up", NONE),
        (500, "InternalFailure", "", UNKNOWN, "up", NONE),
        (500, "InternalServiceErrorException", "", UNKNOWN, "up", NONE),
        (503, "ServiceUnavailable", "", UNKNOWN, "up", NONE),
        (502, "", "", UNKNOWN, "up", NONE),
        (503, "ThrottlingException", "slow", UNKNOWN, "up", NONE),
        (408, "", "", UNKNOWN, "up", NONE),
        (404, "", "", ODD, "up", NONE),
        (418, "NewException", "x", ODD, "up", NONE),
        (200, "", "", STRANGE, "up", NONE),
    ];

    #[test]
    fn every_row_of_the_error_table_has_its_verdict() {
        for (status, code, message, expected, scope, consequence) in ROWS {
            let verdict = refused(status, code, message);
            assert_eq!(summary(&verdict), expected, "{status} {code} {message}");
            let word = match verdict.scope {
                Scope::Upstream => "up",
                Scope::Message => "message",
                Scope::Somebody => "somebody",
                Scope::Named(_) => "named",
            };
            assert_eq!(word, scope, "{status} {code} {message}");
            assert_eq!(verdict.consequence, consequence, "{status} {code} {message}");
        }
    }

    #[test]
    fn what_came_without_an_answer_is_unknown_unless_there_was_no_connection() {
        for (problem, expected) in [
            (Problem::Unreachable("refused".into()), "deferred upstream time 4.4.1 connect"),
            (Problem::Lost("closed".into()), "unconfirmed upstream time 4.4.2 response"),
            (Problem::NoCredentials("none".into()), "deferred upstream time 4.7.0 auth"),
            (Problem::NoRegion, "deferred upstream time 4.3.5 connect"),
            (Problem::Unmade("odd".into()), "deferred local time 4.3.0 request"),
        ] {
            assert_eq!(summary(&judge(&problem)), expected, "{problem}");
        }
    }

    #[test]
    fn the_identities_that_failed_the_check_are_found() {
        let text = "Email address is not verified. The following identities failed the check in \
                    region EU-WEST-1: A@Example.com, Ann <b@example.org>, example.net.";
        let Scope::Named(names) = refused(400, "MessageRejected", text).scope else { panic!() };
        assert_eq!(names, ["a@example.com", "b@example.org", "example.net"]);
    }

    #[test]
    fn an_answers_text_is_kept_in_part_and_on_one_line() {
        for n in [TEXT_MAX - 1, TEXT_MAX, TEXT_MAX + 1] {
            let text = format!("a\r\n{}", "\u{e9}".repeat(n));
            let verdict = refused(400, "BadRequestException", &text);
            let detail = &verdict.outcome.failure().unwrap().detail;
            assert!(detail.len() <= TEXT_MAX && !detail.contains(char::is_control), "{n}");
            assert!(detail.starts_with("400 BadRequestException: a  \u{e9}"), "{detail}");
        }
    }
}
