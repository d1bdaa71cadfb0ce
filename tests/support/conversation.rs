//! Golden conversations: the parser of `tests/conversations/*.smtp` and a player for any stream.
//!
//! It needs nothing but the standard library, so every test crate can include it by path. The
//! format is described in `tests/conversations/README.md`.
#![allow(dead_code, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::path::Path;

/// One file.
#[derive(Debug)]
pub struct Conversation {
    pub name: String,
    /// `# settings: a=1, b=2`.
    pub settings: Vec<(String, String)>,
    /// `# mynetworks: refused`: the client is not let in.
    pub refused: bool,
    /// `# also: postfix`: who else must give the same codes.
    pub also: Vec<String>,
    pub events: Vec<Event>,
    pub messages: Vec<Expected>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// `C: ` or `C~ `: octets the client sends.
    Client(Vec<u8>),
    /// `S: ` or `S~ `: a line the server sends, without CRLF.
    Server(Pattern),
    /// `V: `: the next verdict that is owed is this refusal.
    Verdict(String),
    /// `E: timeout`: the deadline passes.
    TimesOut,
    /// `E: tls`: the TLS handshake succeeds.
    Tls,
    /// `E: drain`: the server is told to go down.
    Drain,
    /// `E: closed`: the server has closed the connection.
    Closed,
}

/// A line of a reply; `*` stands for anything where the file says `S~`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    pub text: String,
    pub wild: bool,
}

/// A message that must have been taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// `<reverse-path> PARAMETERS | <recipient> PARAMETERS | ...`
    pub envelope: String,
    pub content: Vec<u8>,
}

impl Pattern {
    pub fn matches(&self, line: &str) -> bool {
        if !self.wild {
            return self.text == line;
        }
        let mut parts = self.text.split('*');
        let Some(mut rest) = line.strip_prefix(parts.next().unwrap_or_default()) else {
            return false;
        };
        let parts: Vec<&str> = parts.collect();
        let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
        for part in middle {
            let Some(at) = rest.find(part) else { return false };
            rest = &rest[at + part.len()..];
        }
        rest.ends_with(last)
    }

    /// The reply's code, and whether this is the reply's last line.
    pub fn code(&self) -> (&str, bool) {
        (self.text.get(..3).unwrap_or_default(), self.text.as_bytes().get(3) != Some(&b'-'))
    }
}

impl Conversation {
    /// All conversations in a folder, by name.
    pub fn load_all(folder: &Path) -> Vec<Self> {
        let mut all: Vec<Self> = fs::read_dir(folder)
            .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|e| e == "smtp"))
            .map(|path| {
                let name = path.file_stem().unwrap().to_string_lossy().into_owned();
                Self::parse(&name, &fs::read_to_string(&path).unwrap())
            })
            .collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    pub fn parse(name: &str, text: &str) -> Self {
        let mut it = Self {
            name: name.into(),
            settings: Vec::new(),
            refused: false,
            also: Vec::new(),
            events: Vec::new(),
            messages: Vec::new(),
        };
        for (number, line) in text.lines().enumerate() {
            it.line(line).unwrap_or_else(|e| panic!("{name}.smtp:{}: {e}: {line}", number + 1));
        }
        it
    }

    fn line(&mut self, line: &str) -> Result<(), String> {
        let (tag, rest) = line.split_at_checked(2).unwrap_or((line, ""));
        let rest = rest.strip_prefix(' ').unwrap_or(rest);
        match tag {
            "C:" => self.events.push(Event::Client(format!("{rest}\r\n").into())),
            "C~" => self.events.push(Event::Client(unescape(rest)?)),
            "S:" | "S~" => {
                let pattern = Pattern { text: rest.into(), wild: tag == "S~" };
                self.events.push(Event::Server(pattern));
            }
            "V:" => self.events.push(Event::Verdict(rest.into())),
            "E:" => self.events.push(match rest {
                "timeout" => Event::TimesOut,
                "tls" => Event::Tls,
                "drain" => Event::Drain,
                "closed" => Event::Closed,
                _ => return Err("unknown event".into()),
            }),
            "= " => self.messages.push(Expected { envelope: rest.into(), content: Vec::new() }),
            "| " | "|" => self.content(format!("{rest}\r\n").as_bytes())?,
            "|~" => self.content(&unescape(rest)?)?,
            "# " | "#" => self.directive(rest),
            "" => {}
            _ => return Err("unknown line".into()),
        }
        Ok(())
    }

    fn content(&mut self, octets: &[u8]) -> Result<(), String> {
        let message = self.messages.last_mut().ok_or("content before its envelope")?;
        message.content.extend_from_slice(octets);
        Ok(())
    }

    fn directive(&mut self, text: &str) {
        let words = |list: &str| list.split(',').map(|w| w.trim().to_owned()).collect::<Vec<_>>();
        if let Some(list) = text.strip_prefix("settings: ") {
            self.settings = words(list)
                .iter()
                .filter_map(|pair| pair.split_once('='))
                .map(|(key, value)| (key.into(), value.into()))
                .collect();
        } else if let Some(list) = text.strip_prefix("also: ") {
            self.also = words(list);
        } else if text == "mynetworks: refused" {
            self.refused = true;
        }
    }

    /// Whether it needs hands on the server's inside, so that it can't be played to a program.
    pub fn needs_driver(&self) -> bool {
        let talks_first = matches!(self.events.first(), Some(Event::Client(_)));
        talks_first
            || self.events.iter().any(|event| {
                matches!(event, Event::Verdict(_) | Event::TimesOut | Event::Tls | Event::Drain)
            })
    }
}

/// `\r \n \t \0 \\ \xHH`, and `{{1000*text}}` for repetition.
fn unescape(text: &str) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if let Some(inner) = rest.strip_prefix("{{") {
            let (inner, after) = inner.split_once("}}").ok_or("unclosed {{")?;
            let (times, what) = inner.split_once('*').ok_or("{{times*text}} expected")?;
            let times: usize = times.parse().map_err(|_| "bad number")?;
            out.extend(unescape(what)?.repeat(times));
            rest = after;
            continue;
        }
        rest = &rest[c.len_utf8()..];
        if c != '\\' {
            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        let escape = rest.chars().next().ok_or("lone backslash")?;
        rest = &rest[escape.len_utf8()..];
        out.push(match escape {
            'r' => b'\r',
            'n' => b'\n',
            't' => b'\t',
            '0' => 0,
            '\\' => b'\\',
            'x' => {
                let hex = rest.get(..2).ok_or("short \\x")?;
                rest = &rest[2..];
                u8::from_str_radix(hex, 16).map_err(|_| "bad \\x")?
            }
            _ => return Err("unknown escape".into()),
        });
    }
    Ok(out)
}

/// How strictly a server is held to the lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    /// Every line as written: for Postgate.
    Lines,
    /// The code of every reply: for others.
    Codes,
}

/// Plays the client's part over a stream. Set a read timeout on it first.
pub fn play<S: Read + Write>(
    stream: &mut S,
    conversation: &Conversation,
    compare: Compare,
) -> Result<(), String> {
    let mut unsent = Vec::new();
    for (i, event) in conversation.events.iter().enumerate() {
        let step = match event {
            Event::Client(octets) => {
                unsent.extend_from_slice(octets);
                continue;
            }
            Event::Server(pattern) => {
                send(stream, &mut unsent).and_then(|()| expect(stream, pattern, compare))
            }
            Event::Closed => send(stream, &mut unsent).and_then(|()| expect_end(stream)),
            _ => Err("this event cannot be played to a program".into()),
        };
        step.map_err(|e| format!("{}, event {}: {e}", conversation.name, i + 1))?;
    }
    send(stream, &mut unsent)
}

fn send<S: Write>(stream: &mut S, unsent: &mut Vec<u8>) -> Result<(), String> {
    let sent = stream.write_all(unsent).and_then(|()| stream.flush());
    unsent.clear();
    sent.map_err(|e| format!("sending: {e}"))
}

fn expect<S: Read>(stream: &mut S, pattern: &Pattern, compare: Compare) -> Result<(), String> {
    if compare == Compare::Lines {
        let line = read_line(stream)?;
        let fits = pattern.matches(&line);
        return if fits { Ok(()) } else { Err(format!("expected {}, got {line}", pattern.text)) };
    }
    let (code, last) = pattern.code();
    if !last {
        return Ok(());
    }
    loop {
        let line = read_line(stream)?;
        if !line.starts_with(code) {
            return Err(format!("expected {code}, got {line}"));
        }
        if line.as_bytes().get(3) != Some(&b'-') {
            return Ok(());
        }
    }
}

fn read_line<S: Read>(stream: &mut S) -> Result<String, String> {
    let mut line = Vec::new();
    let mut octet = [0];
    while !line.ends_with(b"\r\n") {
        match stream.read(&mut octet) {
            Ok(0) => return Err(format!("closed after {:?}", String::from_utf8_lossy(&line))),
            Ok(_) => line.push(octet[0]),
            Err(e) => return Err(format!("reading: {e}")),
        }
    }
    line.truncate(line.len() - 2);
    String::from_utf8(line).map_err(|e| e.to_string())
}

fn expect_end<S: Read>(stream: &mut S) -> Result<(), String> {
    match stream.read(&mut [0; 64]) {
        Ok(0) => Ok(()),
        Ok(_) => Err("more came where the end was expected".into()),
        Err(e) if e.kind() == ErrorKind::ConnectionReset => Ok(()),
        Err(e) => Err(format!("waiting for the end: {e}")),
    }
}
