//! The clients people use deliver through Postgate and a real Postfix, by either of its doors.

use std::collections::HashMap;

use crate::support::gate::{Gate, Settings, right_password};
use crate::support::mail::{assert_same, below_received, with_body};
use crate::support::postfix::Postfix;
use crate::support::sink::{Accepted, Sink};
use crate::support::{PATIENCE, tools};

const CONTENT: &[u8] = b".a line with a dot\r\n.\r\n..\r\nGr\xc3\xbc\xc3\x9fe\r\n\r\nthe end\r\n";
/// Postfix's line and ours.
const HOPS: usize = 2;

#[test]
fn swaks_delivers() {
    both(|gate, sink, door| {
        let id = format!("swaks-{door}");
        let content = with_body(&id, CONTENT);
        let said = tools::swaks(gate.address, &content, &["--pipeline"]).expect_code(0).stdout;
        assert!(said.contains(" Ok: queued as "), "{said}");
        arrives(sink, &id, &content);
    });
}

#[test]
fn curl_delivers() {
    both(|gate, sink, door| {
        let id = format!("curl-{door}");
        let content = with_body(&id, CONTENT);
        tools::curl(gate.address, &content, &[]).expect_code(0);
        let got = arrives(sink, &id, &content);
        assert_eq!(got.recipients.len(), 2, "{:?}", got.recipients);
    });
}

#[test]
fn msmtp_delivers() {
    both(|gate, sink, door| {
        let id = format!("msmtp-{door}");
        let content = with_body(&id, CONTENT);
        tools::msmtp(gate.address, &content).expect_code(0);
        arrives(sink, &id, &content);
    });
}

#[test]
fn smtplib_delivers() {
    both(|gate, sink, door| {
        let id = format!("smtplib-{door}");
        let content = with_body(&id, CONTENT);
        tools::smtplib(gate.address, &content).expect_code(0);
        let key = format!("{id}@test");
        let seen = || sink.accepted().into_iter().filter(|a| a.message_id() == key);
        crate::support::eventually(PATIENCE, "both messages", || {
            (seen().count() == 2).then_some(())
        });
        for accepted in seen() {
            assert_same(&id, below_received(&accepted.content, HOPS).1, &content);
        }
        let dsn = seen().find(|a| a.recipients.len() == 2).unwrap();
        assert!(dsn.mail.contains("RET=HDRS"), "{}", dsn.mail);
        assert!(dsn.recipients.iter().all(|r| r.contains("NOTIFY=FAILURE")), "{dsn:?}");
    });
}

#[test]
fn nodemailer_6_delivers() {
    nodemailer("nodemailer-6");
}

#[test]
fn nodemailer_current_delivers() {
    nodemailer("nodemailer-current");
}

/// A pool, many messages over each connection, an attachment, names and addresses in UTF-8, DSN.
fn nodemailer(package: &str) {
    let composed = Sink::start();
    tools::nodemailer(composed.address, package).expect_code(0);
    let composed: HashMap<_, _> =
        composed.accepted().into_iter().map(|a| (a.message_id(), a)).collect();
    both(|gate, sink, _| {
        let before = sink.accepted().len();
        let said = tools::nodemailer(gate.address, package).expect_code(0).stdout;
        assert_eq!(said.matches(" Ok: queued as ").count(), composed.len(), "{said}");
        let arrived = sink.wait_count(before + composed.len(), PATIENCE).split_off(before);
        for (id, wanted) in &composed {
            let got: Vec<_> = arrived.iter().filter(|a| a.message_id() == *id).collect();
            assert_eq!(got.len(), 1, "{id}");
            assert_same(id, below_received(&got[0].content, HOPS).1, &wanted.content);
            assert_eq!(address(&got[0].recipients[0]), address(&wanted.recipients[0]));
        }
        let with = |id: &str| {
            let id = format!("{package}-{id}@test");
            arrived.iter().find(|a| a.message_id() == id).unwrap()
        };
        assert!(with("utf8-address").mail.contains("SMTPUTF8"), "{:?}", with("utf8-address").mail);
        let dsn = with("dsn");
        assert!(
            dsn.mail.contains("ENVID=envid-1") && dsn.mail.contains("RET=HDRS"),
            "{}",
            dsn.mail
        );
        let recipient = &dsn.recipients[0];
        assert!(recipient.contains("NOTIFY=") && recipient.contains("ORCPT="), "{recipient}");
        let connections = gate.log().matches("\"disconnected\"").count();
        assert!(connections < 2 * composed.len(), "one connection for each message");
    });
}

/// Runs a test through a Postfix that relays for our address, and through one that wants a login.
fn both(test: impl Fn(&Gate, &Sink, &str)) {
    let sink = Sink::start();
    let postfix = Postfix::start(sink.address);
    let dir = tempfile::tempdir().unwrap();
    let password = right_password(dir.path());
    let plain = Settings::postfix_plain(&postfix);
    let submission = Settings::postfix_submission(&postfix, &password);
    for (door, settings) in [("plain", plain), ("submission", submission)] {
        let gate = Gate::start(&settings);
        test(&gate, &sink, door);
        gate.wait_empty(PATIENCE);
        let delivered = gate.events("delivery");
        assert!(!delivered.is_empty());
        for event in delivered {
            assert_eq!(event["status"], "sent", "{event}");
            let tls = event["tls"].as_str().unwrap();
            assert_eq!(tls.starts_with("TLSv1."), door == "submission", "{event}");
        }
    }
    assert!(postfix.log().contains("sasl_method=PLAIN"), "{}", postfix.log());
}

#[track_caller]
fn arrives(sink: &Sink, id: &str, content: &[u8]) -> Accepted {
    let got = sink.wait_for(&format!("{id}@test"), PATIENCE);
    let (received, rest) = below_received(&got.content, HOPS);
    assert!(received[1].contains("by gate.example.test"), "{received:?}");
    assert_same(id, rest, content);
    got
}

fn address(path: &str) -> &str {
    path.split('>').next().unwrap()
}
