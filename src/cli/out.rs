//! Where commands write: data to stdout, talk to stderr.
#![expect(clippy::print_stderr, reason = "talking is what this module is for")]

use std::borrow::Cow;
use std::io::{self, BufWriter, ErrorKind, IsTerminal, Stdout, Write};

use serde::Serialize;

use super::{Failure, exit};

/// The two streams of a command.
#[derive(Debug)]
pub(super) struct Out {
    data: BufWriter<Stdout>,
    quiet: bool,
}

impl Out {
    pub(super) fn new(quiet: bool) -> Self {
        Self { data: BufWriter::new(io::stdout()), quiet }
    }

    /// Writes a line of data. Control characters are escaped: what is printed comes from strangers
    /// and must not command the operator's terminal.
    pub(super) fn line(&mut self, text: &str) -> Result<(), Failure> {
        writeln!(self.data, "{}", printable(text)).map_err(|e| failure(&e))
    }

    /// Writes a line of JSON.
    pub(super) fn json(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string(value);
        let text = text.map_err(|e| Failure::new(exit::SOFTWARE, e.to_string()))?;
        writeln!(self.data, "{}", printable_json(&text)).map_err(|e| failure(&e))
    }

    /// Writes octets as they are; to a terminal, like [`line`](Self::line).
    pub(super) fn octets(&mut self, octets: &[u8]) -> Result<(), Failure> {
        if !self.data.get_ref().is_terminal() {
            return self.data.write_all(octets).map_err(|e| failure(&e));
        }
        let text = String::from_utf8_lossy(octets).replace("\r\n", "\n");
        let lines: Vec<Cow<'_, str>> = text.split('\n').map(printable).collect();
        self.data.write_all(lines.join("\n").as_bytes()).map_err(|e| failure(&e))
    }

    /// Writes what is buffered.
    pub(super) fn flush(&mut self) -> Result<(), Failure> {
        self.data.flush().map_err(|e| failure(&e))
    }

    /// Tells something that is not data, unless told to be quiet.
    pub(super) fn note(&self, text: &str) {
        if !self.quiet {
            self.complain(text);
        }
    }

    /// Tells what went wrong.
    #[expect(clippy::unused_self, reason = "it belongs to the streams")]
    pub(super) fn complain(&self, text: &str) {
        for line in text.lines() {
            eprintln!("{}", printable(line));
        }
    }
}

/// A reader that has seen enough (`| head`) is no failure.
fn failure(error: &io::Error) -> Failure {
    match error.kind() {
        ErrorKind::BrokenPipe => Failure::silent(exit::OK),
        _ => Failure::new(exit::SOFTWARE, format!("cannot write: {error}")),
    }
}

fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c.is_control() && c != '\t', |c| c.escape_default().to_string())
}

/// JSON leaves DEL and the controls above it as they are; it has its own way to escape them.
fn printable_json(text: &str) -> Cow<'_, str> {
    escaped(text, char::is_control, |c| format!("\\u{:04x}", u32::from(c)))
}

/// The text with some of its characters written otherwise. There are hardly ever any, and a long
/// list has many lines.
fn escaped(
    text: &str,
    must: impl Fn(char) -> bool,
    escape: impl Fn(char) -> String,
) -> Cow<'_, str> {
    if !text.contains(&must) {
        return text.into();
    }
    text.chars().map(|c| if must(c) { escape(c) } else { c.into() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_cannot_command_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\rc\u{9b}d"), "a\\u{1b}[2Jb\\rc\\u{9b}d");
        assert_eq!(printable("grå\tx"), "grå\tx");
    }

    #[test]
    fn json_stays_json_when_it_is_made_harmless() {
        let text = serde_json::to_string("a\x1b\u{9b}\u{7f}å").unwrap();
        let shown = printable_json(&text);
        assert_eq!(shown, r#""a\u001b\u009b\u007få""#);
        assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), "a\x1b\u{9b}\u{7f}å");
    }
}
