//! What is secret is not in anything the program writes, says or shows, whatever goes wrong.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use crate::ses::FakeSes;
use crate::support::client::Client;
use crate::support::gate::{BINARY, Gate, Settings};
use crate::support::mail::message;
use crate::support::postfix::{PASSWORD, Postfix, USER};
use crate::support::process::{Part, run};
use crate::support::secrets::{SECRET_ID, Safe, login};
use crate::support::sink::Sink;
use crate::support::{PATIENCE, eventually, free_port, local};
use crate::vault::Fault;

const WRONG: &str = "planted-smtp-password-8c1f";
const AWS_KEY: &str = "planted-aws-secret-key-77ab";
const AWS_TOKEN: &str = "planted-aws-session-token-3d90";
/// How the fake Vault's tokens begin.
const VAULT_TOKEN: &str = "hvs.login-";

/// Another user than root, as in `Debian`'s list.
const NOBODY: &str = "65534";

#[test]
fn no_secret_is_in_a_whole_run_at_trace_level_with_everything_failing() {
    let sink = Sink::start();
    let postfix = Postfix::start(sink.address);
    // What commands show does not depend on the log's format.
    let all = [("json", &COMMANDS[..]), ("text", &[])];
    let search = |(format, commands): (&str, &[&str])| {
        let seen = fail_in_every_way(&sink, &postfix, format, commands);
        for (what, secret) in planted() {
            for (place, text) in &seen {
                assert!(!contains(text, secret.as_bytes()), "{what} is in {place} ({format})");
            }
        }
    };
    std::thread::scope(|scope| {
        for one in all {
            scope.spawn(move || search(one));
        }
    });
}

/// A place, and what is to be seen there.
type Seen = (String, Vec<u8>);

/// The commands that show something; the last of them read the secrets themselves.
const COMMANDS: [&str; 12] = [
    "check-config --print",
    "upstream list",
    "queue list",
    "queue show ID",
    "explain ID",
    "reload",
    "secrets refresh",
    "status",
    "secrets status",
    "check-config --probe",
    "probe core",
    "probe ses",
];

/// Runs Postgate with passwords and keys that are refused, a Vault that talks nonsense with the
/// secret in it, and then with good ones; all it said and wrote.
fn fail_in_every_way(sink: &Sink, postfix: &Postfix, format: &str, commands: &[&str]) -> Vec<Seen> {
    let safe = Safe::new();
    safe.put(login(postfix, WRONG));
    safe.vault.put(
        "secret/keybuzz/ses",
        json!({"access_key_id": "AKIDPLANTED", "secret_access_key": AWS_KEY,
            "session_token": AWS_TOKEN, "region": "eu-west-1"}),
    );
    let ses = safe.runtime.block_on(FakeSes::start());
    ses.state().keys = ["AKIDOTHER".to_owned()].into();
    let metrics = local(free_port());
    let more = format!(
        "[secrets.ses]\npath = \"secret/keybuzz/ses\"\nrefresh = \"1s\"\n\
         [upstreams.ses]\ntype = \"ses\"\nendpoint_url = {:?}\nauth = {{ secret = \"ses\" }}\n\
         [metrics]\nlisten = \"{metrics}\"\n",
        ses.endpoint(),
    );
    let settings = Settings { more: safe.sections("1s", &more), ..safe.submission(postfix, "1s") };
    let mut gate = Gate::stopped(&settings);
    gate.up_with(&[
        ("POSTGATE__ROUTE__DEFAULT__UPSTREAMS", "core, ses"),
        ("POSTGATE__LOG__LEVEL", "trace"),
        ("POSTGATE__LOG__FORMAT", format),
        ("RUST_LOG", "trace"),
        ("RUST_BACKTRACE", "full"),
    ]);
    let id = send(&gate, &format!("fails-{format}"));
    until(&gate, "535 5.7.8");
    until(&gate, "UnrecognizedClientException");
    let mut seen = shown(&gate, commands, &id, metrics);
    let leaky =
        json!({"data": {"data": {"password": WRONG, "secret_access_key": AWS_KEY}}, "x": 1});
    safe.vault.fault("keybuzz", Fault::Body(leaky.to_string().into_bytes()));
    until(&gate, "makes no sense");
    seen.extend(shown(&gate, &commands[commands.len() / 2..], &id, metrics));
    safe.vault.heal();
    safe.put(json!({"user": USER, "password": WRONG, "pass": PASSWORD}));
    until(&gate, "in several fields that differ");
    safe.put(login(postfix, PASSWORD));
    sink.wait_for(&format!("fails-{format}@test"), PATIENCE);
    gate.term();
    gate.ended(Duration::from_secs(20));
    seen.extend(files(gate.dir.path()));
    let is_shown = |text: &str| seen.iter().any(|(_, seen)| contains(seen, text.as_bytes()));
    let login = commands.is_empty() || (is_shown(USER) && is_shown("AKIDPLANTED"));
    assert!(login, "what is no secret is shown");
    seen
}

/// Waits until the log has these words.
#[track_caller]
fn until(gate: &Gate, words: &str) {
    eventually(PATIENCE, words, || gate.log().contains(words).then_some(()));
}

/// What commands print, what Prometheus gets, and what the system shows of the process.
fn shown(gate: &Gate, commands: &[&str], id: &str, metrics: SocketAddr) -> Vec<Seen> {
    let mut seen = Vec::new();
    for command in commands {
        for json in ["", " --json"] {
            let command = format!("{command}{json}").replace("ID", id);
            let said = gate.cli(&command.split(' ').collect::<Vec<_>>());
            assert_ne!(said.code, Some(64), "{command}: {}", said.stderr);
            seen.push((command, format!("{}{}", said.stdout, said.stderr).into_bytes()));
        }
    }
    let mut stream = TcpStream::connect(metrics).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut page = Vec::new();
    stream.read_to_end(&mut page).unwrap();
    assert!(contains(&page, b"postgate_secret_version"));
    seen.push(("/metrics".into(), page));
    for file in ["cmdline", "comm", "environ"] {
        let path = format!("/proc/{}/{file}", gate.pid());
        let text = fs::read(&path).unwrap();
        seen.push((path, text));
    }
    seen
}

/// Every file below a folder: the log, the configuration, the spool.
fn files(folder: &Path) -> Vec<Seen> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(files(&path));
        } else if path.is_file() {
            // Room that the spool keeps for itself takes long to search.
            let mut octets = fs::read(&path).unwrap();
            octets.dedup_by(|a, b| *a == 0 && *b == 0);
            all.push((path.display().to_string(), octets));
        }
    }
    all
}

/// The secrets, as they are and as they go over the wire.
fn planted() -> Vec<(String, String)> {
    let mut all = vec![("a token of Vault".to_owned(), VAULT_TOKEN.to_owned())];
    for secret in [WRONG, PASSWORD, AWS_KEY, AWS_TOKEN, SECRET_ID] {
        all.push((secret.to_owned(), secret.to_owned()));
        all.push((format!("base64 of {secret}"), base64(secret.as_bytes())));
    }
    for password in [WRONG, PASSWORD] {
        let blob = base64(format!("\0{USER}\0{password}").as_bytes());
        all.push((format!("AUTH PLAIN with {password}"), blob));
    }
    all
}

#[test]
fn memory_goes_into_no_core_dump_and_is_closed_to_the_same_user() {
    let sink = Sink::start();
    let mut gate = Gate::stopped(&Settings::plain(sink.address));
    // It can be reached by that user wherever it was built.
    let binary = gate.dir.path().join("postgate");
    fs::copy(BINARY, &binary).unwrap();
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
    let mut chown = Command::new("chown");
    chown.args(["-R", "65534:65534"]).arg(gate.dir.path());
    run(&mut chown, b"", PATIENCE).expect_code(0);
    let mut command = as_nobody(binary.to_str().unwrap());
    command.arg("-c").arg(gate.config()).arg("run");
    gate.up_as(&command);

    let limits = fs::read_to_string(format!("/proc/{}/limits", gate.pid())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    let words: Vec<&str> = core.split_whitespace().collect();
    assert_eq!(words[4..6], ["0", "0"], "{core}");

    let mut other = as_nobody("sleep");
    other.arg("60");
    let other = Part::spawn(&other, "KILL", &gate.dir.path().join("sleep"));
    let read = |pid: u32| {
        let mut cat = as_nobody("cat");
        run(cat.arg(format!("/proc/{pid}/environ")), b"", PATIENCE).code
    };
    eventually(PATIENCE, "a process that can be looked into", || {
        (read(other.id()) == Some(0)).then_some(())
    });
    assert_eq!(read(gate.pid()), Some(1), "its own user can look into it");
}

fn as_nobody(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--pdeathsig", "KILL"]);
    command.arg(program);
    command
}

fn send(gate: &Gate, id: &str) -> String {
    Client::hello(gate.address).send("app@example.test", &["ana@example.test"], &message(id))
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    memchr::memmem::find(text, part).is_some()
}

/// RFC 4648 section 4.
fn base64(octets: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in octets.chunks(3) {
        let at = |n: usize| u32::from(three.get(n).copied().unwrap_or_default());
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for n in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * n) & 63) as usize];
            text.push(if n <= three.len() { digit.into() } else { '=' });
        }
    }
    text
}

#[test]
fn the_search_finds_what_it_looks_for() {
    assert_eq!(base64(b"\0user\0pass"), "AHVzZXIAcGFzcw==");
    assert_eq!((base64(b"abc"), base64(b"ab")), ("YWJj".into(), "YWI=".into()));
    assert!(contains(b"x hvs.login-1 y", VAULT_TOKEN.as_bytes()) && !contains(b"", b"a"));
}
