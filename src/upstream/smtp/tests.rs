//! The smarthost upstream against a scripted server.

use std::time::Duration;

use sha2::{Digest, Sha256};

use super::fake::{Do, Fake, close, say, self_signed, signed};
use super::*;
use crate::mail::{
    Blame, BodyKind, Failure, ForwardPath, Mailbox, Notify, Recipient, Ret, ReversePath,
};
use crate::secret::{Place, Secret};
use crate::upstream::Free;

const ALL: &[&str] = &["PIPELINING", "SIZE 10000", "8BITMIME", "DSN", "SMTPUTF8"];
const TEXT: &str = "Subject: x\r\n\r\n.dot\r\nend\r\n";

fn envelope(recipients: &[&str]) -> Envelope {
    let mailbox = |s: &str| Mailbox::parse(s.as_bytes()).unwrap();
    Envelope {
        reverse_path: ReversePath::Mailbox(mailbox("from@a.example")),
        recipients: recipients.iter().map(|r| ForwardPath(mailbox(r)).into()).collect(),
        body: BodyKind::SevenBit,
        smtputf8: false,
        ret: None,
        envid: None,
    }
}

fn login(version: u64) -> Arc<Credentials> {
    let password = Secret::new("secret".into());
    Arc::new(Credentials::new("relay".into(), password, version))
}

fn upstream(settings: Settings) -> SmtpUpstream {
    SmtpUpstream::new(settings, watch::channel(Some(login(1))).1).unwrap()
}

async fn send(upstream: &SmtpUpstream, envelope: &Envelope) -> Outcome {
    let body = Body::Memory(TEXT.into());
    let deadline = Instant::now() + Duration::from_secs(30);
    upstream.deliver(envelope, &body, &Free, deadline.into_std()).await
}

async fn send_one(settings: Settings) -> RecipientOutcome {
    let outcome = send(&upstream(settings), &envelope(&["to@b.example"])).await;
    outcome.recipients.into_iter().next().unwrap()
}

fn deferred(outcome: &RecipientOutcome) -> &Failure {
    let RecipientOutcome::Deferred(failure) = outcome else { panic!("{outcome:?}") };
    assert_eq!(failure.handoff, Handoff::NotSent);
    failure
}

fn is_sent(outcome: &RecipientOutcome) -> bool {
    matches!(outcome, RecipientOutcome::Sent { .. })
}

#[tokio::test]
async fn a_message_arrives_and_the_remote_queue_id_is_kept() {
    for extensions in [ALL, &[]] {
        let fake = Fake::start(extensions).await;
        let upstream = upstream(fake.settings());
        let outcome = send(&upstream, &envelope(&["x@b.example", "y@b.example"])).await;
        for recipient in &outcome.recipients {
            let RecipientOutcome::Sent { reply } = recipient else { panic!("{recipient:?}") };
            assert_eq!(reply.to_string(), "250 2.0.0 Ok: queued as 4FAKE");
        }
        assert_eq!(outcome.relay, Some(format!("localhost[127.0.0.1]:{}", fake.port)));
        let log = fake.log();
        assert_eq!(log.messages, ["Subject: x\r\n\r\n..dot\r\nend"]);
        let size = if extensions.is_empty() { "" } else { " SIZE=25" };
        let mail = format!("MAIL FROM:<from@a.example>{size}");
        let rest = ["RCPT TO:<x@b.example>", "RCPT TO:<y@b.example>", "DATA"];
        assert_eq!(log.commands[1..], [&[mail.as_str()][..], &rest].concat());
    }
}

#[tokio::test]
async fn a_connection_is_used_again_and_closed_after_its_last_message() {
    let fake = Fake::start(ALL).await;
    let mut settings = fake.settings();
    settings.pool.max_messages = 2;
    let upstream = upstream(settings);
    for connections in [1, 1, 2] {
        assert!(is_sent(&send(&upstream, &envelope(&["x@b.example"])).await.recipients[0]));
        assert_eq!(fake.log().connections, connections);
    }
    upstream.close().await;
    let commands = fake.log().commands;
    assert_eq!(commands.iter().filter(|c| *c == "RSET").count(), 0);
    assert_eq!(commands.last().map(String::as_str), Some("QUIT"));
}

#[tokio::test]
async fn one_refused_recipient_of_three_harms_no_other() {
    for extensions in [ALL, &[]] {
        let no = say("550 5.1.1 unknown\r\n");
        let fake = Fake::start(extensions).await.on("RCPT TO:<y", no);
        let upstream = upstream(fake.settings());
        let to = envelope(&["x@b.example", "y@b.example", "z@b.example"]);
        let got = send(&upstream, &to).await.recipients;
        assert!(is_sent(&got[0]) && is_sent(&got[2]));
        let RecipientOutcome::Bounced(failure) = &got[1] else { panic!("{:?}", got[1]) };
        assert_eq!((failure.stage, failure.blame), (Stage::Rcpt, Blame::Recipient));
        assert_eq!(fake.log().messages.len(), 1);
    }
}

/// Writes down who was refused before the content left.
#[derive(Default)]
struct Watch(std::sync::Mutex<Vec<Vec<usize>>>);

#[async_trait]
impl Leaving for Watch {
    async fn content_leaves(&self, refused: &[usize]) -> Result<(), String> {
        self.0.lock().unwrap().push(refused.to_vec());
        Ok(())
    }
}

#[tokio::test]
async fn leave_is_asked_once_and_told_who_is_not_to_have_it() {
    let fake = Fake::start(ALL).await.on("RCPT TO:<y", say("550 5.1.1 unknown\r\n"));
    let (upstream, watch) = (upstream(fake.settings()), Watch::default());
    let to = envelope(&["x@b.example", "y@b.example", "z@b.example"]);
    let deadline = Instant::now() + Duration::from_secs(30);
    upstream.deliver(&to, &Body::Memory(TEXT.into()), &watch, deadline.into_std()).await;
    assert_eq!(*watch.0.lock().unwrap(), [[1]]);
}

#[tokio::test]
async fn when_every_recipient_is_refused_no_content_is_sent_and_the_connection_lives() {
    for (extensions, data) in [(ALL, "354 go\r\n"), (ALL, "554 5.5.1 none\r\n"), (&[], "")] {
        let mut fake = Fake::start(extensions).await.once("RCPT", say("450 4.2.1 busy\r\n"));
        if data.starts_with('5') {
            fake = fake.once("DATA", say(data)).once("NO CONTENT", say(""));
        }
        let upstream = upstream(fake.settings());
        let first = send(&upstream, &envelope(&["x@b.example"])).await;
        assert_eq!(deferred(&first.recipients[0]).blame, Blame::Recipient);
        assert!(is_sent(&send(&upstream, &envelope(&["x@b.example"])).await.recipients[0]));
        let log = fake.log();
        assert_eq!(log.connections, 1);
        assert!(log.commands.contains(&"RSET".to_owned()));
        let content: Vec<_> = log.messages.iter().filter(|m| !m.is_empty()).collect();
        assert_eq!(content.len(), 1);
    }
}

#[tokio::test]
async fn parameters_are_passed_on_where_they_are_offered() {
    let mut to = envelope(&["x@b.example"]);
    to.ret = Some(Ret::Hdrs);
    to.envid = Some("QQ+3D314".into());
    to.recipients[0].notify = Some(Notify::default());
    to.recipients[0].orcpt = Some("rfc822;x@b.example".into());
    let fake = Fake::start(&["DSN"]).await;
    send(&upstream(fake.settings()), &to).await;
    let commands = fake.log().commands;
    assert_eq!(commands[1], "MAIL FROM:<from@a.example> RET=HDRS ENVID=QQ+3D314");
    assert_eq!(commands[2], "RCPT TO:<x@b.example> NOTIFY=NEVER ORCPT=rfc822;x@b.example");
    let fake = Fake::start(&[]).await;
    send(&upstream(fake.settings()), &to).await;
    assert_eq!(fake.log().commands[1..3], ["MAIL FROM:<from@a.example>", "RCPT TO:<x@b.example>"]);
}

#[tokio::test]
async fn what_the_upstream_cannot_carry_is_not_sent_to_it() {
    let mut eight = envelope(&["x@b.example"]);
    eight.body = BodyKind::EightBitMime;
    let utf8 = envelope(&["jürgen@b.example"]);
    let plain = envelope(&["x@b.example"]);
    for (to, extensions, want) in [
        (&plain, &["SIZE 24"], Some("5.3.4")),
        (&plain, &["SIZE 25"], None),
        (&plain, &["SIZE 26"], None),
        (&eight, &["DSN"], Some("5.6.3")),
        (&eight, &["8BITMIME"], None),
        (&utf8, &["DSN"], Some("5.6.7")),
        (&utf8, &["SMTPUTF8"], None),
    ] {
        let fake = Fake::start(extensions).await;
        let got = send(&upstream(fake.settings()), to).await.recipients;
        let status = got[0].failure().map(|f| f.status.to_string());
        assert_eq!(status.as_deref(), want, "{extensions:?}");
        let asked = fake.log().commands.iter().any(|c| c.starts_with("MAIL"));
        assert_eq!(asked, want.is_none());
    }
}

#[tokio::test]
async fn silence_and_hanging_up_before_the_dot_defer_at_their_stage() {
    for (command, stage) in [
        ("GREETING", Stage::Greeting),
        ("EHLO", Stage::Ehlo),
        ("MAIL", Stage::Mail),
        ("RCPT", Stage::Rcpt),
        ("DATA", Stage::Data),
    ] {
        for extensions in [ALL, &[]] {
            for what in [Do::Hang, close(), Do::Close("25".into()), say("999 yes\r\n")] {
                let fake = Fake::start(extensions).await.on(command, what.clone());
                let got = send_one(fake.settings()).await;
                let failure = deferred(&got);
                assert_eq!((failure.stage, failure.blame), (stage, Blame::Upstream), "{what:?}");
                assert!(fake.log().messages.is_empty());
            }
        }
    }
}

#[tokio::test]
async fn no_valid_reply_to_the_final_dot_is_unconfirmed() {
    for what in [
        Do::Hang,
        close(),
        Do::Close("25".into()),
        say("999 yes\r\n"),
        say("354 again\r\n"),
        say("250-Ok\r\n451 4.3.0 or not\r\n"),
        say(&("250-x\r\n".repeat(100) + "250 x\r\n")),
        say("\u{15}\u{3}\u{1}\r\n"),
    ] {
        let fake = Fake::start(ALL).await.on(".", what.clone());
        let RecipientOutcome::Unconfirmed(failure) = send_one(fake.settings()).await else {
            panic!("{what:?}")
        };
        assert_eq!(failure.stage, Stage::EndOfData);
        assert_eq!((failure.handoff, failure.blame), (Handoff::Unknown, Blame::Upstream));
        assert_eq!(fake.log().messages.len(), 1);
    }
}

#[tokio::test]
async fn the_reply_to_the_final_dot_decides() {
    for (wire, want) in [
        ("250-a\r\n250 b\r\n", "sent"),
        ("250 Ok\r\n550 surplus\r\n", "sent"),
        ("451 4.6.0 later\r\n", "deferred"),
        ("421 4.3.2 closing\r\n", "deferred"),
        ("554 5.7.1 spam\r\n", "bounced"),
    ] {
        let fake = Fake::start(ALL).await.on(".", say(wire));
        let word = match send_one(fake.settings()).await {
            RecipientOutcome::Sent { .. } => "sent",
            RecipientOutcome::Deferred(_) => "deferred",
            RecipientOutcome::Bounced(_) => "bounced",
            RecipientOutcome::Unconfirmed(_) => "unconfirmed",
        };
        assert_eq!(word, want, "{wire}");
    }
}

#[tokio::test]
async fn a_success_that_came_before_the_dot_is_not_believed() {
    let fake = Fake::start(&[]).await.on("DATA", say("354 go\r\n250 2.0.0 queued\r\n"));
    let got = send_one(fake.settings()).await;
    assert_eq!(deferred(&got).stage, Stage::Data);
    for command in ["MAIL", "RCPT"] {
        let fake = Fake::start(&[]).await.on(command, say("250 a\r\n250 b\r\n"));
        deferred(&send_one(fake.settings()).await);
        assert!(fake.log().messages.is_empty());
    }
}

#[tokio::test]
async fn a_refusal_that_came_before_the_dot_is_a_verdict_about_the_content() {
    for (wire, bounces, blame) in [
        ("552 5.3.4 too big\r\n", true, Blame::Message),
        ("451 4.6.0 not now\r\n", false, Blame::Message),
        ("421 4.3.2 closing\r\n", false, Blame::Upstream),
    ] {
        let data = Do::Close(format!("354 go\r\n{wire}"));
        let fake = Fake::start(&[]).await.on("DATA", data);
        let got = send_one(fake.settings()).await;
        assert_eq!(matches!(got, RecipientOutcome::Bounced(_)), bounces, "{wire}");
        let failure = got.failure().unwrap();
        assert_eq!((failure.stage, failure.blame), (Stage::Data, blame), "{wire}");
    }
}

#[tokio::test]
async fn a_421_at_mail_is_the_upstreams_fault() {
    let fake = Fake::start(ALL).await.on("MAIL", Do::Close("421 4.3.2 closing\r\n".into()));
    let got = send_one(fake.settings()).await;
    assert_eq!(deferred(&got).to_string(), "421 4.3.2 closing");
    assert_eq!((deferred(&got).blame, fake.log().connections), (Blame::Upstream, 1));
}

#[tokio::test]
async fn an_idle_connection_that_died_costs_nothing() {
    for (command, what) in [
        ("MAIL", close()),
        ("MAIL", Do::Close("421 4.4.2 timeout\r\n".into())),
        ("RCPT", say("451 4.4.2 Timeout waiting for data\r\n")),
        ("DATA", close()),
        ("DATA", say("rubbish\r\n")),
    ] {
        let fake = Fake::start(&[]).await;
        let upstream = upstream(fake.settings());
        assert!(is_sent(&send(&upstream, &envelope(&["x@b.example"])).await.recipients[0]));
        let fake = fake.once(command, what.clone());
        let outcome = send(&upstream, &envelope(&["x@b.example"])).await;
        assert!(is_sent(&outcome.recipients[0]), "{command} {what:?} {outcome:?}");
        assert_eq!((fake.log().connections, fake.log().messages.len()), (2, 2));
    }
}

#[tokio::test]
async fn a_peer_that_closed_while_idle_is_noticed_before_the_next_command() {
    let fake = Fake::start(ALL).await.once(".", Do::Close("250 Ok\r\n".into()));
    let upstream = upstream(fake.settings());
    for _ in 0..2 {
        assert!(is_sent(&send(&upstream, &envelope(&["x@b.example"])).await.recipients[0]));
    }
    assert_eq!((fake.log().connections, fake.log().messages.len()), (2, 2));
}

#[tokio::test]
async fn a_connection_that_stays_idle_is_closed_with_quit() {
    let fake = Fake::start(ALL).await;
    let mut settings = fake.settings();
    settings.pool.max_idle = Duration::from_millis(20);
    let upstream = upstream(settings);
    for connections in 1..=2 {
        assert!(is_sent(&send(&upstream, &envelope(&["x@b.example"])).await.recipients[0]));
        while fake.log().commands.iter().filter(|c| *c == "QUIT").count() < connections {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(fake.log().connections, connections);
    }
}

#[tokio::test]
async fn the_next_address_is_tried_when_the_first_is_dead() {
    let fake = Fake::start(ALL).await;
    let mut settings = fake.settings();
    settings.address.insert(0, "127.0.0.2".parse().unwrap());
    assert!(is_sent(&send_one(settings.clone()).await));
    settings.address.pop();
    let got = send_one(settings).await;
    assert_eq!((deferred(&got).stage, deferred(&got).blame), (Stage::Connect, Blame::Upstream));
}

#[tokio::test]
async fn an_upstream_that_knows_only_helo_gets_helo() {
    let fake = Fake::start(ALL).await.on("EHLO", say("502 5.5.1 what\r\n"));
    assert!(is_sent(&send_one(fake.settings()).await));
    let commands = fake.log().commands;
    assert_eq!(commands[1..3], ["HELO gate.example", "MAIL FROM:<from@a.example>"]);
}

#[tokio::test]
async fn a_place_in_the_pool_is_waited_for_no_longer_than_the_deadline() {
    let fake = Fake::start(ALL).await.on(".", Do::Hang);
    let mut settings = fake.settings();
    settings.pool.max_connections = 1;
    settings.timeouts.end_of_data = Duration::from_mins(1);
    let upstream = Arc::new(upstream(settings));
    let busy = Arc::clone(&upstream);
    let busy = tokio::spawn(async move { send(&busy, &envelope(&["x@b.example"])).await });
    while fake.log().messages.is_empty() {
        tokio::task::yield_now().await;
    }
    let body = Body::Memory(TEXT.into());
    let soon = (Instant::now() + Duration::from_millis(50)).into_std();
    let outcome = upstream.deliver(&envelope(&["y@b.example"]), &body, &Free, soon).await;
    let failure = deferred(&outcome.recipients[0]);
    assert_eq!((failure.stage, failure.blame), (Stage::Pool, Blame::Local));
    busy.abort();
}

#[tokio::test]
async fn a_body_that_cannot_be_read_is_never_ended() {
    struct Broken;
    impl crate::mail::ReadAt for Broken {
        fn read_exact_at(&self, _: &mut [u8], _: u64) -> std::io::Result<()> {
            Err(std::io::ErrorKind::InvalidData.into())
        }
    }
    let fake = Fake::start(ALL).await;
    let upstream = upstream(fake.settings());
    let deadline = (Instant::now() + Duration::from_secs(30)).into_std();
    let stored = Body::Stored { source: Arc::new(Broken), len: 100 };
    for (body, stage) in [(stored, Stage::Storage), (Body::Memory("a\nb".into()), Stage::Data)] {
        let outcome = upstream.deliver(&envelope(&["x@b.example"]), &body, &Free, deadline).await;
        let failure = deferred(&outcome.recipients[0]);
        assert_eq!((failure.stage, failure.blame), (stage, Blame::Local));
    }
    assert!(fake.log().messages.is_empty());
}

#[tokio::test]
async fn a_large_body_arrives_whole() {
    let text = "0123456789abcdef.\r\n..\r\n".repeat(50_000);
    let fake = Fake::start(&["PIPELINING"]).await;
    let mut settings = fake.settings();
    settings.timeouts.end_of_data = Duration::from_secs(20);
    settings.timeouts.data = Duration::from_secs(20);
    let deadline = (Instant::now() + Duration::from_secs(30)).into_std();
    let body = Body::Memory(text.clone().into());
    let outcome =
        upstream(settings).deliver(&envelope(&["x@b.example"]), &body, &Free, deadline).await;
    assert!(is_sent(&outcome.recipients[0]));
    let unstuffed = fake.log().messages[0].replace("\r\n..", "\r\n.") + "\r\n";
    assert!(unstuffed == text, "{} octets", unstuffed.len());
}

#[tokio::test]
async fn many_recipients_go_in_bounded_flights() {
    let fake = Fake::start(ALL).await;
    let names: Vec<String> = (0..250).map(|i| format!("r{i}@b.example")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let outcome = send(&upstream(fake.settings()), &envelope(&names)).await;
    assert_eq!(outcome.recipients.iter().filter(|r| is_sent(r)).count(), 250);
    let recipient: Recipient = envelope(&names).recipients[249].clone();
    assert!(fake.log().commands.contains(&format!("RCPT TO:<{}>", recipient.path)));
}

mod secured {
    use super::*;
    use crate::upstream::smtp::fake::{Identity, Pem};

    async fn starttls((_, identity): &(Pem, Identity), extensions: &[&'static str]) -> Fake {
        Fake::start(&["STARTTLS"]).await.with_tls(identity, extensions)
    }

    #[tokio::test]
    async fn the_certificate_decides() {
        let good = signed("localhost", 2100);
        let other = signed("localhost", 2100);
        let wrong_name = signed("elsewhere.example", 2100);
        let expired = signed("localhost", 2024);
        let pinned = self_signed("localhost", 2100);
        let pinned_name = self_signed("elsewhere.example", 2100);
        let pinned_expired = self_signed("localhost", 2024);
        let hash =
            |it: &(Pem, Identity)| Verify::Fingerprint(Sha256::digest(&it.1.certificate).into());
        let (right, wrong) = (hash(&good), hash(&other));
        for (server, trusted, verify, ok) in [
            (&good, &good, Verify::Full, true),
            (&good, &other, Verify::Full, false),
            (&good, &other, Verify::CaOnly, false),
            (&good, &other, Verify::None, true),
            (&good, &other, right, true),
            (&good, &good, wrong, false),
            (&wrong_name, &wrong_name, Verify::Full, false),
            (&wrong_name, &wrong_name, Verify::CaOnly, true),
            (&expired, &expired, Verify::Full, false),
            (&expired, &expired, Verify::CaOnly, false),
            (&pinned, &pinned, Verify::Full, true),
            (&pinned, &good, Verify::Full, false),
            (&pinned_name, &pinned_name, Verify::Full, false),
            (&pinned_name, &pinned_name, Verify::CaOnly, true),
            (&pinned_expired, &pinned_expired, Verify::Full, false),
        ] {
            let fake = starttls(server, ALL).await;
            let mut settings = fake.tls_settings(&trusted.0);
            settings.verify = verify;
            let got = send_one(settings).await;
            assert_eq!(is_sent(&got), ok, "{verify:?} {got:?}");
            if !ok {
                assert_eq!(
                    (deferred(&got).stage, deferred(&got).blame),
                    (Stage::Tls, Blame::Upstream)
                );
            }
        }
    }

    #[tokio::test]
    async fn another_name_and_implicit_tls_can_be_set() {
        let it = signed("elsewhere.example", 2100);
        let fake = Fake::start(ALL).await.with_tls(&it.1, ALL).implicit();
        let mut settings = fake.tls_settings(&it.0);
        settings.tls = Some(TlsMode::Implicit);
        settings.tls_server_name = Some("elsewhere.example".into());
        let outcome = send(&upstream(settings), &envelope(&["x@b.example"])).await;
        assert!(is_sent(&outcome.recipients[0]));
        assert_eq!(outcome.tls.as_deref(), Some("TLSv1.3"));
        assert!(!fake.log().commands.contains(&"STARTTLS".to_owned()));
    }

    #[tokio::test]
    async fn required_tls_is_never_done_without() {
        let it = signed("localhost", 2100);
        let missing = Fake::start(ALL).await;
        let refused = starttls(&it, ALL).await.on("STARTTLS", say("454 4.7.0 no TLS\r\n"));
        let injected = starttls(&it, ALL).await.on("STARTTLS", say("220 go\r\n250 forged\r\n"));
        let silent = starttls(&it, ALL).await.on("STARTTLS", Do::Hang);
        for (fake, why) in [
            (missing, "tls: STARTTLS is required and not offered"),
            (refused, "454 4.7.0 no TLS"),
            (injected, "tls: octets in clear after the reply to STARTTLS"),
            (silent, "tls: timed out after 100 ms"),
        ] {
            let mut settings = fake.tls_settings(&it.0);
            settings.timeouts.command = Duration::from_millis(100);
            let got = send_one(settings).await;
            assert_eq!(deferred(&got).to_string(), why);
            assert_eq!((deferred(&got).stage, deferred(&got).blame), (Stage::Tls, Blame::Upstream));
            assert!(!fake.log().commands.iter().any(|c| c.starts_with("MAIL")));
        }
    }

    #[tokio::test]
    async fn opportunistic_tls_is_used_where_it_is_offered() {
        let it = signed("localhost", 2100);
        for (extensions, encrypted) in [(&["STARTTLS"], true), (&["DSN"], false)] {
            let fake = Fake::start(extensions).await.with_tls(&it.1, ALL);
            let mut settings = fake.tls_settings(&it.0);
            settings.tls = Some(TlsMode::Opportunistic);
            let outcome = send(&upstream(settings), &envelope(&["x@b.example"])).await;
            assert!(is_sent(&outcome.recipients[0]));
            assert_eq!(outcome.tls.is_some(), encrypted);
        }
    }

    #[tokio::test]
    async fn a_login_is_made_with_the_first_mechanism_that_is_offered() {
        let it = signed("localhost", 2100);
        for (offered, first) in [
            ("AUTH CRAM-MD5 LOGIN PLAIN", "AUTH PLAIN AHJlbGF5AHNlY3JldA=="),
            ("AUTH LOGIN", "AUTH LOGIN"),
        ] {
            let fake = Fake::start(&["STARTTLS", "AUTH PLAIN"]).await;
            let fake = fake.with_tls(&it.1, &[offered]);
            let mut settings = fake.tls_settings(&it.0);
            settings.auth_required = true;
            assert!(is_sent(&send_one(settings).await));
            let commands = fake.log().commands;
            assert_eq!(commands[3], first);
            if first == "AUTH LOGIN" {
                assert_eq!(commands[4..6], ["cmVsYXk=", "c2VjcmV0"]);
            }
        }
    }

    #[tokio::test]
    async fn a_failed_login_is_the_routes_fault_and_passwords_stay_out_of_sight() {
        let it = signed("localhost", 2100);
        for (reply, mechanisms) in [
            ("535 5.7.8 Error: authentication failed\r\n", "AUTH PLAIN"),
            ("454 4.7.0 Connection lost to authentication server\r\n", "AUTH PLAIN"),
            ("500 5.5.1 Command unrecognized: \"AUTH PLAIN AHJlbGF5AHNlY\"\r\n", "AUTH PLAIN"),
            ("504-5.5.4 what?\r\n504 5.5.4 c2VjcmV0\r\n", "AUTH LOGIN"),
            ("535 5.7.8 not 'secret'\r\n", "AUTH PLAIN"),
            ("AUTH PLAIN AHJlbGF5AHNlY3JldA==\r\n", "AUTH PLAIN"),
            ("", "AUTH CRAM-MD5"),
        ] {
            let mut fake = starttls(&it, &[mechanisms]).await;
            if !reply.is_empty() {
                fake = fake.on("AUTH", say(reply));
            }
            let mut settings = fake.tls_settings(&it.0);
            settings.auth_required = true;
            let got = send_one(settings).await;
            assert_eq!(
                (deferred(&got).stage, deferred(&got).blame),
                (Stage::Auth, Blame::Upstream)
            );
            let seen = format!("{got:?}");
            for secret in ["secret", "c2VjcmV0", "AHJlbGF5"] {
                assert!(!seen.contains(secret), "{seen}");
            }
            let repeats = ["AUTH PLAIN AH", "c2V", "'secret'"].iter().any(|s| reply.contains(s));
            assert_eq!(seen.contains("[redacted"), repeats, "{seen}");
        }
    }

    #[tokio::test]
    async fn nothing_is_told_in_clear_and_nothing_without_credentials() {
        let fake = Fake::start(&["AUTH PLAIN LOGIN"]).await;
        let mut settings = fake.settings();
        settings.auth_required = true;
        let got = send_one(settings.clone()).await;
        assert_eq!(deferred(&got).to_string(), "auth: will not log in without TLS");
        let none = SmtpUpstream::new(settings, watch::channel(None).1).unwrap();
        let got = send(&none, &envelope(&["x@b.example"])).await.recipients;
        assert_eq!(deferred(&got[0]).to_string(), "auth: no credentials available");
        assert!(!fake.log().commands.iter().any(|c| c.starts_with("AUTH")));
    }

    #[tokio::test]
    async fn new_credentials_retire_the_connections_made_with_old_ones() {
        let it = signed("localhost", 2100);
        let fake = starttls(&it, &["AUTH PLAIN"]).await;
        let mut settings = fake.tls_settings(&it.0);
        settings.auth_required = true;
        let (change, receiver) = watch::channel(Some(login(1)));
        let upstream = SmtpUpstream::new(settings, receiver).unwrap();
        for (version, connections) in [(1, 1), (1, 1), (2, 2)] {
            change.send(Some(login(version))).unwrap();
            assert!(is_sent(&send(&upstream, &envelope(&["x@b.example"])).await.recipients[0]));
            assert_eq!(fake.log().connections, connections);
        }
    }

    #[tokio::test]
    async fn a_secret_that_moves_the_smarthost_is_followed() {
        let it = (signed("old.example", 2100), signed("new.example", 2100));
        let (old, new) =
            (starttls(&it.0, &["AUTH PLAIN"]).await, starttls(&it.1, &["AUTH PLAIN"]).await);
        let place = |host: &str, fake: &Fake| Place {
            host: Some(host.into()),
            port: Some(fake.port),
            ..Place::default()
        };
        let secret = |version, place| {
            Some(Arc::new(Credentials { place, ..Credentials::clone(&login(version)) }))
        };
        let mut settings = old.tls_settings(&it.0.0);
        (settings.host, settings.port, settings.tls) = (None, None, None);
        let authorities = [it.0.0.path(), it.1.0.path()].map(|p| std::fs::read(p).unwrap());
        std::fs::write(it.0.0.path(), authorities.concat()).unwrap();
        settings.auth_required = true;
        let (change, receiver) = watch::channel(secret(1, Place::default()));
        let upstream = SmtpUpstream::new(settings, receiver).unwrap();
        assert!(upstream.standing().wanting.unwrap().contains("names a host"));
        for (version, place, relay) in [
            (2, place("old.example", &old), format!("old.example[127.0.0.1]:{}", old.port)),
            (3, place("new.example", &new), format!("new.example[127.0.0.1]:{}", new.port)),
        ] {
            change.send(secret(version, place)).unwrap();
            assert_eq!(upstream.standing().wanting, None);
            let outcome = send(&upstream, &envelope(&["x@b.example"])).await;
            assert!(is_sent(&outcome.recipients[0]), "{:?}", outcome.recipients);
            assert_eq!(outcome.relay, Some(relay));
            assert_eq!(outcome.tls.as_deref(), Some("TLSv1.3"));
        }
        assert_eq!((old.log().connections, new.log().connections), (1, 1));
    }
}
