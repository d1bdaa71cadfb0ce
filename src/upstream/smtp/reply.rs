//! The reply reader (RFC 5321 section 4.2), strict where leniency would make a failure a success.
//!
//! Every line of a reply must carry the same code, between 200 and 599. Octets behind a reply stay
//! in the reader, so that its owner sees them before the next command.

use memchr::memchr;

use crate::mail::Reply;

/// The longest reply, in octets.
pub(crate) const REPLY_MAX: usize = 64 * 1024;

/// The most lines of a reply.
pub(crate) const LINES_MAX: usize = 100;

/// What came is no reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadReply {
    /// More than [`REPLY_MAX`] octets.
    #[error("reply longer than 65536 octets")]
    TooLong,
    /// More than [`LINES_MAX`] lines.
    #[error("reply of more than 100 lines")]
    TooManyLines,
    /// A line does not start with a code.
    #[error("not an SMTP reply: {0}")]
    Syntax(String),
    /// A code outside 200 to 599.
    #[error("reply code {0} does not exist")]
    Code(u16),
    /// Lines with different codes.
    #[error("reply with two codes, {0} and {1}")]
    MixedCodes(u16, u16),
}

/// Takes octets, gives replies.
#[derive(Debug, Default)]
pub(crate) struct ReplyReader {
    buffer: Vec<u8>,
    /// Octets of the buffer that were searched for a line end without finding one.
    searched: usize,
    /// Octets of the unfinished reply that were taken out of the buffer.
    taken: usize,
    code: Option<u16>,
    lines: Vec<String>,
}

impl ReplyReader {
    /// Adds what was received.
    pub(crate) fn push(&mut self, octets: &[u8]) {
        self.buffer.extend_from_slice(octets);
    }

    /// Whether nothing is left over.
    pub(crate) fn is_empty(&self) -> bool {
        self.buffer.is_empty() && self.lines.is_empty()
    }

    /// The next complete reply.
    pub(crate) fn next(&mut self) -> Result<Option<Reply>, BadReply> {
        loop {
            let unseen = self.buffer.get(self.searched..).unwrap_or_default();
            let Some(i) = memchr(b'\n', unseen) else {
                self.searched = self.buffer.len();
                let long = self.taken + self.buffer.len() > REPLY_MAX;
                return if long { Err(BadReply::TooLong) } else { Ok(None) };
            };
            let line: Vec<u8> = self.buffer.drain(..=self.searched + i).collect();
            self.searched = 0;
            self.taken += line.len();
            if self.taken > REPLY_MAX {
                return Err(BadReply::TooLong);
            }
            if self.line(&line)? {
                self.taken = 0;
                let lines = std::mem::take(&mut self.lines);
                return Ok(self.code.take().map(|code| Reply::received(code, lines)));
            }
        }
    }

    /// Takes one line; whether it was the reply's last.
    fn line(&mut self, line: &[u8]) -> Result<bool, BadReply> {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let (code, last, text) = split(line).ok_or_else(|| BadReply::Syntax(excerpt(line)))?;
        if !(200..600).contains(&code) {
            return Err(BadReply::Code(code));
        }
        match self.code {
            Some(first) if first != code => return Err(BadReply::MixedCodes(first, code)),
            _ => self.code = Some(code),
        }
        if self.lines.len() >= LINES_MAX {
            return Err(BadReply::TooManyLines);
        }
        self.lines.push(String::from_utf8_lossy(text).into_owned());
        Ok(last)
    }
}

/// Code, whether it is the last line, and text.
fn split(line: &[u8]) -> Option<(u16, bool, &[u8])> {
    let (digits, rest) = line.split_at_checked(3)?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let code = std::str::from_utf8(digits).ok()?.parse().ok()?;
    match rest {
        [] => Some((code, true, rest)),
        [b' ', text @ ..] => Some((code, true, text)),
        [b'-', text @ ..] => Some((code, false, text)),
        _ => None,
    }
}

/// The beginning of a line, fit to be shown.
fn excerpt(line: &[u8]) -> String {
    line.get(..60).unwrap_or(line).escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(wire: &str) -> Result<Vec<Reply>, BadReply> {
        let whole = feed(wire, usize::MAX);
        for size in [1, 2, 3, 7] {
            assert_eq!(feed(wire, size), whole, "in pieces of {size}");
        }
        whole
    }

    fn feed(wire: &str, size: usize) -> Result<Vec<Reply>, BadReply> {
        let (mut reader, mut out) = (ReplyReader::default(), Vec::new());
        for piece in wire.as_bytes().chunks(size) {
            reader.push(piece);
            while let Some(reply) = reader.next()? {
                out.push(reply);
            }
        }
        Ok(out)
    }

    #[test]
    fn replies_are_read_however_they_are_cut() {
        let replies = read("250-mx\r\n250 2.0.0 Ok\r\n354\r\n221 2.0.0 Bye\n").unwrap();
        let shown: Vec<_> = replies.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["250 mx 2.0.0 Ok", "354", "221 2.0.0 Bye"]);
    }

    #[test]
    fn what_is_no_reply_is_never_taken_for_one() {
        for (wire, want) in [
            ("250-Ok\r\n451 no\r\n", BadReply::MixedCodes(250, 451)),
            ("999 yes\r\n", BadReply::Code(999)),
            ("199 x\r\n", BadReply::Code(199)),
            ("600 x\r\n", BadReply::Code(600)),
            ("25\r\n", BadReply::Syntax("25".into())),
            ("2500\r\n", BadReply::Syntax("2500".into())),
            ("\u{16}\u{3}\r\n", BadReply::Syntax("\\x16\\x03".into())),
        ] {
            assert_eq!(read(wire), Err(want), "{wire:?}");
        }
        assert_eq!(read("25"), Ok(vec![]));
    }

    #[test]
    fn the_limits_hold_at_their_edges() {
        for (n, ok) in [(99, true), (100, true), (101, false)] {
            let wire = "250-x\r\n".repeat(n - 1) + "250 x\r\n";
            assert_eq!(feed(&wire, 8192).is_ok(), ok, "{n} lines");
        }
        for (n, ok) in [(REPLY_MAX - 1, true), (REPLY_MAX, true), (REPLY_MAX + 1, false)] {
            let wire = format!("250 {}\r\n", "x".repeat(n - 6));
            assert_eq!(feed(&wire, 8192).is_ok(), ok, "{n} octets");
        }
        assert_eq!(feed(&"x".repeat(REPLY_MAX + 1), 8192), Err(BadReply::TooLong));
    }
}
