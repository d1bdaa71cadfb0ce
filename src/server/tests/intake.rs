//! What becomes of a message.

use std::sync::atomic::Ordering;

use super::super::Policy;
use super::super::intake::LARGE_HEADERS;
use super::harness::{Server, disk_error, policy, until};
use crate::mail::{Facts, header};
use crate::spool::SpoolError;

fn below_received(body: &[u8]) -> &[u8] {
    let mut end = 0;
    loop {
        end += body[end..].iter().position(|b| *b == b'\n').unwrap() + 1;
        if body.get(end) != Some(&b'\t') {
            return &body[end..];
        }
    }
}

#[tokio::test]
async fn a_message_is_stored_as_it_came_below_our_line() {
    let server = Server::start(policy());
    let mut c = server.client().await.greeted().await;
    let text =
        "Message-ID: <m@example.com>\r\nDate: x\r\nSubject: gr\u{fc}n\r\n\r\n..dot\r\nend\r\n";
    c.start_mail(&["b@example.org"]).await;
    let reply = c.say(&format!("{text}."), "250 2.0.0").await;
    let (message, body) = server.spool.last();
    assert!(reply.ends_with(&format!("queued as {}", message.id)), "{reply}");
    assert_eq!(below_received(&body), text.replace("..dot", ".dot").as_bytes());
    let trace = String::from_utf8(body[..body.len() - below_received(&body).len()].into()).unwrap();
    let with = format!(
        "Received: from c.example ([127.0.0.1])\r\n\tby gate.example (Postgate) with ESMTP id {}\
         \r\n\tfor <b@example.org>;\r\n\t{}\r\n",
        message.id,
        message.received.rfc5322()
    );
    assert_eq!(trace, with);
    assert_eq!((message.size, message.message_id.as_str()), (body.len() as u64, "<m@example.com>"));
    let client = &message.client;
    assert_eq!((client.helo.as_str(), client.listener.as_str()), ("c.example", "in"));
    c.start_mail(&["b@example.org", "c@example.org"]).await;
    c.say("Bcc: secret@example.org\r\nSubject: x\r\n.", "250").await;
    let (message, body) = server.spool.last();
    let body = String::from_utf8(body).unwrap();
    assert!(!body.contains("for <") && !body.contains("secret"), "{body}");
    assert!(body.contains(&format!("Message-ID: <{}@gate.example>", message.id)));
}

#[tokio::test]
async fn what_is_seen_in_a_message_is_stored_with_it_however_it_comes() {
    let wanted_headers = vec!["x-class".into()];
    let server = Server::start(Policy { wanted_headers, ..policy() });
    let text = "Return-Path: <x@y.example>\r\nFrom: Ana <ana@example.com>\r\nSubject: a\r\n\
        Return-Path: <z@y.example>\r\nX-Class: otp\r\nSubject: b\r\n\
        Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\
        Content-Disposition: attachment; filename=\"a.EXE\"\r\n\r\n";
    let text = format!("{text}{}\r\n--b--\r\n", "x".repeat(1000));
    let mut c = server.client().await.greeted().await;
    let mut facts = Vec::new();
    for size in [1, 7, 100, text.len()] {
        c.say("MAIL FROM:<a@example.com>", "250").await;
        c.say("RCPT TO:<b@example.org>", "250").await;
        for chunk in text.as_bytes().chunks(size) {
            let command = format!("BDAT {}\r\n", chunk.len());
            c.send([command.as_bytes(), chunk].concat()).await;
            c.expect("250").await;
        }
        c.say("BDAT 0 LAST", "250 2.0.0").await;
        facts.push(server.spool.last().0.facts);
    }
    let expected = Facts {
        from: vec!["ana@example.com".into()],
        repeated: vec!["subject".into()],
        longest_line: 1002,
        eight_bit: false,
        attachments: vec!["exe".into()],
        headers: vec![("x-class".into(), "otp".into())],
    };
    assert_eq!(facts, [&expected; 4].map(Clone::clone));
}

#[tokio::test]
async fn the_facts_of_a_message_are_its_own() {
    let server = Server::start(policy());
    let mut c = server.client().await.greeted().await;
    for from in ["a@example.com", "b@example.com"] {
        c.start_mail(&["b@example.org"]).await;
        c.say(&format!("From: {from}\r\n\r\nx\r\n."), "250 2.0.0").await;
        let facts = server.spool.last().0.facts;
        assert_eq!((facts.from, facts.repeated.len()), (vec![from.to_owned()], 0));
    }
}

#[tokio::test]
async fn the_client_hears_250_only_when_the_message_is_stored() {
    let server = Server::start(policy());
    server.spool.gate.forget_permits(usize::MAX);
    let mut c = server.client().await.greeted().await;
    c.start_mail(&["b@example.org"]).await;
    c.send("Subject: x\r\n\r\nx\r\n.\r\n").await;
    until(|| server.spool.commits.load(Ordering::SeqCst) == 1).await;
    assert!(server.spool.count() == 0 && !c.has_unread());
    server.spool.gate.add_permits(1);
    c.expect("250 2.0.0").await;
    assert_eq!(server.spool.count(), 1);
}

#[tokio::test]
async fn a_client_that_sends_no_more_still_hears_that_its_message_is_stored() {
    let server = Server::start(policy());
    let mut c = server.client().await.greeted().await;
    c.start_mail(&["b@example.org"]).await;
    c.send("Subject: x\r\n\r\nx\r\n.\r\n").await;
    c.shutdown().await;
    c.expect("250 2.0.0").await;
    c.expect_closed().await;
    assert_eq!(server.spool.count(), 1);
}

#[tokio::test]
async fn a_full_spool_refuses_at_mail_and_takes_mail_again_by_itself() {
    let server = Server::start(policy());
    let mut c = server.client().await.greeted().await;
    server.spool.full.store(true, Ordering::SeqCst);
    c.say("MAIL FROM:<a@example.com> SIZE=10", "452 4.3.1").await;
    c.say("RCPT TO:<b@example.org>", "503").await;
    server.spool.full.store(false, Ordering::SeqCst);
    c.start_mail(&["b@example.org"]).await;
    c.say("\r\nx\r\n.", "250 2.0.0").await;
}

#[tokio::test]
async fn what_the_spool_cannot_store_is_answered_after_the_end_and_not_stored() {
    let server = Server::start(policy());
    let spool = &server.spool;
    let mut c = server.client().await.greeted().await;
    let errors = [
        (SpoolError::Full("limit"), "452 4.3.1"),
        (SpoolError::Busy, "452 4.3.1"),
        (disk_error(), "451 4.3.0"),
        (SpoolError::Closed, "451 4.3.0"),
    ];
    for place in [&spool.draft_error, &spool.write_error, &spool.commit_error] {
        for (error, reply) in &errors {
            *place.lock().unwrap() = Some(error.clone());
            c.start_mail(&["b@example.org"]).await;
            let said = c.say("Subject: x\r\n\r\nx\r\n.", reply).await;
            assert!(!said.contains("segment"), "{said}");
        }
        *place.lock().unwrap() = None;
    }
    assert_eq!((spool.count(), spool.drafts.load(Ordering::SeqCst)), (0, 0));
    c.start_mail(&["b@example.org"]).await;
    c.say("Subject: x\r\n\r\nx\r\n.", "250 2.0.0").await;
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_no_draft() {
    let server = Server::start(policy());
    for half_closed in [false, true] {
        let mut c = server.client().await.greeted().await;
        c.start_mail(&["b@example.org"]).await;
        c.send("Subject: x\r\n\r\nhalf of i").await;
        until(|| server.spool.drafts.load(Ordering::SeqCst) == 1).await;
        if half_closed {
            c.shutdown().await;
            until(|| server.spool.drafts.load(Ordering::SeqCst) == 0).await;
        } else {
            drop(c);
            until(|| server.spool.drafts.load(Ordering::SeqCst) == 0).await;
        }
    }
    assert_eq!(server.spool.count(), 0);
}

#[tokio::test]
async fn a_transaction_without_text_opens_no_draft_and_an_aborted_one_leaves_none() {
    let server = Server::start(policy());
    let mut c = server.client().await.greeted().await;
    c.say("MAIL FROM:<a@example.com>", "250").await;
    c.say("RCPT TO:<b@example.org>", "250").await;
    assert_eq!(server.spool.drafts.load(Ordering::SeqCst), 0);
    c.send("BDAT 14\r\nSubject: x\r\n\r\n").await;
    c.expect("250").await;
    assert_eq!(server.spool.drafts.load(Ordering::SeqCst), 1);
    c.say("RSET", "250").await;
    assert_eq!(server.spool.drafts.load(Ordering::SeqCst), 0);
    assert_eq!(server.spool.count(), 0);
}

#[tokio::test]
async fn a_large_message_streams_through_in_small_pieces() {
    let server = Server::start(policy());
    let mut c = server.client().await.greeted().await;
    let head = "Message-ID: <big@example.com>\r\nDate: x\r\n\r\n";
    let line = format!("{}\r\n", "0123456789".repeat(9));
    let body = line.repeat((25 << 20) / line.len());
    c.start_mail(&["b@example.org"]).await;
    c.send(head).await;
    c.send(&body).await;
    c.say(".", "250 2.0.0").await;
    let stored = server.spool.stored.lock().unwrap();
    assert!(stored[0].largest_chunk <= 64 * 1024, "{}", stored[0].largest_chunk);
    assert!(below_received(&stored[0].body) == [head, &body].concat().as_bytes());
}

#[tokio::test]
async fn a_bad_header_is_refused_after_the_end_and_the_session_goes_on() {
    let header = header::Settings { max_header: 4096, ..policy().header };
    let server = Server::start(Policy { header, ..policy() });
    let mut c = server.client().await.greeted().await;
    c.start_mail(&["b@example.org"]).await;
    c.say(&format!("{}\r\nx\r\n.", "Received: x\r\n".repeat(51)), "554 5.4.6").await;
    c.start_mail(&["b@example.org"]).await;
    c.say(&format!("{}\r\nx\r\n.", "Subject: x\r\n".repeat(10_000)), "552 5.3.4").await;
    assert_eq!((server.spool.count(), server.spool.drafts.load(Ordering::SeqCst)), (0, 0));
    c.start_mail(&["b@example.org"]).await;
    c.say(&format!("no header\r\n{}.", "Subject: x\r\n".repeat(10_000)), "250 2.0.0").await;
    c.say("QUIT", "221").await;
    c.expect_closed().await;
}

#[tokio::test]
async fn only_so_many_large_headers_are_held_at_once() {
    let server = Server::start(policy());
    let half = format!("Subject: x\r\n{}", " folded on\r\n".repeat(8 * 1024));
    // A chunk is answered when all of it was read.
    let chunk = format!("BDAT {}\r\n{half}", half.len());
    let mut clients = Vec::new();
    for _ in 0..=LARGE_HEADERS {
        let mut c = server.client().await.greeted().await;
        c.say("MAIL FROM:<a@example.com>", "250").await;
        c.say("RCPT TO:<b@example.org>", "250").await;
        c.send(&chunk).await;
        c.expect("250").await;
        clients.push(c);
    }
    let mut last = clients.pop().unwrap();
    last.say("BDAT 0 LAST", "452 4.3.1").await;
    for c in &mut clients {
        c.say("BDAT 0 LAST", "250 2.0.0").await;
    }
    last.start_mail(&["b@example.org"]).await;
    last.say(&format!("{half}."), "250 2.0.0").await;
    assert_eq!(server.spool.count(), LARGE_HEADERS + 1);
}
