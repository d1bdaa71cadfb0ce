//! Which way a message takes: routes with ordered upstreams, of which the first that matches
//! counts.

use std::collections::BTreeSet;

use crate::mail::{AddressError, ForwardPath, Mailbox, Message};
use crate::policy::networks::Networks;

/// The value of a header match that asks only whether the header is there.
pub const PRESENT: &str = "*";

/// A way for mail.
#[derive(Clone, Debug)]
pub struct Route {
    /// Its name in the configuration.
    pub name: String,
    /// Which mail takes it.
    pub when: Match,
    /// Names of its upstreams, the preferred one first. Never empty. The first is authoritative:
    /// what it refuses for good is refused for good.
    pub upstreams: Vec<String>,
    /// What becomes of an attempt whose answer was lost.
    pub unconfirmed: Unconfirmed,
    /// Who goes first when an upstream is scarce; the first that matches counts.
    pub classes: Vec<Class>,
}

/// Which mail takes a route. Each list that is given must hold, and holds when one of its entries
/// does; what is empty holds always.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Match {
    /// The reverse-path is one of these. The null reverse-path is none.
    pub sender: Vec<Pattern>,
    /// The recipient is one of these.
    pub recipient: Vec<Pattern>,
    /// A header has one of these values: name in lower case; a value is compared without regard to
    /// case and to blanks around it, and [`PRESENT`] is any. Of a header that repeats the first
    /// counts.
    pub header: Vec<(String, String)>,
}

/// A set of addresses. Local parts are compared as they are written, domains without regard to case
/// (RFC 5321 section 2.4).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Pattern {
    /// One address; the local part as written, the domain in lower case.
    Address(String),
    /// All addresses of a domain, but not of its subdomains, in lower case: written `@example.com`.
    Domain(String),
}

/// The text is no pattern.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("\"{text}\" is neither an address nor a domain with an @ before it: {problem}")]
pub struct InvalidPattern {
    /// The text as written.
    pub text: String,
    /// What is wrong with it.
    pub problem: AddressError,
}

impl Pattern {
    /// Reads `ana@example.com` or `@example.com`.
    pub fn parse(text: &str) -> Result<Self, InvalidPattern> {
        let wrong = |problem| InvalidPattern { text: text.to_owned(), problem };
        if text.starts_with('@') {
            // The domain of any address of it.
            let any = Mailbox::parse(format!("x{text}").as_bytes()).map_err(wrong)?;
            return Ok(Self::Domain(any.domain().to_lowercase()));
        }
        let mailbox = Mailbox::parse(text.as_bytes()).map_err(wrong)?;
        let (local, domain) = (mailbox.local_part(), mailbox.domain().to_lowercase());
        Ok(Self::Address(format!("{local}@{domain}")))
    }

    /// Whether an address is one of these.
    pub fn contains(&self, mailbox: &Mailbox) -> bool {
        match self {
            Self::Domain(domain) => is_same_domain(domain, mailbox.domain()),
            Self::Address(address) => {
                let domain = address.strip_prefix(mailbox.local_part());
                let domain = domain.and_then(|rest| rest.strip_prefix('@'));
                domain.is_some_and(|domain| is_same_domain(domain, mailbox.domain()))
            }
        }
    }
}

fn is_same_domain(lower_case: &str, domain: &str) -> bool {
    lower_case.eq_ignore_ascii_case(domain)
        || (!domain.is_ascii() && lower_case == domain.to_lowercase())
}

/// What becomes of an attempt whose answer was lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Unconfirmed {
    /// The same upstream is asked again, later: the mail may come twice.
    #[default]
    Retry,
    /// It waits for the operator to say.
    Hold,
}

/// Messages that go before, or after, others.
#[derive(Clone, Debug)]
pub struct Class {
    /// Where they go.
    pub priority: Priority,
    /// Their clients' networks; empty: any.
    pub clients: Networks,
    /// A header they have, name in lower case; `None`: any.
    pub header: Option<(String, String)>,
}

/// Who goes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Priority {
    /// Before the others.
    High,
    /// As most do.
    #[default]
    Normal,
    /// After the others.
    Low,
}

impl Priority {
    /// The word in the configuration.
    pub const fn word(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
        }
    }
}

impl Match {
    /// Whether it holds for one recipient of a message.
    pub fn holds(&self, message: &Message, recipient: &ForwardPath) -> bool {
        let is_in = |list: &[Pattern], mailbox: Option<&Mailbox>| {
            list.is_empty() || mailbox.is_some_and(|m| list.iter().any(|p| p.contains(m)))
        };
        is_in(&self.sender, message.envelope.reverse_path.mailbox())
            && is_in(&self.recipient, Some(&recipient.0))
            && (self.header.is_empty() || self.header.iter().any(|header| has(message, header)))
    }
}

impl Class {
    fn holds(&self, message: &Message) -> bool {
        (self.clients.is_empty() || self.clients.contains(message.client.address))
            && self.header.as_ref().is_none_or(|header| has(message, header))
    }
}

impl Route {
    /// When a message of this route goes: as the first class says that it is in.
    pub fn priority(&self, message: &Message) -> Priority {
        let class = self.classes.iter().find(|class| class.holds(message));
        class.map_or(Priority::Normal, |class| class.priority)
    }
}

/// The place of the route that a recipient of a message takes.
pub fn find(routes: &[Route], message: &Message, recipient: &ForwardPath) -> Option<usize> {
    routes.iter().position(|route| route.when.holds(message, recipient))
}

/// The names of the headers that routes and their classes ask for, in lower case: what has to be
/// noted of a message when it is received.
pub fn headers(routes: &[Route]) -> Vec<String> {
    let matches = routes.iter().flat_map(|route| &route.when.header);
    let classes = routes.iter().flat_map(|route| &route.classes);
    let names = matches.chain(classes.filter_map(|class| class.header.as_ref()));
    let names: BTreeSet<&String> = names.map(|(name, _)| name).collect();
    names.into_iter().cloned().collect()
}

/// Whether a message has a header of this name and value.
fn has(message: &Message, (name, wanted): &(String, String)) -> bool {
    let mut headers = message.facts.headers.iter();
    let Some((_, value)) = headers.find(|(n, _)| n == name) else { return false };
    let (wanted, value) = (wanted.trim(), value.trim());
    wanted == PRESENT
        || wanted.eq_ignore_ascii_case(value)
        || (!value.is_ascii() && wanted.to_lowercase() == value.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::mail::{QueueId, ReversePath};

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text).unwrap()
    }

    fn mailbox(text: &str) -> Mailbox {
        Mailbox::parse(text.as_bytes()).unwrap()
    }

    /// From `app@example.com` at 10.0.1.12 to Bob, with headers.
    fn message(headers: &[(&str, &str)]) -> Message {
        let id = QueueId::from_u64(1);
        let mut message = Message::sample(id, Timestamp::from_millis(1), &["bob@example.org"]);
        let own = |(n, v): &(&str, &str)| ((*n).to_owned(), (*v).to_owned());
        message.facts.headers = headers.iter().map(own).collect();
        message
    }

    fn route(name: &str, when: Match) -> Route {
        Route {
            name: name.into(),
            when,
            upstreams: vec!["core".into()],
            unconfirmed: Unconfirmed::Retry,
            classes: Vec::new(),
        }
    }

    fn class(priority: Priority, clients: &[&str], header: Option<(&str, &str)>) -> Class {
        let header = header.map(|(n, v)| (n.to_owned(), v.to_owned()));
        Class { priority, clients: Networks::parse(clients).unwrap(), header }
    }

    fn holds(when: &Match, message: &Message) -> bool {
        when.holds(message, &message.envelope.recipients[0].path)
    }

    #[test]
    fn a_pattern_is_an_address_or_a_domain() {
        for (text, inside, outside) in [
            (
                "@Example.com",
                &["a@example.com", "B@EXAMPLE.COM"][..],
                &["a@sub.example.com", "a@ample.com", "a@example.com.org"][..],
            ),
            ("Ana@example.com", &["Ana@EXAMPLE.com"], &["ana@example.com", "Ana@example.org"]),
            ("\"a@b\"@x.example", &["\"a@b\"@x.example"], &["\"a\"@x.example", "b@x.example"]),
            ("@b\u{fc}cher.example", &["a@B\u{dc}CHER.example"], &["a@bucher.example"]),
            ("@[192.0.2.1]", &["a@[192.0.2.1]"], &["a@[192.0.2.11]"]),
        ] {
            let pattern = pattern(text);
            for address in inside {
                assert!(pattern.contains(&mailbox(address)), "{text} has {address}");
            }
            for address in outside {
                assert!(!pattern.contains(&mailbox(address)), "{text} has not {address}");
            }
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused_and_said_so() {
        for text in ["", "@", "example.com", "a@", "@exa mple.com", "*@example.com b", "<>"] {
            let error = Pattern::parse(text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("\"{text}\" is neither")), "{error}");
        }
    }

    #[test]
    fn everything_that_is_given_must_hold_and_one_of_each_list() {
        let m = message(&[("x-class", "OTP ")]);
        let sender = vec![pattern("@other.example"), pattern("@example.com")];
        let recipient = vec![pattern("bob@example.org")];
        let header = vec![("x-class".into(), " otp".into()), ("x-not-there".into(), "*".into())];
        let all = Match { sender, recipient, header };
        assert!(holds(&Match::default(), &m) && holds(&all, &m));
        for wrong in [
            Match { sender: vec![pattern("@other.example")], ..all.clone() },
            Match { recipient: vec![pattern("bob@example.com")], ..all.clone() },
            Match { header: vec![("x-class".into(), "bulk".into())], ..all },
        ] {
            assert!(!holds(&wrong, &m), "{wrong:?}");
        }
    }

    #[test]
    fn a_header_is_compared_by_value_or_by_being_there() {
        let when = |name: &str, value: &str| Match {
            header: vec![(name.into(), value.into())],
            ..Match::default()
        };
        let m = message(&[("x-a", "\u{dc}ber"), ("x-a", "second"), ("x-empty", "")]);
        for (name, value, expected) in [
            ("x-a", "\u{fc}BER", true),
            ("x-a", "\u{fc}", false),
            ("x-a", "second", false),
            ("x-a", "*", true),
            ("x-empty", "*", true),
            ("x-empty", "", true),
            ("x-none", "*", false),
            ("x-none", "", false),
        ] {
            assert_eq!(holds(&when(name, value), &m), expected, "{name}: {value}");
        }
    }

    #[test]
    fn the_null_sender_is_in_no_list_of_senders() {
        let mut m = message(&[]);
        m.envelope.reverse_path = ReversePath::Null;
        assert!(holds(&Match::default(), &m));
        let sender = vec![pattern("@example.com")];
        assert!(!holds(&Match { sender, ..Match::default() }, &m));
    }

    #[test]
    fn the_first_route_that_matches_is_taken() {
        let to = |p: &str| Match { recipient: vec![pattern(p)], ..Match::default() };
        let routes = [
            route("a", to("@example.net")),
            route("b", to("@example.org")),
            route("c", Match::default()),
        ];
        let m = message(&[]);
        let path = |text: &str| ForwardPath(mailbox(text));
        assert_eq!(find(&routes, &m, &path("x@example.org")), Some(1));
        assert_eq!(find(&routes, &m, &path("x@example.edu")), Some(2));
        assert_eq!(find(&routes[..2], &m, &path("x@example.edu")), None);
    }

    #[test]
    fn the_first_class_a_message_is_in_says_when_it_goes() {
        let mut r = route("a", Match::default());
        let m = message(&[("x-class", "otp")]);
        assert_eq!(r.priority(&m), Priority::Normal);
        let otp = Some(("x-class", "otp"));
        r.classes = vec![
            class(Priority::Low, &["10.9.0.0/16"], None),
            class(Priority::Low, &["10.0.0.0/16"], Some(("x-class", "bulk"))),
            class(Priority::High, &["10.0.0.0/16"], otp),
            class(Priority::Low, &[], None),
        ];
        assert_eq!(r.priority(&m), Priority::High);
        assert_eq!(r.priority(&message(&[])), Priority::Low);
        r.classes = vec![class(Priority::High, &[], otp)];
        assert_eq!(r.priority(&m), Priority::High, "no networks are all");
        assert!(Priority::High < Priority::Normal && Priority::Normal < Priority::Low);
    }

    #[test]
    fn the_headers_that_anything_asks_for_are_named_once() {
        let header = vec![("x-b".into(), "1".into()), ("x-a".into(), "*".into())];
        let mut r = route("a", Match { header, ..Match::default() });
        r.classes = vec![
            class(Priority::Low, &[], Some(("x-b", "2"))),
            class(Priority::Low, &[], Some(("x-c", "2"))),
        ];
        assert_eq!(headers(&[r.clone(), r]), ["x-a", "x-b", "x-c"]);
        assert!(headers(&[]).is_empty());
    }
}
