//! The way out: message text to DATA octets (RFC 5321 section 4.5.2).
//!
//! A next hop may take a bare LF for a line end, and Postfix exempts hosts like ours from its guard
//! against that. So the writer cannot emit one: whatever is not CRLF is an error, and nothing in a
//! message can end it before its end.

use memchr::memchr2;

/// Writes one message as DATA octets. Takes it in pieces of any size.
#[derive(Debug, Default)]
pub struct Stuffer {
    position: Position,
}

/// Where the next octet falls.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Position {
    /// At the start of the message or after CRLF.
    #[default]
    LineStart,
    /// Within a line.
    Text,
    /// After a CR that was not written yet.
    Cr,
}

/// The message has a CR without LF or a LF without CR. What was written of it must not be ended:
/// close the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the message has a bare CR or LF")]
pub struct BareNewline;

impl Stuffer {
    /// Appends the wire form of the next piece to `out`.
    pub fn push(&mut self, chunk: &[u8], out: &mut Vec<u8>) -> Result<(), BareNewline> {
        let mut rest = chunk;
        out.reserve(rest.len() + 16);
        while let Some(&first) = rest.first() {
            match self.position {
                Position::Cr if first == b'\n' => {
                    out.extend_from_slice(b"\r\n");
                    rest = rest.get(1..).unwrap_or_default();
                    self.position = Position::LineStart;
                    continue;
                }
                Position::Cr => return Err(BareNewline),
                Position::LineStart if first == b'.' => out.push(b'.'),
                Position::LineStart | Position::Text => {}
            }
            let (run, position) = run_of_lines(rest)?;
            self.position = position;
            out.extend_from_slice(rest.get(..run).unwrap_or_default());
            let taken = run + usize::from(position == Position::Cr);
            rest = rest.get(taken..).unwrap_or_default();
        }
        Ok(())
    }

    /// Appends the end of the data: `.` on a line of its own, without adding an empty line.
    pub fn finish(self, out: &mut Vec<u8>) -> Result<(), BareNewline> {
        out.extend_from_slice(match self.position {
            Position::LineStart => b".\r\n",
            Position::Text => b"\r\n.\r\n",
            Position::Cr => return Err(BareNewline),
        });
        Ok(())
    }
}

/// How many octets can be copied as they are, and where that leads: up to a CRLF that a dot
/// follows, to a CR whose LF is still to come (not counted), or to the end.
fn run_of_lines(text: &[u8]) -> Result<(usize, Position), BareNewline> {
    let mut at = 0;
    while let Some(i) = memchr2(b'\r', b'\n', text.get(at..).unwrap_or_default()) {
        let end = at + i;
        match text.get(end..) {
            Some([b'\r', b'\n', b'.', ..] | [b'\r', b'\n']) => {
                return Ok((end + 2, Position::LineStart));
            }
            Some([b'\r', b'\n', ..]) => at = end + 2,
            Some([b'\r']) => return Ok((end, Position::Cr)),
            _ => return Err(BareNewline),
        }
    }
    Ok((text.len(), Position::Text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stuff(pieces: &[&[u8]]) -> Result<String, BareNewline> {
        let (mut out, mut stuffer) = (Vec::new(), Stuffer::default());
        for piece in pieces {
            stuffer.push(piece, &mut out)?;
        }
        stuffer.finish(&mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn a_dot_is_doubled_at_the_start_of_every_line_and_nowhere_else() {
        for (message, wire) in [
            ("", ".\r\n"),
            ("a", "a\r\n.\r\n"),
            ("a\r\n", "a\r\n.\r\n"),
            (".", "..\r\n.\r\n"),
            (".\r\n", "..\r\n.\r\n"),
            ("..\r\n.a\r\n", "...\r\n..a\r\n.\r\n"),
            ("a.\r\nb.c\r\n\r\n.", "a.\r\nb.c\r\n\r\n..\r\n.\r\n"),
            ("\r\n", "\r\n.\r\n"),
        ] {
            let whole = stuff(&[message.as_bytes()]);
            assert_eq!(whole.as_deref(), Ok(wire), "{message:?}");
            let octets: Vec<&[u8]> = message.as_bytes().chunks(1).collect();
            assert_eq!(stuff(&octets).as_deref(), Ok(wire), "{message:?} octet by octet");
        }
    }

    #[test]
    fn a_bare_cr_or_lf_is_never_written() {
        for message in ["a\nb", "a\rb", "\n", "\r", "a\r\r\n", "a\r\n\n.\r\n", "a\n.\nb", "a\r\n\r"]
        {
            assert_eq!(stuff(&[message.as_bytes()]), Err(BareNewline), "{message:?}");
            let octets: Vec<&[u8]> = message.as_bytes().chunks(1).collect();
            assert_eq!(stuff(&octets), Err(BareNewline), "{message:?} octet by octet");
        }
        assert_eq!(stuff(&[b"a\r", b"b"]), Err(BareNewline));
    }
}
