//! SMTP replies (RFC 5321 section 4.2) and enhanced status codes (RFC 3463).

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest line of a reply we send, CRLF included (RFC 5321 section 4.5.3.1.5).
pub const LINE_MAX: usize = 512;

/// An enhanced mail system status code, `class.subject.detail` (RFC 3463).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct EnhancedStatus {
    /// 2 success, 4 persistent transient failure, 5 permanent failure.
    pub class: u8,
    /// What it is about: 1 address, 2 mailbox, 3 system, 4 network, 5 protocol, 6 media, 7 policy.
    pub subject: u16,
    /// The condition within the subject.
    pub detail: u16,
}

impl EnhancedStatus {
    /// The code `class.subject.detail`.
    pub const fn new(class: u8, subject: u16, detail: u16) -> Self {
        Self { class, subject, detail }
    }
}

impl fmt::Display for EnhancedStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.class, self.subject, self.detail)
    }
}

impl fmt::Debug for EnhancedStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is no enhanced status code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an enhanced status code: class.subject.detail is expected, as in 4.4.1")]
pub struct InvalidStatus;

impl FromStr for EnhancedStatus {
    type Err = InvalidStatus;

    fn from_str(s: &str) -> Result<Self, InvalidStatus> {
        fn number(part: Option<&str>) -> Result<u16, InvalidStatus> {
            let part = part.ok_or(InvalidStatus)?;
            if part.is_empty() || part.len() > 3 || !part.bytes().all(|b| b.is_ascii_digit()) {
                return Err(InvalidStatus);
            }
            part.parse().map_err(|_| InvalidStatus)
        }
        let mut parts = s.split('.');
        let class = match number(parts.next())? {
            2 => 2,
            4 => 4,
            5 => 5,
            _ => return Err(InvalidStatus),
        };
        let status = Self::new(class, number(parts.next())?, number(parts.next())?);
        if parts.next().is_some() { Err(InvalidStatus) } else { Ok(status) }
    }
}

impl Serialize for EnhancedStatus {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for EnhancedStatus {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let s = Cow::<'de, str>::deserialize(d)?;
        s.parse().map_err(serde::de::Error::custom)
    }
}

/// A reply: its code, its enhanced status and its text.
///
/// The text is printable by construction: whatever else a peer sent is shown escaped. One line of
/// text is one line of the reply.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Reply {
    code: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    status: Option<EnhancedStatus>,
    lines: Vec<Cow<'static, str>>,
}

impl Reply {
    /// A reply of one line with an enhanced status.
    pub fn new(code: u16, status: EnhancedStatus, text: impl Into<Cow<'static, str>>) -> Self {
        Self { code, status: Some(status), lines: vec![printable(text.into())] }
    }

    /// A reply without enhanced status: the greeting, the EHLO response, 354.
    pub fn bare(code: u16, text: impl Into<Cow<'static, str>>) -> Self {
        Self { code, status: None, lines: vec![printable(text.into())] }
    }

    /// The same reply with one more line of text.
    pub fn line(mut self, text: impl Into<Cow<'static, str>>) -> Self {
        self.lines.push(printable(text.into()));
        self
    }

    /// A peer's reply, its text split into lines, the enhanced status taken out of the first.
    pub fn received(code: u16, lines: Vec<String>) -> Self {
        let status = lines.first().and_then(|l| l.split(' ').next()).and_then(|w| w.parse().ok());
        let status = status.filter(|s: &EnhancedStatus| u16::from(s.class) == code / 100);
        let prefix = status.map(|s| s.to_string());
        let strip = |line: String| match &prefix {
            Some(p) => line
                .strip_prefix(p.as_str())
                .map_or_else(|| line.clone(), |r| r.trim_start().into()),
            None => line,
        };
        Self {
            code,
            status,
            lines: lines.into_iter().map(|l| printable(strip(l).into())).collect(),
        }
    }

    /// The three-digit code.
    pub const fn code(&self) -> u16 {
        self.code
    }

    /// The enhanced status, where there is one.
    pub const fn status(&self) -> Option<EnhancedStatus> {
        self.status
    }

    /// The text of each line.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(AsRef::as_ref)
    }

    /// The text of all lines, joined by a blank.
    pub fn text(&self) -> String {
        self.lines.join(" ")
    }

    /// 2xx.
    pub const fn is_positive(&self) -> bool {
        self.code / 100 == 2
    }

    /// 4xx.
    pub const fn is_transient(&self) -> bool {
        self.code / 100 == 4
    }

    /// 5xx.
    pub const fn is_permanent(&self) -> bool {
        self.code / 100 == 5
    }

    /// Appends the reply as it goes over the wire; every line ends in CRLF and fits [`LINE_MAX`].
    pub fn write_to(&self, out: &mut Vec<u8>) {
        let last = self.lines.len().saturating_sub(1);
        for (i, line) in self.lines.iter().enumerate() {
            let mut text = format!("{}{}", self.code, if i == last { ' ' } else { '-' });
            if let Some(status) = self.status {
                text = format!("{text}{status} ");
            }
            text.push_str(line);
            let mut end = text.len().min(LINE_MAX - 2);
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            out.extend_from_slice(text.get(..end).unwrap_or_default().as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }
}

/// `550 5.1.1 no such user`: on one line, as logs show it.
impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if let Some(status) = self.status {
            write!(f, " {status}")?;
        }
        for line in self.lines.iter().filter(|l| !l.is_empty()) {
            write!(f, " {line}")?;
        }
        Ok(())
    }
}

/// `text` with every control character escaped.
fn printable(text: Cow<'static, str>) -> Cow<'static, str> {
    if text.chars().any(char::is_control) {
        text.chars()
            .flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] })
            .collect::<String>()
            .into()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(r: &Reply) -> String {
        let mut out = Vec::new();
        r.write_to(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_reply_is_written_as_rfc_5321_says() {
        let one = Reply::new(250, EnhancedStatus::new(2, 0, 0), "Ok");
        assert_eq!(wire(&one), "250 2.0.0 Ok\r\n");
        let two = Reply::bare(250, "mail.example").line("PIPELINING");
        assert_eq!(wire(&two), "250-mail.example\r\n250 PIPELINING\r\n");
    }

    #[test]
    fn no_text_can_break_the_line_or_the_limit() {
        let evil = Reply::bare(500, "a\r\n250 forged\0\u{9b}");
        assert_eq!(wire(&evil), "500 a\\r\\n250 forged\\u{0}\\u{9b}\r\n");
        for n in [LINE_MAX - 7, LINE_MAX - 6, LINE_MAX - 5] {
            let long = wire(&Reply::bare(500, "é".repeat(n)));
            assert!(long.len() <= LINE_MAX && long.ends_with("\r\n"), "{n}");
        }
    }

    #[test]
    fn a_received_reply_gives_its_status_and_text() {
        let r = Reply::received(550, vec!["5.1.1 <a@b>: unknown".into(), "5.1.1 bye".into()]);
        assert_eq!(r.status(), Some(EnhancedStatus::new(5, 1, 1)));
        assert_eq!(r.to_string(), "550 5.1.1 <a@b>: unknown bye");
        let odd = Reply::received(451, vec!["5.1.1 class differs from the code".into()]);
        assert_eq!(odd.status(), None);
    }

    #[test]
    fn only_status_codes_parse_as_such() {
        for s in ["", "5", "5.1", "5.1.1.1", "3.0.0", "5.1.x", "5.1.1000", "5..1"] {
            assert!(s.parse::<EnhancedStatus>().is_err(), "{s}");
        }
        assert_eq!("4.4.1".parse(), Ok(EnhancedStatus::new(4, 4, 1)));
    }
}
