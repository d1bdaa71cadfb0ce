//! The SES upstream against a stand-in for SES that fails in every way the real one may.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::missing_panics_doc,
    missing_docs,
    unreachable_pub,
    dead_code,
    reason = "a test stops at the first thing that is not as it should be"
)]

#[path = "support/ses.rs"]
mod ses;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use postgate::clock::SystemClock;
use postgate::mail::{
    Blame, Body, BodyKind, Envelope, Failure, ForwardPath, Handoff, Mailbox, Outcome, QueueId,
    ReadAt, RecipientOutcome, Remedy, ReversePath, Stage,
};
use postgate::policy::bucket::{Rate, Unit};
use postgate::policy::routing::Pattern;
use postgate::secret::{Credentials, Place, Secret};
use postgate::upstream::ses::{SenderPolicy, SesUpstream, Settings};
use postgate::upstream::{Label, Leaving, Standing, Upstream};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use ses::{Asking, FakeSes, Fault};
use tokio::sync::{Notify, watch};

const MESSAGE: &str = "From: app@x.example\r\nSubject: hi\r\n\r\nbody\r\n";

/// A fake, an upstream that talks to it, and the credentials it uses.
struct Rig {
    fake: FakeSes,
    upstream: SesUpstream,
    credentials: watch::Sender<Option<Arc<Credentials>>>,
    changed: Arc<Notify>,
    leaves: Leaves,
}

/// Counts how often content leaves, and keeps whom it was not for the last time.
#[derive(Default)]
struct Leaves {
    times: AtomicUsize,
    not_for: Mutex<Vec<usize>>,
    refused: bool,
}

#[async_trait]
impl Leaving for Leaves {
    async fn content_leaves(&self, refused: &[usize]) -> Result<(), String> {
        self.times.fetch_add(1, Ordering::SeqCst);
        refused.clone_into(&mut self.not_for.lock().unwrap());
        if self.refused { Err("the note could not be written".into()) } else { Ok(()) }
    }

    fn label(&self) -> Option<Label> {
        Some(Label { id: QueueId::from_u64(7), attempt: 2 })
    }
}

fn settings(fake: &FakeSes) -> Settings {
    Settings {
        name: "ses".into(),
        region: Some("eu-west-1".into()),
        endpoint: Some(fake.endpoint()),
        secret: true,
        ca_file: None,
        configuration_set: None,
        tags: vec![],
        feedback_address: None,
        sender: SenderPolicy::default(),
        keep_dkim: false,
        max_size: 1 << 20,
        day_reserve: 0,
        max_connections: 4,
        connect_timeout: Duration::from_secs(5),
        request_timeout: Duration::from_secs(30),
        account_every: Duration::from_mins(1),
    }
}

fn key(id: &str, version: u64) -> Arc<Credentials> {
    Arc::new(Credentials::new(id.into(), Secret::new("s3cret".into()), version))
}

async fn rig() -> Rig {
    rig_with(|_| {}).await
}

async fn rig_with(change: impl FnOnce(&mut Settings)) -> Rig {
    let fake = FakeSes::start().await;
    let mut settings = settings(&fake);
    change(&mut settings);
    let (credentials, receiver) = watch::channel(Some(key("AKIDONE", 1)));
    let changed = Arc::new(Notify::new());
    let clock = Arc::new(SystemClock);
    let upstream = SesUpstream::new(settings, receiver, clock, Arc::clone(&changed)).unwrap();
    Rig { fake, upstream, credentials, changed, leaves: Leaves::default() }
}

impl Rig {
    async fn deliver(&self, recipients: &[&str]) -> Outcome {
        self.deliver_body(recipients, Body::Memory(MESSAGE.into())).await
    }

    async fn deliver_body(&self, recipients: &[&str], body: Body) -> Outcome {
        let deadline = Instant::now() + Duration::from_mins(1);
        self.upstream.deliver(&envelope(recipients), &body, &self.leaves, deadline).await
    }

    fn sends(&self) -> usize {
        self.fake.state().sends
    }

    /// Returns when this holds of the standing; the upstream says when to look again.
    async fn standing_until(&self, holds: impl Fn(&Standing) -> bool) -> Standing {
        loop {
            let standing = self.upstream.standing();
            if holds(&standing) {
                return standing;
            }
            self.changed.notified().await;
        }
    }
}

fn mailbox(text: &str) -> Mailbox {
    Mailbox::parse(text.as_bytes()).unwrap()
}

fn envelope(recipients: &[&str]) -> Envelope {
    Envelope {
        reverse_path: ReversePath::Mailbox(mailbox("app@x.example")),
        recipients: recipients.iter().map(|r| ForwardPath(mailbox(r)).into()).collect(),
        body: BodyKind::SevenBit,
        smtputf8: false,
        ret: None,
        envid: None,
    }
}

fn word(outcome: &RecipientOutcome) -> &'static str {
    match outcome {
        RecipientOutcome::Sent { .. } => "sent",
        RecipientOutcome::Deferred(_) => "deferred",
        RecipientOutcome::Bounced(_) => "bounced",
        RecipientOutcome::Unconfirmed(_) => "unconfirmed",
    }
}

fn words(outcome: &Outcome) -> Vec<&'static str> {
    outcome.recipients.iter().map(word).collect()
}

/// `unconfirmed upstream 4.4.2 response`, for an outcome that is the same for all recipients.
fn summary(outcome: &Outcome) -> String {
    let first = &outcome.recipients[0];
    assert!(outcome.recipients.iter().all(|o| word(o) == word(first)));
    let Some(f) = first.failure() else { return "sent".into() };
    format!("{} {:?} {} {}", word(first), f.blame, f.status, f.stage).to_lowercase()
}

fn failure(outcome: &Outcome, place: usize) -> &Failure {
    outcome.recipients[place].failure().unwrap()
}

fn numbered(n: usize) -> Vec<String> {
    (0..n).map(|n| format!("r{n}@b.example")).collect()
}

fn refs(texts: &[String]) -> Vec<&str> {
    texts.iter().map(String::as_str).collect()
}

#[tokio::test]
async fn a_message_is_sent_once_to_the_envelopes_recipients_and_says_who_it_is() {
    let rig = rig_with(|s| {
        s.configuration_set = Some("transactional".into());
        s.tags = vec![("team".into(), "a b".into())];
        s.feedback_address = Some("bounces@x.example".into());
    })
    .await;
    let message = "To: other@c.example\r\nBcc: hidden@c.example\r\nX-SES-TENANT: t\r\n\
                   Return-Path: <z@x>\r\nDKIM-Signature: v=1;\r\n b=x\r\nX-Odd:  \t odd  \r\n\
                   From: app@x.example\r\n\r\n\x00\u{e4}\r\n.\r\nBcc: stays\r\n\r\n";
    let body = Body::Memory(message.into());
    let outcome = rig.deliver_body(&["a@b.example", "B@c.example"], body).await;
    let sent = rig.fake.sent();
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].to, ["a@b.example", "B@c.example"]);
    let edited = "To: other@c.example\r\nX-Odd:  \t odd  \r\nFrom: app@x.example\r\n\r\n\
                  \x00\u{e4}\r\n.\r\nBcc: stays\r\n\r\n";
    assert_eq!(sent[0].raw, edited.as_bytes());
    let tags: Vec<_> = sent[0].tags.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(tags, ["postgate-attempt=2", "postgate-queue-id=0000000000007", "team=a_b"]);
    assert_eq!(sent[0].configuration_set.as_deref(), Some("transactional"));
    assert_eq!(sent[0].feedback.as_deref(), Some("bounces@x.example"));
    for absent in ["FromEmailAddress", "ReplyToAddresses"] {
        assert!(sent[0].request.get(absent).is_none(), "{absent}");
    }
    let RecipientOutcome::Sent { reply } = &outcome.recipients[1] else { panic!() };
    let id = format!("250 2.0.0 <{}@eu-west-1.amazonses.com>", sent[0].message_id);
    assert_eq!(reply.to_string(), id);
    assert_eq!(outcome.relay, Some(rig.fake.address.to_string()));
    assert_eq!((rig.sends(), rig.leaves.times.load(Ordering::SeqCst)), (1, 1));
}

/// What SES may answer, and what becomes of the mail, its handoff, and the remedy.
const ANSWERS: [(Fault, &str, Handoff, Remedy); 20] = [
    (
        Fault::Error(429, "TooManyRequestsException", "Maximum sending rate exceeded."),
        "deferred upstream 4.4.5 response",
        Handoff::NotSent,
        Remedy::Slower,
    ),
    (
        Fault::Error(400, "ThrottlingException", "Rate exceeded"),
        "deferred upstream 4.4.5 response",
        Handoff::NotSent,
        Remedy::Slower,
    ),
    (
        Fault::Error(429, "TooManyRequestsException", "Daily message quota exceeded."),
        "deferred upstream 4.4.5 response",
        Handoff::NotSent,
        Remedy::Slower,
    ),
    (
        Fault::Error(400, "LimitExceededException", "x"),
        "deferred upstream 4.4.5 response",
        Handoff::NotSent,
        Remedy::Time,
    ),
    (
        Fault::Error(400, "SendingPausedException", "x"),
        "deferred upstream 4.7.0 response",
        Handoff::NotSent,
        Remedy::Time,
    ),
    (
        Fault::Error(400, "AccountSuspendedException", "x"),
        "deferred upstream 4.7.0 response",
        Handoff::NotSent,
        Remedy::Time,
    ),
    (
        Fault::Error(400, "MailFromDomainNotVerifiedException", "x"),
        "deferred message 4.3.5 response",
        Handoff::NotSent,
        Remedy::Time,
    ),
    (
        Fault::Error(400, "MessageRejected", "Email address is not verified."),
        "bounced message 5.7.1 response",
        Handoff::NotSent,
        Remedy::Time,
    ),
    (
        Fault::Error(400, "MessageRejected", "Message content contains a virus."),
        "bounced message 5.6.0 response",
        Handoff::NotSent,
        Remedy::Time,
    ),
    (
        Fault::Error(404, "NotFoundException", "Configuration set <x> does not exist."),
        "deferred upstream 4.3.5 response",
        Handoff::NotSent,
        Remedy::Time,
    ),
    (
        Fault::Error(400, "BadRequestException", "Duplicate header 'Subject'."),
        "bounced message 5.6.0 response",
        Handoff::NotSent,
        Remedy::Time,
    ),
    (
        Fault::Error(403, "AccessDeniedException", "ses:SendRawEmail"),
        "deferred upstream 4.7.0 auth",
        Handoff::NotSent,
        Remedy::Time,
    ),
    (
        Fault::Error(403, "InvalidSignatureException", "does not match"),
        "deferred upstream 4.7.0 auth",
        Handoff::NotSent,
        Remedy::Secret,
    ),
    (
        Fault::Error(403, "InvalidSignatureException", "Signature expired: 1 is now earlier"),
        "deferred upstream 4.7.0 auth",
        Handoff::NotSent,
        Remedy::Time,
    ),
    (
        Fault::Error(500, "InternalFailure", ""),
        "unconfirmed upstream 4.4.2 response",
        Handoff::Unknown,
        Remedy::Time,
    ),
    (
        Fault::Error(503, "ServiceUnavailable", ""),
        "unconfirmed upstream 4.4.2 response",
        Handoff::Unknown,
        Remedy::Time,
    ),
    (Fault::Page(502), "unconfirmed upstream 4.4.2 response", Handoff::Unknown, Remedy::Time),
    (Fault::Page(404), "deferred upstream 4.3.0 response", Handoff::NotSent, Remedy::Time),
    (Fault::Page(403), "deferred upstream 4.7.0 auth", Handoff::NotSent, Remedy::Time),
    (Fault::Page(413), "bounced message 5.3.4 response", Handoff::NotSent, Remedy::Time),
];

#[tokio::test]
async fn each_answer_has_its_outcome_and_none_is_asked_for_again() {
    for (fault, expected, handoff, remedy) in ANSWERS {
        let rig = rig().await;
        rig.fake.then([fault.clone()]);
        let outcome = rig.deliver(&["a@b.example"]).await;
        assert_eq!(summary(&outcome), expected, "{fault:?}");
        let f = failure(&outcome, 0);
        assert_eq!((f.handoff, f.remedy), (handoff, remedy), "{fault:?}");
        assert_eq!((rig.sends(), rig.fake.sent().len()), (1, 0), "{fault:?}");
        if let Fault::Error(status, code, _) = fault {
            assert!(f.detail.starts_with(&format!("{status} {code}")), "{}", f.detail);
        }
    }
}

#[tokio::test]
async fn an_answer_that_does_not_come_leaves_the_mail_unconfirmed() {
    for fault in [
        Fault::Hang { taken: true },
        Fault::Hang { taken: false },
        Fault::Reset { taken: true },
        Fault::Reset { taken: false },
        Fault::Close { taken: true },
        Fault::Close { taken: false },
        Fault::ResetEarly,
        Fault::Cut,
        Fault::Garbage,
    ] {
        let rig = rig_with(|s| s.request_timeout = Duration::from_millis(600)).await;
        rig.fake.then([fault.clone()]);
        // Too large for what the system holds on its way, so that a reset meets it.
        let large = format!("{MESSAGE}{}", "x".repeat(900_000));
        let outcome = rig.deliver_body(&["a@b.example"], Body::Memory(large.into())).await;
        let detail = if matches!(fault, Fault::Garbage) { "4.5.0" } else { "4.4.2" };
        let expected = format!("unconfirmed upstream {detail} response");
        assert_eq!(summary(&outcome), expected, "{fault:?}");
        assert_eq!(failure(&outcome, 0).handoff, Handoff::Unknown);
        let early = usize::from(!matches!(fault, Fault::ResetEarly));
        assert_eq!(rig.sends(), early, "{fault:?}: asked for again");
    }
}

#[tokio::test]
async fn an_attempt_ends_at_its_deadline() {
    let rig = rig().await;
    rig.fake.then([Fault::Hang { taken: true }]);
    let deadline = Instant::now() + Duration::from_millis(300);
    let body = Body::Memory(MESSAGE.into());
    let outcome =
        rig.upstream.deliver(&envelope(&["a@b.example"]), &body, &rig.leaves, deadline).await;
    assert_eq!(summary(&outcome), "unconfirmed upstream 4.4.2 response");
}

#[tokio::test]
async fn where_nobody_listens_the_mail_was_surely_not_sent() {
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = free.local_addr().unwrap();
    drop(free);
    for endpoint in [format!("http://{nobody}"), "http://nowhere.invalid".to_owned()] {
        let rig = rig_with(|s| s.endpoint = Some(endpoint)).await;
        let outcome = rig.deliver(&["a@b.example"]).await;
        assert_eq!(summary(&outcome), "deferred upstream 4.4.1 connect");
        assert_eq!(failure(&outcome, 0).handoff, Handoff::NotSent);
    }
}

#[tokio::test]
async fn a_failed_or_hanging_tls_handshake_was_surely_not_sent() {
    // The fake speaks no TLS: it waits for the rest of a header, or (a port that never reads) hangs.
    let hanging = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closing = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addresses = [hanging.local_addr().unwrap(), closing.local_addr().unwrap()];
    let close = tokio::spawn(async move { while closing.accept().await.is_ok() {} });
    for address in addresses {
        let rig = rig_with(|s| {
            s.endpoint = Some(format!("https://{address}"));
            s.connect_timeout = Duration::from_millis(400);
        })
        .await;
        let outcome = rig.deliver(&["a@b.example"]).await;
        assert_eq!(summary(&outcome), "deferred upstream 4.4.1 connect");
    }
    close.abort();
}

#[tokio::test]
async fn an_accepted_mail_without_an_id_was_sent_all_the_same() {
    let rig = rig().await;
    rig.fake.then([Fault::NoMessageId]);
    let outcome = rig.deliver(&["a@b.example"]).await;
    let RecipientOutcome::Sent { reply } = &outcome.recipients[0] else { panic!() };
    assert!(reply.to_string().contains("named no message id"));
}

#[tokio::test]
async fn other_credentials_are_used_by_the_next_request() {
    let rig = rig().await;
    rig.fake.state().expired.insert("AKIDONE".into());
    let outcome = rig.deliver(&["a@b.example"]).await;
    assert_eq!(summary(&outcome), "deferred upstream 4.7.0 auth");
    assert_eq!(failure(&outcome, 0).remedy, Remedy::Secret);
    assert_eq!(rig.upstream.standing().secret, 1);
    rig.credentials.send_replace(Some(key("AKIDTWO", 2)));
    assert_eq!(rig.upstream.standing().secret, 2);
    assert_eq!(summary(&rig.deliver(&["a@b.example"]).await), "sent");
    assert_eq!(rig.fake.sent()[0].key, "AKIDTWO");
}

#[tokio::test]
async fn what_aws_would_have_signed_is_not_repeated() {
    let rig = rig().await;
    let message = "The request signature we calculated does not match.\n\n\
                   The Canonical String for this request should have been\n\
                   'POST\n/v2/email/outbound-emails\n\nx-amz-security-token:planted\n'";
    rig.fake.then([Fault::Error(403, "SignatureDoesNotMatch", message)]);
    let outcome = rig.deliver(&["a@b.example"]).await;
    assert_eq!(failure(&outcome, 0).remedy, Remedy::Secret);
    let shown = format!("{outcome:?}");
    assert!(shown.contains("signature we calculated") && !shown.contains("planted"), "{shown}");
}

#[tokio::test]
async fn without_credentials_nothing_is_asked_for() {
    let rig = rig().await;
    rig.credentials.send_replace(None);
    assert!(rig.upstream.standing().wanting.unwrap().starts_with("no credentials yet"));
    let outcome = rig.deliver(&["a@b.example"]).await;
    assert_eq!(summary(&outcome), "deferred upstream 4.7.0 auth");
    assert_eq!((rig.sends(), rig.leaves.times.load(Ordering::SeqCst)), (0, 0));
}

#[tokio::test]
async fn the_region_is_the_secrets_where_the_configuration_names_none() {
    let rig = rig_with(|s| s.region = None).await;
    let with = |region: &str| {
        let mut credentials = (*key("AKIDONE", 1)).clone();
        credentials.place = Place { region: Some(region.into()), ..Place::default() };
        Some(Arc::new(credentials))
    };
    for (region, host) in
        [("us-east-1", "email.amazonses.com"), ("eu-west-3", "eu-west-3.amazonses.com")]
    {
        rig.credentials.send_replace(with(region));
        let outcome = rig.deliver(&["a@b.example"]).await;
        let RecipientOutcome::Sent { reply } = &outcome.recipients[0] else { panic!() };
        assert!(reply.to_string().ends_with(&format!("@{host}>")), "{reply}");
    }
}

#[tokio::test]
async fn one_bad_address_of_fifty_costs_only_itself() {
    for place in [0, 24, 25, 49] {
        let rig = rig().await;
        let recipients = numbered(50);
        rig.fake.state().bad.insert(recipients[place].clone());
        let outcome = rig.deliver(&refs(&recipients)).await;
        for (n, outcome) in outcome.recipients.iter().enumerate() {
            assert_eq!(word(outcome), if n == place { "bounced" } else { "sent" }, "{n}");
        }
        let f = failure(&outcome, place);
        assert_eq!((f.blame, f.status.to_string().as_str()), (Blame::Recipient, "5.1.3"));
        let mut served: Vec<_> = rig.fake.sent().into_iter().flat_map(|s| s.to).collect();
        served.sort();
        served.dedup();
        assert_eq!(served.len(), 49, "each once");
        assert!(rig.sends() <= 13, "{}", rig.sends());
        assert_eq!(rig.leaves.times.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test]
async fn fifty_bad_addresses_cost_at_most_twice_as_many_requests() {
    let rig = rig().await;
    let recipients = numbered(50);
    rig.fake.state().bad.extend(recipients.iter().cloned());
    let outcome = rig.deliver(&refs(&recipients)).await;
    assert_eq!(summary(&outcome), "bounced message 5.6.0 response");
    assert_eq!(rig.sends(), 99);
}

#[tokio::test]
async fn what_is_said_of_the_content_is_not_asked_for_recipient_by_recipient() {
    let rig = rig().await;
    rig.fake.state().always =
        Some(Fault::Error(400, "MessageRejected", "Message content contains a virus."));
    let outcome = rig.deliver(&refs(&numbered(50))).await;
    assert_eq!(summary(&outcome), "bounced message 5.6.0 response");
    assert_eq!(rig.sends(), 1);
}

#[tokio::test]
async fn a_half_whose_answer_was_lost_is_unconfirmed_alone() {
    let rig = rig().await;
    let recipients = numbered(4);
    rig.fake.then([
        Fault::Error(400, "BadRequestException", "Illegal address"),
        Fault::Reset { taken: true },
    ]);
    let outcome = rig.deliver(&refs(&recipients)).await;
    assert_eq!(words(&outcome), ["unconfirmed", "unconfirmed", "deferred", "deferred"]);
    assert_eq!(failure(&outcome, 2).handoff, Handoff::NotSent);
    assert_eq!(rig.sends(), 2);

    rig.fake.then([
        Fault::Error(400, "BadRequestException", "Illegal address"),
        Fault::Slow(Duration::ZERO),
        Fault::Reset { taken: false },
    ]);
    let outcome = rig.deliver(&refs(&recipients)).await;
    assert_eq!(words(&outcome), ["sent", "sent", "unconfirmed", "unconfirmed"]);
}

#[tokio::test]
async fn in_the_sandbox_those_who_are_not_verified_are_taken_out_at_once() {
    let rig = rig().await;
    {
        let mut state = rig.fake.state();
        state.account.production = false;
        state.account.max = 200.0;
        state.account.rate = 1.0;
        state.verified.extend(["r0@b.example".to_owned(), "r2@b.example".to_owned()]);
    }
    let standing = rig.standing_until(|s| s.wanting.is_none()).await;
    assert!(standing.sandbox);
    assert_eq!(standing.rate, Some(Rate { per_second: 1.0, of: Unit::Recipients }));
    let outcome = rig.deliver(&refs(&numbered(4))).await;
    assert_eq!(words(&outcome), ["sent", "bounced", "sent", "bounced"]);
    let f = failure(&outcome, 1);
    assert_eq!((f.blame, f.status.to_string().as_str()), (Blame::Recipient, "5.7.1"));
    assert_eq!(rig.sends(), 2);
    let status = serde_json::to_value(rig.upstream.status()).unwrap();
    assert_eq!(status["sandbox"], true);
    assert_eq!(status["left"], 198.0);
}

#[tokio::test]
async fn an_attempt_has_at_most_fifty_recipients() {
    let rig = rig().await;
    assert_eq!(rig.upstream.standing().max_recipients, 50);
    for (n, expected, sends) in [(49, "sent", 1), (50, "sent", 2)] {
        assert_eq!(summary(&rig.deliver(&refs(&numbered(n))).await), expected);
        assert_eq!(rig.sends(), sends);
    }
    let outcome = rig.deliver(&refs(&numbered(51))).await;
    assert_eq!(summary(&outcome), "deferred local 4.3.0 request");
    assert_eq!(rig.sends(), 2);
}

#[tokio::test]
async fn an_international_domain_travels_in_ascii() {
    let rig = rig().await;
    let outcome = rig.deliver(&["a@b\u{fc}cher.example", "\u{e4}@b.example"]).await;
    assert_eq!(words(&outcome), ["sent", "bounced"]);
    assert_eq!(rig.fake.sent()[0].to, ["a@xn--bcher-kva.example"]);
    assert_eq!(failure(&outcome, 1).status.to_string(), "5.6.7");
    assert_eq!(*rig.leaves.not_for.lock().unwrap(), [1], "who is not asked for is said before");
}

#[tokio::test]
async fn the_secrets_sender_is_the_default_where_there_is_none_and_it_is_allowed() {
    let allowed = vec![Pattern::Domain("ok.example".into())];
    let rig = rig_with(|s| s.sender = SenderPolicy { allowed, default: None }).await;
    let says = |from: Option<&str>| {
        let mut credentials = (*key("AKIDONE", 1)).clone();
        credentials.place.from = from.map(ToOwned::to_owned);
        rig.credentials.send_replace(Some(Arc::new(credentials)));
        rig.upstream.standing().rewrites_sender
    };
    for bad in [None, Some("a@other.example"), Some("nobody")] {
        assert!(!says(bad), "{bad:?}");
    }
    assert!(says(Some("mail@ok.example")));
    assert_eq!(summary(&rig.deliver(&["b@b.example"]).await), "sent");
    let raw = String::from_utf8(rig.fake.sent()[0].raw.clone()).unwrap();
    assert!(raw.contains("<mail@ok.example>") || raw.contains("From: mail@ok.example"), "{raw}");
    rig.credentials.send_replace(None);
    assert!(rig.upstream.standing().rewrites_sender, "a secret to come may name one");

    let all = rig_with(|s| s.sender = SenderPolicy::default()).await;
    assert!(!all.upstream.standing().rewrites_sender);
}

#[tokio::test]
async fn the_sender_gives_way_or_the_message_is_not_for_ses() {
    let allowed = vec![Pattern::Domain("ok.example".into())];
    let policy = SenderPolicy { allowed: allowed.clone(), default: Some("r@ok.example".into()) };
    let rig = rig_with(|s| s.sender = policy).await;
    assert_eq!(summary(&rig.deliver(&["a@b.example"]).await), "sent");
    let edited = "From: r@ok.example\r\nReply-To: app@x.example\r\n\
                  X-Original-From: app@x.example\r\nSubject: hi\r\n\r\nbody\r\n";
    assert_eq!(rig.fake.sent()[0].raw, edited.as_bytes());

    let rig = rig_with(|s| s.sender = SenderPolicy { allowed, default: None }).await;
    let outcome = rig.deliver(&["a@b.example"]).await;
    assert_eq!(summary(&outcome), "bounced message 5.7.1 request");
    assert_eq!((rig.sends(), rig.leaves.times.load(Ordering::SeqCst)), (0, 0));
}

#[tokio::test]
async fn what_cannot_be_sent_is_not_tried() {
    struct Broken;
    impl ReadAt for Broken {
        fn read_exact_at(&self, _: &mut [u8], _: u64) -> std::io::Result<()> {
            Err(std::io::ErrorKind::InvalidData.into())
        }
    }
    let rig = rig().await;
    for (size, expected) in [
        ((1 << 20) - 1, "sent"),
        (1 << 20, "sent"),
        ((1 << 20) + 1, "bounced message 5.3.4 request"),
    ] {
        let body = format!("{MESSAGE}{}", "x".repeat(size - MESSAGE.len()));
        let outcome = rig.deliver_body(&["a@b.example"], Body::Memory(body.into())).await;
        assert_eq!(summary(&outcome), expected, "{size}");
    }
    let broken = Body::Stored { source: Arc::new(Broken), len: 10 };
    let outcome = rig.deliver_body(&["a@b.example"], broken).await;
    assert_eq!(summary(&outcome), "deferred local 4.3.0 storage");
    let mut null = envelope(&["a@b.example"]);
    null.reverse_path = ReversePath::Null;
    let deadline = Instant::now() + Duration::from_mins(1);
    let body = Body::Memory(MESSAGE.into());
    let outcome = rig.upstream.deliver(&null, &body, &rig.leaves, deadline).await;
    assert_eq!(summary(&outcome), "bounced message 5.7.1 request");
    assert_eq!(rig.sends(), 2);

    let refused = Leaves { refused: true, ..Leaves::default() };
    let outcome =
        rig.upstream.deliver(&envelope(&["a@b.example"]), &body, &refused, deadline).await;
    assert_eq!(summary(&outcome), "deferred local 4.3.0 request");
    assert_eq!(failure(&outcome, 0).stage, Stage::Request);
    assert_eq!(rig.sends(), 2);
}

#[tokio::test]
async fn a_body_on_disk_arrives_as_it_lies_there() {
    struct Disk(Vec<u8>);
    impl ReadAt for Disk {
        fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
            let start = usize::try_from(offset).unwrap();
            buf.copy_from_slice(&self.0[start..start + buf.len()]);
            Ok(())
        }
    }
    let rig = rig().await;
    let mut octets = MESSAGE.as_bytes().to_vec();
    octets.extend((0..700_000_u32).map(|n| n.to_le_bytes()[usize::from(n % 3 == 0)]));
    let body = Body::Stored { source: Arc::new(Disk(octets.clone())), len: octets.len() as u64 };
    assert_eq!(summary(&rig.deliver_body(&["a@b.example"], body).await), "sent");
    assert!(rig.fake.sent()[0].raw == octets);
}

#[tokio::test]
async fn a_paused_account_takes_nothing_until_it_says_otherwise() {
    let rig = rig_with(|s| s.account_every = Duration::from_millis(60)).await;
    let standing = rig.standing_until(|s| s.wanting.is_none()).await;
    assert_eq!(standing.rate, Some(Rate { per_second: 14.0, of: Unit::Recipients }));
    rig.fake.state().account.sending = false;
    let outcome = rig.deliver(&["a@b.example"]).await;
    assert_eq!(summary(&outcome), "deferred upstream 4.7.0 response");
    let standing = rig.standing_until(|s| s.wanting.is_some()).await;
    assert_eq!(standing.wanting.as_deref(), Some("Amazon has paused sending for this account"));
    let asked = rig.fake.state().asked;
    rig.fake.until(|state| state.asked > asked + 1).await;
    assert!(rig.upstream.standing().wanting.is_some(), "the account still says so");
    rig.fake.state().account.sending = true;
    rig.standing_until(|s| s.wanting.is_none()).await;
    assert_eq!(summary(&rig.deliver(&["a@b.example"]).await), "sent");
}

#[tokio::test]
async fn the_days_quota_is_kept_and_its_reserve_left_to_others() {
    let rig = rig_with(|s| s.day_reserve = 10).await;
    {
        let mut state = rig.fake.state();
        state.account.max = 200.0;
        state.account.sent = 187.0;
    }
    rig.standing_until(|s| s.wanting.is_none()).await;
    assert_eq!(rig.upstream.status().left, Some(3.0));
    assert_eq!(summary(&rig.deliver(&refs(&numbered(2))).await), "sent");
    assert!(rig.upstream.standing().wanting.is_none());
    assert_eq!(summary(&rig.deliver(&["a@b.example"]).await), "sent");
    let standing = rig.upstream.standing();
    assert_eq!(standing.wanting.as_deref(), Some("the day's quota is used up"));
}

#[tokio::test]
async fn an_account_that_cannot_be_asked_hinders_nothing() {
    for asking in [Asking::Missing, Asking::Forbidden] {
        let rig = rig().await;
        rig.fake.state().account.asking = asking;
        let standing = rig.standing_until(|s| s.wanting.is_none()).await;
        assert_eq!((standing.rate, standing.sandbox), (None, false));
        assert!(rig.upstream.status().error.is_some());
        assert_eq!(summary(&rig.deliver(&["a@b.example"]).await), "sent");
    }
}

#[tokio::test]
async fn other_credentials_have_the_account_asked_at_once() {
    let rig = rig().await;
    rig.fake.state().keys.insert("AKIDTWO".into());
    rig.standing_until(|s| s.wanting.is_none()).await;
    assert!(rig.upstream.status().error.unwrap().contains("UnrecognizedClientException"));
    rig.credentials.send_replace(Some(key("AKIDTWO", 2)));
    rig.standing_until(|s| s.rate.is_some()).await;
}

#[tokio::test]
async fn nobody_asks_for_the_account_once_the_upstream_is_gone() {
    let rig = rig_with(|s| s.account_every = Duration::from_millis(1)).await;
    rig.standing_until(|s| s.wanting.is_none()).await;
    let (fake, upstream) = (rig.fake, rig.upstream);
    drop(upstream);
    tokio::task::yield_now().await;
    let asked = fake.state().asked;
    // A request that is under way comes at most once more.
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
    assert!(fake.state().asked <= asked + 1);
}

#[tokio::test]
async fn throttled_recipients_go_when_there_is_room() {
    let rig = rig().await;
    rig.fake.state().recipients_left = Some(3);
    let three = numbered(3);
    assert_eq!(summary(&rig.deliver(&refs(&three)).await), "sent");
    let outcome = rig.deliver(&["a@b.example"]).await;
    assert_eq!(failure(&outcome, 0).remedy, Remedy::Slower);
    assert!(rig.upstream.standing().wanting.is_none() || rig.fake.state().asked == 0);
    rig.fake.state().recipients_left = None;
    assert_eq!(summary(&rig.deliver(&["a@b.example"]).await), "sent");
}

#[tokio::test]
async fn attempts_beyond_the_connections_wait_for_their_turn() {
    let rig = rig_with(|s| s.max_connections = 1).await;
    rig.fake.then([Fault::Hang { taken: false }]);
    let rig = Arc::new(rig);
    let first = tokio::spawn({
        let rig = Arc::clone(&rig);
        async move { rig.deliver(&["a@b.example"]).await }
    });
    rig.fake.until(|state| state.sends == 1).await;
    let deadline = Instant::now() + Duration::from_millis(200);
    let body = Body::Memory(MESSAGE.into());
    let leaves = Leaves::default();
    let outcome = rig.upstream.deliver(&envelope(&["b@b.example"]), &body, &leaves, deadline).await;
    assert_eq!(summary(&outcome), "deferred local 4.3.2 pool");
    assert_eq!(leaves.times.load(Ordering::SeqCst), 0);
    first.abort();
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let fake = runtime.block_on(FakeSes::start());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ca.pem");
    let refused = |change: &dyn Fn(&mut Settings)| {
        let mut settings = settings(&fake);
        change(&mut settings);
        let (_, receiver) = watch::channel(None);
        let clock = Arc::new(SystemClock);
        SesUpstream::new(settings, receiver, clock, Arc::default()).err().map(|e| e.to_string())
    };
    for endpoint in ["ftp://x", "x", "http://", "http://u:p@x", "http:// x"] {
        assert!(refused(&|s| s.endpoint = Some(endpoint.into())).is_some(), "{endpoint}");
    }
    let with_ca = |s: &mut Settings| {
        (s.endpoint, s.ca_file) = (Some("https://x".into()), Some(file.clone()));
    };
    assert!(refused(&with_ca).unwrap().starts_with("cannot read "));
    for text in ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        std::fs::write(&file, text).unwrap();
        assert!(refused(&with_ca).unwrap().contains("holds no certificate authority"), "{text}");
    }
    let senders = |default: &str| SenderPolicy {
        allowed: vec![Pattern::Domain("ok.example".into())],
        default: Some(default.into()),
    };
    assert!(refused(&|s| s.sender = senders("nobody")).is_some());
    assert!(refused(&|s| s.sender = senders("a@other.example")).is_some());
    assert_eq!(refused(&|s| s.sender = senders("a@ok.example")), None);
}

/// Where [`a_process_with_credentials_of_the_chain`] finds its SES.
const ENDPOINT: &str = "POSTGATE_TEST_SES_ENDPOINT";

#[tokio::test]
async fn without_a_secret_the_aws_chain_signs() {
    let fake = FakeSes::start().await;
    let container = format!("{}/credentials", fake.endpoint());
    let given: [(&str, &[(&str, &str)]); 2] = [
        ("AKIDENV", &[("AWS_ACCESS_KEY_ID", "AKIDENV"), ("AWS_SECRET_ACCESS_KEY", "s3cret")]),
        ("AKIDCONTAINER", &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", &container)]),
    ];
    for (key, environment) in given {
        let mut child = tokio::process::Command::new(std::env::current_exe().unwrap());
        let child = child
            .args(["--exact", "a_process_with_credentials_of_the_chain"])
            .env_clear()
            .env("AWS_REGION", "eu-south-1")
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_CONFIG_FILE", "/nonexistent")
            .env("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
            .env(ENDPOINT, fake.endpoint())
            .envs(environment.iter().copied());
        let output = child.output().await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        assert_eq!(fake.sent().last().unwrap().key, key);
    }
    assert_eq!(fake.sent().len(), 2);
}

/// Not a test of its own: the one above starts it.
#[tokio::test]
async fn a_process_with_credentials_of_the_chain() {
    let Ok(endpoint) = std::env::var(ENDPOINT) else { return };
    let rig = rig_with(|s| {
        (s.endpoint, s.region, s.secret) = (Some(endpoint), None, false);
    })
    .await;
    let outcome = rig.deliver(&["a@b.example"]).await;
    let RecipientOutcome::Sent { reply } = &outcome.recipients[0] else { panic!("{outcome:?}") };
    assert!(reply.to_string().ends_with("@eu-south-1.amazonses.com>"), "{reply}");
}

/// TLS before the fake, with a certificate of an authority of its own: its port, and the authority.
async fn tls_before(fake: &FakeSes) -> (std::net::SocketAddr, String) {
    let mut ca = CertificateParams::new(Vec::<String>::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = KeyPair::generate().unwrap();
    let authority = ca.self_signed(&ca_key).unwrap().pem();
    let issuer = Issuer::new(ca, ca_key);
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &issuer).unwrap().der().clone();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf], key.serialize_der().try_into().unwrap())
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, behind) = (listener.local_addr().unwrap(), fake.address);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut onward = tokio::net::TcpStream::connect(behind).await.unwrap();
            tokio::spawn(async move {
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut onward).await;
            });
        }
    });
    (address, authority)
}

#[tokio::test]
async fn an_authority_of_ones_own_is_trusted_when_it_is_named_and_not_else() {
    let fake = FakeSes::start().await;
    let (address, authority) = tls_before(&fake).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ca.pem");
    std::fs::write(&file, authority).unwrap();
    for (ca_file, expected) in [(Some(file), "sent"), (None, "deferred upstream 4.4.1 connect")] {
        let rig = rig_with(|s| {
            (s.endpoint, s.ca_file) = (Some(format!("https://{address}")), ca_file);
        })
        .await;
        let outcome = rig.deliver(&["a@b.example"]).await;
        assert_eq!(summary(&outcome), expected, "{outcome:?}");
    }
    assert_eq!(fake.sent().len(), 1);
}
