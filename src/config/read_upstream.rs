//! Reading `[upstreams.NAME]`, and what is likely wrong with it.

use std::net::{IpAddr, Ipv6Addr};

use super::document::{Node, Place};
use super::read::{Known, breaker};
use super::read_secret::{self, Login, Secrets};
use super::read_ses::ses;
use super::section::{Fault, Section, Setting, read_word, show_list, words};
use super::units::{hours, mins, secs};
use super::values::PerSecond;
use super::{Maildir, Upstream, UpstreamKind, files};
use crate::mail::address::is_domain;
use crate::policy::bucket::{Rate, Unit};
use crate::server::ListenerSettings;
use crate::upstream::smtp::{
    DEFAULT_PORT, Mechanism, PoolSettings, Settings, Target, Timeouts, TlsMode, Verify,
};

/// Messages handed to a Maildir at once: it is a disk.
const MAILDIR_CONNECTIONS: usize = 4;

/// Reads `[upstreams]`; and the names of all with their places, also of wrong ones, so that a route
/// is not blamed for those.
pub(super) fn upstreams(
    top: &mut Section<'_>,
    known: &Known<'_>,
    secrets: &mut Secrets<'_>,
) -> (Vec<(String, Place)>, Vec<Upstream>) {
    let sections = top.named_sections("upstreams");
    if sections.is_empty() {
        let cure = "write [upstreams.core] with type = \"smtp\" and host = \"mail-core-01\"";
        top.error("upstreams", "is missing: mail can go nowhere", cure);
    }
    let names = sections.iter().map(|(name, s)| (name.clone(), s.place.clone())).collect();
    let upstreams = sections.into_iter().filter_map(|(name, s)| upstream(name, s, known, secrets));
    (names, upstreams.collect())
}

/// Reads `[upstreams.NAME]`.
fn upstream(
    name: String,
    mut section: Section<'_>,
    known: &Known<'_>,
    secrets: &mut Secrets<'_>,
) -> Option<Upstream> {
    if !is_name(&name) {
        let message = format!("upstreams: \"{name}\" is no name");
        let cure = "write letters, digits, - and _".to_owned();
        section.reading.error(&section.place, message, cure);
    }
    let kind: Option<Type> = section.required("type", "\"smtp\", \"ses\" or \"maildir\"");
    let kind = kind?;
    let (found, secret, max_connections) = match kind {
        Type::Smtp => {
            let (smtp, secret) = smtp(&name, &mut section, known, secrets);
            let max_connections = smtp.as_ref().map_or(1, |s| s.pool.max_connections);
            (smtp.map(|s| UpstreamKind::Smtp(Box::new(s))), secret, max_connections)
        }
        Type::Ses => {
            let (ses, secret) = ses(&name, &mut section, secrets);
            let max_connections = ses.settings.max_connections;
            (Some(UpstreamKind::Ses(Box::new(ses))), secret, max_connections)
        }
        Type::Maildir => {
            let path = section.required("path", "\"/var/lib/postgate/outbox\"");
            let maildir = path.map(|path| UpstreamKind::Maildir(Maildir { path }));
            (maildir, None, MAILDIR_CONNECTIONS)
        }
    };
    let rate = rate(&mut section, kind);
    let own = section.section("breaker");
    let given = section.has("breaker");
    let breaker = if given { breaker(own, known.breaker) } else { known.breaker };
    section.finish();
    Some(Upstream { name, kind: found?, secret, breaker, rate, max_connections })
}

/// How much an upstream is handed per second.
fn rate(section: &mut Section<'_>, kind: Type) -> Option<Rate> {
    let rate = section.or("rate", PerSecond(None)).0;
    let by_kind = if kind == Type::Ses { Unit::Recipients } else { Unit::Messages };
    let of = section.or("rate_counts", by_kind);
    if kind == Type::Ses && of == Unit::Messages {
        let cure = "write rate_counts = \"recipients\", or leave it out";
        section.error("rate_counts", "is \"messages\", and SES counts recipients", cure);
    } else if section.has("rate_counts") && rate.is_none() {
        section.warning("rate_counts", "has no effect without a rate", "write rate = \"14/s\"");
    }
    rate.map(|per_second| Rate { per_second, of })
}

/// Whether a text can name an upstream, listener or route: it will stand in logs and commands.
pub(super) fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 63
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
}

fn smtp(
    name: &str,
    section: &mut Section<'_>,
    known: &Known<'_>,
    secrets: &mut Secrets<'_>,
) -> (Option<Settings>, Option<String>) {
    let (login, mechanisms) = auth(name, section, secrets);
    let gives = |what| login.as_ref().is_some_and(|login| login.gives(what));
    let host = host(section, gives("host"));
    let port = (section.has("port") || !gives("port"))
        .then(|| section.within("port", DEFAULT_PORT, 1..=u16::MAX));
    let address = section.or("address", Addresses(Vec::new())).0;
    let tls = (section.has("tls") || !gives("use_tls"))
        .then(|| section.or("tls", TlsMode::Opportunistic));
    let verify = if is_always(tls) { Verify::Full } else { Verify::None };
    let verify = section.or("verify", verify);
    let ca_file = files::existing(section, "ca_file");
    let tls_server_name: Option<String> = section.optional("tls_server_name");
    let pool = pool(section.section("pool"));
    let timeouts = timeouts(section.section("timeouts"));
    let needs_host = host.is_none() && !gives("host");
    let settings = Settings {
        name: name.into(),
        host,
        port,
        address,
        tls,
        verify,
        ca_file,
        tls_server_name,
        helo: known.hostname.into(),
        mechanisms,
        auth_required: section.has("auth"),
        pool,
        timeouts,
    };
    let secret = login.map(|login| login.secret);
    if needs_host {
        return (None, secret);
    }
    check_tls(section, &settings);
    check_loop(section, &settings, known.listeners);
    (Some(settings), secret)
}

fn host(section: &mut Section<'_>, in_secret: bool) -> Option<String> {
    let host: Option<String> = if in_secret {
        section.optional("host")
    } else {
        section.required("host", "\"mail-core-01\"")
    };
    if let Some(host) = host.as_deref()
        && !is_domain(host)
        && host.parse::<IpAddr>().is_err()
    {
        let cure = "write a host name or an address; the port has its own key";
        // Not shown: people write user:password@host.
        section.error("host", "is no host name", cure);
    }
    host
}

/// Whether every connection turns to TLS. It does where the secret says how: with a login it must.
fn is_always(tls: Option<TlsMode>) -> bool {
    tls.is_none_or(|tls| matches!(tls, TlsMode::StartTls | TlsMode::Implicit))
}

fn check_tls(section: &Section<'_>, smtp: &Settings) {
    match (smtp.tls, smtp.port) {
        (Some(TlsMode::Implicit), Some(587)) => section.warning(
            "tls",
            "is \"implicit\" on port 587",
            "587 speaks STARTTLS: write tls = \"starttls\"; \"implicit\" is for 465",
        ),
        (Some(TlsMode::StartTls | TlsMode::Opportunistic), Some(465)) => section.warning(
            "tls",
            "is not \"implicit\" on port 465",
            "465 speaks TLS at once: write tls = \"implicit\"; \"starttls\" is for 587",
        ),
        _ => {}
    }
    let always = is_always(smtp.tls);
    if let Some(tls) = smtp.tls.filter(|_| smtp.auth_required && !always) {
        section.error(
            "auth",
            format_args!("would send the password over tls = {}", tls.show()),
            "write tls = \"starttls\" (port 587) or \"implicit\" (port 465)",
        );
    }
    if !always && smtp.verify != Verify::None {
        let message =
            "protects nothing: without tls = \"starttls\" or \"implicit\" mail also goes in clear";
        section.warning("verify", message, "write tls = \"starttls\", or leave verify out");
    }
    if let Some(name) = &smtp.tls_server_name
        && !is_domain(name)
    {
        section.error(
            "tls_server_name",
            format_args!("\"{name}\" is no host name"),
            "write a host name",
        );
    }
    if let Some(path) = &smtp.ca_file {
        files::check_certificates(section, "ca_file", path);
    }
}

/// An upstream that is one of our own listeners would send every message round for ever.
fn check_loop(section: &Section<'_>, smtp: &Settings, listeners: &[ListenerSettings]) {
    let Some(Target { host, port, .. }) = smtp.target(None) else { return };
    let looked_up = smtp.address.is_empty();
    let targets = if looked_up { host_addresses(&host) } else { smtp.address.clone() };
    let ours = looked_up && host.eq_ignore_ascii_case(&smtp.helo);
    let reaches = |listener: &&ListenerSettings| {
        let bound = listener.address.ip().to_canonical();
        let hit = targets
            .iter()
            .map(IpAddr::to_canonical)
            .any(|target| target == bound || (bound.is_unspecified() && target.is_loopback()));
        listener.address.port() == port && (ours || hit)
    };
    if let Some(listener) = listeners.iter().find(reaches) {
        let message = format!(
            "is our own listener \"{}\" ({}): mail would go in circles",
            listener.name, listener.address
        );
        section.error("host", message, "name the smarthost, or another port");
    }
}

/// The addresses of a host that are known without asking.
fn host_addresses(host: &str) -> Vec<IpAddr> {
    if host.eq_ignore_ascii_case("localhost") {
        return vec![IpAddr::from([127, 0, 0, 1]), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    }
    host.parse().into_iter().collect()
}

fn auth(
    name: &str,
    section: &mut Section<'_>,
    secrets: &mut Secrets<'_>,
) -> (Option<Login>, Vec<Mechanism>) {
    let default = vec![Mechanism::Plain, Mechanism::Login];
    let given = section.has("auth");
    let mut auth = section.section("auth");
    if !given {
        return (None, default);
    }
    let mechanisms = auth.or("mechanisms", Mechanisms(default)).0;
    let login = secrets.login(name, &mut auth, &read_secret::SMTP);
    auth.finish();
    (login, mechanisms)
}

fn pool(mut section: Section<'_>) -> PoolSettings {
    let pool = PoolSettings {
        max_connections: section.within("max_connections", 8, 1..=1000),
        max_idle: section.within("max_idle", secs(30), secs(0)..=mins(60)),
        max_messages: section.within("max_messages", 100, 1..=1_000_000),
        max_age: section.within("max_age", mins(5), secs(1)..=hours(24)),
    };
    section.finish();
    pool
}

fn timeouts(mut section: Section<'_>) -> Timeouts {
    let range = secs(1)..=hours(1);
    let timeouts = Timeouts {
        connect: section.within("connect", secs(30), range.clone()),
        greeting: section.within("greeting", secs(60), range.clone()),
        command: section.within("command", secs(60), range.clone()),
        data: section.within("data", mins(3), range.clone()),
        end_of_data: section.within("end_of_data", mins(10), range),
    };
    section.finish();
    timeouts
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Type {
    Smtp,
    Ses,
    Maildir,
}

words!(Type { "smtp" => Self::Smtp, "ses" => Self::Ses, "maildir" => Self::Maildir });
words!(Unit { "messages" => Self::Messages, "recipients" => Self::Recipients });
words!(TlsMode {
    "none" => Self::None,
    "opportunistic" => Self::Opportunistic,
    "starttls" => Self::StartTls,
    "implicit" => Self::Implicit,
});
words!(Mechanism { "plain" => Self::Plain, "login" => Self::Login });

impl Setting for Verify {
    fn read(node: &Node) -> Result<Self, Fault> {
        let words = [("full", Self::Full), ("ca-only", Self::CaOnly), ("none", Self::None)];
        let Some(table) = node.table() else { return read_word(node, &words) };
        let cure = "write verify = { fingerprint = \"…\" } with the 64 hex digits of the SHA-256";
        let [entry] = table.0.as_slice() else {
            return Err(Fault::new("has more or less than a fingerprint", cure));
        };
        let digits = entry.node.text().filter(|_| entry.key == "fingerprint");
        let fingerprint = digits.and_then(parse_fingerprint);
        fingerprint.map(Self::Fingerprint).ok_or_else(|| Fault::new("has no fingerprint", cure))
    }

    fn show(&self) -> String {
        match self {
            Self::Full => "\"full\"".into(),
            Self::CaOnly => "\"ca-only\"".into(),
            Self::None => "\"none\"".into(),
            Self::Fingerprint(bytes) => {
                let digit = |n: u8| char::from_digit(n.into(), 16).unwrap_or_default();
                let hex: String =
                    bytes.iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]).collect();
                format!("{{ fingerprint = \"{hex}\" }}")
            }
        }
    }
}

/// 32 octets in hex, as `openssl x509 -fingerprint -sha256` prints them, colons or not.
fn parse_fingerprint(text: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> = text
        .chars()
        .filter(|c| *c != ':')
        .map(|c| c.to_digit(16)?.try_into().ok())
        .collect::<Option<_>>()?;
    let octets: Option<Vec<u8>> = digits
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => Some(high << 4 | low),
            _ => None,
        })
        .collect();
    octets?.try_into().ok()
}

#[derive(Debug)]
struct Addresses(Vec<IpAddr>);

impl Setting for Addresses {
    fn read(node: &Node) -> Result<Self, Fault> {
        let list = node.list().ok_or_else(|| Fault::kind("a list of addresses", node))?;
        let parse = |item: &Node| {
            let text =
                item.text().ok_or_else(|| Fault::kind("a list of addresses in quotes", item))?;
            let cure = "write addresses without port: [\"10.0.0.5\", \"fd00::5\"]";
            text.parse().map_err(|_| Fault::new(format!("{text:?} is no address"), cure))
        };
        list.iter().map(parse).collect::<Result<_, _>>().map(Self)
    }

    fn show(&self) -> String {
        show_list(self.0.iter().map(|a| a.to_string().show()))
    }
}

struct Mechanisms(Vec<Mechanism>);

impl Setting for Mechanisms {
    fn read(node: &Node) -> Result<Self, Fault> {
        let list = node.list().ok_or_else(|| Fault::kind("a list of mechanisms", node))?;
        if list.is_empty() {
            return Err(Fault::new("is empty", "write [\"plain\", \"login\"], or leave auth out"));
        }
        list.iter().map(Mechanism::read).collect::<Result<_, _>>().map(Self)
    }

    fn show(&self) -> String {
        show_list(self.0.iter().map(Setting::show))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_reads_as_openssl_prints_it() {
        let plain = "00ff".repeat(16);
        let with_colons: Vec<String> =
            plain.as_bytes().chunks(2).map(|p| String::from_utf8(p.to_vec()).unwrap()).collect();
        let expected = parse_fingerprint(&plain);
        assert_eq!(expected.map(|f| (f[0], f[31])), Some((0, 255)));
        assert_eq!(parse_fingerprint(&with_colons.join(":").to_uppercase()), expected);
        for bad in ["", "00", &plain[1..], &plain[2..], &format!("{plain}00"), &"zz".repeat(32)] {
            assert_eq!(parse_fingerprint(bad), None, "{bad}");
        }
    }

    #[test]
    fn names_are_safe_to_print() {
        assert!(is_name("core") && is_name("mail-core_01") && is_name(&"x".repeat(63)));
        assert!(!is_name("") && !is_name("a b") && !is_name("a.b") && !is_name(&"x".repeat(64)));
    }
}
