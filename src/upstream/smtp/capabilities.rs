//! What the upstream offers in its EHLO response (RFC 5321 section 4.1.1.1).

use crate::mail::Reply;

use super::settings::Mechanism;

/// What the upstream offers. A keyword nobody knows, or a value nobody understands, is ignored.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "a set of independent offers")]
pub(crate) struct Capabilities {
    /// RFC 2920.
    pub(crate) pipelining: bool,
    /// RFC 6152.
    pub(crate) eight_bit_mime: bool,
    /// RFC 6531.
    pub(crate) smtputf8: bool,
    /// RFC 3461.
    pub(crate) dsn: bool,
    /// RFC 3207.
    pub(crate) starttls: bool,
    /// RFC 1870.
    pub(crate) size_offered: bool,
    /// RFC 1870: the largest message, in octets; `None` when there is no limit or it is not told.
    pub(crate) size: Option<u64>,
    /// RFC 4954: mechanisms, as they are spelled.
    pub(crate) auth: Vec<String>,
    /// All keywords with their values, as they came.
    pub(crate) lines: Vec<String>,
}

impl Capabilities {
    /// Reads the lines behind the first of the reply to EHLO.
    pub(crate) fn read(reply: &Reply) -> Self {
        let mut found = Self::default();
        for line in reply.lines().skip(1) {
            let mut words = line.split_ascii_whitespace();
            let Some(keyword) = words.next() else { continue };
            match keyword.to_ascii_uppercase().as_str() {
                "PIPELINING" => found.pipelining = true,
                "8BITMIME" => found.eight_bit_mime = true,
                "SMTPUTF8" => found.smtputf8 = true,
                "DSN" => found.dsn = true,
                "STARTTLS" => found.starttls = true,
                "SIZE" => {
                    found.size_offered = true;
                    found.size = words.next().and_then(|n| n.parse().ok()).filter(|n| *n > 0);
                }
                "AUTH" => found.auth.extend(words.map(str::to_owned)),
                _ => {}
            }
            found.lines.push(line.to_owned());
        }
        found
    }

    /// Whether a mechanism is offered.
    pub(crate) fn offers(&self, mechanism: Mechanism) -> bool {
        self.auth.iter().any(|name| name.eq_ignore_ascii_case(mechanism.keyword()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_keywords_are_found_and_unknown_ones_do_no_harm() {
        let lines =
            "mx.example\nPIPELINING\nsize 1000\n8BITMIME\nX-WHAT is this\n\nAUTH plain XX\nDSN";
        let reply = Reply::received(250, lines.split('\n').map(str::to_owned).collect());
        let found = Capabilities::read(&reply);
        assert!(found.pipelining && found.eight_bit_mime && found.dsn);
        assert!(!found.smtputf8 && !found.starttls);
        assert_eq!(found.size, Some(1000));
        assert!(found.offers(Mechanism::Plain) && !found.offers(Mechanism::Login));
    }

    #[test]
    fn a_size_of_zero_or_nonsense_is_no_limit() {
        for line in ["SIZE", "SIZE 0", "SIZE -1", "SIZE 99999999999999999999999"] {
            let reply = Reply::received(250, vec!["mx".into(), line.into()]);
            assert_eq!(Capabilities::read(&reply).size, None, "{line}");
        }
    }
}
