//! Who a message says it is from, and what is put in place of it when SES may not send for them.

use super::settings::SenderPolicy;
use crate::mail::Mailbox;

/// Octets of a line without its end (RFC 5322 section 2.1.1).
const LINE_MAX: usize = 998;
/// The same, as it should be.
const LINE_GOOD: usize = 78;

/// The mailboxes of a From, Sender or Reply-To field.
#[derive(Debug, PartialEq, Eq, Default)]
pub(super) struct Mailboxes<'a> {
    pub(super) list: Vec<Named<'a>>,
    /// Whether there is a group among them.
    grouped: bool,
}

/// A mailbox with the name before it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Named<'a> {
    /// Quotes, encoded words and folding as they came; empty when there is none.
    display: &'a [u8],
    pub(super) address: Mailbox,
}

impl<'a> Mailboxes<'a> {
    /// Reads a field's value (RFC 5322 section 3.4, with the routes of section 4.4); `None` when it
    /// is something else.
    pub(super) fn read(value: &'a [u8]) -> Option<Self> {
        let mut found = Self::default();
        let mut reader = Reader { value, at: 0 };
        loop {
            let (part, end) = reader.part()?;
            match end {
                b':' => found.grouped = true,
                _ if part.is_empty() => {}
                _ => found.list.push(part.named()?),
            }
            if end == 0 {
                return Some(found);
            }
        }
    }

    /// Whether there is one, and each may be sent for.
    pub(super) fn are_allowed(&self, policy: &SenderPolicy) -> bool {
        !self.list.is_empty() && self.list.iter().all(|m| policy.allows(&m.address))
    }
}

/// `From: display <default>`, the display name as it stood in `from`.
pub(super) fn write_from(default: &str, from: Option<&Mailboxes<'_>>, out: &mut Vec<u8>) {
    let display = from.and_then(|from| from.list.first()).map_or(&b""[..], |first| first.display);
    let first = display.split(|b| *b == b'\n').next().unwrap_or_default().trim_ascii_end().len();
    // It may have filled a line of its own, and must not grow too long beside the field's name.
    let fits = "From: ".len() + first <= LINE_MAX;
    out.extend_from_slice(if fits { b"From: " } else { b"From:\r\n " });
    if display.is_empty() {
        out.extend_from_slice(default.as_bytes());
    } else {
        out.extend_from_slice(display);
        let line = display.rsplit(|b| *b == b'\n').next().unwrap_or_default().len();
        let indent = if line == display.len() { "From: ".len() } else { 0 };
        let folded = indent + line + default.len() + 3 > LINE_GOOD;
        out.extend_from_slice(if folded { b"\r\n <" } else { b" <" });
        out.extend_from_slice(default.as_bytes());
        out.push(b'>');
    }
    out.extend_from_slice(b"\r\n");
}

/// A Reply-To with the mailboxes of the From field whose value is `value`.
pub(super) fn write_reply_to(from: &Mailboxes<'_>, value: &[u8], out: &mut Vec<u8>) {
    if !from.grouped && !from.list.is_empty() {
        return write_field("Reply-To", value, out);
    }
    for (n, mailbox) in from.list.iter().enumerate() {
        out.extend_from_slice(if n == 0 { b"Reply-To: " } else { b",\r\n " });
        out.extend_from_slice(mailbox.address.as_str().as_bytes());
    }
    if !from.list.is_empty() {
        out.extend_from_slice(b"\r\n");
    }
}

/// A field with a value that stood in another one: all behind its colon, with its line end.
pub(super) fn write_field(name: &str, value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(name.as_bytes());
    out.push(b':');
    let line = value.split(|b| *b == b'\n').next().unwrap_or_default().trim_ascii_end().len();
    if name.len() + 1 + line > LINE_MAX {
        out.extend_from_slice(b"\r\n");
        if !value.starts_with(b" ") && !value.starts_with(b"\t") {
            out.push(b' ');
        }
    }
    out.extend_from_slice(value);
    if !value.ends_with(b"\n") {
        out.extend_from_slice(b"\r\n");
    }
}

/// Goes through a value part by part.
struct Reader<'a> {
    value: &'a [u8],
    at: usize,
}

/// What stands between two delimiters.
#[derive(Default)]
struct Part<'a> {
    /// All before the first angle bracket.
    before: &'a [u8],
    /// The same without comments and blanks.
    plain: Vec<u8>,
    /// What stands in angle brackets, without comments and blanks.
    angle: Option<Vec<u8>>,
}

impl<'a> Reader<'a> {
    /// The next part, and what ends it: `,`, `:`, `;` or, at the end, 0.
    fn part(&mut self) -> Option<(Part<'a>, u8)> {
        let start = self.at;
        let mut part = Part::default();
        let mut within = false;
        while let Some(b) = self.next() {
            match b {
                b'"' => {
                    let quoted = self.quoted()?;
                    part.text(within).extend_from_slice(quoted);
                }
                b'(' => self.comment()?,
                b'<' if part.angle.is_none() => {
                    part.before = self.value.get(start..self.at - 1).unwrap_or_default();
                    part.angle = Some(Vec::new());
                    within = true;
                }
                b'>' if within => within = false,
                b'<' | b'>' => return None,
                b',' | b':' | b';' if !within => return Some((part, b)),
                b' ' | b'\t' | b'\r' | b'\n' => {}
                b => part.text(within).push(b),
            }
        }
        if within { None } else { Some((part, 0)) }
    }

    fn next(&mut self) -> Option<u8> {
        let b = self.value.get(self.at).copied();
        self.at += usize::from(b.is_some());
        b
    }

    /// The rest of a quoted string, with both its quotes.
    fn quoted(&mut self) -> Option<&'a [u8]> {
        let start = self.at - 1;
        loop {
            match self.next()? {
                b'\\' => drop(self.next()?),
                b'"' => return self.value.get(start..self.at),
                _ => {}
            }
        }
    }

    /// Passes over the rest of a comment and those within it.
    fn comment(&mut self) -> Option<()> {
        let mut depth = 1_usize;
        while depth > 0 {
            match self.next()? {
                b'\\' => drop(self.next()?),
                b'(' => depth += 1,
                b')' => depth -= 1,
                _ => {}
            }
        }
        Some(())
    }
}

impl<'a> Part<'a> {
    fn text(&mut self, within: bool) -> &mut Vec<u8> {
        if within { self.angle.get_or_insert_default() } else { &mut self.plain }
    }

    const fn is_empty(&self) -> bool {
        self.angle.is_none() && self.plain.is_empty()
    }

    /// The mailbox; `None` when it is something else.
    fn named(self) -> Option<Named<'a>> {
        let (display, text) = match self.angle {
            Some(angle) => (self.before.trim_ascii(), without_route(angle)),
            None => (&b""[..], self.plain),
        };
        Some(Named { display, address: Mailbox::parse(&text).ok()? })
    }
}

/// `@a,@b:mailbox` names relays on the way (RFC 5322 section 4.4).
fn without_route(angle: Vec<u8>) -> Vec<u8> {
    if !angle.starts_with(b"@") {
        return angle;
    }
    angle.splitn(2, |b| *b == b':').nth(1).map(<[u8]>::to_vec).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(value: &str) -> Option<Vec<(String, String)>> {
        let text = |m: &Named<'_>| {
            (String::from_utf8_lossy(m.display).into_owned(), m.address.to_string())
        };
        Mailboxes::read(value.as_bytes()).map(|m| m.list.iter().map(text).collect())
    }

    #[test]
    fn names_and_addresses_are_told_apart() {
        let table: &[(&str, &[(&str, &str)])] = &[
            (" a@x.example\r\n", &[("", "a@x.example")]),
            (" Ann <a@x.example>\r\n", &[("Ann", "a@x.example")]),
            ("\r\n \"A, <b>\" <a@x.example>", &[("\"A, <b>\"", "a@x.example")]),
            (
                " =?utf-8?Q?An=2C?=\r\n =?utf-8?Q?n?= <a@x>",
                &[("=?utf-8?Q?An=2C?=\r\n =?utf-8?Q?n?=", "a@x")],
            ),
            (" Ann (her, own) <a@x>, b@y (Bob)", &[("Ann (her, own)", "a@x"), ("", "b@y")]),
            (" list: a@x, Bob <b@y>; c@z", &[("", "a@x"), ("Bob", "b@y"), ("", "c@z")]),
            (" nobody:;", &[]),
            (" <@relay,@two:a@x>", &[("", "a@x")]),
            (" \"a b\"@x", &[("", "\"a b\"@x")]),
            (" ,a@x,,", &[("", "a@x")]),
            ("", &[]),
        ];
        for (value, expected) in table {
            let expected: Vec<_> =
                expected.iter().map(|(d, a)| ((*d).to_owned(), (*a).to_owned())).collect();
            assert_eq!(read(value), Some(expected), "{value:?}");
        }
        for bad in [" Ann", " <a@x", " \"a@x", " (a@x", " a@x <b@y> <c@z>", " a>@x", " Ann <>"] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_field_that_gets_a_longer_name_is_folded_only_when_its_line_grows_too_long() {
        for (n, folded) in [(LINE_MAX - 17, false), (LINE_MAX - 16, false), (LINE_MAX - 15, true)] {
            let mut out = Vec::new();
            let value = format!(" {}\r\n", "x".repeat(n - 1));
            write_field("X-Original-From", value.as_bytes(), &mut out);
            let first = out.split(|b| *b == b'\n').next().unwrap();
            assert_eq!(first == b"X-Original-From:\r", folded, "{n}");
            assert!(first.len() - 1 <= LINE_MAX);
        }
    }

    #[test]
    fn a_display_name_that_filled_a_line_does_so_again() {
        for (n, begins) in [
            (LINE_MAX - 7, "From: x"),
            (LINE_MAX - 6, "From: x"),
            (LINE_MAX - 5, "From:\r\n x"),
            (LINE_MAX - 1, "From:\r\n x"),
        ] {
            let value = format!("\r\n {}\r\n <a@x>\r\n", "x".repeat(n));
            let (from, mut out) = (Mailboxes::read(value.as_bytes()).unwrap(), Vec::new());
            write_from("relay@ok.example", Some(&from), &mut out);
            let text = String::from_utf8(out).unwrap();
            assert!(text.starts_with(begins) && text.ends_with("x\r\n <relay@ok.example>\r\n"));
            assert!(text.split("\r\n").all(|line| line.len() <= LINE_MAX), "{n}");
        }
    }

    proptest! {
        #[test]
        fn any_value_is_read_without_a_panic(value in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Mailboxes::read(&value);
        }

        #[test]
        fn any_value_of_the_grammars_letters_is_read_without_a_panic(
            value in "[a@<>\"\\\\(),:; \r\n]{0,40}",
        ) {
            let _ = Mailboxes::read(value.as_bytes());
        }
    }
}
