//! The commands an operator types, against a running Postgate and a real Postfix.

use crate::support::client::Client;
use crate::support::gate::{Gate, Settings, password_file, right_password};
use crate::support::mail::message;
use crate::support::postfix::Postfix;
use crate::support::sink::Sink;
use crate::support::{PATIENCE, eventually};

/// swaks' number for a failed connection.
const CONNECT_FAILED: i32 = 2;
/// swaks' number for a failed AUTH.
const AUTH_FAILED: i32 = 28;
const UNAVAILABLE: i32 = 69;

#[test]
fn probe_tells_each_stage_of_a_login_that_works() {
    let sink = Sink::start();
    let postfix = Postfix::start(sink.address);
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings::postfix_submission(&postfix, &right_password(dir.path()));
    let gate = Gate::stopped(&settings);
    let said = gate.cli(&["probe", "core"]).expect_code(0).stdout;
    let stages = ["dns", "tcp", "greeting", "ehlo", "starttls", "cert", "auth"];
    let mut rest = said.as_str();
    for stage in stages {
        let (_, after) = rest.split_once(stage).unwrap_or_else(|| panic!("no {stage} in {said}"));
        rest = after;
    }
    assert!(said.contains("core.test") && said.contains("TLS"), "{said}");
    assert!(!said.contains("FAIL"), "{said}");
    assert_eq!(sink.connections(), 0);
}

#[test]
fn probe_tells_a_wrong_password_from_everything_else() {
    let sink = Sink::start();
    let postfix = Postfix::start(sink.address);
    let dir = tempfile::tempdir().unwrap();
    let password = password_file(dir.path(), "hunter2-wrong");
    let gate = Gate::stopped(&Settings::postfix_submission(&postfix, &password));
    let said = gate.cli(&["probe", "core"]).expect_code(AUTH_FAILED).stdout;
    assert!(said.contains("FAIL") && said.contains("535 5.7.8"), "{said}");
    assert!(said.contains("DIAGNOSIS") && said.contains("DO NEXT"), "{said}");
    assert!(!said.contains("hunter2"), "the password is shown: {said}");

    let down = Sink::down();
    let gate = Gate::stopped(&Settings::plain(down.address));
    let said = gate.cli(&["probe", "core"]).expect_code(CONNECT_FAILED).stdout;
    assert!(said.contains("refused"), "{said}");
}

#[test]
fn a_wrong_password_costs_no_mail() {
    let sink = Sink::start();
    let postfix = Postfix::start(sink.address);
    let dir = tempfile::tempdir().unwrap();
    let password = password_file(dir.path(), "hunter2-wrong");
    let mut gate = Gate::start(&Settings::postfix_submission(&postfix, &password));
    let id = Client::hello(gate.address).send("a@b.test", &["c@d.test"], &message("login"));
    let event = gate.wait_event("delivery", |e| e["queue_id"] == id.as_str());
    assert_eq!(event["status"], "deferred");
    assert!(event["reply"].as_str().unwrap().starts_with("535"), "{event}");
    right_password(dir.path());
    gate.term();
    assert!(gate.ended(PATIENCE).success());
    assert!(!gate.log().contains("hunter2"));
    gate.up();
    sink.wait_for("login@test", PATIENCE);
}

#[test]
fn send_follows_a_test_message_to_the_smarthosts_250() {
    let sink = Sink::start();
    let gate = Gate::start(&Settings::plain(sink.address));
    let said = gate.cli(&["send", "ana@example.test"]).expect_code(0).stdout;
    assert!(said.contains("queued as SINK1"), "the smarthost's own id is shown: {said}");
    let got = sink.accepted().remove(0);
    assert_eq!(got.recipients, ["<ana@example.test>"]);
}

#[test]
fn the_queue_is_shown_as_postqueue_shows_it() {
    let down = Sink::down();
    let gate = Gate::start(&Settings::plain(down.address));
    let to = ["ana@example.test", "bob@example.test"];
    let id = Client::hello(gate.address).send("app@example.test", &to, &message("queue"));
    let entry = eventually(PATIENCE, "a deferred message", || {
        gate.queue().into_iter().find(|e| e["queue_name"] == "deferred")
    });
    assert_eq!(entry["queue_id"], id.as_str());
    assert_eq!(entry["sender"], "app@example.test");
    assert!(entry["arrival_time"].as_u64().unwrap() > 1_700_000_000, "{entry}");
    assert!(entry["message_size"].as_u64().unwrap() > 200, "{entry}");
    let recipients = entry["recipients"].as_array().unwrap();
    let addresses: Vec<_> = recipients.iter().map(|r| r["address"].clone()).collect();
    assert_eq!(addresses, to);
    assert!(recipients[0]["delay_reason"].as_str().unwrap().contains("connect"), "{entry}");

    for command in [&["queue", "list"][..], &["mailq"], &["queue", "show", &id]] {
        let said = gate.cli(command).expect_code(0).stdout;
        for part in [id.as_str(), "app@example.test", "ana@example.test"] {
            assert!(said.contains(part), "{command:?}: no {part} in {said}");
        }
    }
}

#[test]
fn a_command_without_a_daemon_says_so() {
    let sink = Sink::start();
    let gate = Gate::stopped(&Settings::plain(sink.address));
    let said = gate.cli(&["queue", "list"]).expect_code(UNAVAILABLE);
    // Of another Postgate on the machine, as of a test next to this one, it says that too.
    let reason = ["not running", "is a running Postgate"].iter().any(|r| said.stderr.contains(r));
    assert!(reason && said.stderr.contains("nobody answers at"), "{}", said.stderr);
    assert!(said.stderr.contains("--socket PATH"), "{}", said.stderr);
}
