//! Every configuration that is shipped is valid, and every mistake is told as promised.
//!
//! A file in `config/invalid` has its expected report beside it, as `.txt`. After a deliberate
//! change of the wording, `UPDATE_EXPECTED=1 cargo test --test config` writes them anew.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use postgate::config::{self, Config, Ses, Severity, UpstreamKind};
use postgate::policy::bucket::{Rate, Unit};
use postgate::policy::routing::{Match, Pattern, Priority, Unconfirmed};
use postgate::secrets::{Given, Source, VaultAuth};
use postgate::server::ListenerTls;
use postgate::upstream::smtp::{Settings, TlsMode, Verify};

fn files(directory: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|e| e.unwrap().path());
    let mut files: Vec<_> =
        entries.filter(|p| p.extension().is_some_and(|e| e == "toml")).collect();
    files.sort();
    assert!(!files.is_empty(), "{directory}");
    files
}

fn environment(variables: &[(&str, &str)]) -> BTreeMap<String, String> {
    variables.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect()
}

fn load(file: impl AsRef<Path>, variables: &[(&str, &str)]) -> Config {
    let loaded = config::load(file.as_ref(), &environment(variables));
    loaded.unwrap_or_else(|report| panic!("{}:\n{report}", file.as_ref().display())).0
}

fn smtp<'c>(config: &'c Config, name: &str) -> &'c Settings {
    match &config.upstream(name).unwrap().kind {
        UpstreamKind::Smtp(smtp) => smtp,
        other => panic!("{name} is {other:?}"),
    }
}

fn ses<'c>(config: &'c Config, name: &str) -> &'c Ses {
    match &config.upstream(name).unwrap().kind {
        UpstreamKind::Ses(ses) => ses,
        other => panic!("{name} is {other:?}"),
    }
}

/// A folder as systemd's `LoadCredential=` makes it, with every file that `source` names in it.
fn credentials(source: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for named in source.split("\"$CREDENTIALS_DIRECTORY/").skip(1) {
        write(&directory.path().join(named.split('"').next().unwrap()), "hunter2\n", 0o400);
    }
    directory
}

#[test]
fn every_shipped_configuration_is_valid_and_quiet() {
    let shipped = ["config", "config/examples", "tests/config/valid"];
    for file in shipped.into_iter().flat_map(files) {
        let folder = credentials(&fs::read_to_string(&file).unwrap());
        let folder = ("CREDENTIALS_DIRECTORY", folder.path().to_str().unwrap());
        let loaded = config::load(&file, &environment(&[folder]));
        let (config, report) = loaded.unwrap_or_else(|r| panic!("{r}"));
        assert!(report.problems.is_empty(), "{report}");
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}

#[test]
fn every_mistake_is_told_with_its_place_and_cure() {
    for file in files("tests/config/invalid") {
        let variables = [
            ("POSTGATE__LIMITS__MAX_HOPS", "many"),
            ("POSTGATE__LISTENER__OUT__ADDRESS", "127.0.0.1:1"),
            ("POSTGATE__LIMITS__MAX_MESAGE_SIZE", "1MiB"),
            ("POSTGATE__UPSTREAMS__CORE__AUTH__PASSWORD", "hunter2"),
            ("POSTGATE__UPSTREAMS__CORE__PORT", "25"),
            ("POSTGATE__HOSTNAME", "relay.example.com"),
        ];
        let variables = match file.file_stem().and_then(|s| s.to_str()) {
            Some("environment") => environment(&variables),
            Some("force-fail") => environment(&[("POSTGATE_FORCE_FAIL", "cor")]),
            _ => environment(&[("USER", "ana"), ("POSTGATE__HOSTNAME_", "ignored"), ("HOME", "/")]),
        };
        let variables: BTreeMap<_, _> =
            variables.into_iter().filter(|(k, _)| k != "POSTGATE__HOSTNAME_").collect();
        let report = config::load(&file, &variables).expect_err(&file.display().to_string());
        assert!(report.problems.iter().any(|p| p.severity == Severity::Error));
        let told = format!("{report}{}\n", report.summary());
        assert!(!told.contains("hunter2"), "{told}");
        let expected = file.with_extension("txt");
        if std::env::var_os("UPDATE_EXPECTED").is_some() {
            fs::write(&expected, &told).unwrap();
        }
        let expected = fs::read_to_string(&expected).unwrap_or_default();
        assert_eq!(told, expected, "{}", file.display());
    }
}

#[test]
fn the_reference_names_every_key_with_its_default() {
    let text = fs::read_to_string("config/postgate.toml").unwrap();
    let minimal = load("tests/config/valid/minimal.toml", &[]);
    let minimal_ses = load("tests/config/valid/minimal-ses.toml", &[]);
    let own = [
        "hostname",
        "mynetworks",
        "postmaster",
        "name",
        "address",
        "host",
        "port",
        "tls",
        "verify",
        "type",
        "upstreams",
        "rate_counts",
        "blocked_attachments",
    ];
    for (key, default) in minimal.effective().chain(minimal_ses.effective()) {
        let key = key.rsplit('.').next().unwrap();
        let says = |line: &str| {
            line.split_once('=').is_some_and(|(k, v)| {
                k.trim() == key && v.split('#').next().unwrap().trim() == default
            })
        };
        assert!(own.contains(&key) || text.lines().any(says), "{key} = {default}");
    }
    let everything = load("tests/config/valid/everything.toml", &[]);
    // Also within an inline table.
    let names = |key: &str, line: &str| {
        let word = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_');
        let before = line.split('=').map(str::trim_end);
        before.into_iter().any(|text| text.rsplit(|c| !word(c)).next() == Some(key))
    };
    for (key, _) in everything.effective() {
        let key = key.rsplit('.').next().unwrap();
        assert!(text.lines().any(|line| names(key, line)), "{key}");
    }
}

#[test]
fn values_reach_the_configuration() {
    let c = load("tests/config/valid/everything.toml", &[]);
    assert_eq!(c.hostname, "relay.example.com");
    assert_eq!(c.postmaster.as_str(), "ops@example.com");
    assert!(c.mynetworks.contains("10.0.0.255".parse().unwrap()));
    assert!(!c.mynetworks.contains("10.0.1.0".parse().unwrap()));
    assert_eq!(c.listeners.len(), 2);
    assert_eq!(c.listeners[0].tls, ListenerTls::None);
    assert_eq!(c.limits.max_message_size, 50_000_000);
    assert_eq!((c.spool.max_messages, c.spool.max_bytes), (1000, 10 << 30));
    assert_eq!(c.routes[1].upstreams, ["spare", "core", "ses"]);
    let core = smtp(&c, "core");
    assert_eq!((core.tls, core.port), (Some(TlsMode::Implicit), Some(465)));
    assert_eq!(core.address.len(), 2);
    assert!(matches!(core.verify, Verify::Fingerprint(f) if f[..3] == [0, 0x11, 0x22]));
    let spare = smtp(&c, "spare");
    assert_eq!((spare.pool.max_connections, spare.pool.max_messages), (1, 100));
    assert_eq!(spare.timeouts.end_of_data, Duration::from_mins(5));
    assert_eq!((spare.tls, spare.verify), (Some(TlsMode::Opportunistic), Verify::None));
}

#[test]
fn routes_reach_the_configuration() {
    let c = load("tests/config/valid/everything.toml", &[]);
    let [billing, default] = c.routes.as_slice() else { panic!("{:?}", c.routes) };
    let senders =
        [Pattern::Domain("billing.example.com".into()), Pattern::Address("ana@example.com".into())];
    assert_eq!(billing.when.sender, senders);
    assert_eq!(billing.when.recipient, [Pattern::Domain("example.net".into())]);
    assert_eq!(billing.when.header, [("x-class".to_owned(), "bulk".to_owned())]);
    assert_eq!((billing.unconfirmed, billing.classes.len()), (Unconfirmed::Hold, 0));
    assert_eq!((default.unconfirmed, &default.when), (Unconfirmed::Retry, &Match::default()));
    let [high, low] = default.classes.as_slice() else { panic!("{:?}", default.classes) };
    assert_eq!((high.priority, low.priority), (Priority::High, Priority::Low));
    assert!(high.clients.contains("10.0.3.9".parse().unwrap()) && low.clients.is_empty());
    assert_eq!(low.header, Some(("precedence".into(), "bulk".into())));
}

#[test]
fn routes_may_ask_for_as_many_headers_as_are_kept_of_a_message() {
    let check = |count: usize| {
        let headers: Vec<String> = (0..count).map(|n| format!("X-{n} = \"1\"")).collect();
        let one = format!(
            "name = \"some\", upstreams = [\"core\"], match = {{ header = {{ {} }} }}",
            headers.join(", ")
        );
        let minimal = fs::read_to_string("tests/config/valid/minimal.toml").unwrap();
        let source = minimal.replace("route = [{", &format!("route = [{{ {one} }}, {{"));
        config::parse(Path::new("x.toml"), &source, &environment(&[]))
    };
    for kept in [15, 16] {
        check(kept).unwrap_or_else(|r| panic!("{r}"));
    }
    let report = check(17).unwrap_err().to_string();
    assert!(report.contains("route asks for 17 headers in all"), "{report}");
}

#[test]
fn what_ses_has_reaches_the_configuration() {
    let c = load("tests/config/valid/everything.toml", &[]);
    let Ses { settings, rules } = ses(&c, "ses");
    assert_eq!(settings.region.as_deref(), Some("eu-west-1"));
    assert_eq!(settings.endpoint.as_deref(), Some("http://127.0.0.1:5000"));
    assert_eq!(settings.configuration_set.as_deref(), Some("postgate"));
    assert_eq!(settings.tags, [("environment".to_owned(), "production".to_owned())]);
    assert_eq!(settings.feedback_address.as_deref(), Some("bounces@example.com"));
    assert_eq!(settings.sender.default.as_deref(), Some("no-reply@example.com"));
    let allowed =
        [Pattern::Domain("example.com".into()), Pattern::Address("ana@example.net".into())];
    assert_eq!((&settings.sender.allowed[..], &rules.senders[..]), (&allowed[..], &allowed[..]));
    assert!(rules.rewrites_sender && settings.keep_dkim && settings.secret);
    assert_eq!((settings.max_size, rules.max_size), (10 << 20, 10 << 20));
    assert_eq!(rules.blocked, ["exe", "js"]);
    assert_eq!((settings.day_reserve, settings.max_connections), (1000, 3));
    assert_eq!(settings.connect_timeout, Duration::from_secs(2));
    assert_eq!(settings.request_timeout, Duration::from_secs(30));
    let upstream = c.upstream("ses").unwrap();
    let rate = Some(Rate { per_second: 14.0, of: Unit::Recipients });
    assert_eq!((upstream.rate, upstream.max_connections), (rate, 3));
    assert_eq!(upstream.secret.as_deref(), Some("ses"));

    let chain = load("tests/config/valid/minimal-ses.toml", &[]);
    let plain = &ses(&chain, "ses").settings;
    assert!(!plain.secret && plain.sender.allowed.is_empty() && plain.region.is_none());
    assert_eq!(chain.upstream("ses").unwrap().rate, None);
    assert!(ses(&chain, "ses").rules.blocked.contains(&"exe".to_owned()));
}

#[test]
fn an_upstream_has_the_common_breaker_but_for_what_it_says_itself() {
    let file = "tests/config/valid/everything.toml";
    let c = load(file, &[("POSTGATE__BREAKER__OPEN_FOR", "7s")]);
    let (moving, core) = (c.upstream("moving").unwrap(), c.upstream("core").unwrap());
    assert_eq!((moving.breaker.failures, moving.breaker.open_for), (10, Duration::from_secs(7)));
    assert_eq!(core.breaker.open_for, Duration::from_secs(7));
    assert_ne!(core.breaker.failures, 10);
    let rate = Some(Rate { per_second: 10.0, of: Unit::Recipients });
    assert_eq!((moving.rate, moving.max_connections, core.rate), (rate, 8, None));
}

#[test]
fn secrets_reach_the_configuration() {
    let c = load("tests/config/valid/everything.toml", &[]);
    let vault = c.secrets.vault.as_ref().unwrap();
    assert_eq!(vault.address, "https://vault.internal:8200");
    assert_eq!(vault.namespace.as_deref(), Some("team"));
    assert_eq!(vault.timeout, Duration::from_secs(2));
    let VaultAuth::AppRole { mount, role_id, wrapped, .. } = &vault.auth else { panic!("role") };
    assert_eq!((mount.as_str(), role_id.as_str(), *wrapped), ("approle-mail", "postgate", true));
    let (smtp, ses) = (&c.secrets.secrets["smtp"], &c.secrets.secrets["ses"]);
    let at = |mount: &str, path: &str| Source::Vault { mount: mount.into(), path: path.into() };
    assert_eq!(
        (&smtp.source, &ses.source),
        (&at("secret", "keybuzz/smtp"), &at("teams/mail", "keybuzz/ses"))
    );
    assert_eq!((smtp.refresh, ses.refresh), (Duration::from_secs(10), Duration::from_mins(1)));
    assert_eq!((smtp.fields["username"].as_str(), smtp.fields.len()), ("login", 1));
    assert_eq!(smtp.fallback["password"], "SMTP_PASSWORD");
    assert_eq!(
        (ses.fields["username"].as_str(), ses.fields["password"].as_str()),
        ("key", "secret")
    );
    let moving = self::smtp(&c, "moving");
    assert_eq!((&moving.host, moving.port, moving.tls), (&None, None, None));
    assert_eq!((moving.verify, moving.auth_required), (Verify::Full, true));
    assert_eq!(c.upstream("moving").unwrap().secret.as_deref(), Some("smtp"));
}

#[test]
fn a_login_in_the_file_is_a_secret_named_like_its_upstream() {
    let c = load("tests/config/valid/token.toml", &[]);
    let auth = &c.secrets.vault.as_ref().unwrap().auth;
    assert!(matches!(auth, VaultAuth::TokenFile(path) if path.ends_with("vault-token")));
    assert_eq!(c.upstream("other").unwrap().secret.as_deref(), Some("other"));
    let Source::Parts(parts) = &c.secrets.secrets["other"].source else { panic!("parts") };
    assert_eq!(parts["username"], Given::Literal("relay".into()));
    assert!(matches!(&parts["password"], Given::File(path) if path.ends_with("smtp-password")));
    let Source::Parts(parts) = &c.secrets.secrets["ses"].source else { panic!("parts") };
    assert_eq!(parts["username"], Given::Literal("AKIAEXAMPLE".into()));
    let core = smtp(&c, "core");
    assert_eq!((core.host.as_deref(), core.port, core.tls), (Some("mail-core-01"), None, None));
    assert_eq!(c.secrets.secrets["smtp"].refresh, Duration::from_mins(5));
}

#[test]
fn an_upstream_fails_on_purpose_only_where_that_is_allowed() {
    let allowed = Path::new("tests/config/valid/everything.toml");
    let check =
        |file: &Path, name| config::load(file, &environment(&[("POSTGATE_FORCE_FAIL", name)]));
    let (config, report) = check(allowed, "core").unwrap_or_else(|r| panic!("{r}"));
    assert_eq!(config.force_fail.as_deref(), Some("core"));
    let warning = "every attempt at upstream \"core\" fails on purpose";
    assert!(report.to_string().contains(warning), "{report}");
    let (config, _) = check(allowed, "").unwrap_or_else(|r| panic!("{r}"));
    assert_eq!(config.force_fail, None);
    let report = check(allowed, "cores").unwrap_err().to_string();
    assert!(report.contains("did you mean \"core\"?"), "{report}");
    let report = check(Path::new("tests/config/valid/minimal.toml"), "core").unwrap_err();
    assert!(report.to_string().contains("POSTGATE_FORCE_FAIL is set and not allowed"), "{report}");
}

#[test]
fn the_environment_wins_over_the_file() {
    let c = load(
        "tests/config/valid/everything.toml",
        &[
            ("POSTGATE__HOSTNAME", "12345"),
            ("POSTGATE__MYNETWORKS", "127.0.0.0/8, 10.0.0.0/8"),
            ("POSTGATE__LIMITS__MAX_HOPS", "7"),
            ("POSTGATE__RETRY__JITTER", "0"),
            ("POSTGATE__RECEIVED__HELO", "true"),
            ("POSTGATE__LISTENER__V6__ADDRESS", "[::1]:2526"),
            ("POSTGATE__UPSTREAMS__SPARE__POOL__MAX_IDLE", "5s"),
            ("POSTGATE__UPSTREAMS__CORE__ADDRESS", "[\"10.0.0.6\"]"),
            ("POSTGATE__ROUTE__DEFAULT__UPSTREAMS", "core, spare"),
            ("POSTGATE__ROUTE__BILLING__MATCH__SENDER", "@a.example, b@c.example"),
            ("POSTGATE__UPSTREAMS__SES__TAGS", "{ a = \"b\" }"),
            ("POSTGATE__SECRETS__SMTP__FIELDS__PASSWORD", "word"),
        ],
    );
    assert_eq!((c.hostname.as_str(), c.limits.max_hops), ("12345", 7));
    assert!(c.mynetworks.contains("10.9.9.9".parse().unwrap()));
    assert!(!c.mynetworks.contains("192.0.2.1".parse().unwrap()));
    assert!(c.received.helo && !c.received.client_address);
    assert_eq!(c.listeners[1].address.port(), 2526);
    assert_eq!(c.routes[1].upstreams, ["core", "spare"]);
    assert_eq!(c.routes[0].when.sender.len(), 2);
    assert_eq!(ses(&c, "ses").settings.tags, [("a".to_owned(), "b".to_owned())]);
    let fields = &c.secrets.secrets["smtp"].fields;
    assert_eq!((fields["username"].as_str(), fields["password"].as_str()), ("login", "word"));
    let spare = smtp(&c, "spare");
    assert_eq!(spare.pool.max_idle, Duration::from_secs(5));
}

#[test]
fn a_reload_tells_which_keys_need_a_restart() {
    let file = "tests/config/valid/everything.toml";
    let old = load(file, &[]);
    let same = [("POSTGATE__MYNETWORKS", "127.0.0.0/8"), ("POSTGATE__LIMITS__MAX_HOPS", "7")];
    assert_eq!(old.needs_restart(&load(file, &same)), Vec::<String>::new());
    let fixed = [
        ("POSTGATE__LISTENER__V6__ADDRESS", "[::1]:2526"),
        ("POSTGATE__SPOOL__PATH", "/elsewhere"),
        ("POSTGATE__ADMIN__SOCKET", "/elsewhere.sock"),
        ("POSTGATE__DELIVERY__DRAIN_TIMEOUT", "7s"),
    ];
    let keys = ["admin.socket", "delivery.drain_timeout", "listener.v6.address", "spool.path"];
    assert_eq!(old.needs_restart(&load(file, &fixed)), keys);
}

#[test]
fn what_is_printed_is_the_same_configuration_again() {
    let old = load("tests/config/valid/everything.toml", &[]);
    let variables: Vec<(String, &str)> = old
        .effective()
        .map(|(k, v)| {
            (format!("POSTGATE__{}", k.replace('.', "__").to_uppercase()), v.trim_matches('"'))
        })
        .collect();
    let variables: Vec<(&str, &str)> = variables.iter().map(|(k, v)| (k.as_str(), *v)).collect();
    let new = load("tests/config/valid/everything.toml", &variables);
    assert_eq!(new.effective().collect::<Vec<_>>(), old.effective().collect::<Vec<_>>());
}

/// A configuration with one upstream that logs in and one listener with TLS.
fn with_files(directory: &Path) -> String {
    let directory = directory.display();
    format!(
        r#"mynetworks = ["127.0.0.0/8"]
listener = [{{ name = "in", address = "127.0.0.1:0", tls = "starttls", cert = "{directory}/cert", key = "{directory}/key" }}]
upstreams.core = {{ type = "smtp", host = "core", port = 587, tls = "starttls", auth = {{ username = "relay", password_file = "$CREDENTIALS_DIRECTORY/password" }} }}
route = [{{ name = "default", upstreams = ["core"] }}]
"#
    )
}

fn write(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn secret_files_are_checked() {
    let directory = tempfile::tempdir().unwrap();
    let (cert, key) = (directory.path().join("cert"), directory.path().join("key"));
    let password = directory.path().join("password");
    let one = rcgen::generate_simple_self_signed(["localhost".into()]).unwrap();
    let other = rcgen::generate_simple_self_signed(["localhost".into()]).unwrap();
    write(&cert, &one.cert.pem(), 0o644);
    write(&key, &one.signing_key.serialize_pem(), 0o640);
    write(&password, "hunter2\r\n", 0o400);
    let variables = environment(&[("CREDENTIALS_DIRECTORY", directory.path().to_str().unwrap())]);
    let check = || config::parse(Path::new("x.toml"), &with_files(directory.path()), &variables);

    let (good, report) = check().unwrap_or_else(|r| panic!("{r}"));
    assert_eq!((report.warnings(), report.errors()), (1, 0), "{report}");
    assert!(report.to_string().contains("listener.in.cert is self-signed"), "{report}");
    assert!(!format!("{good:?}").contains("hunter2"));

    write(&key, &other.signing_key.serialize_pem(), 0o640);
    let report = check().unwrap_err().to_string();
    assert!(report.contains("listener.in.key and cert do not belong together"), "{report}");
    write(&key, "no key", 0o604);
    fs::set_permissions(&password, fs::Permissions::from_mode(0o404)).unwrap();
    let report = check().unwrap_err().to_string();
    assert!(report.contains("holds no private key"), "{report}");
    assert_eq!(report.matches("can be read by everyone").count(), 2, "{report}");
    assert_eq!(report.matches("chmod o-rwx").count(), 2, "{report}");
}

#[test]
fn the_socket_is_known_whatever_else_is_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("postgate.toml");
    let socket = |text: &str| {
        write(&file, text, 0o600);
        config::socket(&file, &environment(&[]))
    };
    let named = "nonsense = true\n[admin]\nsocket = \"/run/x.sock\"\n";
    assert_eq!(socket(named), Some("/run/x.sock".into()));
    assert_eq!(socket("nonsense = true\n"), None, "it may be another word for the socket");
    assert_eq!(socket("[admin\n"), None);
    let elsewhere = environment(&[("POSTGATE__ADMIN__SOCKET", "/run/y.sock")]);
    write(&file, named, 0o600);
    assert_eq!(config::socket(&file, &elsewhere), Some("/run/y.sock".into()));
    assert_eq!(config::socket(&directory.path().join("none"), &elsewhere), None);
}
