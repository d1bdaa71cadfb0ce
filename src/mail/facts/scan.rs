//! One pass over a message as it streams by.
//!
//! What is seen does not depend on how the octets are cut into pieces. Kept are the start of a line
//! that is not whole yet, and of one header field; everything else is looked at and forgotten.
//!
//! Parts are found without knowing their boundaries: behind a line that could be one, everything up
//! to the next empty line is taken for a header. That errs on the side of seeing an attachment
//! where somebody wrote of one; it sees none only where a message says that it has no parts.

use memchr::memchr_iter;

use super::{ENTRIES_MAX, Facts, fields};
use crate::mail::header::{Line, classify};

/// How much of a line is kept: more than its name can take.
const LINE_KEPT: usize = 4096;

/// How much of a header field is kept, in whole lines and the start of one.
const FIELD_KEPT: usize = 8192;

/// Gathers [`Facts`] from the octets of a message, header first.
#[derive(Debug)]
pub struct Scan {
    wanted: Vec<String>,
    facts: Facts,
    place: Place,
    seen: fields::Seen,
    /// The start of the line that is not whole yet.
    line: Vec<u8>,
    /// Its octets so far.
    line_len: u64,
    /// The field that is being collected; empty when it is of no interest.
    field: Vec<u8>,
    /// Whether the message says that it has parts.
    has_parts: bool,
    /// Whether behind the header that is being read another one begins.
    nested: bool,
}

/// What the present line belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Header,
    /// The header of a part, or what may be one.
    Part,
    Body,
}

impl Scan {
    /// A scan that notes these headers (names in lower case), at most [`ENTRIES_MAX`] of them,
    /// besides what it always notes.
    pub fn new(wanted_headers: &[String]) -> Self {
        Self {
            wanted: wanted_headers.iter().take(ENTRIES_MAX).cloned().collect(),
            facts: Facts::default(),
            place: Place::Header,
            seen: fields::Seen::default(),
            line: Vec::new(),
            line_len: 0,
            field: Vec::new(),
            has_parts: false,
            nested: false,
        }
    }

    /// Looks at the next piece of the message.
    pub fn push(&mut self, piece: &[u8]) {
        self.facts.eight_bit = self.facts.eight_bit || !piece.is_ascii();
        let mut start = 0;
        for newline in memchr_iter(b'\n', piece) {
            let end = newline + 1;
            self.end_line(piece.get(start..end).unwrap_or_default());
            start = end;
        }
        self.extend_line(piece.get(start..).unwrap_or_default());
    }

    /// What was seen.
    pub fn finish(mut self) -> Facts {
        self.end_line(b"");
        self.end_field();
        self.facts
    }

    fn extend_line(&mut self, octets: &[u8]) {
        self.line_len += octets.len() as u64;
        let room = LINE_KEPT - self.line.len().min(LINE_KEPT);
        self.line.extend_from_slice(octets.get(..room).unwrap_or(octets));
    }

    /// The line ends with these octets.
    fn end_line(&mut self, octets: &[u8]) {
        if self.line_len == 0 {
            // Most lines lie in one piece, and are not copied.
            self.facts.longest_line = self.facts.longest_line.max(octets.len() as u64);
            self.look_at(octets.get(..LINE_KEPT).unwrap_or(octets));
            return;
        }
        self.extend_line(octets);
        self.facts.longest_line = self.facts.longest_line.max(self.line_len);
        let line = std::mem::take(&mut self.line);
        self.look_at(&line);
        // Its memory is used again.
        self.line = line;
        self.line.clear();
        self.line_len = 0;
    }

    fn look_at(&mut self, line: &[u8]) {
        if self.place == Place::Body {
            if self.has_parts && is_boundary(line) {
                self.begin_part();
            }
            return;
        }
        match classify(line, false) {
            Line::Field(name) => {
                self.end_field();
                self.begin_field(name, line);
            }
            Line::Continuation if self.field.is_empty() => {}
            Line::Continuation => self.keep(line),
            Line::Empty => {
                self.end_field();
                let nested = std::mem::take(&mut self.nested);
                self.place = if nested { Place::Part } else { Place::Body };
            }
            Line::Text => {
                self.end_field();
                if self.has_parts && is_boundary(line) {
                    self.begin_part();
                } else if self.place == Place::Header {
                    self.place = Place::Body;
                }
            }
        }
    }

    fn begin_part(&mut self) {
        self.place = Place::Part;
        self.nested = false;
    }

    fn begin_field(&mut self, name: &[u8], line: &[u8]) {
        let name = lower_case(name);
        let mut of_interest = name == "content-type" || name == "content-disposition";
        if self.place == Place::Header {
            if self.seen.again(&name) {
                note(&mut self.facts.repeated, name.clone());
            }
            of_interest |= name == "from" || self.wants(&name);
        }
        if of_interest {
            self.keep(line);
        }
    }

    fn wants(&self, name: &str) -> bool {
        self.wanted.iter().any(|wanted| wanted == name)
            && !self.facts.headers.iter().any(|(known, _)| known == name)
    }

    fn keep(&mut self, line: &[u8]) {
        let room = FIELD_KEPT - self.field.len().min(FIELD_KEPT);
        self.field.extend_from_slice(line.get(..room).unwrap_or(line));
    }

    /// The field is whole: notes what it says.
    fn end_field(&mut self) {
        if self.field.is_empty() {
            return;
        }
        let field = std::mem::take(&mut self.field);
        let mut halves = field.splitn(2, |b| *b == b':');
        let name = lower_case(halves.next().unwrap_or_default().trim_ascii_end());
        let value = halves.next().unwrap_or_default();
        if matches!(name.as_str(), "content-type" | "content-disposition") {
            let content = fields::content(value);
            if name == "content-type" {
                self.has_parts |= content.has_parts;
                self.nested = content.is_message;
            }
            for extension in content.extensions {
                note(&mut self.facts.attachments, extension);
            }
        }
        if self.place == Place::Header {
            if name == "from" {
                for address in fields::addresses(value) {
                    note(&mut self.facts.from, address);
                }
            }
            if self.wants(&name) {
                self.facts.headers.push((name, fields::text(value)));
            }
        }
    }
}

/// Adds an entry, unless it is there or the list is full.
fn note(list: &mut Vec<String>, entry: String) {
    if list.len() < ENTRIES_MAX && !list.contains(&entry) {
        list.push(entry);
    }
}

fn lower_case(name: &[u8]) -> String {
    String::from_utf8_lossy(name).to_ascii_lowercase()
}

/// Whether a line may be a boundary (RFC 2046 section 5.1.1), which has a name: `-- ` is what
/// stands above a signature.
fn is_boundary(line: &[u8]) -> bool {
    line.strip_prefix(b"--").and_then(<[u8]>::first).is_some_and(|b| !b.is_ascii_whitespace())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scan(wanted: &[&str], text: impl AsRef<[u8]>) -> Facts {
        let wanted: Vec<String> = wanted.iter().map(|&w| w.to_owned()).collect();
        let mut scan = Scan::new(&wanted);
        scan.push(text.as_ref());
        scan.finish()
    }

    /// Extensions of the attachments of a message with this text behind its first header.
    fn attachments(text: &str) -> Vec<String> {
        let header = "Content-Type: multipart/mixed; boundary=b\r\n\r\n";
        scan(&[], format!("{header}{text}")).attachments
    }

    #[test]
    fn the_longest_line_is_measured_with_its_end() {
        for (text, longest) in [
            ("", 0),
            ("a", 1),
            ("a\r\n", 3),
            ("A: b\r\n\r\nlonger line\r\nx", 13),
            ("A: b\r\n\r\nx\r\nthe last, not ended", 19),
        ] {
            assert_eq!(scan(&[], text).longest_line, longest, "{text:?}");
        }
        for n in [999, 1000, 1001, 1 << 20] {
            let text = format!("A: b\r\n\r\n{}\r\n", "x".repeat(n - 2));
            assert_eq!(scan(&[], text).longest_line, n as u64);
        }
    }

    #[test]
    fn an_octet_above_127_is_seen_wherever_it_stands() {
        assert!(!scan(&[], "A: b\r\n\r\n\x7f\r\n").eight_bit);
        assert!(scan(&[], "A: \u{e9}\r\n\r\nx\r\n").eight_bit);
        assert!(scan(&[], b"A: b\r\n\r\nx\r\n\xff").eight_bit);
    }

    #[test]
    fn the_addresses_of_from_are_noted_and_no_others() {
        let text = "To: c@d\r\nFROM : Ana\r\n <a@b.example>,\r\n\tx@y.example\r\n\r\nFrom: e@f\r\n";
        assert_eq!(scan(&[], text).from, ["a@b.example", "x@y.example"]);
        let many = |n: usize| {
            let list: Vec<String> = (0..n).map(|i| format!("a{i}@b.example")).collect();
            scan(&[], format!("From: {}\r\n\r\n", list.join(", "))).from.len()
        };
        assert_eq!([15, 16, 17].map(many), [15, 16, 16]);
    }

    #[test]
    fn headers_that_may_be_there_once_are_noted_when_they_repeat() {
        let text = "Subject: a\r\nReceived: x\r\nTo: a\r\nsubject: b\r\nSUBJECT: c\r\nTo: b\r\n\
            Received: y\r\nDate: x\r\nDate: y\r\n\r\nFrom: a\r\nFrom: b\r\n";
        assert_eq!(scan(&[], text).repeated, ["subject", "date"]);
        let names = "from sender reply-to subject date message-id in-reply-to references keywords \
            comments precedence priority importance sensitivity user-agent errors-to organization";
        let names: Vec<&str> = names.split_whitespace().collect();
        let many = |n: usize| {
            let twice = |name: &&str| format!("{name}: x\r\n{name}: y\r\n");
            let header: Vec<String> = names[..n].iter().map(twice).collect();
            scan(&[], header.concat()).repeated.len()
        };
        assert_eq!([15, 16, 17].map(many), [15, 16, 16]);
    }

    #[test]
    fn headers_that_are_asked_for_are_noted_and_of_repeated_ones_the_first() {
        let text = "X-Class:  otp \r\n\tnow \r\nx-other: 1\r\nx-class: second\r\nX-Empty:\r\n\r\n";
        let own = |n: &str, v: &str| (n.to_owned(), v.to_owned());
        let headers = scan(&["x-class", "x-empty", "x-none"], text).headers;
        assert_eq!(headers, [own("x-class", "otp \tnow"), own("x-empty", "")]);
        let long = scan(&["x-a"], format!("X-A: {}\r\n", "y".repeat(100_000))).headers;
        assert_eq!(long[0].1.len(), super::super::ENTRY_MAX);
        let many = |n: usize| {
            let names: Vec<String> = (0..n).map(|i| format!("x-{i}")).collect();
            let mut scan = Scan::new(&names);
            for name in &names {
                scan.push(format!("{name}: v\r\n").as_bytes());
            }
            scan.finish().headers.len()
        };
        assert_eq!([15, 16, 17].map(many), [15, 16, 16]);
    }

    #[test]
    fn attachments_are_found_in_every_part_and_once_each() {
        let text = "preamble.exe\r\n--b\r\nContent-Type: text/plain; name=a.txt\r\n\r\nbody\r\n\
            --b\r\nContent-Type: application/x;\r\n name=\"b.EXE\"\r\n\
            Content-Disposition: attachment; filename=\"b.exe\"\r\n\r\nContent-Disposition: \
            attachment; filename=no.js\r\n--b\r\nContent-Type: multipart/x; boundary=c\r\n\r\n\
            --c\r\nContent-Disposition: attachment; filename=c.zip\r\n\r\nx\r\n--c--\r\n--b--\r\n";
        assert_eq!(attachments(text), ["txt", "exe", "zip"]);
        let single = "Content-Disposition: attachment; filename=a.pdf\r\n\r\nbody";
        assert_eq!(scan(&[], single).attachments, ["pdf"]);
        let many = |n: usize| {
            let part = |i| format!("--b\r\nContent-Type: a/b; name=a.x{i}\r\n\r\n");
            attachments(&(0..n).map(part).collect::<Vec<_>>().concat()).len()
        };
        assert_eq!([15, 16, 17].map(many), [15, 16, 16]);
    }

    #[test]
    fn attachments_of_a_message_within_are_found() {
        let text = "--b\r\nContent-Type: message/rfc822\r\n\r\nSubject: x\r\n\
            Content-Disposition: attachment; filename=a.exe\r\n\r\nbody\r\n--b--\r\n";
        assert_eq!(attachments(text), ["exe"]);
        let whole = "Content-Type: message/rfc822\r\n\r\nSubject: x\r\n\
            Content-Disposition: inline; filename=a.js\r\n\
            Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\
            Content-Disposition: attachment; filename=a.exe\r\n\r\nbody\r\n--b--\r\n";
        assert_eq!(scan(&[], whole).attachments, ["js", "exe"]);
    }

    #[test]
    fn text_that_only_looks_like_a_part_is_none() {
        let name = "Content-Disposition: attachment; filename=a.exe\r\n";
        assert!(attachments(&format!("text\r\n-- \r\n{name}\r\n")).is_empty());
        assert!(attachments(&format!("text\r\n--\r\n{name}\r\n")).is_empty());
        assert!(attachments(&format!("text\r\n\r\n{name}\r\n")).is_empty());
        let plain = format!("Content-Type: text/plain\r\n\r\n--b\r\n{name}\r\n");
        assert!(scan(&[], plain).attachments.is_empty());
    }

    #[test]
    fn what_is_kept_is_bounded_whatever_comes() {
        let mut scan = Scan::new(&["x".into()]);
        scan.push(b"X: ");
        for _ in 0..100 {
            scan.push(&[b'y'; 1000]);
            assert!(scan.line.len() <= LINE_KEPT);
        }
        scan.push(b"\r\n");
        for _ in 0..1000 {
            scan.push(b" a folded line that goes on and on\r\n");
            assert!(scan.field.len() <= FIELD_KEPT);
        }
        let facts = scan.finish();
        assert_eq!((facts.headers.len(), facts.longest_line), (1, 100_005));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn the_facts_are_the_same_however_the_message_is_cut(
            words in proptest::collection::vec(proptest::sample::select(vec![
                "\r\n", "\r\n", "\r\n", "\n", "\r", " ", "\t", "--b", "-", "From: a@b", "From",
                "X-A: v", "Subject: s", "subject:", ":", ";", "=", "\"",
                "Content-Type: multipart/mixed", "Content-Type: message/rfc822",
                "Content-Type: a/b; name=a.exe", "Content-Disposition: attachment; filename=b.js",
                "name=c.zip", "text", "é", "<c@d>", ",",
            ]), 0..80),
            cuts in proptest::collection::vec(1..20_usize, 1..40),
        ) {
            let text = words.concat();
            let whole = scan(&["x-a"], &text);
            let mut pieces = Scan::new(&["x-a".into()]);
            let (mut rest, mut cuts) = (text.as_bytes(), cuts.iter().cycle());
            while !rest.is_empty() {
                let (piece, left) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
                pieces.push(piece);
                rest = left;
            }
            prop_assert_eq!(pieces.finish(), whole);
        }

        #[test]
        fn random_octets_do_no_harm(text in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let facts = scan(&["x"], &text);
            prop_assert!(facts.longest_line <= text.len() as u64);
            prop_assert_eq!(facts.eight_bit, text.iter().any(|b| *b > 127));
        }
    }
}
