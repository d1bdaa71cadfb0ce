//! Mailboxes and paths (RFC 5321 section 4.1.2), kept exactly as they were received.
//!
//! A [`Mailbox`] cannot hold CR, LF, NUL or an unquoted special character, so it can be written into
//! a command without looking at it again: nothing in it can end the line, close the `<...>` or add a
//! parameter.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The longest mailbox, in octets: a path of 256 less its brackets (RFC 5321 section 4.5.3.1.3).
pub const MAILBOX_MAX: usize = 254;

/// The longest label of a domain, in octets (RFC 1035 section 2.3.4).
const LABEL_MAX: usize = 63;

/// A mailbox: `local-part@domain`, or `local-part@[address]`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mailbox {
    text: Box<str>,
    at: usize,
}

/// Why a text is no mailbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Nothing there.
    #[error("the address is empty")]
    Empty,
    /// More than [`MAILBOX_MAX`] octets.
    #[error("the address is longer than 254 octets")]
    TooLong,
    /// Not UTF-8.
    #[error("the address is not valid UTF-8")]
    InvalidUtf8,
    /// There is no `@`, or nothing behind it.
    #[error("the address has no domain")]
    NoDomain,
    /// A character that must not stand in a local part, or an unclosed quote.
    #[error("the local part has an illegal character")]
    LocalPart,
    /// Not a domain name or an address literal.
    #[error("the domain is not a domain name")]
    Domain,
}

impl Mailbox {
    /// Reads a mailbox without its angle brackets.
    ///
    /// Non-ASCII text is accepted (RFC 6531); ask [`is_ascii`](Self::is_ascii) where it must not be.
    /// Misplaced dots in the local part (`a..b@`, `.a@`) are accepted, as Postfix does: such
    /// mailboxes exist, and the next hop decides about them.
    pub fn parse(input: &[u8]) -> Result<Self, AddressError> {
        if input.is_empty() {
            return Err(AddressError::Empty);
        }
        if input.len() > MAILBOX_MAX {
            return Err(AddressError::TooLong);
        }
        let text = std::str::from_utf8(input).map_err(|_| AddressError::InvalidUtf8)?;
        let at = local_part_len(text)?;
        let (local, rest) = text.split_at(at);
        let domain = rest.strip_prefix('@').ok_or(AddressError::NoDomain)?;
        if local.is_empty() {
            return Err(AddressError::LocalPart);
        }
        if domain.is_empty() {
            return Err(AddressError::NoDomain);
        }
        if !is_domain(domain) && !is_address_literal(domain) {
            return Err(AddressError::Domain);
        }
        Ok(Self { text: text.into(), at })
    }

    /// The whole mailbox as received.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What stands before the `@`, quotes included.
    pub fn local_part(&self) -> &str {
        self.text.get(..self.at).unwrap_or_default()
    }

    /// What stands behind the `@`.
    pub fn domain(&self) -> &str {
        self.text.get(self.at + 1..).unwrap_or_default()
    }

    /// Whether it can travel without SMTPUTF8.
    pub fn is_ascii(&self) -> bool {
        self.text.is_ascii()
    }
}

/// The octets before the `@` that ends the local part.
fn local_part_len(text: &str) -> Result<usize, AddressError> {
    if text.starts_with('"') {
        let mut escaped = false;
        for (i, c) in text.char_indices().skip(1) {
            match c {
                _ if c.is_control() => return Err(AddressError::LocalPart),
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '"' => return Ok(i + 1),
                _ => {}
            }
        }
        return Err(AddressError::LocalPart);
    }
    let end = text.find('@').ok_or(AddressError::NoDomain)?;
    let local = text.get(..end).unwrap_or_default();
    if local.chars().all(is_atext_or_dot) { Ok(end) } else { Err(AddressError::LocalPart) }
}

/// RFC 5322 atext, the dot, and RFC 6531 UTF8-non-ascii.
fn is_atext_or_dot(c: char) -> bool {
    c.is_ascii_alphanumeric()
        || "!#$%&'*+-/=?^_`{|}~.".contains(c)
        || (!c.is_ascii() && !c.is_control())
}

/// A domain name: labels of letters, digits, `-` and (seen in practice) `_`; or U-labels.
pub fn is_domain(domain: &str) -> bool {
    let domain = domain.strip_suffix('.').unwrap_or(domain);
    domain.split('.').all(|label| {
        !label.is_empty()
            && label.len() <= LABEL_MAX
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| {
                c.is_ascii_alphanumeric()
                    || matches!(c, '-' | '_')
                    || (!c.is_ascii() && !c.is_control() && !c.is_whitespace())
            })
    })
}

/// An address literal: `[192.0.2.1]` or `[IPv6:2001:db8::1]` (RFC 5321 section 4.1.3).
pub fn is_address_literal(s: &str) -> bool {
    let Some(inner) = s.strip_prefix('[').and_then(|s| s.strip_suffix(']')) else { return false };
    let v6 = inner.get(..5).filter(|tag| tag.eq_ignore_ascii_case("ipv6:"));
    match v6 {
        Some(tag) => {
            inner.get(tag.len()..).is_some_and(|a| a.parse::<std::net::Ipv6Addr>().is_ok())
        }
        None => inner.parse::<std::net::Ipv4Addr>().is_ok(),
    }
}

impl fmt::Display for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{}>", self.text)
    }
}

impl From<Mailbox> for String {
    fn from(m: Mailbox) -> Self {
        m.text.into()
    }
}

impl TryFrom<String> for Mailbox {
    type Error = AddressError;

    fn try_from(s: String) -> Result<Self, AddressError> {
        Self::parse(s.as_bytes())
    }
}

/// Where a bounce goes: a mailbox, or `<>`, the null reverse-path (RFC 5321 section 4.5.5).
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ReversePath {
    /// `<>`: a notification, never answered by another one.
    Null,
    /// `<mailbox>`.
    Mailbox(Mailbox),
}

impl ReversePath {
    /// The mailbox, unless this is the null reverse-path.
    pub const fn mailbox(&self) -> Option<&Mailbox> {
        match self {
            Self::Null => None,
            Self::Mailbox(m) => Some(m),
        }
    }

    /// Whether it can travel without SMTPUTF8.
    pub fn is_ascii(&self) -> bool {
        self.mailbox().is_none_or(Mailbox::is_ascii)
    }
}

/// Without angle brackets; empty for the null reverse-path.
impl fmt::Display for ReversePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.mailbox().map_or(Ok(()), |m| m.fmt(f))
    }
}

impl From<ReversePath> for String {
    fn from(p: ReversePath) -> Self {
        p.to_string()
    }
}

impl TryFrom<String> for ReversePath {
    type Error = AddressError;

    fn try_from(s: String) -> Result<Self, AddressError> {
        if s.is_empty() { Ok(Self::Null) } else { Mailbox::try_from(s).map(Self::Mailbox) }
    }
}

/// To whom a message goes.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ForwardPath(pub Mailbox);

impl fmt::Display for ForwardPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(s: &str) -> Result<Mailbox, AddressError> {
        Mailbox::parse(s.as_bytes())
    }

    #[test]
    fn mailboxes_are_kept_as_received() {
        for s in [
            "a@b",
            "Ana.B+tag@Example.COM",
            r#""john doe"@example.com"#,
            r#""a@b> NOTIFY=NEVER <"@example.com"#,
            r#""q\"\\q"@example.com"#,
            "user@[192.0.2.1]",
            "user@[IPv6:2001:db8::1]",
            "host!user@d",
            "$(id)@x".replace(['(', ')'], "").as_str(),
            "-oQ/tmp@x",
            "../../x@d",
            "a..b@docomo.example",
            "user@xn--bcher-kva.example",
            "grå@grå.org",
            "a_b@under_score.example",
        ] {
            let m = parse(s).unwrap_or_else(|e| panic!("{s}: {e}"));
            assert_eq!(m.as_str(), s);
            assert_eq!(format!("{}@{}", m.local_part(), m.domain()), s);
        }
    }

    #[test]
    fn what_is_no_mailbox_is_refused() {
        for (s, e) in [
            ("", AddressError::Empty),
            ("a", AddressError::NoDomain),
            ("a@", AddressError::NoDomain),
            ("@b", AddressError::LocalPart),
            ("a b@d", AddressError::LocalPart),
            ("a@b@d", AddressError::Domain),
            ("a>b@d", AddressError::LocalPart),
            ("a\r@d", AddressError::LocalPart),
            ("a\0@d", AddressError::LocalPart),
            ("\"a\nb\"@d", AddressError::LocalPart),
            ("\"a@d", AddressError::LocalPart),
            ("\"a\"x@d", AddressError::NoDomain),
            ("a@b c", AddressError::Domain),
            ("a@-b", AddressError::Domain),
            ("a@b..c", AddressError::Domain),
            ("a@[300.0.0.1]", AddressError::Domain),
            ("a@[IPv6:zz]", AddressError::Domain),
            ("a@b\u{85}", AddressError::Domain),
        ] {
            assert_eq!(parse(s), Err(e), "{s:?}");
        }
        assert_eq!(Mailbox::parse(b"\xff@d"), Err(AddressError::InvalidUtf8));
    }

    #[test]
    fn the_length_limit_holds_at_its_edges() {
        for (n, ok) in [(253, true), (254, true), (255, false)] {
            let s = format!("{}@d", "x".repeat(n - 2));
            assert_eq!(parse(&s).is_ok(), ok, "{n}");
        }
        for (n, ok) in [(62, true), (63, true), (64, false)] {
            assert_eq!(parse(&format!("a@{}", "x".repeat(n))).is_ok(), ok, "label of {n}");
        }
    }
}
