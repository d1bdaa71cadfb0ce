//! What single header fields say.

use mail_parser::parsers::MessageStream;

use super::ENTRY_MAX;

/// The longest extension that is noted; there is none worth knowing that comes near it.
const EXTENSION_MAX: usize = 32;

/// Headers that SES takes once only, in order. `To`, `Cc` and `Received` are none of them.
const ONCE: [&str; 39] = [
    "auto-submitted",
    "bounces-to",
    "comments",
    "content-description",
    "content-disposition",
    "content-id",
    "content-transfer-encoding",
    "content-type",
    "date",
    "delivered-to",
    "disposition-notification-to",
    "dkim-signature",
    "domainkey-signature",
    "errors-to",
    "from",
    "importance",
    "in-reply-to",
    "keywords",
    "list-archive",
    "list-help",
    "list-id",
    "list-owner",
    "list-post",
    "list-subscribe",
    "list-unsubscribe",
    "message-id",
    "mime-version",
    "organization",
    "precedence",
    "priority",
    "references",
    "reply-to",
    "return-path",
    "sender",
    "sensitivity",
    "subject",
    "thread-index",
    "thread-topic",
    "user-agent",
];

/// Which headers that may be there once were seen.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen(u64);

impl Seen {
    /// Notes a header by its name in lower case; returns whether it may be there once and was
    /// there.
    pub(super) fn again(&mut self, name: &str) -> bool {
        let Ok(place) = ONCE.binary_search(&name) else { return false };
        let bit = 1 << place;
        let again = self.0 & bit != 0;
        self.0 |= bit;
        again
    }
}

/// The addresses in the value of an address header.
pub(super) fn addresses(value: &[u8]) -> Vec<String> {
    let value = terminated(value);
    let parsed = MessageStream::new(&value).parse_address();
    let Some(list) = parsed.as_address() else { return Vec::new() };
    let texts = list.iter().filter_map(|a| a.address.as_deref());
    texts.filter(|text| text.contains('@') && text.len() <= ENTRY_MAX).map(str::to_owned).collect()
}

/// What a Content-Type or Content-Disposition says of the part.
#[derive(Debug, Default)]
pub(super) struct Content {
    /// Whether there are parts within.
    pub(super) has_parts: bool,
    /// Whether a message is within, which starts with a header of its own.
    pub(super) is_message: bool,
    /// Extensions of its names.
    pub(super) extensions: Vec<String>,
}

/// Reads the value of a Content-Type or Content-Disposition header (RFC 2045, RFC 2183, RFC 2231).
pub(super) fn content(value: &[u8]) -> Content {
    let value = terminated(value);
    let parsed = MessageStream::new(&value).parse_content_type();
    let Some(parsed) = parsed.as_content_type() else { return Content::default() };
    let is_message = parsed.ctype().eq_ignore_ascii_case("message");
    let has_parts = is_message || parsed.ctype().eq_ignore_ascii_case("multipart");
    let named = parsed.attributes().unwrap_or_default().iter();
    let named = named.filter(|a| a.name == "name" || a.name == "filename");
    let extensions = named.filter_map(|a| extension(&a.value)).collect();
    Content { has_parts, is_message, extensions }
}

/// The value as text: unfolded, trimmed, and cut.
pub(super) fn text(value: &[u8]) -> String {
    let value: Vec<u8> = value.iter().copied().filter(|b| !matches!(b, b'\r' | b'\n')).collect();
    let text = String::from_utf8_lossy(&value);
    let text = text.trim();
    let mut end = text.len().min(ENTRY_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().trim_end().to_owned()
}

/// What stands behind the last dot of a name. Windows takes `x.exe.` for `x.exe`.
fn extension(name: &str) -> Option<String> {
    let name = name.trim_end_matches(|c: char| c == '.' || c.is_whitespace() || c.is_control());
    let (_, extension) = name.rsplit_once('.')?;
    let is_one = extension.len() <= EXTENSION_MAX && !extension.contains(['/', '\\']);
    is_one.then(|| extension.to_lowercase())
}

/// With a line end, because the parser reads nothing without one.
fn terminated(value: &[u8]) -> Vec<u8> {
    [value.trim_ascii_end(), b"\r\n"].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_headers_that_may_be_there_once_can_be_found() {
        assert!(ONCE.is_sorted() && ONCE.len() <= 64);
        let mut seen = Seen::default();
        for name in ONCE.iter().chain(&["to", "cc", "received", "x-other"]) {
            assert!(!seen.again(name), "{name}");
        }
        assert!(seen.again("subject") && seen.again("subject") && !seen.again("to"));
    }

    #[test]
    fn addresses_are_found_whatever_stands_around_them() {
        for (value, expected) in [
            (" a@b.example", &["a@b.example"][..]),
            ("Ana <a@b.example>", &["a@b.example"]),
            ("\"x, y@z\" <a@b.example>, c@d.example", &["a@b.example", "c@d.example"]),
            ("=?utf-8?q?x=40y?= <a@b.example> (comment c@d)", &["a@b.example"]),
            ("Team: a@b.example, <c@d.example>;", &["a@b.example", "c@d.example"]),
            ("Ana\r\n\t<a@b.example>\r\n", &["a@b.example"]),
            ("Ana <ana>", &[]),
            ("undisclosed:;", &[]),
            ("", &[]),
        ] {
            assert_eq!(addresses(value.as_bytes()), expected, "{value:?}");
        }
        let address = |n: usize| format!("<{}@x>", "a".repeat(n - 2));
        for (n, found) in [(255, 1), (256, 1), (257, 0)] {
            assert_eq!(addresses(address(n).as_bytes()).len(), found, "{n}");
        }
    }

    #[test]
    fn names_are_read_in_every_form_they_are_written_in() {
        for (value, expected) in [
            (" attachment; filename=a.EXE", &["exe"][..]),
            ("attachment; filename=\"a b; c.pdf\"", &["pdf"]),
            ("attachment;\r\n\tfilename=\"a.tar.gz\"", &["gz"]),
            ("attachment; filename=\"a.exe. \"", &["exe"]),
            ("attachment; filename=\"a\\\"b.vbs\"", &["vbs"]),
            ("attachment; FileName*=utf-8''%61%2e%65xe", &["exe"]),
            ("attachment; filename*0=\"a.e\"; filename*1=\"xe\"", &["exe"]),
            ("attachment; filename*0*=utf-8''a%2e; filename*1*=js", &["js"]),
            ("attachment; filename=\"=?utf-8?B?YS5leGU=?=\"", &["exe"]),
            ("application/x; name=a.js; other=b.exe", &["js"]),
            ("attachment; filename=a.txt; filename*=utf-8''b.exe", &["txt", "exe"]),
            ("attachment; filename=\"open.exe", &["exe"]),
            ("attachment; filename=noext", &[]),
            ("attachment; filename=\"a.b/c\"", &[]),
            ("attachment; filename=.", &[]),
            ("attachment; filename=", &[]),
            ("inline", &[]),
            ("", &[]),
        ] {
            assert_eq!(content(value.as_bytes()).extensions, expected, "{value:?}");
        }
        let name = |n: usize| format!("attachment; filename=a.{}", "x".repeat(n));
        for (n, found) in [(31, 1), (32, 1), (33, 0)] {
            assert_eq!(content(name(n).as_bytes()).extensions.len(), found, "{n}");
        }
    }

    #[test]
    fn a_value_is_unfolded_trimmed_and_cut() {
        assert_eq!(text(b" a\r\n\tb \r\n"), "a\tb");
        assert_eq!(text(b"\xff"), "\u{fffd}");
        for (n, kept) in [(255, 255), (256, 256), (257, 256)] {
            assert_eq!(text("x".repeat(n).as_bytes()).len(), kept);
        }
        assert_eq!(text("é".repeat(128).as_bytes()).len(), 256);
        assert_eq!(text(format!("x{}", "é".repeat(128)).as_bytes()).len(), 255);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn random_values_do_no_harm(
            words in proptest::collection::vec(proptest::sample::select(vec![
                "filename", "name", "*", "*0", "*1*", "=", "\"", "\\", ";", ",", "<", ">", "@", "(",
                ")", ":", "\r\n ", "\n", "\r", "=?utf-8?q?", "=?x?b?", "?=", "%", "%41", "'", "''",
                "a.exe", "é", "\0", " ", "\t", "/", "attachment", "[", "]", "99999999999",
            ]), 0..60),
        ) {
            let value = words.concat();
            let found = content(value.as_bytes()).extensions;
            prop_assert!(found.iter().all(|e| !e.is_empty()), "{found:?}");
            let _ = addresses(value.as_bytes());
            prop_assert!(!text(value.as_bytes()).contains('\n'));
        }
    }
}
