//! From the tree of values to the [`Config`]: every section, every key, every default.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use tracing_subscriber::filter::LevelFilter;

use super::document::{Node, Place, Table};
use super::read_upstream::{is_name, upstreams};
use super::section::{Fault, Reading, Section, Setting, Size, show_list, similar, words};
use super::units::{hours, mins, secs};
use super::{Admin, Config, DEFAULT_SOCKET, Delivery, Limits, Metrics, Received, Retry, files};
use super::{read_route, read_secret};
use crate::mail::Mailbox;
use crate::mail::address::is_domain;
use crate::policy::networks::Networks;
use crate::policy::{Backoff, breaker};
use crate::server::{Certificate, ListenerSettings, ListenerTls};
use crate::smtp::session::BareNewline;
use crate::spool;
use crate::telemetry::{self, Format};

/// The longest path of a unix socket, in octets (`sun_path` with its final NUL is 108).
const SOCKET_PATH_MAX: usize = 107;

/// The smallest message size that must be taken (RFC 5321 section 4.5.3.1.7).
const MESSAGE_SIZE_MIN: u64 = 64 << 10;

/// The smallest line that must be taken, without its CRLF (RFC 5321 section 4.5.3.1.6).
const TEXT_LINE_MIN: u64 = 998;

/// The variable that makes an upstream fail, to try what happens then.
const FORCE_FAIL: &str = "POSTGATE_FORCE_FAIL";

/// What the sections of upstreams must know of the rest.
pub(super) struct Known<'a> {
    pub(super) hostname: &'a str,
    pub(super) listeners: &'a [ListenerSettings],
    /// `[breaker]`.
    pub(super) breaker: breaker::Settings,
}

/// Reads the whole; `None` when something that must be there is missing, which is then reported.
pub(super) fn config(reading: &Reading<'_>, table: &Table) -> Option<Config> {
    let mut top = Section::new(reading, String::new(), Place::Nowhere, table);
    let hostname = hostname(&mut top);
    let mynetworks = mynetworks(&mut top);
    let postmaster = postmaster(&mut top, &hostname);
    let listeners = listeners(&mut top);
    let limits = limits(top.section("limits"));
    let received = received(top.section("received"));
    let spool = spool(top.section("spool"), limits.memory);
    let retry = retry(top.section("retry"));
    let delivery = delivery(top.section("delivery"));
    let breaker = breaker(top.section("breaker"), breaker::Settings::default());
    let mut secrets = read_secret::secrets(&mut top);
    let known = Known { hostname: &hostname, listeners: &listeners, breaker };
    let (places, upstreams) = upstreams(&mut top, &known, &mut secrets);
    let names: Vec<String> = places.iter().map(|(name, _)| name.clone()).collect();
    let secrets = secrets.finish();
    let routes = read_route::routes(&mut top, &places, &upstreams);
    let force_fail = force_fail(reading, delivery.allow_force_fail, &names);
    let admin = admin(top.section("admin"));
    let metrics = metrics(top.section("metrics"));
    let log = log(top.section("log"));
    top.finish();
    Some(Config {
        hostname,
        mynetworks: mynetworks?,
        postmaster: postmaster?,
        listeners,
        limits,
        received,
        spool,
        retry: retry?,
        delivery,
        upstreams,
        routes,
        secrets,
        force_fail,
        admin,
        metrics,
        log,
        effective: Vec::new(),
        given: BTreeSet::new(),
    })
}

fn hostname(top: &mut Section<'_>) -> String {
    let system = rustix::system::uname();
    let name = top.or("hostname", system.nodename().to_string_lossy().into_owned());
    if !is_domain(&name) {
        let message = format_args!("\"{name}\" is no host name");
        top.error(
            "hostname",
            message,
            "write this host's full name: hostname = \"relay.example.com\"",
        );
    }
    name
}

fn postmaster(top: &mut Section<'_>, hostname: &str) -> Option<Mailbox> {
    let default = Mailbox::parse(format!("postmaster@{hostname}").as_bytes());
    match default {
        Ok(default) => Some(top.or("postmaster", default)),
        Err(_) => top.optional("postmaster"),
    }
}

fn mynetworks(top: &mut Section<'_>) -> Option<Networks> {
    let allow_public = top.or("allow_public", false);
    let Some(node) = top.node("mynetworks") else {
        top.error(
            "mynetworks",
            "is missing: it says who may send",
            "write mynetworks = [\"127.0.0.0/8\", \"[::1]/128\", …] with your own networks",
        );
        return None;
    };
    let Some(nodes) = node.list() else {
        top.error("mynetworks", "must be a list", "write mynetworks = [\"127.0.0.0/8\", …]");
        return None;
    };
    let mut texts = Vec::with_capacity(nodes.len());
    for (i, node) in nodes.iter().enumerate() {
        if let Some(text) = network(top, i, node, allow_public) {
            texts.push(text);
        }
    }
    // An entry that is wrong was told, and the configuration is not used.
    let networks = Networks::parse(&texts).ok().filter(|_| texts.len() == nodes.len())?;
    if networks.is_empty() {
        top.warning("mynetworks", "is empty: it admits nobody", "list your own networks");
    }
    top.in_effect("mynetworks", show_list(networks.iter().map(|n| n.to_string().show())));
    Some(networks)
}

/// One entry of `mynetworks`, by itself, so that each is told its own mistake.
fn network<'a>(top: &Section<'_>, i: usize, node: &'a Node, allow_public: bool) -> Option<&'a str> {
    let Some(text) = node.text() else {
        let message = format!("mynetworks[{i}] must be a text in quotes, not {}", node.kind());
        top.reading.error(&node.place, message, None);
        return None;
    };
    let networks = match Networks::parse(&[text]) {
        Ok(networks) => networks,
        Err(errors) => {
            for e in errors {
                let message = format!("mynetworks[{i}] {e}");
                top.reading.error(&node.place, message, e.problem.cure());
            }
            return None;
        }
    };
    if let Some((_, network)) = networks.public().next().filter(|_| !allow_public) {
        let message = format!("mynetworks[{i}] \"{network}\" is a public network");
        let cure = "hosts of others may be in it; if all of it is yours, write allow_public = true";
        top.reading.error(&node.place, message, cure.to_owned());
    }
    Some(text)
}

fn listeners(top: &mut Section<'_>) -> Vec<ListenerSettings> {
    let sections = top.sections("listener");
    if !top.has("listener") {
        let cure = "write [[listener]] with name = \"backends\" and address = \"10.0.0.10:25\"";
        top.error("listener", "is missing: mail can come in nowhere", cure);
    }
    let mut listeners: Vec<ListenerSettings> = Vec::new();
    for mut section in sections {
        let listener = listener(&mut section);
        if let Some(listener) = listener {
            if listeners.iter().any(|l| l.name == listener.name) {
                section.error("name", "is used twice", "give each listener its own name");
            }
            if listeners.iter().any(|l| l.address == listener.address && l.address.port() != 0) {
                section.error("address", "is used twice", "give each listener its own address");
            }
            listeners.push(listener);
        }
        section.finish();
    }
    listeners
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum TlsMode {
    None,
    StartTls,
    Implicit,
}
words!(TlsMode {
    "none" => Self::None,
    "starttls" => Self::StartTls,
    "implicit" => Self::Implicit,
});

fn listener(section: &mut Section<'_>) -> Option<ListenerSettings> {
    let name = name(section, "\"backends\"");
    let address: Option<SocketAddr> = section.required("address", "\"10.0.0.10:25\"");
    let mode = section.or("tls", TlsMode::None);
    let cert = files::existing(section, "cert");
    let key = files::secret(section, "key");
    let tls = match mode {
        TlsMode::None => {
            for unused in ["cert", "key"].into_iter().filter(|k| section.has(k)) {
                section.warning(
                    unused,
                    "has no effect",
                    "write tls = \"starttls\", or leave it out",
                );
            }
            Some(ListenerTls::None)
        }
        mode => {
            for missing in ["cert", "key"].into_iter().filter(|k| !section.has(k)) {
                section.error(
                    missing,
                    "is missing: TLS needs it",
                    format!("write {missing} = \"….pem\""),
                );
            }
            let files = cert.zip(key).map(|(cert, key)| Certificate { cert, key });
            if let Some(files) = &files {
                files::check_key_pair(section, &files.cert, &files.key);
            }
            match mode {
                TlsMode::Implicit => files.map(ListenerTls::Implicit),
                _ => files.map(ListenerTls::StartTls),
            }
        }
    };
    Some(ListenerSettings { name: name?, address: address?, tls: tls? })
}

/// The `name` of a listener or route.
pub(super) fn name(section: &mut Section<'_>, example: &str) -> Option<String> {
    let name: String = section.required("name", example)?;
    if !is_name(&name) {
        section.error(
            "name",
            format_args!("\"{name}\" is no name"),
            "write letters, digits, - and _",
        );
    }
    Some(name)
}

fn limits(mut s: Section<'_>) -> Limits {
    let timeout = secs(1)..=hours(1);
    let limits = Limits {
        max_message_size: s
            .within("max_message_size", Size(25 << 20), Size(MESSAGE_SIZE_MIN)..=Size(1 << 30))
            .0,
        max_recipients: s.within("max_recipients", 100, 1..=10_000),
        max_text_line: octets(s.within(
            "max_text_line",
            Size(1 << 20),
            Size(TEXT_LINE_MIN)..=Size(16 << 20),
        )),
        max_connections: s.within("max_connections", 500, 1..=50_000),
        max_connections_per_ip: s.within("max_connections_per_ip", 50, 1..=50_000),
        max_errors: s.within("max_errors", 20, 1..=1000),
        max_messages_per_connection: s.within("max_messages_per_connection", 1000, 1..=1_000_000),
        command_timeout: s.within("command_timeout", mins(5), timeout.clone()),
        data_timeout: s.within("data_timeout", mins(3), timeout),
        max_hops: s.within("max_hops", 50, 1..=1000),
        memory: s.within("memory", Size(128 << 20), Size(16 << 20)..=Size(1 << 40)).0,
        bare_newline: s.or("bare_newline", BareNewline::Normalize),
    };
    if limits.max_connections_per_ip > limits.max_connections && s.has("max_connections_per_ip") {
        let cure = format!("write at most max_connections ({})", limits.max_connections);
        s.warning("max_connections_per_ip", "is more than all connections together", cure);
    }
    s.finish();
    limits
}

words!(BareNewline { "normalize" => Self::Normalize, "reject" => Self::Reject });

fn octets(size: Size) -> usize {
    usize::try_from(size.0).unwrap_or(usize::MAX)
}

fn received(mut s: Section<'_>) -> Received {
    let received =
        Received { client_address: s.or("client_address", true), helo: s.or("helo", true) };
    s.finish();
    received
}

fn spool(mut s: Section<'_>, memory: u64) -> spool::Settings {
    let default = spool::Settings::new(PathBuf::from("/var/lib/postgate/spool"));
    let max_bytes = s.optional("max_bytes").map_or(default.max_bytes, |size: Size| size.0);
    let spool = spool::Settings {
        path: s.or("path", default.path.clone()),
        min_free: s.or("min_free", Size(default.min_free)).0,
        max_messages: s.or("max_messages", default.max_messages),
        max_bytes,
        allow_volatile: s.or("allow_volatile", false),
        memory,
        ..default
    };
    for (key, limit) in [("max_messages", spool.max_messages), ("max_bytes", spool.max_bytes)] {
        if limit == 0 {
            s.error(key, "is 0: every message would be refused", "leave it out for the default");
        }
    }
    s.finish();
    spool
}

fn retry(mut s: Section<'_>) -> Option<Retry> {
    let initial = s.within("initial", mins(1), secs(1)..=hours(24));
    let multiplier = s.within("multiplier", 2.0, 1.0..=10.0);
    let max_interval = s.within("max_interval", hours(1), secs(1)..=hours(24));
    let jitter = s.within("jitter", 0.2, 0.0..=0.9);
    let max_age = s.within("max_age", hours(48), mins(1)..=hours(24 * 30));
    let backoff = Backoff::try_new(initial, multiplier, max_interval, jitter);
    if initial > max_interval {
        s.error("initial", "is more than max_interval", "the first wait is the shortest");
    }
    if initial > max_age {
        s.error(
            "max_age",
            "is less than initial",
            "messages would be given up before a second try",
        );
    }
    s.finish();
    // What it refuses was told above.
    Some(Retry { backoff: backoff.ok()?, max_age })
}

fn delivery(mut s: Section<'_>) -> Delivery {
    let delivery = Delivery {
        max_active: s.within("max_active", 200, 1..=10_000),
        drain_timeout: s.within("drain_timeout", secs(50), secs(0)..=hours(1)),
        allow_force_fail: s.or("allow_force_fail", false),
    };
    s.finish();
    delivery
}

/// The upstream that shall fail, by the environment.
fn force_fail(reading: &Reading<'_>, allowed: bool, names: &[String]) -> Option<String> {
    let name = reading.environment.get(FORCE_FAIL).filter(|name| !name.is_empty())?;
    let place = Place::Environment(FORCE_FAIL.into());
    if !allowed {
        let cure = "unset it; or, for development, write allow_force_fail = true in [delivery]";
        let message = format!("{FORCE_FAIL} is set and not allowed");
        reading.error(&place, message, cure.to_owned());
    }
    if !names.contains(name) {
        let message = format!("{FORCE_FAIL} names the unknown upstream \"{name}\"");
        reading.error(&place, message, known_name(name, names));
    } else if allowed {
        let message = format!("every attempt at upstream \"{name}\" fails on purpose");
        reading.warning(&place, message, format!("unset {FORCE_FAIL} to end that"));
    }
    Some(name.clone())
}

/// The cure for a name that none of `names` is.
pub(super) fn known_name(name: &str, names: &[String]) -> String {
    similar(name, names.iter().map(String::as_str)).map_or_else(
        || format!("name one of: {}", names.join(", ")),
        |known| format!("did you mean \"{known}\"?"),
    )
}

/// `[breaker]`, or what an upstream has of its own beside it.
pub(super) fn breaker(mut s: Section<'_>, default: breaker::Settings) -> breaker::Settings {
    let breaker = breaker::Settings {
        failures: s.within("failures", default.failures, 1..=10_000),
        window: s.within("window", default.window, secs(1)..=hours(24)),
        open_for: s.within("open_for", default.open_for, secs(1)..=hours(24)),
        open_max: s.within("open_max", default.open_max, secs(1)..=hours(24)),
        probes: s.within("probes", default.probes, 1..=1000),
        dwell: s.within("dwell", default.dwell, secs(0)..=hours(1)),
        hold_probe: s.within("hold_probe", default.hold_probe, secs(1)..=hours(24)),
    };
    if breaker.open_for > breaker.open_max {
        s.error("open_for", "is more than open_max", "the first rest is the shortest");
    }
    s.finish();
    breaker
}

fn admin(mut s: Section<'_>) -> Admin {
    let socket = s.or("socket", PathBuf::from(DEFAULT_SOCKET));
    if socket.as_os_str().len() > SOCKET_PATH_MAX {
        let cure = format!("a unix socket's path has at most {SOCKET_PATH_MAX} octets");
        s.error("socket", "is too long", cure);
    }
    s.finish();
    Admin { socket }
}

fn metrics(mut s: Section<'_>) -> Metrics {
    let listen = s.or("listen", Listen(None)).0;
    s.finish();
    Metrics { listen }
}

/// An address, or `off`.
struct Listen(Option<SocketAddr>);

impl Setting for Listen {
    fn read(node: &Node) -> Result<Self, Fault> {
        match node.text() {
            Some("off") => Ok(Self(None)),
            _ => SocketAddr::read(node).map(|address| Self(Some(address))),
        }
    }

    fn show(&self) -> String {
        self.0.map_or_else(|| "\"off\"".to_owned(), |address| address.show())
    }
}

fn log(mut s: Section<'_>) -> telemetry::Settings {
    let default = telemetry::Settings::default();
    let log = telemetry::Settings {
        level: s.or("level", default.level),
        format: s.or("format", default.format),
    };
    s.finish();
    log
}

words!(LevelFilter {
    "error" => Self::ERROR,
    "warn" => Self::WARN,
    "info" => Self::INFO,
    "debug" => Self::DEBUG,
    "trace" => Self::TRACE,
});
words!(Format { "json" => Self::Json, "text" => Self::Text });
