//! Passwords and keys that live in Vault: they come late, change under load and are refused, and
//! mail neither is lost nor bounces nor goes out twice.

use std::time::Duration;

use serde_json::{Value, json};

use crate::ses::FakeSes;
use crate::support::client::Client;
use crate::support::gate::{Gate, Settings};
use crate::support::mail::message;
use crate::support::postfix::{PASSWORD, Postfix, USER};
use crate::support::secrets::{PATH, Safe, leads_to, login};
use crate::support::sink::Sink;
use crate::support::{PATIENCE, eventually};
use crate::vault::Fault;

/// What the password becomes.
const NEW: &str = "another s3cret, longer";
/// Never within a test.
const SELDOM: &str = "1h";

#[test]
fn a_password_rotated_under_load_loses_bounces_and_doubles_nothing() {
    let sink = Sink::start();
    let postfix = Postfix::start(sink.address);
    let safe = Safe::new();
    safe.put(login(&postfix, PASSWORD));
    let gate = Gate::start(&safe.submission(&postfix, SELDOM));
    let pid = gate.pid();
    let (address, half, all) = (gate.address, 60, 120);
    let load = std::thread::spawn(move || {
        let mut client = Client::hello(address);
        for n in 0..all {
            client.send("a@example.test", &["b@example.test"], &message(&format!("load-{n}")));
            // Neither all before the rotation nor all after it.
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    sink.wait_count(half / 2, PATIENCE);
    safe.put(login(&postfix, NEW));
    postfix.set_password(NEW);
    load.join().unwrap();
    sink.wait_count(all, PATIENCE);
    gate.wait_empty(PATIENCE);

    assert_eq!(sink.counts().len(), all);
    assert!(sink.counts().values().all(|n| *n == 1), "{:?}", sink.counts());
    let endings =
        |status: &str| gate.events("delivery").iter().filter(|e| e["status"] == status).count();
    assert_eq!((endings("sent"), endings("bounced"), endings("unconfirmed")), (all, 0, 0));
    assert!(gate.events("dead").is_empty());
    assert!(postfix.log().contains("SASL PLAIN authentication failed"), "{}", postfix.log());
    refused_held_read_again_and_closed(&gate);
    let status = secret(&gate);
    assert_eq!((&status["version"], &status["state"]), (&json!(2), &json!("current")));
    assert_eq!(gate.pid(), pid, "nobody restarted it");
}

/// The order of events: 535, the breaker is held, the secret is read again, the breaker closes.
#[track_caller]
fn refused_held_read_again_and_closed(gate: &Gate) {
    let log = gate.log();
    let events: Vec<Value> = log.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    let after = |from: usize, what: &str, matches: &dyn Fn(&Value) -> bool| {
        let found = events.iter().skip(from).position(matches);
        from + found.unwrap_or_else(|| panic!("no {what} behind line {from} of {log}"))
    };
    let breaker = |to: &'static str| {
        move |e: &Value| e["event"] == "breaker" && e["upstream"] == "core" && e["to"] == to
    };
    after(0, "535", &|e| e["status"] == "deferred" && e.to_string().contains("535 5.7.8"));
    let held = after(0, "held", &|e| breaker("held")(e) && e.to_string().contains("535 5.7.8"));
    let read = after(held, "new secret", &|e| e["event"] == "secret" && e["version"] == 2);
    after(read, "closed breaker", &breaker("closed"));
}

#[test]
fn a_password_changed_at_the_smarthost_first_holds_the_breaker_until_vault_has_it() {
    let sink = Sink::start();
    let postfix = Postfix::start(sink.address);
    let safe = Safe::new();
    safe.put(login(&postfix, PASSWORD));
    postfix.set_password(NEW);
    let gate = Gate::start(&safe.submission(&postfix, "1s"));
    let ids: Vec<_> = (0..10).map(|n| send(&gate, &format!("first-{n}"))).collect();
    gate.wait_event("breaker", |e| e["to"] == "held");
    let core = upstream(&gate);
    assert_eq!(core["breaker"], "held", "{core}");
    assert!(core["reason"].as_str().unwrap().contains("535"), "{core}");
    // It was read again after the 535, and said the same: that is no reason to try again.
    safe.runtime.block_on(safe.vault.until_asked(PATH_READ, safe.vault.asked(PATH_READ) + 2));
    let refused = postfix.log().matches("authentication failed").count();
    assert!(refused <= 4, "{refused} logins with a password known to be wrong");
    assert_eq!(gate.queue().len(), ids.len(), "all wait, none bounced");

    safe.put(login(&postfix, NEW));
    sink.wait_count(ids.len(), PATIENCE);
    gate.wait_empty(PATIENCE);
    assert!(sink.counts().values().all(|n| *n == 1), "{:?}", sink.counts());
    gate.wait_event("breaker", |e| e["to"] == "closed");
}

#[test]
fn without_vault_at_the_start_mail_is_taken_and_leaves_when_vault_comes() {
    let sink = Sink::start();
    let safe = Safe::new();
    safe.put(leads_to(&sink));
    safe.stop();
    let gate = Gate::start(&safe.anywhere(&sink, "1s"));
    let ids: Vec<_> = (0..3).map(|n| send(&gate, &format!("start-{n}"))).collect();
    let core = eventually(PATIENCE, "the upstream waits", || {
        let core = upstream(&gate);
        (core["breaker"] == "waiting").then_some(core)
    });
    assert!(core["wanting"].as_str().unwrap().starts_with("no credentials yet"), "{core}");
    let status = gate.cli(&["status"]).expect_code(0).stdout;
    assert!(status.contains("missing: cannot reach Vault at http://127.0.0.1"), "{status}");
    assert_eq!(gate.queue().len(), ids.len());

    safe.resume();
    sink.wait_count(ids.len(), PATIENCE);
    gate.wait_empty(PATIENCE);
    assert_eq!(upstream(&gate)["wanting"], Value::Null);
}

#[test]
fn whatever_becomes_of_vault_mail_flows_with_what_was_read_last() {
    let sink = Sink::start();
    let safe = Safe::new();
    safe.put(leads_to(&sink));
    let settings = safe.anywhere(&sink, "1s");
    let gate = Gate::start(&settings);
    send(&gate, "good");
    sink.wait_for("good@test", PATIENCE);
    let flows = |name: &str, words: &str| {
        let status = eventually(PATIENCE, words, || {
            let status = secret(&gate);
            status["reason"].as_str().is_some_and(|why| why.contains(words)).then_some(status)
        });
        assert_eq!((&status["state"], &status["version"]), (&json!("stale"), &json!(1)));
        send(&gate, name);
        sink.wait_for(&format!("{name}@test"), PATIENCE);
    };
    safe.vault.seal(true);
    flows("sealed", "sealed");
    safe.vault.seal(false);
    safe.vault.deny(PATH, true);
    flows("denied", "denies reading");
    safe.vault.deny(PATH, false);
    safe.vault.fault("keybuzz/mail", Fault::Body(b"<html>not Vault</html>".to_vec()));
    flows("garbage", "makes no sense");
    safe.vault.heal();
    safe.stop();
    flows("down", "cannot reach Vault");
    // A new configuration reads all secrets anew, and this one can't be read.
    gate.configure(&Settings { breaker: "failures = 7", ..settings });
    gate.cli(&["reload"]).expect_code(0);
    flows("reloaded", "cannot reach Vault");
    assert_eq!(upstream(&gate)["wanting"], Value::Null);
    gate.wait_empty(PATIENCE);
}

#[test]
fn a_token_that_ends_while_mail_flows_is_replaced() {
    let (sink, other) = (Sink::start(), Sink::start());
    let safe = Safe::with_tokens(Duration::from_secs(1));
    safe.put(leads_to(&sink));
    let gate = Gate::start(&safe.anywhere(&sink, "1s"));
    send(&gate, "token-1");
    sink.wait_for("token-1@test", PATIENCE);
    // Two logins later the first token is long dead.
    safe.runtime.block_on(safe.vault.until_asked("login", 3));
    safe.put(leads_to(&other));
    gate.wait_event("secret", |e| e["version"] == 2);
    send(&gate, "token-2");
    other.wait_for("token-2@test", PATIENCE);
    assert!(gate.events("secret").iter().all(|e| e["error"].is_null()), "{}", gate.log());
}

#[test]
fn sighup_and_the_operator_have_secrets_read_at_once() {
    let ask: [fn(&Gate); 2] = [Gate::hup, |gate| {
        gate.cli(&["secrets", "refresh", "mail"]).expect_code(0);
    }];
    for ask in ask {
        let (sink, other) = (Sink::start(), Sink::start());
        let safe = Safe::new();
        safe.put(leads_to(&sink));
        let gate = Gate::start(&safe.anywhere(&sink, SELDOM));
        send(&gate, "before");
        sink.wait_for("before@test", PATIENCE);
        safe.put(leads_to(&other));
        ask(&gate);
        gate.wait_event("secret", |e| e["version"] == 2);
        send(&gate, "after");
        other.wait_for("after@test", PATIENCE);
    }
}

#[test]
fn the_environment_helps_until_vault_is_there_and_never_again() {
    let (sink, other) = (Sink::start(), Sink::start());
    let safe = Safe::new();
    safe.put(leads_to(&other));
    safe.stop();
    let fallback = "fallback_env = { username = \"T_USER\", password = \"T_PASSWORD\", \
                    host = \"T_HOST\", port = \"T_PORT\", use_tls = \"T_TLS\" }";
    let settings = Settings { more: safe.sections("1s", fallback), ..safe.anywhere(&sink, SELDOM) };
    let mut gate = Gate::stopped(&settings);
    let port = sink.address.port().to_string();
    gate.up_with(&[
        ("T_USER", ""),
        ("T_PASSWORD", ""),
        ("T_HOST", "127.0.0.1"),
        ("T_PORT", &port),
        ("T_TLS", "no"),
    ]);
    send(&gate, "environment");
    sink.wait_for("environment@test", PATIENCE);
    assert!(secret(&gate)["from"].as_str().unwrap().starts_with("environment"));
    safe.resume();
    gate.wait_event("secret", |e| e["version"] == 2);
    send(&gate, "vault");
    other.wait_for("vault@test", PATIENCE);
    safe.stop();
    gate.wait_event("secret", |e| e["kept"] == true && e["error"] != Value::Null);
    send(&gate, "kept");
    other.wait_for("kept@test", PATIENCE);
}

#[test]
fn an_aws_key_rotated_in_vault_signs_the_next_request() {
    let safe = Safe::new();
    let key =
        |id: &str| json!({"access_key_id": id, "secret_access_key": "s", "region": "eu-west-1"});
    safe.put(key("AKIDOLD"));
    let ses = safe.runtime.block_on(FakeSes::start());
    ses.state().keys = ["AKIDOLD".to_owned()].into();
    let gate = Gate::start(&Settings {
        upstream: format!(
            "type = \"ses\"\nendpoint_url = {:?}\nauth = {{ secret = \"mail\" }}",
            ses.endpoint()
        ),
        more: safe.sections(SELDOM, ""),
        ..Settings::plain(([127, 0, 0, 1], 1).into())
    });
    send(&gate, "old");
    safe.runtime.block_on(ses.until(|state| state.sent.len() == 1));
    safe.put(key("AKIDNEW"));
    ses.state().keys = ["AKIDNEW".to_owned()].into();
    for n in 0..5 {
        send(&gate, &format!("new-{n}"));
    }
    gate.wait_empty(PATIENCE);
    let keys: Vec<_> = ses.sent().into_iter().map(|sent| sent.key).collect();
    assert_eq!((keys.len(), keys[0].as_str()), (6, "AKIDOLD"));
    assert!(keys[1..].iter().all(|key| key == "AKIDNEW"), "{keys:?}");
    gate.wait_event("breaker", |e| e["to"] == "held");
    gate.wait_event("breaker", |e| e["to"] == "closed");
    assert!(gate.events("dead").is_empty());

    let probed = gate.cli(&["probe", "core"]).expect_code(0).stdout;
    for words in ["no way of SMTP to probe", "auth=AKIDNEW", "max_send_rate   14.0"] {
        assert!(probed.contains(words), "no {words} in {probed}");
    }
    ses.state().keys = ["AKIDOTHER".to_owned()].into();
    let refused = gate.cli(&["probe", "core"]).expect_code(1).stdout;
    assert!(refused.contains("UnrecognizedClientException"), "{refused}");
}

#[test]
fn a_sender_that_only_the_secret_names_bounces_nothing_before_it_is_known() {
    let safe = Safe::new();
    safe.put(json!({"access_key_id": "AKID", "secret_access_key": "s", "region": "eu-west-1",
        "from": "no-reply@allowed.test"}));
    safe.stop();
    let ses = safe.runtime.block_on(FakeSes::start());
    let mut gate = Gate::stopped(&Settings {
        upstream: format!(
            "type = \"ses\"\nendpoint_url = {:?}\nauth = {{ secret = \"mail\" }}\n\
             sender = {{ allowed = [\"@allowed.test\"] }}",
            ses.endpoint()
        ),
        more: safe.sections("1s", ""),
        ..Settings::plain(([127, 0, 0, 1], 1).into())
    });
    // With priorities everything that is due is looked at, also while nothing can go.
    let priority = "[{ level = \"low\", client = [\"10.9.9.0/24\"] }]";
    gate.up_with(&[("POSTGATE__ROUTE__DEFAULT__PRIORITY", priority)]);
    let id = send(&gate, "sender");
    let said = gate.cli(&["explain", &id, "--json"]).expect_code(0).stdout;
    assert!(said.contains(r#""verdict":"waits""#), "{said}");
    safe.resume();
    safe.runtime.block_on(ses.until(|state| state.sent.len() == 1));
    gate.wait_empty(PATIENCE);
    let raw = String::from_utf8(ses.sent()[0].raw.clone()).unwrap();
    assert!(raw.contains("From: App <no-reply@allowed.test>\r\n"), "{raw}");
    assert!(raw.contains("Reply-To: App <app@example.test>\r\n"), "{raw}");
    let said = gate.cli(&["check-config", "--probe"]).expect_code(0).stdout;
    assert!(said.contains("from    no-reply@allowed.test  secret mail, version 1"), "{said}");
}

#[test]
fn check_config_shows_where_each_value_comes_from_and_probe_logs_in_with_vaults_password() {
    let sink = Sink::start();
    let postfix = Postfix::start(sink.address);
    let safe = Safe::new();
    safe.put(login(&postfix, PASSWORD));
    let gate = Gate::stopped(&safe.submission(&postfix, SELDOM));
    let said = gate.cli(&["check-config", "--probe"]).expect_code(0).stdout;
    let port = postfix.submission.port();
    for row in [
        "core host 127.0.0.1 configuration".to_owned(),
        format!("core port {port} secret mail, version 1"),
        "core tls starttls default".to_owned(),
        format!("core login {USER} secret mail, version 1"),
        format!("mail vault {PATH} 1 current"),
        format!("Vault at {} answered; our token lives for 59m59s", safe.vault.address()),
    ] {
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(said.lines().any(|line| words(line) == row), "no {row} in {said}");
    }
    assert!(!said.contains(PASSWORD));
    let probed = gate.cli(&["probe", "core"]).expect_code(0).stdout;
    assert!(probed.contains("ok    auth"), "{probed}");

    safe.stop();
    let failed = gate.cli(&["check-config", "--probe"]).expect_code(69);
    assert!(failed.stdout.contains("mail    vault secret/keybuzz/mail  -        missing"));
    assert!(failed.stderr.contains("cannot reach Vault"), "{}", failed.stderr);
    assert!(failed.stderr.contains("until then mail waits for upstream core"));
    let json = gate.cli(&["check-config", "--probe", "--json"]).expect_code(69).stdout;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["probe"]["vault"]["answered"], false, "{json}");
    gate.cli(&["probe", "core"]).expect_code(69);
}

const PATH_READ: &str = "GET /v1/secret/data/keybuzz/mail";

#[track_caller]
fn send(gate: &Gate, id: &str) -> String {
    Client::hello(gate.address).send("app@example.test", &["ana@example.test"], &message(id))
}

/// What `upstream list --json` says of the upstream.
fn upstream(gate: &Gate) -> Value {
    let said = gate.cli(&["upstream", "list", "--json"]).expect_code(0).stdout;
    serde_json::from_str(said.lines().next().unwrap()).unwrap()
}

/// What `secrets status --json` says of the secret.
fn secret(gate: &Gate) -> Value {
    let said = gate.cli(&["secrets", "status", "--json"]).expect_code(0).stdout;
    serde_json::from_str(said.lines().next().unwrap()).unwrap()
}
