//! The probe against scripted servers.

use super::*;
use crate::secret::Secret;
use crate::upstream::smtp::fake::{Do, Fake, Pem, say, self_signed, signed};

const NOW: Timestamp = Timestamp::from_millis(1_795_252_321_431);

fn login() -> Arc<Credentials> {
    let password = Secret::new("secret".into());
    Arc::new(Credentials::new("relay".into(), password, 1))
}

fn submission(fake: &Fake, pem: &Pem) -> Settings {
    let mut settings = fake.tls_settings(pem);
    settings.auth_required = true;
    settings
}

async fn run(settings: Settings, rcpt: Option<&str>) -> Report {
    let rcpt = rcpt.map(|r| Mailbox::parse(r.as_bytes()).unwrap());
    probe(settings, Some(login()), &Options { rcpt, from: None }, NOW).await.unwrap()
}

fn summary(report: &Report) -> String {
    let stage = |s: &StageReport| format!("{:?} {}", s.status, s.stage.word()).to_lowercase();
    report.stages.iter().map(stage).collect::<Vec<_>>().join(", ")
}

#[tokio::test]
async fn a_good_submission_service_passes_every_stage() {
    let (pem, identity) = signed("localhost", 2100);
    let fake = Fake::start(&["STARTTLS", "SIZE 1000"]).await.with_tls(&identity, &["AUTH PLAIN"]);
    let report = run(submission(&fake, &pem), Some("to@b.example")).await;
    assert_eq!(
        summary(&report),
        "ok dns, ok tcp, ok greeting, ok ehlo, ok starttls, ok cert, ok ehlo/tls, ok auth, ok rcpt"
    );
    assert_eq!((report.exit_code, &report.diagnosis), (0, &None));
    assert_eq!(report.stages[3].detail, "STARTTLS, SIZE 1000");
    let cert = &report.stages[5].detail;
    assert!(cert.starts_with("TLSv1.3, localhost, issued by CN=Test CA, "), "{cert}");
    assert!(cert.contains(" days left, sha256 "), "{cert}");
    let commands = fake.log().commands;
    assert_eq!(commands[commands.len() - 2..], ["RSET", "QUIT"]);
    assert!(!commands.contains(&"DATA".to_owned()));
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["stages"][6]["stage"], "ehlo/tls");
    assert_eq!(json["stages"][6]["status"], "ok");
    assert!(!json.to_string().contains("secret"));
}

#[tokio::test]
async fn plain_relaying_has_fewer_stages() {
    let fake = Fake::start(&[]).await;
    for (rcpt, last) in [(None, "skip rcpt"), (Some("to@b.example"), "ok rcpt")] {
        let report = run(fake.settings(), rcpt).await;
        let want = format!("ok dns, ok tcp, ok greeting, ok ehlo, skip auth, {last}");
        assert_eq!(summary(&report), want);
    }
}

#[tokio::test]
async fn a_failure_is_shown_at_its_stage_with_the_exit_code_of_swaks() {
    let (pem, identity) = signed("localhost", 2100);
    for (command, what, failed, code) in [
        ("GREETING", Do::Hang, "fail greeting", 21),
        ("EHLO", say("550 no\r\n"), "fail ehlo, ", 22),
        ("STARTTLS", say("454 4.7.0 no\r\n"), "fail starttls", 29),
        ("AUTH", say("535 5.7.8 no\r\n"), "fail auth, skip rcpt", 28),
        ("MAIL", say("530 5.7.0 no\r\n"), "fail mail, skip rcpt", 23),
        ("RCPT", say("554 5.7.1 Relay access denied\r\n"), "ok auth, fail rcpt", 24),
    ] {
        let fake = Fake::start(&["STARTTLS"]).await.with_tls(&identity, &["AUTH PLAIN"]);
        let fake = fake.on(command, what);
        let report = run(submission(&fake, &pem), Some("to@b.example")).await;
        assert!(summary(&report).contains(failed), "{command}: {}", summary(&report));
        assert_eq!(report.exit_code, code, "{command}");
        assert!(report.diagnosis.is_some());
    }
}

#[tokio::test]
async fn a_certificate_that_is_not_trusted_is_shown_all_the_same() {
    let (_, identity) = self_signed("localhost", 2100);
    let (other, _) = signed("localhost", 2100);
    let fake = Fake::start(&["STARTTLS"]).await.with_tls(&identity, &[]);
    let report = run(submission(&fake, &other), None).await;
    assert!(
        summary(&report).contains("ok starttls, fail cert, skip ehlo/tls, skip auth, skip rcpt")
    );
    let cert = &report.stages[5];
    assert!(cert.detail.contains("presented: localhost, issued by itself, "), "{}", cert.detail);
    assert_eq!((report.exit_code, report.stages[6].detail.as_str()), (29, "needs cert"));
    assert!(report.diagnosis.unwrap().next.iter().any(|n| n.contains("ca_file = ")));
}

#[tokio::test]
async fn a_port_nobody_listens_on_is_exit_code_2() {
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut settings = Fake::start(&[]).await.settings();
    settings.port = Some(free.local_addr().unwrap().port());
    drop(free);
    let report = run(settings, None).await;
    assert!(summary(&report).starts_with("ok dns, fail tcp, skip greeting"));
    assert_eq!(report.exit_code, 2);
}

#[tokio::test]
async fn tls_spoken_to_a_greeting_in_clear_is_recognised() {
    let fake = Fake::start(&[]).await;
    let (pem, _) = signed("localhost", 2100);
    let mut settings = fake.tls_settings(&pem);
    settings.tls = Some(TlsMode::Implicit);
    let report = run(settings, None).await;
    assert!(summary(&report).starts_with("ok dns, ok tcp, fail cert"), "{}", summary(&report));
    assert!(report.diagnosis.unwrap().next[0].contains("tls = \"starttls\""));
}
