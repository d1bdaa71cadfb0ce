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

use postgate::config::{self, Config, Severity, UpstreamKind};
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
        UpstreamKind::Smtp(smtp) => &smtp.settings,
        UpstreamKind::Maildir(_) => panic!("{name} is a Maildir"),
    }
}

#[test]
fn every_shipped_configuration_is_valid_and_quiet() {
    let shipped = ["config", "config/examples", "tests/config/valid"];
    for file in shipped.into_iter().flat_map(files) {
        let (_, report) = config::load(&file, &environment(&[])).unwrap_or_else(|r| panic!("{r}"));
        let expected = usize::from(file.ends_with("submission-port-587.toml"));
        assert_eq!(report.warnings(), expected, "{report}");
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
    ];
    for (key, default) in minimal.effective() {
        let key = key.rsplit('.').next().unwrap();
        let says = |line: &str| {
            line.split_once('=').is_some_and(|(k, v)| {
                k.trim() == key && v.split('#').next().unwrap().trim() == default
            })
        };
        assert!(own.contains(&key) || text.lines().any(says), "{key} = {default}");
    }
    let everything = load("tests/config/valid/everything.toml", &[]);
    let names = |key: &str, line: &str| {
        line.trim_start_matches("# ").split_once('=').is_some_and(|(k, _)| k.trim() == key)
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
    assert_eq!(c.routes[0].upstreams, ["spare", "core"]);
    let core = smtp(&c, "core");
    assert_eq!((core.tls, core.port, core.address.len()), (TlsMode::Implicit, 465, 2));
    assert!(matches!(core.verify, Verify::Fingerprint(f) if f[..3] == [0, 0x11, 0x22]));
    let spare = smtp(&c, "spare");
    assert_eq!((spare.pool.max_connections, spare.pool.max_messages), (1, 100));
    assert_eq!(spare.timeouts.end_of_data, Duration::from_mins(5));
    assert_eq!((spare.tls, spare.verify), (TlsMode::Opportunistic, Verify::None));
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
            ("POSTGATE__ROUTE__DEFAULT__UPSTREAMS", "core"),
        ],
    );
    assert_eq!((c.hostname.as_str(), c.limits.max_hops), ("12345", 7));
    assert!(c.mynetworks.contains("10.9.9.9".parse().unwrap()));
    assert!(!c.mynetworks.contains("192.0.2.1".parse().unwrap()));
    assert!(c.received.helo && !c.received.client_address);
    assert_eq!(c.listeners[1].address.port(), 2526);
    assert_eq!(c.routes[0].upstreams, ["core"]);
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
fn secret_files_are_checked_and_the_password_is_their_first_line() {
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
    let UpstreamKind::Smtp(core) = &good.upstream("core").unwrap().kind else { panic!("smtp") };
    let credentials = core.auth.as_ref().unwrap().credentials(3).unwrap();
    assert_eq!((credentials.username.as_str(), credentials.version), ("relay", 3));
    assert_eq!(credentials.password.expose(), "hunter2");
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
