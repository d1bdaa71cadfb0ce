//! The octets that were received and not used yet, and the command lines in them.

use bytes::{Buf, Bytes, BytesMut};
use memchr::{memchr, memchr_iter};

/// The longest command line, CRLF included. RFC 5321 section 4.5.3.1.4 demands 512 and more for the
/// parameters of extensions; a line above it is answered 500 and thrown away to its end.
pub const COMMAND_LINE_MAX: usize = 4096;

/// Input that was not used yet. When there is none it holds no memory: most sessions wait for their
/// client's next command, and there may be many.
#[derive(Debug, Default)]
pub(super) struct Lines {
    input: BytesMut,
    /// Within a line that was too long already.
    skipping: bool,
}

/// The next command line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// A line without its CRLF.
    Complete(Bytes),
    /// The same, but it ended in LF alone.
    BareLf(Bytes),
    /// More than [`COMMAND_LINE_MAX`]; what is left of it is never seen.
    TooLong,
}

impl Lines {
    pub(super) fn push(&mut self, octets: &[u8]) {
        self.input.extend_from_slice(octets);
    }

    /// Throws everything away.
    pub(super) fn clear(&mut self) {
        self.input = BytesMut::new();
        self.skipping = false;
    }

    /// All that is there, to be used as something else than lines.
    pub(super) fn octets(&self) -> &[u8] {
        &self.input
    }

    /// Whether the next octet starts a line; the rest of an overlong one is thrown away first.
    pub(super) fn at_line_start(&mut self) -> bool {
        if self.skipping {
            let Some(end) = memchr(b'\n', &self.input) else {
                self.input = BytesMut::new();
                return false;
            };
            self.consume(end + 1);
            self.skipping = false;
        }
        true
    }

    /// The first `n` octets were used.
    pub(super) fn consume(&mut self, n: usize) {
        if n < self.input.len() {
            self.input.advance(n);
        } else {
            self.input = BytesMut::new();
        }
    }

    /// Whether more than one command is there.
    pub(super) fn holds_several(&self) -> bool {
        self.input.len() > COMMAND_LINE_MAX || memchr_iter(b'\n', &self.input).nth(1).is_some()
    }

    pub(super) fn next_line(&mut self) -> Option<Line> {
        if !self.at_line_start() {
            return None;
        }
        let window = self.input.len().min(COMMAND_LINE_MAX);
        let Some(end) = memchr(b'\n', self.input.get(..window).unwrap_or_default()) else {
            if self.input.len() < COMMAND_LINE_MAX {
                return None;
            }
            self.skipping = true;
            return Some(Line::TooLong);
        };
        let mut line = if end + 1 < self.input.len() {
            self.input.split_to(end + 1).freeze()
        } else {
            std::mem::take(&mut self.input).freeze()
        };
        line.truncate(end);
        if line.last() == Some(&b'\r') {
            line.truncate(end - 1);
            Some(Line::Complete(line))
        } else {
            Some(Line::BareLf(line))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_limit_holds_at_its_edges() {
        for (len, fits) in [(511, true), (512, true), (4095, true), (4096, true), (4097, false)] {
            for chunk in [1, 7, 5000] {
                let text = format!("{}\r\nNOOP\r\n", "x".repeat(len - 2));
                let (mut lines, mut seen) = (Lines::default(), Vec::new());
                for piece in text.as_bytes().chunks(chunk) {
                    lines.push(piece);
                    while let Some(line) = lines.next_line() {
                        seen.push(line);
                    }
                    assert!(lines.octets().len() <= COMMAND_LINE_MAX);
                }
                assert_eq!(seen.len(), 2, "{len} by {chunk}");
                assert_eq!(seen[0] != Line::TooLong, fits, "{len} by {chunk}");
                assert_eq!(seen[1], Line::Complete(Bytes::from_static(b"NOOP")));
            }
        }
    }

    #[test]
    fn what_was_used_takes_no_memory_however_it_was_used() {
        type Use = fn(&mut Lines);
        let uses: [(&str, Use); 4] = [
            ("NOOP\r\n", |lines| lines.consume(16 << 10)),
            ("NOOP\r\n", Lines::clear),
            ("NOOP\r\n", |lines| while lines.next_line().is_some() {}),
            ("too long", |lines| {
                assert_eq!((lines.next_line(), lines.next_line()), (Some(Line::TooLong), None));
            }),
        ];
        for (n, (input, used)) in uses.into_iter().enumerate() {
            let mut lines = Lines::default();
            lines.push(input.repeat((16 << 10) / input.len()).as_bytes());
            used(&mut lines);
            // Memory that is still there would be used again.
            lines.push(b"x");
            assert!(lines.input.capacity() < 100, "{n}: {}", lines.input.capacity());
        }
    }

    #[test]
    fn a_line_ended_by_lf_alone_is_told_apart() {
        let mut lines = Lines::default();
        lines.push(b"a\n\r\nb\rc\r\n\r\r\n");
        let text = |s: &'static str| Bytes::from_static(s.as_bytes());
        assert_eq!(lines.next_line(), Some(Line::BareLf(text("a"))));
        assert_eq!(lines.next_line(), Some(Line::Complete(text(""))));
        assert_eq!(lines.next_line(), Some(Line::Complete(text("b\rc"))));
        assert_eq!(lines.next_line(), Some(Line::Complete(text("\r"))));
        assert_eq!(lines.next_line(), None);
    }
}
