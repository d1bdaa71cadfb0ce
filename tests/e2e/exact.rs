//! What arrives is what was sent, octet for octet, below our Received line.

use std::net::SocketAddr;
use std::time::Duration;

use crate::support::client::Client;
use crate::support::gate::{Gate, Settings};
use crate::support::mail::{assert_same, below_received, head, with_body};
use crate::support::postfix::Postfix;
use crate::support::sink::Sink;
use crate::support::{PATIENCE, mail};

const MIB: usize = 1 << 20;

/// Messages that are easily damaged: a name, which is the Message-ID too, and the content.
fn corpus() -> Vec<(&'static str, Vec<u8>)> {
    let line = |octets: usize| [vec![b'x'; octets], b"\r\n".to_vec()].concat();
    let high: Vec<u8> = (0x80..=0xff).collect();
    let control: Vec<u8> = (1..0x20).filter(|b| !b"\r\n".contains(b)).chain([0x7f]).collect();
    let mut corpus =
        vec![("header-only", head("header-only").into_bytes()), ("folded", folded("folded"))];
    let bodies: Vec<(&str, Vec<u8>)> = vec![
        ("plain", b"hello\r\n".to_vec()),
        ("empty-body", Vec::new()),
        ("one-empty-line", b"\r\n".to_vec()),
        ("dots", b".\r\n..\r\n...\r\n.dot\r\n ..\r\na.\r\n.\r\n\r\n.".to_vec()),
        ("ends-in-dot-line", b"text\r\n.\r\n".to_vec()),
        ("looks-like-commands", b"QUIT\r\n.\r\nMAIL FROM:<x@y.test>\r\nFrom here\r\n".to_vec()),
        ("trailing-space", b"a \t\r\n \r\n\t\r\n\r\n\r\n".to_vec()),
        ("line-998", line(998)),
        ("line-5000", line(5000)),
        ("line-dots", [line(996), b"..".repeat(3000), b"\r\n".to_vec()].concat()),
        ("latin-1", b"Gr\xfc\xdfe\r\n".to_vec()),
        ("every-high-octet", [high, b"\r\n".to_vec()].concat()),
        ("control-octets", [control, b"\r\n".to_vec()].concat()),
        (
            "looks-like-mime",
            b"--b\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b--".to_vec(),
        ),
        ("300-kib", lines(300 << 10)),
    ];
    corpus.extend(bodies.into_iter().map(|(name, body)| (name, with_body(name, &body))));
    corpus
}

#[test]
fn postfix_alone_changes_nothing() {
    let sink = Sink::start();
    let postfix = Postfix::start(sink.address);
    send_corpus(postfix.plain);
    check_corpus(&sink, 1);
}

#[test]
fn a_smarthost_gets_what_the_client_sent() {
    let sink = Sink::start();
    let gate = Gate::start(&Settings::plain(sink.address));
    send_corpus(gate.address);
    check_corpus(&sink, 1);
    gate.wait_empty(PATIENCE);

    // Postfix puts this one in order; we do not.
    let content = [b"X-Odd :value\r\n".to_vec(), mail::message("odd")].concat();
    Client::hello(gate.address).send("a@example.test", &["b@example.test"], &content);
    let got = sink.wait_for("odd@test", PATIENCE);
    assert_same("odd", below_received(&got.content, 1).1, &content);
}

#[test]
fn postfix_passes_on_what_the_client_sent() {
    let sink = Sink::start();
    let postfix = Postfix::start(sink.address);
    let gate = Gate::start(&Settings::postfix_plain(&postfix));
    send_corpus(gate.address);
    check_corpus(&sink, 2);
    gate.wait_empty(PATIENCE);
}

#[test]
fn a_message_as_large_as_allowed_arrives_and_one_octet_more_is_refused() {
    let sink = Sink::start();
    let gate = Gate::start(&Settings::plain(sink.address));
    let mut content = with_body("large", &lines(25 * MIB));
    content.truncate(25 * MIB - 2);
    content.extend_from_slice(b"\r\n");

    let mut client = Client::hello(gate.address);
    client.send("a@example.test", &["b@example.test"], &content);
    let got = sink.wait_for("large@test", PATIENCE);
    assert_same("large", below_received(&got.content, 1).1, &content);

    content.insert(content.len() - 2, b'x');
    client.envelope("a@example.test", &["b@example.test"]);
    assert_eq!(client.data(&content).code, 552);
    // The size announced is refused before it is sent, and the session goes on.
    let announced = format!("MAIL FROM:<a@example.test> SIZE={}", content.len());
    client.command(&announced).expect(552);
    client.envelope("a@example.test", &["b@example.test"]);
    client.bdat(&content, &[7 * MIB]).expect(552);
    client.command("RSET").expect(250);
    client.send("a@example.test", &["b@example.test"], &mail::message("after"));
    sink.wait_for("after@test", PATIENCE);
}

#[test]
fn a_large_message_in_odd_chunks_arrives_and_costs_little_memory() {
    let sink = Sink::start();
    let gate = Gate::start(&Settings::plain(sink.address));
    let before = gate.memory();
    let content = with_body("chunks", &lines(20 * MIB));
    let mut client = Client::hello(gate.address);
    client.envelope("a@example.test", &["b@example.test"]);
    client.bdat(&content, &[1, 65_537, 99_991, 3 * MIB + 1]).expect(250);
    let got = sink.wait_for("chunks@test", PATIENCE);
    assert_same("chunks", below_received(&got.content, 1).1, &content);
    let grown = gate.memory() - before;
    assert!(grown < 12 * 1024, "{grown} KiB more for one message of 20 MiB");
}

#[test]
fn what_is_missing_is_added_and_what_must_not_leave_is_removed() {
    let sink = Sink::start();
    let gate = Gate::start(&Settings::plain(sink.address));
    let content =
        b"Return-Path: <x@y.test>\r\nFrom: a@example.test\r\nBcc: secret@example.test,\r\n\
        \tmore@example.test\r\nX-SES-CONFIGURATION-SET: x\r\nSubject: kept\r\n\r\nBcc: body\r\n";
    let id = Client::hello(gate.address).send("a@example.test", &["b@example.test"], content);
    let got = sink.wait_count(1, PATIENCE).remove(0);
    let (received, rest) = below_received(&got.content, 1);
    assert!(received[0].contains(&id), "{received:?}");
    let text = String::from_utf8(rest.to_vec()).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert_eq!(body, "Bcc: body\r\n");
    let mut names: Vec<_> = head.lines().map(|l| l.split(':').next().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["Date", "From", "Message-ID", "Subject"], "{head}");
}

fn send_corpus(address: SocketAddr) {
    let mut client = Client::hello(address);
    for (name, content) in corpus() {
        client.command("MAIL FROM:<app@example.test> BODY=8BITMIME").expect(250);
        client.command("RCPT TO:<ana@example.test>").expect(250);
        let reply = client.data(&content);
        assert_eq!(reply.code, 250, "{name}: {}", reply.text());
    }
    for (name, content) in corpus() {
        client.command("MAIL FROM:<app@example.test> BODY=8BITMIME").expect(250);
        client.command("RCPT TO:<bdat@example.test>").expect(250);
        let reply = client.bdat(&content, &[1, 2, 3, 251, 7, 997, 1]);
        assert_eq!(reply.code, 250, "{name} in chunks: {}", reply.text());
    }
}

/// Each message arrived twice, by DATA and by BDAT. A last line without its end gets one.
fn check_corpus(sink: &Sink, hops: usize) {
    let arrived = sink.wait_count(2 * corpus().len(), Duration::from_mins(1));
    for (name, mut content) in corpus() {
        if !content.ends_with(b"\r\n") {
            content.extend_from_slice(b"\r\n");
        }
        let same: Vec<_> =
            arrived.iter().filter(|a| a.message_id() == format!("{name}@test")).collect();
        assert_eq!(same.len(), 2, "{name}");
        for accepted in same {
            let (received, rest) = below_received(&accepted.content, hops);
            assert!(received[hops - 1].contains("client.test"), "{received:?}");
            assert_same(name, rest, &content);
        }
    }
}

fn folded(id: &str) -> Vec<u8> {
    let more =
        "X-Folded: one\r\n\ttwo\r\n  three\r\nX-Empty:\r\nx-odd-case:value\r\nSubject: again\r\n";
    format!("{}{more}\r\nbody\r\n", head(id)).into_bytes()
}

/// Lines of different lengths, some with a dot in front, of `octets` in total.
fn lines(octets: usize) -> Vec<u8> {
    let mut body = Vec::with_capacity(octets + 1024);
    let mut n = 1_usize;
    while body.len() < octets {
        n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if (n >> 40).is_multiple_of(4) {
            body.push(b'.');
        }
        body.extend(std::iter::repeat_n(
            b'a' + u8::try_from((n >> 50) % 16).unwrap(),
            (n >> 33) % 128,
        ));
        body.extend_from_slice(b"\r\n");
    }
    body.truncate(octets - 2);
    body.extend_from_slice(b"\r\n");
    body
}
