//! The golden conversations, in-process, at several chunkings; and the properties that must hold
//! for any octets, on soup, on mutated conversations and on the corpora of the fuzz targets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/conversation.rs"]
mod conversation;
#[path = "support/driver.rs"]
mod driver;
#[path = "support/properties.rs"]
mod properties;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use conversation::{Conversation, Event, Expected};
use driver::{Driver, envelope_text, settings};
use postgate::mail::Reply;
use postgate::smtp::{BareNewline, Session, Settings};
use proptest::prelude::*;
use proptest::sample::Index;

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn conversations() -> Vec<Conversation> {
    let all = Conversation::load_all(&folder("tests/conversations"));
    assert!(all.len() > 10);
    all
}

#[test]
fn every_conversation_goes_as_written_however_its_octets_are_cut() {
    for conversation in conversations() {
        for piece in [usize::MAX, 1, 2, 7] {
            play(&conversation, piece);
        }
    }
}

fn play(conversation: &Conversation, piece: usize) {
    let name = &conversation.name;
    let mut driver = start(conversation);
    let mut early = matches!(conversation.events.first(), Some(Event::Client(_)));
    if !early {
        driver.settle();
    }
    let mut unsent: Vec<u8> = Vec::new();
    let mut seen = 0;
    let mut events = conversation.events.iter().peekable();
    while let Some(event) = events.next() {
        match event {
            Event::Client(octets) => {
                unsent.extend_from_slice(octets);
                if matches!(events.peek(), Some(Event::Client(_))) {
                    continue;
                }
                for chunk in unsent.chunks(piece.min(unsent.len().max(1))) {
                    if early {
                        driver.session.receive(chunk, driver.now);
                    } else {
                        driver.feed(chunk);
                    }
                }
                if std::mem::take(&mut early) {
                    driver.settle();
                }
                unsent.clear();
            }
            Event::Server(pattern) => {
                let sent = String::from_utf8(driver.sent[seen..].to_vec()).unwrap();
                let (line, _) = sent.split_once("\r\n").unwrap_or_else(|| {
                    panic!("{name} by {piece}: nothing where {} was expected", pattern.text)
                });
                assert!(pattern.matches(line), "{name} by {piece}: {line} is not {}", pattern.text);
                seen += line.len() + 2;
            }
            event => {
                control(&mut driver, event, name);
            }
        }
        if !matches!(events.peek(), Some(Event::Server(_))) {
            let rest = String::from_utf8_lossy(&driver.sent[seen..]);
            assert_eq!(rest, "", "{name} by {piece}: more was sent than was expected");
        }
    }
    let taken: Vec<Expected> = driver
        .messages
        .iter()
        .map(|(e, text)| Expected { envelope: envelope_text(e), content: text.clone() })
        .collect();
    assert_eq!(show(&taken), show(&conversation.messages), "{name} by {piece}: messages");
}

fn show(messages: &[Expected]) -> Vec<(String, String)> {
    messages.iter().map(|m| (m.envelope.clone(), m.content.escape_ascii().to_string())).collect()
}

fn control(driver: &mut Driver, event: &Event, name: &str) {
    match event {
        Event::Verdict(text) => {
            let (code, text) = text.split_once(' ').expect("a code and a text");
            let reply = Reply::bare(code.parse().expect("a code"), text.to_owned());
            driver.refusals.push_back(reply);
            return;
        }
        Event::TimesOut => {
            driver.now = driver.deadline.expect("a deadline");
            driver.session.timed_out();
        }
        Event::Tls => {
            assert!(std::mem::take(&mut driver.handshake), "{name}: no handshake was asked for");
            driver.session.tls_started();
        }
        Event::Drain => driver.session.drain(),
        _ => {
            assert!(driver.closed, "{name}: not closed");
            return;
        }
    }
    driver.settle();
}

fn start(conversation: &Conversation) -> Driver {
    let mut settings = settings();
    for (key, value) in &conversation.settings {
        set(&mut settings, key, value);
    }
    let now = Driver::new(settings.clone()).now;
    if !conversation.refused {
        return Driver::with(Session::new(Arc::new(settings), now), now);
    }
    let greeting = Reply::bare(554, "5.7.1 client [192.0.2.1] not permitted here (mynetworks)");
    Driver::with(Session::refusing(Arc::new(settings), greeting, now), now)
}

fn set(settings: &mut Settings, key: &str, value: &str) {
    let number = || value.parse::<usize>().unwrap_or_else(|_| panic!("{key}={value}"));
    match key {
        "max_message_size" => settings.max_message_size = number() as u64,
        "max_recipients" => settings.max_recipients = number(),
        "max_text_line" => settings.max_text_line = number(),
        "max_errors" => settings.max_errors = number(),
        "max_messages" => settings.max_messages = number(),
        "starttls" => settings.starttls = value == "true",
        "bare_newline" if value == "reject" => settings.bare_newline = BareNewline::Reject,
        _ => panic!("unknown setting {key}={value}"),
    }
}

/// All that the client sends in a conversation.
fn client_octets(conversation: &Conversation) -> Vec<u8> {
    let octets = |event: &Event| match event {
        Event::Client(octets) => octets.clone(),
        _ => Vec::new(),
    };
    conversation.events.iter().flat_map(octets).collect()
}

#[test]
fn the_properties_hold_for_the_conversations_themselves() {
    for conversation in conversations() {
        let octets = client_octets(&conversation);
        properties::session(&octets);
        properties::data(&octets);
        octets.split(|b| *b == b'\n').for_each(properties::command);
    }
}

#[test]
fn the_properties_hold_for_every_file_of_the_corpora() {
    let mut files = 0;
    for (target, property) in [
        ("command", properties::command as fn(&[u8])),
        ("session", properties::session),
        ("data", properties::data),
        ("address", properties::address),
    ] {
        for entry in std::fs::read_dir(folder("fuzz/corpus").join(target)).unwrap() {
            property(&std::fs::read(entry.unwrap().path()).unwrap());
            files += 1;
        }
    }
    assert!(files > 40, "{files}");
}

/// Octets that mean something to a session, in any order.
fn soup() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        4 => prop::sample::select(vec![
            "EHLO a\r\n", "HELO a\r\n", "MAIL FROM:<a@b>\r\n", "MAIL FROM:<> SIZE=9\r\n",
            "RSET\r\n", "RCPT TO:<c@d>\r\n", "RCPT TO:<>\r\n", "DATA\r\n", "BDAT 3\r\nabc",
            "BDAT 0 LAST\r\n", "BDAT 5 LAST\r\na\r\n.\r", "NOOP\r\n", "\r\n.\r\n", ".\r\n", "\r\n",
            "QUIT\n", "junk\r\n",
        ]).prop_map(|s| s.as_bytes().to_vec()),
        1 => prop::sample::select(vec![&b"\r"[..], b"\n", b".", b"\0", b"\xff", b" "])
            .prop_map(<[u8]>::to_vec),
        1 => prop::collection::vec(any::<u8>(), 0..9),
        1 => (2000..5000_usize).prop_map(|n| vec![b'x'; n]),
    ];
    prop::collection::vec(word, 0..30).prop_map(|words| words.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_session_is_the_same_however_soup_is_cut(soup in soup()) {
        properties::session(&[b"EHLO a\r\n", &soup[..]].concat());
    }

    #[test]
    fn data_is_the_same_however_soup_is_cut(soup in soup()) {
        properties::data(&soup);
    }

    #[test]
    fn a_conversation_with_octets_changed_is_the_same_however_it_is_cut(
        which in any::<Index>(),
        changes in prop::collection::vec((any::<Index>(), any::<u8>(), 0..3_u8), 1..6),
    ) {
        let all = conversations();
        let mut octets = client_octets(which.get(&all));
        for (at, octet, change) in changes {
            let at = at.index(octets.len().max(1));
            match change {
                0 if at < octets.len() => octets[at] = octet,
                1 if at < octets.len() => drop(octets.remove(at)),
                _ => octets.insert(at.min(octets.len()), octet),
            }
        }
        properties::session(&octets);
    }

    #[test]
    fn a_command_means_what_it_is_taken_for(
        line in "(MAIL FROM|RCPT TO):<?[a\"@ .>\\\\:,]{0,12}>?( SIZE=1)?",
    ) {
        properties::command(line.as_bytes());
    }

    #[test]
    fn a_mailbox_stays_within_its_brackets(
        text in "[a\"@ .>\\\\<\u{e5}\r]{0,8}@[ab.\\[\\]1>]{0,8}",
    ) {
        properties::address(text.as_bytes());
    }
}

#[test]
fn a_pipelined_transaction_takes_two_sends() {
    let mut driver = Driver::new(settings());
    driver.settle();
    driver.feed(b"EHLO a\r\n");
    let before = driver.sends;
    driver.feed(b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRCPT TO:<e@f>\r\nDATA\r\n");
    driver.feed(b"text\r\n.\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n");
    assert_eq!(driver.sends - before, 2);
    assert_eq!(driver.messages.len(), 1);
}

#[test]
fn replies_do_not_pile_up_without_bound() {
    let mut driver = Driver::new(settings());
    driver.settle();
    driver.feed(&b"EHLO a\r\n".repeat(1000));
    assert!(driver.sent.len() > 100_000);
    assert!(driver.largest_send <= 16 * 1024 + 512, "{}", driver.largest_send);
}

#[test]
fn a_transaction_of_many_tiny_chunks_is_taken_whole() {
    let mut driver = Driver::new(settings());
    driver.settle();
    driver.feed(b"EHLO a\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n");
    for size in [9_999, 10_000, 10_001] {
        driver.feed(b"RSET\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n");
        driver.feed(&b"BDAT 1\r\nxBDAT 1\r\n\rBDAT 1\r\n\n".repeat(size / 3));
        driver.feed(&b"BDAT 1\r\ny".repeat(size % 3));
        driver.feed(b"BDAT 0 LAST\r\n");
    }
    let sizes: Vec<usize> = driver.messages.iter().map(|(_, text)| text.len()).collect();
    assert_eq!(sizes, [9_999, 10_000]);
    assert!(driver.sent.ends_with(b"503 5.5.1 Send MAIL first\r\n"));
}

#[test]
fn a_client_that_drips_a_command_has_no_more_time_than_a_silent_one() {
    let mut driver = Driver::new(settings());
    driver.settle();
    let first = driver.deadline.unwrap();
    for _ in 0..10 {
        driver.now += std::time::Duration::from_secs(1);
        driver.feed(b"N");
        assert_eq!(driver.deadline, Some(first));
    }
    driver.feed(b"\r\n");
    assert_eq!(driver.deadline, Some(driver.now + settings().command_timeout));
}

#[test]
fn a_message_may_take_as_long_as_its_octets_keep_coming() {
    let mut driver = Driver::new(settings());
    driver.settle();
    driver.feed(b"EHLO a\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n");
    for _ in 0..10 {
        driver.now += std::time::Duration::from_secs(100);
        driver.feed(b"x");
        assert_eq!(driver.deadline, Some(driver.now + settings().data_timeout));
    }
}

#[test]
fn while_a_verdict_is_owed_nothing_is_consumed() {
    use postgate::smtp::{Step, Verdict};
    let now = Driver::new(settings()).now;
    let mut session = Session::new(Arc::new(settings()), now);
    let until = |session: &mut Session, now: Instant| loop {
        match session.step(now) {
            Step::Send(_) => {}
            step => return step,
        }
    };
    until(&mut session, now);
    session.receive(b"EHLO a\r\nMAIL FROM:<a@b>\r\nNOOP\r\nNOOP\r\n", now);
    assert!(matches!(until(&mut session, now), Step::Begin(_)));
    assert_eq!(session.buffered(), 12);
    assert!(matches!(until(&mut session, now), Step::Read { .. }));
    assert_eq!(session.buffered(), 12);
    session.decided(Verdict::Go);
    assert!(matches!(until(&mut session, now), Step::Read { .. }));
    assert_eq!(session.buffered(), 0);
}

#[test]
fn the_protocol_is_named_after_how_the_client_introduced_itself() {
    let mut driver = Driver::new(Settings { starttls: true, ..settings() });
    driver.settle();
    assert_eq!((driver.session.protocol(), driver.session.helo()), ("SMTP", ""));
    driver.feed(b"HELO a.example\r\n");
    assert_eq!((driver.session.protocol(), driver.session.helo()), ("SMTP", "a.example"));
    driver.feed(b"EHLO b.example\r\n");
    assert_eq!((driver.session.protocol(), driver.session.helo()), ("ESMTP", "b.example"));
    driver.feed(b"STARTTLS\r\n");
    assert!(driver.handshake);
    driver.session.tls_started();
    driver.settle();
    assert_eq!(driver.session.helo(), "");
    driver.feed(b"EHLO b.example\r\n");
    assert_eq!(driver.session.protocol(), "ESMTPS");
}
