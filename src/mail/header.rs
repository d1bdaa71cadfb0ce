//! The header work at acceptance: our trace line, what is missing, and what must not travel.
//!
//! The fields are found by a scan of lines of our own and not by mail-parser's offsets: what has to
//! be removed must be gone however the input is formed, so the scan errs on the side of taking a
//! line for a field, keeps no tree, and its cost is one pass. mail-parser reads the one value that
//! has a grammar, the Message-ID. Everything that is neither added nor removed stays as it came.

use std::net::IpAddr;

use memchr::memchr;

use super::address::is_domain;
use super::{EnhancedStatus, ForwardPath, QueueId, Reply};
use crate::clock::Timestamp;

/// The longest Message-ID that is remembered, in octets: it cannot be longer than a line.
const MESSAGE_ID_MAX: usize = 998;

/// The octets before the colon of a field: more do not fit a line of RFC 5322 section 2.1.1.
const NAME_MAX: usize = 997;

/// How headers are treated.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Our own name: the `by` of the Received line, and the right side of a Message-ID we add.
    pub hostname: String,
    /// Octets of a header with the empty line that ends it; 552 5.3.4 above.
    pub max_header: usize,
    /// Received lines in a header; 554 5.4.6 above (RFC 5321 section 6.3).
    pub max_hops: usize,
    /// Whether the Received line names the client's address.
    pub show_address: bool,
    /// Whether the Received line names the client's HELO.
    pub show_helo: bool,
}

/// What the Received line says (RFC 5321 section 4.4).
#[derive(Clone, Copy, Debug)]
pub struct Trace<'a> {
    /// The client's address.
    pub peer: IpAddr,
    /// The name it gave; left out when it could not stand in a header.
    pub helo: &'a str,
    /// SMTP, ESMTP or ESMTPS (RFC 3848).
    pub protocol: &'a str,
    /// The message's id.
    pub id: QueueId,
    /// The recipient, when there is exactly one: more would tell one of the others.
    pub recipient: Option<&'a ForwardPath>,
    /// When it was received.
    pub at: Timestamp,
}

/// A header as it is stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Header {
    /// The octets, with whatever came behind the header in the input.
    pub bytes: Vec<u8>,
    /// The Message-ID's value with its brackets; empty when it could not be read.
    pub message_id: String,
}

/// Why a header is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// More octets than [`Settings::max_header`].
    #[error("the message header is too large")]
    TooLarge,
    /// More Received lines than [`Settings::max_hops`].
    #[error("too many hops")]
    TooManyHops,
}

impl HeaderError {
    /// What the client is told.
    pub fn reply(self) -> Reply {
        match self {
            Self::TooLarge => {
                Reply::new(552, EnhancedStatus::new(5, 3, 4), "message header is too large")
            }
            Self::TooManyHops => {
                Reply::new(554, EnhancedStatus::new(5, 4, 6), "too many hops, this may be a loop")
            }
        }
    }
}

/// Collects the octets of a message until its header is whole. Holds at most the limit, a
/// line and one piece.
#[derive(Debug)]
pub struct Collector {
    octets: Vec<u8>,
    /// Where the line starts that is not whole yet.
    line: usize,
    /// How far that line was searched for its end.
    searched: usize,
    max: usize,
}

impl Collector {
    /// A collector that takes a header of at most `max` octets.
    pub const fn new(max: usize) -> Self {
        Self { octets: Vec::new(), line: 0, searched: 0, max }
    }

    /// Adds a piece of the message; returns whether the header is whole.
    pub fn push(&mut self, piece: &[u8]) -> Result<bool, HeaderError> {
        self.octets.extend_from_slice(piece);
        while let Some(end) = line_end(&self.octets, self.searched) {
            let line = self.octets.get(self.line..end).unwrap_or_default();
            let (end_of_header, whole) = match classify(line, self.line == 0) {
                Line::Empty => (end, true),
                Line::Text => (self.line, true),
                Line::Field(_) | Line::Continuation => (end, false),
            };
            if end_of_header > self.max {
                return Err(HeaderError::TooLarge);
            }
            if whole {
                return Ok(true);
            }
            (self.line, self.searched) = (end, end);
        }
        self.searched = self.octets.len();
        if self.octets.len() <= self.max {
            return Ok(false);
        }
        let rest = self.octets.get(self.line..).unwrap_or_default();
        if is_undecided(rest) {
            return Ok(false);
        }
        match classify(rest, self.line == 0) {
            Line::Text => Ok(true),
            Line::Field(_) | Line::Continuation | Line::Empty => Err(HeaderError::TooLarge),
        }
    }

    /// How many octets it holds.
    pub const fn len(&self) -> usize {
        self.octets.len()
    }

    /// Whether it holds none.
    pub const fn is_empty(&self) -> bool {
        self.octets.is_empty()
    }

    /// All octets that were pushed.
    pub fn into_octets(self) -> Vec<u8> {
        self.octets
    }
}

/// Makes the stored header from `input`: a header as received, up to and with its empty line, and
/// maybe the first octets of the body.
///
/// Ours is the Received line on top. Bcc, Resent-Bcc, Return-Path and X-SES fields are left out;
/// Message-ID and Date are put behind the last field where they are missing. When a line that is no
/// field ends the header, the empty line is added before it, as Postfix does.
pub fn rewrite(
    settings: &Settings,
    trace: &Trace<'_>,
    input: &[u8],
) -> Result<Header, HeaderError> {
    let mut bytes = Vec::with_capacity(input.len() + 1024);
    received(settings, trace, &mut bytes);
    let found = copy_fields(input, &mut bytes);
    if found.hops > settings.max_hops {
        return Err(HeaderError::TooManyHops);
    }
    if (found.message_id.is_none() || !found.date) && !bytes.ends_with(b"\n") {
        bytes.extend_from_slice(b"\r\n");
    }
    let message_id = found.message_id.unwrap_or_else(|| {
        let id = format!("<{}@{}>", trace.id, settings.hostname);
        bytes.extend_from_slice(format!("Message-ID: {id}\r\n").as_bytes());
        id
    });
    if !found.date {
        bytes.extend_from_slice(format!("Date: {}\r\n", trace.at.rfc5322()).as_bytes());
    }
    if found.text_follows {
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(input.get(found.end..).unwrap_or_default());
    Ok(Header { bytes, message_id })
}

/// What a pass over the fields saw.
#[derive(Default)]
struct Found {
    /// Where the fields end.
    end: usize,
    /// Whether a line that is neither field nor empty ended them.
    text_follows: bool,
    hops: usize,
    date: bool,
    message_id: Option<String>,
}

/// Copies the fields that stay, with their continuation lines.
fn copy_fields(input: &[u8], out: &mut Vec<u8>) -> Found {
    let mut found = Found::default();
    let mut keep = true;
    while found.end < input.len() {
        let start = found.end;
        let end = line_end(input, start).unwrap_or(input.len());
        let line = input.get(start..end).unwrap_or_default();
        match classify(line, start == 0) {
            Line::Empty => return found,
            Line::Text => return Found { text_follows: true, ..found },
            Line::Continuation => {}
            Line::Field(name) => {
                keep = !is_removed(name);
                found.hops += usize::from(name.eq_ignore_ascii_case(b"Received"));
                found.date |= name.eq_ignore_ascii_case(b"Date");
                if found.message_id.is_none() && name.eq_ignore_ascii_case(b"Message-ID") {
                    found.message_id = Some(message_id(input.get(start..).unwrap_or_default()));
                }
            }
        }
        if keep {
            out.extend_from_slice(line);
        }
        found.end = end;
    }
    found
}

/// What a line of a header is.
pub(crate) enum Line<'a> {
    /// The start of a field, with its name.
    Field(&'a [u8]),
    /// More of the field before it.
    Continuation,
    /// The end of the header.
    Empty,
    /// No part of a header.
    Text,
}

/// RFC 5322 section 2.2, with the blanks before the colon of section 4.5.
pub(crate) fn classify(line: &[u8], first: bool) -> Line<'_> {
    match line {
        b"\r\n" | b"\n" => return Line::Empty,
        [b' ' | b'\t', ..] => return if first { Line::Text } else { Line::Continuation },
        _ => {}
    }
    let name_len = line.iter().take_while(|b| is_name(**b)).count();
    let (name, rest) = line.split_at(name_len);
    let colon = name_len + rest.iter().take_while(|b| is_blank(**b)).count();
    let is_field = !name.is_empty() && colon <= NAME_MAX && line.get(colon) == Some(&b':');
    if is_field { Line::Field(name) } else { Line::Text }
}

/// Whether a line that has no end yet can still turn out to be a field or empty, or not.
fn is_undecided(start: &[u8]) -> bool {
    let blanks = start.iter().skip_while(|b| is_name(**b));
    let only_name = start.first().is_none_or(|b| is_name(*b)) && blanks.copied().all(is_blank);
    (only_name && start.len() <= NAME_MAX) || start == b"\r"
}

const fn is_blank(b: u8) -> bool {
    matches!(b, b' ' | b'\t')
}

/// RFC 5322 section 3.6.8 ftext.
const fn is_name(b: u8) -> bool {
    matches!(b, b'!'..=b'9' | b';'..=b'~')
}

fn is_removed(name: &[u8]) -> bool {
    let names: [&[u8]; 3] = [b"Bcc", b"Resent-Bcc", b"Return-Path"];
    names.iter().any(|n| name.eq_ignore_ascii_case(n))
        || name.get(..6).is_some_and(|start| start.eq_ignore_ascii_case(b"X-SES-"))
}

/// Where the line that reaches past `from` ends, its LF included.
pub(crate) fn line_end(octets: &[u8], from: usize) -> Option<usize> {
    memchr(b'\n', octets.get(from..)?).map(|i| from + i + 1)
}

/// The id of the Message-ID field that `header` starts with.
fn message_id(header: &[u8]) -> String {
    let value = memchr(b':', header).and_then(|i| header.get(i + 1..)).unwrap_or_default();
    let mut end = line_end(value, 0).unwrap_or(value.len());
    while end < 2 * MESSAGE_ID_MAX && value.get(end).is_some_and(|b| is_blank(*b)) {
        end = line_end(value, end).unwrap_or(value.len());
    }
    // A line end of our own, because the parser reads nothing without one.
    let mut value = value.get(..end.min(2 * MESSAGE_ID_MAX)).unwrap_or_default().to_vec();
    value.extend_from_slice(b"\r\n");
    let parsed = mail_parser::parsers::MessageStream::new(&value).parse_id();
    let Some(id) = parsed.as_text_list().and_then(<[_]>::first) else { return String::new() };
    let id: String = id.chars().filter(|c| !c.is_whitespace() && !c.is_control()).collect();
    if id.is_empty() || id.len() > MESSAGE_ID_MAX - 2 { String::new() } else { format!("<{id}>") }
}

/// The Received line, folded so that no part of it comes near 998 octets.
fn received(settings: &Settings, trace: &Trace<'_>, out: &mut Vec<u8>) {
    let literal = match trace.peer {
        IpAddr::V4(a) => format!("[{a}]"),
        IpAddr::V6(a) => format!("[IPv6:{a}]"),
    };
    let helo = Some(trace.helo).filter(|h| settings.show_helo && is_plain_name(h));
    let from = match (helo, settings.show_address) {
        (Some(helo), true) => format!("from {helo} ({literal})\r\n\t"),
        (Some(helo), false) => format!("from {helo}\r\n\t"),
        (None, true) => format!("from {literal} ({literal})\r\n\t"),
        (None, false) => String::new(),
    };
    let recipient = trace.recipient.map_or_else(String::new, |r| format!("\r\n\tfor <{r}>"));
    let (hostname, protocol, id) = (&settings.hostname, trace.protocol, trace.id);
    let date = trace.at.rfc5322();
    out.extend_from_slice(b"Received: ");
    out.extend_from_slice(from.as_bytes());
    out.extend_from_slice(format!("by {hostname} (Postgate) with {protocol} id {id}").as_bytes());
    out.extend_from_slice(format!("{recipient};\r\n\t{date}\r\n").as_bytes());
}

/// Whether a HELO can stand in a header: ASCII, and nothing that ends or opens a part of it.
fn is_plain_name(helo: &str) -> bool {
    helo.is_ascii() && (is_domain(helo) || super::address::is_address_literal(helo))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OURS: &str = "Received: from c.example ([192.0.2.7])\r\n\
        \tby gate.example (Postgate) with ESMTP id 0000000000007;\r\n\
        \tSat, 21 Nov 2026 09:12:01 +0000\r\n";
    const ID: &str = "Message-ID: <0000000000007@gate.example>\r\n";
    const DATE: &str = "Date: Sat, 21 Nov 2026 09:12:01 +0000\r\n";

    fn settings() -> Settings {
        Settings {
            hostname: "gate.example".into(),
            max_header: 1 << 20,
            max_hops: 50,
            show_address: true,
            show_helo: true,
        }
    }

    fn trace() -> Trace<'static> {
        Trace {
            peer: "192.0.2.7".parse().unwrap(),
            helo: "c.example",
            protocol: "ESMTP",
            id: QueueId::from_u64(7),
            recipient: None,
            at: Timestamp::from_millis(1_795_252_321_431),
        }
    }

    /// What stands below our Received line.
    fn below(input: &[u8]) -> Vec<u8> {
        let out = rewrite(&settings(), &trace(), input).unwrap().bytes;
        out.strip_prefix(OURS.as_bytes()).expect("our line comes first").to_vec()
    }

    #[test]
    fn a_header_is_completed_and_cleaned_and_otherwise_left_as_it_came() {
        let full = "Message-Id: <a@b>\r\ndate: x\r\n";
        let table: &[(&str, String)] = &[
            (&format!("{full}Subject: x\r\n\r\nbody"), format!("{full}Subject: x\r\n\r\nbody")),
            ("Subject: x\r\n\r\nbody\r\n", format!("Subject: x\r\n{ID}{DATE}\r\nbody\r\n")),
            ("Date: x\r\n\r\n", format!("Date: x\r\n{ID}\r\n")),
            ("message-id : <a@b>\r\n\r\n", format!("message-id : <a@b>\r\n{DATE}\r\n")),
            ("", format!("{ID}{DATE}")),
            ("\r\nbody\r\n", format!("{ID}{DATE}\r\nbody\r\n")),
            ("Subject: x\r\n", format!("Subject: x\r\n{ID}{DATE}")),
            ("Subject: x", format!("Subject: x\r\n{ID}{DATE}")),
            (&format!("{full}Subject: x"), format!("{full}Subject: x")),
            ("body only\r\nBcc: x\r\n", format!("{ID}{DATE}\r\nbody only\r\nBcc: x\r\n")),
            (" blank\r\n", format!("{ID}{DATE}\r\n blank\r\n")),
            (
                "From a@b now\r\nTo: x\r\n\r\n",
                format!("{ID}{DATE}\r\nFrom a@b now\r\nTo: x\r\n\r\n"),
            ),
            (">From a\r\n", format!("{ID}{DATE}\r\n>From a\r\n")),
            (": no name\r\n", format!("{ID}{DATE}\r\n: no name\r\n")),
            (
                &format!(
                    "bCC: a\r\n b\r\n\tc\r\n{full}Return-Path: <x>\r\nX-Ses-Y : z\r\n\r\nBcc: y"
                ),
                format!("{full}\r\nBcc: y"),
            ),
            (&format!("{full}Bcc \t:\r\n \r\n\r\nx"), format!("{full}\r\nx")),
            (&format!("Bcc: a\r\n{full}Resent-Bcc: b"), full.into()),
            (
                &format!("{full}Bccx: a\r\nX-SESX: b\r\n\r\n"),
                format!("{full}Bccx: a\r\nX-SESX: b\r\n\r\n"),
            ),
            (&format!("{full}Bcc: a\r\ntext\r\n"), format!("{full}\r\ntext\r\n")),
            (&format!("{full}Bcc: a\nSubject: b\n\nx\n"), format!("{full}Subject: b\n\nx\n")),
        ];
        for (input, expected) in table {
            let got = below(input.as_bytes());
            assert_eq!(String::from_utf8_lossy(&got), *expected, "{input:?}");
        }
        let eight_bit = b"Message-ID: <a@b>\r\nDate: x\r\nSubject: \xff\xe9\r\n\r\n\xfe";
        assert_eq!(below(eight_bit), eight_bit);
    }

    #[test]
    fn the_received_line_shows_only_what_may_be_shown() {
        let rcpt = ForwardPath(crate::mail::Mailbox::parse(b"\"a b\"@x.example").unwrap());
        let line = |show_address, show_helo, helo, recipient| {
            let settings = Settings { show_address, show_helo, ..settings() };
            let mut out = Vec::new();
            received(&settings, &Trace { helo, recipient, ..trace() }, &mut out);
            String::from_utf8(out).unwrap().replace("\r\n\t", " ")
        };
        let tail = "by gate.example (Postgate) with ESMTP id 0000000000007; \
            Sat, 21 Nov 2026 09:12:01 +0000\r\n";
        let from_address = format!("Received: from [192.0.2.7] ([192.0.2.7]) {tail}");
        assert_eq!(line(true, false, "h", None), from_address);
        assert_eq!(line(false, true, "h", None), format!("Received: from h {tail}"));
        assert_eq!(line(false, false, "h", None), format!("Received: {tail}"));
        for helo in ["", "a\r\nBcc: x", "a(b", "grå.org", "a b", "a>"] {
            assert_eq!(line(true, true, helo, None), from_address, "{helo:?}");
        }
        let to_one = line(false, false, "h", Some(&rcpt));
        assert!(to_one.contains("id 0000000000007 for <\"a b\"@x.example>; Sat"), "{to_one}");
        let v6 = Trace { peer: "2001:db8::1".parse().unwrap(), ..trace() };
        let mut out = Vec::new();
        received(&settings(), &v6, &mut out);
        assert!(out.starts_with(b"Received: from c.example ([IPv6:2001:db8::1])\r\n\tby"));
    }

    #[test]
    fn the_message_id_is_read_whatever_its_form() {
        let of = |field: &str| {
            let input = format!("{field}\r\nSubject: <no@id>\r\n\r\n<no@id>");
            rewrite(&settings(), &trace(), input.as_bytes()).unwrap().message_id
        };
        assert_eq!(of("Message-ID: <a@b>"), "<a@b>");
        assert_eq!(of("MESSAGE-ID:<a@b>"), "<a@b>");
        assert_eq!(of("Message-ID:\r\n <a@b>"), "<a@b>");
        assert_eq!(of("Message-ID: <a\r\n\t@b>"), "<a@b>");
        assert_eq!(of("Message-ID: a@b"), "<a@b>");
        assert_eq!(of("Message-ID: <a@b>\r\nMessage-ID: <c@d>"), "<a@b>");
        assert_eq!(of("Message-ID:"), "");
        assert_eq!(of("Subject: x"), "<0000000000007@gate.example>");
        let id = |n: usize| format!("<{}>", "x".repeat(n - 2));
        for (n, readable) in [(997, true), (998, true), (999, false)] {
            assert_eq!(!of(&format!("Message-ID: {}", id(n))).is_empty(), readable, "{n}");
        }
        assert_eq!(of(&format!("Message-ID: <{}>", "x".repeat(4 << 20))), "");
    }

    #[test]
    fn hops_are_counted_up_to_the_limit() {
        for (hops, refused) in [(49, false), (50, false), (51, true)] {
            let input = format!("{}\r\nReceived: body", "rEceived: x\r\n y\r\n".repeat(hops));
            let got = rewrite(&settings(), &trace(), input.as_bytes());
            assert_eq!(got.err(), refused.then_some(HeaderError::TooManyHops), "{hops}");
        }
        assert_eq!(HeaderError::TooManyHops.reply().status(), Some(EnhancedStatus::new(5, 4, 6)));
    }

    fn collect(max: usize, pieces: &[&[u8]]) -> Result<Option<usize>, HeaderError> {
        let mut collector = Collector::new(max);
        for (n, piece) in pieces.iter().enumerate() {
            if collector.push(piece)? {
                return Ok(Some(n));
            }
        }
        Ok(None)
    }

    #[test]
    fn a_header_is_taken_up_to_the_limit() {
        let header = b"A: 345\r\n\r\n";
        for (max, fits) in [(9, false), (10, true), (11, true)] {
            let whole = collect(max, &[header, b"body"]);
            assert_eq!(whole, if fits { Ok(Some(0)) } else { Err(HeaderError::TooLarge) }, "{max}");
            let octets: Vec<&[u8]> = header.chunks(1).chain([&b"body"[..]]).collect();
            assert_eq!(collect(max, &octets).is_ok(), fits, "{max}");
            let long = vec![b'x'; 1 << 16];
            assert_eq!(collect(max, &[b"A:", &long]), Err(HeaderError::TooLarge));
            assert_eq!(collect(max, &[&long]), Ok(Some(0)));
            assert_eq!(collect(max, &[b"A: 345\r\ntext", &long]).is_ok(), max > 8);
            assert_eq!(collect(max, &[b"no field ", &long]), Ok(Some(1)));
        }
    }

    #[test]
    fn great_headers_cost_one_pass() {
        let lines = format!("{}\r\n", "Bcc: x\r\nX-A: b\r\n".repeat(10_000));
        let octets: Vec<&[u8]> = lines.as_bytes().chunks(7).collect();
        assert_eq!(collect(1 << 20, &octets), Ok(Some(octets.len() - 1)));
        assert_eq!(below(lines.as_bytes()).len(), ID.len() + DATE.len() + 8 * 10_000 + 2);
        let line = [b"X: ".as_slice(), &vec![b'x'; 4 << 20], b"\r\n\r\n"].concat();
        let pieces: Vec<&[u8]> = line.chunks(1024).collect();
        assert_eq!(collect(1 << 20, &pieces), Err(HeaderError::TooLarge));
        assert_eq!(collect(8 << 20, &pieces), Ok(Some(pieces.len() - 1)));
        assert_eq!(below(&line).len(), line.len() + ID.len() + DATE.len());
    }

    /// Lines that are close to what matters.
    fn line() -> impl Strategy<Value = Vec<u8>> {
        let words = proptest::sample::select(vec![
            "Bcc",
            "bcc ",
            "Return-Path",
            "X-SES-A",
            "x-ses-",
            "Date",
            "Message-ID",
            "Subject",
            ":",
            " ",
            "\t",
            "\r\n",
            "\n",
            "\r",
            "<a@b>",
            "From ",
            "é",
            "\0",
            "(",
            "x",
        ]);
        proptest::collection::vec(words, 0..40).prop_map(|w| w.concat().into_bytes())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn a_complete_header_passes_octet_for_octet(
            names in proptest::collection::vec("[!-9;-~]{1,20}", 0..8),
            value in "[ -~\u{a0}-\u{ff}]{0,90}(\r\n[ \t][ -~]{0,20}){0,2}",
            body in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            prop_assume!(!names.iter().any(|n| is_removed(n.as_bytes())));
            let mut input = b"Message-ID: <a@b>\r\nDate: x\r\n".to_vec();
            for name in names {
                input.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
            }
            input.extend_from_slice(b"\r\n");
            input.extend_from_slice(&body);
            prop_assert_eq!(below(&input), input);
        }

        #[test]
        fn no_removed_field_is_left_and_nothing_is_left_to_do(input in line()) {
            let once = below(&input);
            let mut fields = Vec::new();
            let found = copy_fields(&once, &mut fields);
            prop_assert!(found.date && found.message_id.is_some() && !found.text_follows);
            prop_assert_eq!(&fields, &once[..found.end]);
            prop_assert_eq!(below(&once), once);
        }

        #[test]
        fn the_end_is_found_alike_however_the_input_is_cut(input in line(), size in 1usize..9) {
            let whole = collect(64, &[&input]);
            let pieces: Vec<&[u8]> = input.chunks(size).collect();
            let found = |r: Result<Option<usize>, HeaderError>| r.map(|n| n.is_some());
            prop_assert_eq!(found(collect(64, &pieces)), found(whole));
        }

        #[test]
        fn random_octets_do_no_harm(input in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(below(&input).len() >= 2);
            let _ = collect(100, &input.chunks(3).collect::<Vec<_>>());
        }
    }
}
