//! Types that only values of the configuration have: rates, addresses, free tables of texts.

use crate::config::document::{Node, Value};
use crate::config::section::{Fault, Setting, show_list};
use crate::config::units;
use crate::mail::address::is_domain;
use crate::policy::routing::Pattern;

/// So many a second; `None` is `unlimited`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct PerSecond(pub(super) Option<f64>);

impl Setting for PerSecond {
    fn read(node: &Node) -> Result<Self, Fault> {
        const EXAMPLES: &str = "write a whole number with /s, /m or /h: \"14/s\", \"600/m\"; \
                                or \"unlimited\"";
        let text = node.text().ok_or_else(|| {
            Fault::new(format!("must be a rate in quotes, not {}", node.kind()), EXAMPLES)
        })?;
        if text == "unlimited" {
            return Ok(Self(None));
        }
        match units::parse_rate(text) {
            Some(0.0) => Err(Fault::new(
                "is 0: nothing would ever be sent",
                "leave it out, or take the upstream out of its routes",
            )),
            Some(rate) => Ok(Self(Some(rate))),
            None => Err(Fault::new(format!("{text:?} is not understood"), EXAMPLES)),
        }
    }

    fn show(&self) -> String {
        self.0.map_or_else(|| "\"unlimited\"".into(), |rate| format!("\"{}\"", units::rate(rate)))
    }
}

/// Addresses and domains: one text, or a list of them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Patterns(pub(super) Vec<Pattern>);

impl Setting for Patterns {
    fn read(node: &Node) -> Result<Self, Fault> {
        const EXPECTED: &str = "\"@example.com\", \"ana@example.com\", or a list of such";
        if let Value::Text(text) = &node.value {
            return Ok(Self(vec![pattern(text)?]));
        }
        let list = node.list().ok_or_else(|| Fault::kind(EXPECTED, node))?;
        if list.is_empty() {
            return Err(Fault::new("is empty", format!("write {EXPECTED}; or leave it out")));
        }
        let read =
            |item: &Node| item.text().ok_or_else(|| Fault::kind(EXPECTED, item)).and_then(pattern);
        list.iter().map(read).collect::<Result<_, _>>().map(Self)
    }

    fn show(&self) -> String {
        let text = |pattern: &Pattern| match pattern {
            Pattern::Address(address) => address.show(),
            Pattern::Domain(domain) => format!("@{domain}").show(),
        };
        show_list(self.0.iter().map(text))
    }
}

fn pattern(text: &str) -> Result<Pattern, Fault> {
    Pattern::parse(text).map_err(|e| {
        let cure = if is_domain(text) {
            format!("write \"@{text}\" for all of its addresses")
        } else {
            "write \"@example.com\" or \"ana@example.com\"".into()
        };
        Fault::new(e.to_string(), cure)
    })
}

/// A table of texts under names of the operator's choice: `{ X-Class = "bulk" }`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Texts(pub(super) Vec<(String, String)>);

impl Setting for Texts {
    fn read(node: &Node) -> Result<Self, Fault> {
        const CURE: &str = "write { NAME = \"value\" }";
        let Some(table) = node.table() else {
            let message = format!("must be a table of texts, not {}", node.kind());
            return Err(Fault::new(message, CURE));
        };
        let mut texts = Vec::with_capacity(table.0.len());
        for entry in &table.0 {
            let Some(text) = entry.node.text() else {
                let message = format!("has {}: {}, not a text", entry.key, entry.node.kind());
                return Err(Fault::new(message, CURE));
            };
            texts.push((entry.key.clone(), text.to_owned()));
        }
        Ok(Self(texts))
    }

    fn show(&self) -> String {
        let bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        let pair = |(name, text): &(String, String)| {
            let key = if name.chars().all(bare) { name.clone() } else { name.show() };
            format!("{key} = {}", text.show())
        };
        match self.0.as_slice() {
            [] => "{}".into(),
            texts => format!("{{ {} }}", texts.iter().map(pair).collect::<Vec<_>>().join(", ")),
        }
    }
}

/// Names of headers and the values they have, as [`Texts`]; the names in lower case. A value of `*`
/// is any.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Headers(pub(super) Vec<(String, String)>);

impl Setting for Headers {
    fn read(node: &Node) -> Result<Self, Fault> {
        let Texts(texts) = Texts::read(node)?;
        // RFC 5322 section 3.6.8.
        let is_name = |name: &str| name.bytes().all(|b| b.is_ascii_graphic() && b != b':');
        if let Some((name, _)) = texts.iter().find(|(name, _)| name.is_empty() || !is_name(name)) {
            let cure = "write header = { X-Class = \"bulk\" }";
            return Err(Fault::new(format!("{name:?} is no name of a header"), cure));
        }
        let lower = |(name, text): (String, String)| (name.to_ascii_lowercase(), text);
        Ok(Self(texts.into_iter().map(lower).collect()))
    }

    fn show(&self) -> String {
        Texts(self.0.clone()).show()
    }
}

/// A list of texts.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct List(pub(super) Vec<String>);

impl Setting for List {
    fn read(node: &Node) -> Result<Self, Fault> {
        let list = node.list().ok_or_else(|| Fault::kind("a list of texts", node))?;
        list.iter().map(String::read).collect::<Result<_, _>>().map(Self)
    }

    fn show(&self) -> String {
        show_list(self.0.iter().map(Setting::show))
    }
}

/// The address of a server: `http://` or `https://`, a host, perhaps a port; no login, no path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Url(pub(super) String);

impl Url {
    /// Whether what is sent there can be read on a network.
    pub(super) fn is_open(&self) -> bool {
        let Some(host) = self.0.strip_prefix("http://").map(host) else { return false };
        let loopback = |ip: std::net::IpAddr| ip.to_canonical().is_loopback();
        !host.eq_ignore_ascii_case("localhost") && !host.parse().is_ok_and(loopback)
    }
}

impl Setting for Url {
    fn read(node: &Node) -> Result<Self, Fault> {
        const CURE: &str = "write \"https://HOST\" or \"https://HOST:PORT\", without a path";
        let text = node.text().ok_or_else(|| Fault::kind("a URL in quotes", node))?;
        let text = text.strip_suffix('/').unwrap_or(text);
        let place = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        let is_host = |place: &&str| {
            let host = host(place);
            let port = place.rsplit_once(':').map(|(_, port)| port);
            let with_port = place.len() > host.len() && !place.ends_with(']');
            (is_domain(host) || host.parse::<std::net::IpAddr>().is_ok())
                && (!with_port || port.is_some_and(|p| p.parse::<u16>().is_ok()))
        };
        // Not shown: people write user:password@host.
        place.filter(is_host).ok_or_else(|| Fault::new("is no URL of a server", CURE))?;
        Ok(Self(text.into()))
    }

    fn show(&self) -> String {
        self.0.show()
    }
}

/// The host of `host:port` and `[::1]:port`.
fn host(place: &str) -> &str {
    if let Some((inner, _)) = place.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return inner;
    }
    place.rsplit_once(':').map_or(place, |(host, _)| host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::document::Place;

    fn text(text: &str) -> Node {
        Node { value: Value::Text(text.into()), place: Place::Nowhere }
    }

    #[test]
    fn a_rate_is_so_many_a_second() {
        for (written, rate, shown) in [
            ("14/s", Some(14.0), "\"14/s\""),
            ("600/m", Some(10.0), "\"10/s\""),
            ("1/m", Some(1.0 / 60.0), "\"1/m\""),
            ("100/h", Some(100.0 / 3600.0), "\"100/h\""),
            ("unlimited", None, "\"unlimited\""),
        ] {
            let read = PerSecond::read(&text(written)).unwrap();
            assert_eq!((read.0, read.show().as_str()), (rate, shown), "{written}");
            assert_eq!(PerSecond::read(&text(shown.trim_matches('"'))).unwrap(), read);
        }
        for wrong in ["0/s", "14", "/s", "14/d", "-1/s", "1.5/s", "14 /s", "Unlimited", ""] {
            assert!(PerSecond::read(&text(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_pattern_is_a_domain_or_an_address() {
        let one = |written: &str| Patterns::read(&text(written)).map(|p| p.0).ok();
        assert_eq!(one("@Example.COM"), Some(vec![Pattern::Domain("example.com".into())]));
        let address = Pattern::Address("Ana@example.com".into());
        assert_eq!(one("Ana@Example.com"), Some(vec![address]));
        for wrong in ["", "@", "example.com", "a@", "@a@b", "a b@c", "<>", "@exa mple.com"] {
            assert_eq!(one(wrong), None, "{wrong}");
        }
        let cure = Patterns::read(&text("example.com")).unwrap_err().cure;
        assert_eq!(cure.as_deref(), Some("write \"@example.com\" for all of its addresses"));
    }

    #[test]
    fn a_url_is_a_server_and_open_when_its_octets_can_be_read_on_a_network() {
        for (written, open) in [
            ("https://vault.internal:8200", false),
            ("https://10.0.0.7/", false),
            ("http://127.0.0.1:8200", false),
            ("http://[::1]:8200", false),
            ("http://localhost", false),
            ("http://vault.internal:8200", true),
            ("http://[fd00::7]:8200", true),
            ("http://10.0.0.7", true),
        ] {
            let url = Url::read(&text(written)).unwrap();
            assert_eq!((url.is_open(), url.0.ends_with('/')), (open, false), "{written}");
        }
        for wrong in [
            "vault.internal:8200",
            "https://",
            "https://user:pass@vault",
            "https://vault/v1",
            "https://vault:port",
            "https://vault:65536",
            "https://[::1",
            "ftp://vault",
        ] {
            assert!(Url::read(&text(wrong)).is_err(), "{wrong}");
        }
    }
}
