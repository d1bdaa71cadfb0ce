//! What must hold for any octets: the same functions are fuzz targets and bounded tests.
#![allow(dead_code, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use postgate::mail::{Mailbox, ReversePath};
use postgate::smtp::command::{self, Command};
use postgate::smtp::data::{Decoder, Limits};
use postgate::smtp::stuff::Stuffer;
use postgate::smtp::{BareNewline, COMMAND_LINE_MAX};

use crate::driver::{Driver, settings};

/// A session's transcript is the same for every way to cut its input; what it sends is well-formed;
/// what it holds is bounded.
pub fn session(octets: &[u8]) {
    let whole = transcript(octets, octets.len().max(1));
    for piece in [1, 2, 7, 64] {
        let cut = transcript(octets, piece);
        assert_eq!(
            String::from_utf8_lossy(&cut.sent),
            String::from_utf8_lossy(&whole.sent),
            "in pieces of {piece}"
        );
        assert_eq!(cut.messages, whole.messages, "in pieces of {piece}");
        assert_eq!(cut.closed, whole.closed, "in pieces of {piece}");
    }
    for line in whole.sent.split_inclusive(|b| *b == b'\n') {
        assert!(line.ends_with(b"\r\n") && line.len() <= 512, "{line:?}");
        assert!(line[..line.len() - 2].iter().all(|b| (32..127).contains(b)), "{line:?}");
        assert!(line[..3].iter().all(u8::is_ascii_digit), "{line:?}");
    }
    for (envelope, text) in &whole.messages {
        assert!(text.len() as u64 <= settings().max_message_size);
        assert!(envelope.recipients.len() <= settings().max_recipients);
        stuffed(text);
    }
}

fn transcript(octets: &[u8], piece: usize) -> Driver {
    let mut driver = Driver::new(settings());
    driver.refuse_every = 5;
    driver.settle();
    for chunk in octets.chunks(piece) {
        driver.feed(chunk);
        assert!(driver.session.buffered() <= COMMAND_LINE_MAX, "the input is not bounded");
    }
    driver
}

/// Only `CRLF . CRLF` ends a message, and what was decoded can be sent on and comes out again.
pub fn data(octets: &[u8]) {
    let limits = Limits { size: 1 << 20, line: 1000, bare_newline: BareNewline::Normalize };
    let end = find(&[b"\r\n", octets].concat(), b"\r\n.\r\n").map(|at| at + 3);
    let mut first = None;
    for piece in [octets.len().max(1), 1, 3] {
        let (mut decoder, mut text) = (Decoder::data(limits), Vec::new());
        let (mut consumed, mut ended) = (0, false);
        for chunk in octets.chunks(piece) {
            let decoded = decoder.decode(chunk, &mut text);
            consumed += decoded.consumed;
            ended = decoded.ended;
            if ended {
                break;
            }
        }
        assert_eq!(ended.then_some(consumed), end, "in pieces of {piece}");
        if decoder.error().is_none() {
            stuffed(&text);
        } else {
            text.clear();
        }
        let outcome = (text, decoder.error());
        assert_eq!(*first.get_or_insert_with(|| outcome.clone()), outcome, "in pieces of {piece}");
    }
}

/// Text without bare newlines survives the way out and the way in.
fn stuffed(text: &[u8]) {
    let (mut wire, mut stuffer) = (Vec::new(), Stuffer::default());
    for chunk in text.chunks(5) {
        stuffer.push(chunk, &mut wire).expect("decoded text has no bare newline");
    }
    stuffer.finish(&mut wire).expect("decoded text does not end in a CR");
    let limits = Limits { size: u64::MAX, line: usize::MAX, bare_newline: BareNewline::Reject };
    let (mut decoder, mut back) = (Decoder::data(limits), Vec::new());
    let decoded = decoder.decode(&wire, &mut back);
    assert!(decoded.ended && decoded.consumed == wire.len() && decoder.error().is_none());
    let ended = text.is_empty() || text.ends_with(b"\r\n");
    assert_eq!(back.strip_suffix(if ended { &b""[..] } else { b"\r\n" }), Some(text));
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// Whatever a command is taken for, saying it again in our own words means the same.
pub fn command(octets: &[u8]) {
    let Ok(parsed) = command::parse(octets) else { return };
    match parsed {
        Command::Mail(mail) => {
            let utf8 = if mail.smtputf8 { " SMTPUTF8" } else { "" };
            let line = format!("MAIL FROM:<{}>{utf8}", mail.reverse_path);
            assert!(!line.chars().any(char::is_control), "{line:?}");
            let Ok(Command::Mail(again)) = command::parse(line.as_bytes()) else {
                panic!("{line:?} is not MAIL")
            };
            assert_eq!(again.reverse_path, mail.reverse_path);
            assert!(again.size.is_none() && again.envid.is_none());
        }
        Command::Rcpt(rcpt) => {
            let Some(path) = rcpt.path else { return };
            let line = format!("RCPT TO:<{path}>");
            let Ok(Command::Rcpt(again)) = command::parse(line.as_bytes()) else {
                panic!("{line:?} is not RCPT")
            };
            assert_eq!((again.path, again.notify, again.orcpt), (Some(path), None, None));
        }
        Command::Helo(name) | Command::Ehlo(name) => {
            assert!(name.bytes().all(|b| b.is_ascii_graphic()), "{name:?}");
        }
        _ => {}
    }
}

/// What is a mailbox stays one, octet for octet, and cannot leave its angle brackets.
pub fn address(octets: &[u8]) {
    let Ok(mailbox) = Mailbox::parse(octets) else { return };
    assert_eq!(mailbox.as_str().as_bytes(), octets);
    assert_eq!(format!("{}@{}", mailbox.local_part(), mailbox.domain()).as_bytes(), octets);
    let line = format!("MAIL FROM:<{mailbox}> SMTPUTF8");
    match command::parse(line.as_bytes()) {
        Ok(Command::Mail(mail)) => assert_eq!(mail.reverse_path, ReversePath::Mailbox(mailbox)),
        other => panic!("{line:?}: {other:?}"),
    }
}
