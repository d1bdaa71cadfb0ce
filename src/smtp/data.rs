//! The way in: DATA octets or BDAT chunks to message text.
//!
//! Only CRLF `.` CRLF ends a message. A bare CR or LF becomes CRLF or is refused, and in neither
//! case does it make the octet behind it the start of a line as far as dots go: a dot after it is
//! text. So no two readers of the same octets can disagree with us about where a message ends,
//! which is what SMTP smuggling lives on.

use memchr::memchr3;

use super::replies;
use super::session::BareNewline;

/// What a message may be.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Octets of the decoded message.
    pub size: u64,
    /// Octets of a line of it, without CRLF.
    pub line: usize,
    /// What becomes of a bare CR or LF.
    pub bare_newline: BareNewline,
}

/// Why a message cannot be taken, from light to grave. Its octets are read to their end anyway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum DataError {
    /// A CR without LF or a LF without CR, where [`BareNewline::Reject`] is set.
    #[error("the message contains a bare CR or LF")]
    BareNewline,
    /// A line of more octets than [`Limits::line`].
    #[error("a line of the message is longer than the limit")]
    LineTooLong,
    /// A NUL, which C programs behind us would take for the end.
    #[error("the message contains a NUL octet")]
    Nul,
    /// More octets than [`Limits::size`].
    #[error("the message is larger than the limit")]
    TooBig,
}

impl DataError {
    pub(super) const fn reply(self) -> &'static str {
        match self {
            Self::TooBig => replies::TOO_BIG,
            Self::LineTooLong => replies::LINE_IN_MESSAGE,
            Self::Nul => replies::NUL,
            Self::BareNewline => replies::BARE_NEWLINE,
        }
    }
}

/// What [`Decoder::decode`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decoded {
    /// Octets of the input that belong to the message.
    pub consumed: usize,
    /// Whether the end of the data was among them.
    pub ended: bool,
}

/// Decodes one message. Takes it in pieces of any size and holds no octet of it.
#[derive(Debug)]
pub struct Decoder {
    limits: Limits,
    dots: bool,
    position: Position,
    line: usize,
    size: u64,
    error: Option<DataError>,
}

/// Where the next octet falls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Position {
    /// At the start of the message or after a true CRLF.
    LineStart,
    /// After a dot at such a place. It is not text: it ends the message or is to be taken away.
    Dot,
    /// After such a dot and CR.
    DotCr,
    /// Anywhere else.
    Text,
    /// After CR, which is line end or bare.
    Cr,
}

impl Decoder {
    /// For the octets after DATA: dots are taken away, the lone dot is the end.
    pub const fn data(limits: Limits) -> Self {
        Self { limits, dots: true, position: Position::LineStart, line: 0, size: 0, error: None }
    }

    /// For BDAT chunks (RFC 3030): a dot is a dot; call [`finish`](Self::finish) after the last.
    pub const fn chunks(limits: Limits) -> Self {
        Self { limits, dots: false, position: Position::LineStart, line: 0, size: 0, error: None }
    }

    /// Why the message cannot be taken, as far as is known by now.
    pub const fn error(&self) -> Option<DataError> {
        self.error
    }

    /// Appends the text in `input` to `out`, up to the end of the data; nothing after an error.
    pub fn decode(&mut self, input: &[u8], out: &mut Vec<u8>) -> Decoded {
        let mut at = 0;
        while let Some(&octet) = input.get(at) {
            match (self.position, octet) {
                (Position::LineStart, b'.') if self.dots => {
                    self.position = Position::Dot;
                    at += 1;
                }
                (Position::Dot, b'\r') => {
                    self.position = Position::DotCr;
                    at += 1;
                }
                (Position::DotCr, b'\n') => {
                    self.position = Position::LineStart;
                    return Decoded { consumed: at + 1, ended: true };
                }
                (Position::Cr, b'\n') => {
                    self.newline(out);
                    self.position = Position::LineStart;
                    at += 1;
                }
                (Position::Cr | Position::DotCr, _) => {
                    self.bare_newline(out);
                    self.position = Position::Text;
                }
                (Position::LineStart | Position::Dot | Position::Text, _) => {
                    at += self.text(input.get(at..).unwrap_or_default(), out);
                }
            }
        }
        Decoded { consumed: at, ended: false }
    }

    /// The last chunk is done: settles a CR that still waited for its LF.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        if self.position == Position::Cr {
            self.bare_newline(out);
            self.position = Position::Text;
        }
    }

    /// Takes a run of octets that can be copied as they are, whole lines at a time, and the octet
    /// that ended it; returns how many that was.
    fn text(&mut self, input: &[u8], out: &mut Vec<u8>) -> usize {
        let mut line_start = 0;
        let mut at = 0;
        loop {
            let found = memchr3(b'\r', b'\n', 0, input.get(at..).unwrap_or_default());
            let end = found.map_or(input.len(), |i| at + i);
            self.lengthen(end - line_start);
            match input.get(end..) {
                Some([b'\r', b'\n', b'.', ..]) if self.dots => {
                    return self.copy_lines(input, end + 2, out);
                }
                Some([b'\r', b'\n', _, ..]) => {
                    self.line = 0;
                    line_start = end + 2;
                    at = line_start;
                }
                Some([b'\r', b'\n']) => return self.copy_lines(input, end + 2, out),
                Some([stop, ..]) => {
                    self.copy(input.get(..end).unwrap_or_default(), out);
                    self.stop(*stop, out);
                    return end + 1;
                }
                _ => {
                    self.copy(input, out);
                    self.position = Position::Text;
                    return input.len();
                }
            }
        }
    }

    /// The first `len` octets are lines, the last of them complete.
    fn copy_lines(&mut self, input: &[u8], len: usize, out: &mut Vec<u8>) -> usize {
        self.copy(input.get(..len).unwrap_or_default(), out);
        self.line = 0;
        self.position = Position::LineStart;
        len
    }

    /// A CR that may be bare, a bare LF or a NUL.
    fn stop(&mut self, octet: u8, out: &mut Vec<u8>) {
        self.position = Position::Text;
        match octet {
            b'\r' => self.position = Position::Cr,
            b'\n' => self.bare_newline(out),
            _ => self.fail(DataError::Nul),
        }
    }

    fn bare_newline(&mut self, out: &mut Vec<u8>) {
        if self.limits.bare_newline == BareNewline::Reject {
            self.fail(DataError::BareNewline);
        }
        self.newline(out);
    }

    fn newline(&mut self, out: &mut Vec<u8>) {
        self.line = 0;
        self.copy(b"\r\n", out);
    }

    fn lengthen(&mut self, octets: usize) {
        self.line = self.line.saturating_add(octets);
        if self.line > self.limits.line {
            self.fail(DataError::LineTooLong);
        }
    }

    fn copy(&mut self, text: &[u8], out: &mut Vec<u8>) {
        self.size = self.size.saturating_add(text.len() as u64);
        if self.size > self.limits.size {
            self.fail(DataError::TooBig);
        }
        if self.error.is_none() {
            out.extend_from_slice(text);
        }
    }

    /// The gravest error is told, not the first: which is found first depends on how the input was
    /// cut into pieces.
    fn fail(&mut self, error: DataError) {
        self.error = self.error.max(Some(error));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::smtp::stuff::Stuffer;

    const LIMITS: Limits = Limits { size: 1000, line: 20, bare_newline: BareNewline::Normalize };

    /// The text, what is left behind the end of the data (if it was seen), and the error.
    fn decode(
        mut decoder: Decoder,
        input: &[u8],
        piece: usize,
    ) -> (Vec<u8>, Option<Vec<u8>>, Option<DataError>) {
        let (mut out, mut at) = (Vec::new(), 0);
        for chunk in input.chunks(piece) {
            let decoded = decoder.decode(chunk, &mut out);
            at += decoded.consumed;
            if decoded.ended {
                return (out, Some(input[at..].to_vec()), decoder.error());
            }
            assert_eq!(decoded.consumed, chunk.len());
        }
        decoder.finish(&mut out);
        (out, None, decoder.error())
    }

    fn data(input: &str) -> (String, Option<String>, Option<DataError>) {
        let results: Vec<_> = [1, 2, 3, 7, 10_000]
            .into_iter()
            .map(|piece| decode(Decoder::data(LIMITS), input.as_bytes(), piece))
            .collect();
        assert!(results.iter().all(|r| (&r.1, r.2) == (&results[0].1, results[0].2)), "{input:?}");
        let (out, rest, error) = results[0].clone();
        let text = |octets| String::from_utf8(octets).unwrap();
        if error.is_none() {
            assert!(results.iter().all(|r| r.0 == out), "{input:?}");
        }
        (text(out), rest.map(text), error)
    }

    #[test]
    fn crlf_dot_crlf_ends_a_message_and_its_dots_are_unstuffed() {
        for (input, text, rest) in [
            (".\r\n", "", ""),
            (".\r\nQUIT\r\n", "", "QUIT\r\n"),
            ("a\r\n.\r\n", "a\r\n", ""),
            ("\r\n.\r\n", "\r\n", ""),
            ("..\r\n.\r\n", ".\r\n", ""),
            ("...\r\n..a\r\n.b\r\n.\r\n", "..\r\n.a\r\nb\r\n", ""),
            ("a.\r\n.\r\n.\r\n", "a.\r\n", ".\r\n"),
        ] {
            let expected = (text.to_owned(), Some(rest.to_owned()), None);
            assert_eq!(data(input), expected, "{input:?}");
        }
    }

    #[test]
    fn no_smuggling_form_ends_a_message() {
        for (input, text) in [
            ("a\n.\nb", "a\r\n.\r\nb"),
            ("a\n.\r\nb", "a\r\n.\r\nb"),
            ("a\r.\rb", "a\r\n.\r\nb"),
            ("a\r.\r\nb", "a\r\n.\r\nb"),
            ("a\r\n.\rb", "a\r\n\r\nb"),
            ("a\r\n.\nb", "a\r\n\r\nb"),
            ("a\r\n.\r\r\nb", "a\r\n\r\n\r\nb"),
            ("a\n\n.\r\nb", "a\r\n\r\n.\r\nb"),
            ("a\r\n\n.\r\nb", "a\r\n\r\n.\r\nb"),
            ("a\r\r\n.\nb", "a\r\n\r\n\r\nb"),
            ("a\n..\r\nb", "a\r\n..\r\nb"),
            ("\n.\r\nb", "\r\n.\r\nb"),
        ] {
            assert_eq!(data(input), (text.to_owned(), None, None), "{input:?}");
            // What was stored leaves as text too: the next hop sees one message.
            let (mut wire, mut stuffer) = (Vec::new(), Stuffer::default());
            stuffer.push(text.as_bytes(), &mut wire).unwrap();
            stuffer.finish(&mut wire).unwrap();
            let end = memchr::memmem::find_iter(&wire, "\r\n.\r\n").collect::<Vec<_>>();
            assert_eq!(end, [wire.len() - 5], "{input:?}");
        }
    }

    #[test]
    fn in_reject_mode_a_bare_newline_is_an_error_and_the_framing_is_the_same() {
        let limits = Limits { bare_newline: BareNewline::Reject, ..LIMITS };
        for input in ["a\nb\r\n.\r\nQ", "a\rb\r\n.\r\nQ", "a\r\n.\rb\r\n.\r\nQ", ".\n\r\n.\r\nQ"] {
            for piece in [1, 2, 100] {
                let (_, rest, error) = decode(Decoder::data(limits), input.as_bytes(), piece);
                assert_eq!(rest.as_deref(), Some(&b"Q"[..]), "{input:?}");
                assert_eq!(error, Some(DataError::BareNewline), "{input:?}");
            }
        }
    }

    #[test]
    fn limits_hold_at_their_edges() {
        for (n, error) in [(19, None), (20, None), (21, Some(DataError::LineTooLong))] {
            let line = "x".repeat(n);
            assert_eq!(data(&format!("a\r\n{line}\r\nb\r\n.\r\n")).2, error, "{n}");
            assert_eq!(data(&format!("{line}\n{line}")).2, error, "{n}");
        }
        for (n, error) in [(997, None), (998, None), (999, Some(DataError::TooBig))] {
            let text = "x\r\n".repeat(n / 3) + &"x".repeat(n % 3);
            let (_, rest, found) = data(&format!("{text}\r\n.\r\nrest"));
            assert_eq!((found, rest.as_deref()), (error, Some("rest")), "{n}");
        }
        let both = "y".repeat(30) + &"x\r\n".repeat(500);
        assert_eq!(data(&both).2, Some(DataError::TooBig));
        assert_eq!(data("a\0b\r\n.\r\n").2, Some(DataError::Nul));
    }

    #[test]
    fn in_chunks_a_dot_is_text_and_a_last_cr_is_settled() {
        for (input, text) in [
            (".\r\n", ".\r\n"),
            ("a\r\n.\r\n..b", "a\r\n.\r\n..b"),
            ("a\r", "a\r\n"),
            ("a\nb\rc", "a\r\nb\r\nc"),
            ("", ""),
        ] {
            for piece in [1, 2, 100] {
                let (out, rest, error) = decode(Decoder::chunks(LIMITS), input.as_bytes(), piece);
                assert_eq!(out, text.as_bytes(), "{input:?}");
                assert_eq!((rest, error), (None, None));
            }
        }
    }

    fn soup() -> impl Strategy<Value = Vec<u8>> {
        let octet = prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'.'), Just(b'a'), Just(0)];
        prop::collection::vec(octet, 0..60)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn what_was_stuffed_is_what_is_decoded(lines in prop::collection::vec("[.a]{0,5}", 0..9)) {
            let message = lines.join("\r\n");
            let (mut wire, mut stuffer) = (Vec::new(), Stuffer::default());
            stuffer.push(message.as_bytes(), &mut wire).unwrap();
            stuffer.finish(&mut wire).unwrap();
            let (out, rest, error) = decode(Decoder::data(LIMITS), &wire, 3);
            let ended = message.is_empty() || message.ends_with("\r\n");
            let expected = if ended { message } else { message + "\r\n" };
            prop_assert_eq!(out, expected.as_bytes());
            prop_assert_eq!((rest, error), (Some(Vec::new()), None));
        }

        #[test]
        fn only_crlf_dot_crlf_ends_and_newlines_become_crlf(soup in soup(), piece in 1..9_usize) {
            let (out, rest, error) = decode(Decoder::data(LIMITS), &soup, piece);
            let framed = [b"\r\n", &soup[..]].concat();
            let end = memchr::memmem::find(&framed, b"\r\n.\r\n").map(|i| framed[i + 5..].to_vec());
            prop_assert_eq!(rest, end);
            if error.is_none() {
                let mut wire = Vec::new();
                prop_assert!(Stuffer::default().push(&out, &mut wire).is_ok());
                prop_assert!(!out.ends_with(b"\r"));
            }
        }
    }
}
