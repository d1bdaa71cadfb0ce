//! SES fails in every way it can, as the second upstream and alone. Each fault is taken for what
//! `docs/ses.md` says; a fallback never bounces.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::ses::Fault;
use crate::support::client::Client;
use crate::support::emulator::{Emulator, Fake};
use crate::support::mail::message;
use crate::support::scene::{BOTH, Plot, SES, Scene};
use crate::support::{PATIENCE, eventually};

const TOO_FAST: Fault =
    Fault::Error(429, "TooManyRequestsException", "Maximum sending rate exceeded.");
const UNVERIFIED: Fault = Fault::Error(
    400,
    "MessageRejected",
    "Email address is not verified. The following identities failed the check in region \
     EU-WEST-1: app@example.test",
);

#[test]
fn what_ses_throttles_goes_later_and_no_breaker_hears_of_it() {
    let scene = Scene::set(&Plot { breaker: "failures = 1", ..Plot::default() });
    scene.trip("core");
    scene.ses.state().faults.extend([TOO_FAST, TOO_FAST]);
    let ids: Vec<String> = (0..4).map(|n| scene.send(&format!("fast-{n}"))).collect();
    scene.gate.wait_empty(PATIENCE);
    assert_eq!(counted(&scene), ["fast-0@test", "fast-1@test", "fast-2@test", "fast-3@test"]);
    let put_off = |e: &&Value| e["status"] == "deferred" && e["upstream"] == "ses";
    let attempts = scene.gate.events("delivery");
    let put_off: Vec<_> = attempts.iter().filter(put_off).collect();
    assert_eq!(put_off.len(), 2);
    assert!(put_off.iter().all(|e| e["dsn"] == "4.4.5"), "{put_off:?}");
    assert!(ids.iter().all(|id| attempts.iter().any(|e| e["queue_id"] == id.as_str())));
    let opened = |e: &Value| e["upstream"] == "ses" && e["to"] == "open";
    assert!(!scene.gate.events("breaker").iter().any(opened));
}

#[test]
fn an_answer_of_ses_that_does_not_come_stays_with_ses_though_the_smarthost_is_back() {
    // Nothing is tried again by itself.
    let scene = Scene::set(&Plot { retry: "initial = \"1h\"", ..Plot::default() });
    scene.trip("core");
    let lost: [(&str, Fault, usize); 6] = [
        ("hung", Fault::Hang { taken: true }, 2),
        ("hung-untaken", Fault::Hang { taken: false }, 1),
        ("reset", Fault::Reset { taken: true }, 2),
        ("closed", Fault::Close { taken: false }, 1),
        ("cut", Fault::Cut, 2),
        ("failed", Fault::Error(500, "InternalFailure", "oops"), 1),
    ];
    let mut ids = Vec::new();
    for (id, fault, _) in &lost {
        scene.ses.state().faults.push_back(fault.clone());
        let queue_id = scene.send(id);
        scene.wait_attempt(&queue_id, "ses", "unconfirmed");
        assert!(scene.verdict(&queue_id, "core").1.contains("another upstream may have it"));
        ids.push(queue_id);
    }
    scene.reset("core");
    assert_eq!(scene.unconfirmed(), ids);
    scene.send("fresh");
    scene.sink.wait_for("fresh@test", PATIENCE);
    for queue_id in &ids {
        scene.cli(&["queue", "retry", queue_id]);
    }
    scene.gate.wait_empty(PATIENCE);
    assert_eq!(scene.sink.arrivals(), ["fresh@test"]);
    let arrivals = scene.ses.arrivals();
    for (id, fault, times) in lost {
        let came = arrivals.iter().filter(|got| **got == format!("{id}@test")).count();
        assert_eq!(came, times, "{fault:?}");
    }
}

#[test]
fn ses_that_answers_5xx_is_left_alone_and_its_mail_goes_by_the_smarthost_when_that_is_back() {
    let breaker = "failures = 2\nopen_for = \"1h\"\nopen_max = \"1h\"";
    let scene = Scene::set(&Plot { breaker, ..Plot::default() });
    scene.trip("core");
    scene.ses.state().always = Some(Fault::Page(503));
    let first = scene.send("first");
    scene.wait_attempt(&first, "ses", "unconfirmed");
    // After the second try of the same.
    scene.gate.wait_event("breaker", |e| e["upstream"] == "ses" && e["to"] == "open");
    let sends = scene.ses.state().sends;
    let waits = scene.send("waits");
    let why = scene.wait_verdict(&waits, "ses", "waits");
    assert!(why.starts_with("open: "), "{why}");
    scene.gate.wait_event("route", |e| e["from"] == "ses" && e["to"] == "none");

    scene.reset("core");
    scene.sink.wait_for("waits@test", PATIENCE);
    assert_eq!(scene.ses.state().sends, sends, "it rests");
    assert_eq!(scene.unconfirmed(), [first]);
    assert_eq!(scene.sink.arrivals(), ["waits@test"]);
}

#[test]
fn while_the_rate_of_ses_is_scarce_what_is_urgent_goes_first() {
    let route =
        format!("{BOTH}\npriority = [{{ level = \"high\", header = {{ X-Priority = \"1\" }} }}]");
    let ses = format!("{SES}\nrate = \"4/s\"");
    let scene = Scene::set(&Plot { route: &route, ses: &ses, ..Plot::default() });
    scene.trip("core");
    for n in 0..12 {
        scene.send(&format!("plain-{n}"));
    }
    let urgent = [b"X-Priority: 1\r\n".as_slice(), &message("urgent")].concat();
    Client::hello(scene.gate.address).send("app@example.test", &["ana@example.test"], &urgent);
    let waiting = 12 - scene.ses.arrivals().len();
    assert!(waiting > 3, "only {waiting} of 12 still wait");
    scene.gate.wait_empty(PATIENCE);
    let arrivals = scene.ses.arrivals();
    assert_eq!(arrivals.len(), 13);
    let behind = arrivals.iter().rev().position(|id| id == "urgent@test").unwrap();
    // One was perhaps on its way already.
    assert!(behind + 2 >= waiting, "{behind} came after it, and {waiting} waited: {arrivals:?}");
}

#[test]
fn one_bad_recipient_of_fifty_is_not_bounced_by_the_fallback_and_goes_by_the_smarthost() {
    let scene = Scene::set(&Plot::default());
    scene.trip("core");
    let to: Vec<String> = (0..50).map(|n| format!("r{n}@example.test")).collect();
    scene.ses.state().bad.insert("r17@example.test".into());
    let to: Vec<&str> = to.iter().map(String::as_str).collect();
    let queue_id = scene.send_to("fifty", &to);
    let why = scene.wait_verdict(&queue_id, "ses", "refused");
    assert!(why.contains("r17@example.test"), "{why}");
    scene.wait_attempt(&queue_id, "ses", "refused");
    assert_eq!(scene.verdict(&queue_id, "core").0, "waits");
    let served: BTreeSet<String> =
        scene.ses.taken().into_iter().flat_map(|taken| taken.to.unwrap()).collect();
    let all: usize = scene.ses.taken().iter().map(|taken| taken.to.as_ref().unwrap().len()).sum();
    assert_eq!((served.len(), all), (49, 49));
    assert!(!served.contains("r17@example.test"));

    scene.reset("core");
    let got = scene.sink.wait_for("fifty@test", PATIENCE);
    assert_eq!(got.recipients, ["<r17@example.test>"]);
    scene.gate.wait_empty(PATIENCE);
    assert!(scene.gate.events("dead").is_empty());
}

#[test]
fn what_ses_refuses_or_would_refuse_waits_for_the_smarthost_and_explain_says_why() {
    let scene = Scene::set(&Plot::default());
    scene.trip("core");
    scene.ses.state().faults.push_back(UNVERIFIED);
    let refused = scene.send("refused");
    let why = scene.wait_verdict(&refused, "ses", "refused");
    assert!(why.contains("not verified"), "{why}");
    let mut client = Client::hello(scene.gate.address);
    let bounce = client.send("", &["ana@example.test"], &message("bounce"));
    let why = scene.wait_verdict(&bounce, "ses", "ineligible");
    assert!(why.contains("null sender"), "{why}");
    let shown = scene.cli(&["queue", "show", &refused]);
    assert!(shown.contains("refused") && shown.contains("not verified"), "{shown}");
    // It is not asked again.
    scene.send("other");
    scene.ses.wait_for("other@test");
    assert_eq!(scene.ses.state().sends, 2);

    scene.reset("core");
    scene.sink.wait_count(2, PATIENCE);
    scene.gate.wait_empty(PATIENCE);
    assert!(scene.gate.events("dead").is_empty());
    let bounced = |e: &Value| e["status"] == "bounced" && e["upstream"] == "core";
    assert!(!scene.gate.events("delivery").iter().any(bounced));
}

#[test]
fn while_sending_is_paused_nothing_is_asked_of_ses_until_the_account_says_otherwise() {
    let scene = Scene::set(&Plot::default());
    scene.trip("core");
    scene.ses.state().account.sending = false;
    let queue_id = scene.send("paused");
    let failed = scene.wait_attempt(&queue_id, "ses", "deferred");
    assert_eq!(failed["dsn"], "4.7.0", "{failed}");
    assert_eq!(scene.gate.upstream("ses")["breaker"], "waiting");
    let waits = scene.send("waits");
    assert_eq!(scene.wait_verdict(&waits, "ses", "waits"), scene.verdict(&waits, "ses").1);
    scene.gate.wait_event("account", |e| e["reason"].is_string());
    assert_eq!(scene.ses.state().sends, 1);

    scene.ses.state().account.sending = true;
    scene.ses.wait_for("paused@test");
    scene.ses.wait_for("waits@test");
    assert_eq!(scene.ses.state().sends, 3);
    scene.gate.wait_event("account", |e| e["message"] == "mail can be sent again");
}

#[test]
fn expired_keys_hold_ses_until_their_files_have_others_and_no_restart_is_needed() {
    let scene =
        Scene::set(&Plot { breaker: "open_for = \"1s\"\ndwell = \"0s\"", ..Plot::default() });
    scene.trip("core");
    scene.ses.state().expired.insert("AKIDTEST".into());
    let queue_id = scene.send("keys");
    let failed = scene.wait_attempt(&queue_id, "ses", "deferred");
    assert_eq!(failed["dsn"], "4.7.0", "{failed}");
    scene.gate.wait_event("breaker", |e| e["upstream"] == "ses" && e["to"] == "held");
    scene.cli(&["queue", "retry", &queue_id]);
    let why = scene.wait_verdict(&queue_id, "ses", "waits");
    assert!(!why.is_empty());
    let tried = scene.ses.state().sends;

    scene.keys.write("AKIDNEXT");
    scene.ses.wait_for("keys@test");
    scene.gate.wait_empty(PATIENCE);
    assert_eq!((scene.ses.state().sends, tried), (2, 1), "nothing was tried with the old keys");
    scene.gate.wait_event("breaker", |e| e["upstream"] == "ses" && e["to"] == "closed");
    let sent = scene.ses.state().sent[0].key.clone();
    assert_eq!(sent, "AKIDNEXT");
    assert!(!scene.gate.log().contains("s3cret"));
}

#[test]
fn in_the_sandbox_only_those_who_are_verified_go_by_ses() {
    let ses = Fake::start();
    ses.state().account.production = false;
    ses.state().verified.insert("ana@example.test".into());
    let lines = format!("{SES}\nsender = {{ allowed = [\"@example.test\"] }}");
    let mut scene = Scene::stopped(&Plot { ses: &lines, ..Plot::default() }, ses);
    scene.gate.up();
    scene.trip("core");
    let account = scene.gate.wait_event("account", |e| e["level"] == "WARN");
    assert!(account["message"].as_str().unwrap().contains("sandbox"), "{account}");
    let queue_id = scene.send_to("both", &["ana@example.test", "eve@example.org"]);
    scene.ses.wait_for("both@test");
    let (verdict, why) = eventually(PATIENCE, "one recipient", || {
        let pending = scene.gate.show(&queue_id)["recipients"][0]["status"] == "sent";
        pending.then(|| scene.verdict(&queue_id, "ses"))
    });
    assert_eq!(verdict, "ineligible");
    assert!(why.contains("sandbox"), "{why}");
    assert_eq!(scene.ses.taken()[0].to, Some(vec!["ana@example.test".to_owned()]));

    scene.reset("core");
    let got = scene.sink.wait_for("both@test", PATIENCE);
    assert_eq!(got.recipients, ["<eve@example.org>"]);
    scene.gate.wait_empty(PATIENCE);
    assert_eq!(scene.ses.state().sends, 1);
}

#[test]
fn where_ses_is_the_only_upstream_its_refusals_are_dead_letters_with_a_status() {
    let scene = Scene::set(&Plot { route: "upstreams = [\"ses\"]", ..Plot::default() });
    let content = Fault::Error(400, "BadRequestException", "Duplicate header 'Subject'.");
    let rejected = Fault::Error(400, "MessageRejected", "Message length is more than 40 MB");
    for (id, fault, status) in [
        ("unverified", UNVERIFIED, "5.7.1"),
        ("content", content, "5.6.0"),
        ("large", rejected, "5.3.4"),
    ] {
        scene.ses.state().faults.push_back(fault);
        let queue_id = scene.send(id);
        let event = scene.wait_attempt(&queue_id, "ses", "bounced");
        assert_eq!(event["dsn"], status, "{event}");
        assert_dead(&scene, &queue_id, status);
    }
    scene.ses.state().bad.insert("bad@example.test".into());
    let address = scene.send_to("address", &["ana@example.test", "bad@example.test"]);
    scene.gate.wait_event("dead", |e| e["queue_id"] == address.as_str());
    let shown = scene.gate.show(&address);
    let status = |place: usize| shown["recipients"][place]["status"].as_str().unwrap();
    assert_eq!((status(0), status(1)), ("sent", "bounced"), "{shown}");
    assert_eq!(shown["recipients"][1]["dsn"], "5.1.3", "{shown}");

    let sends = scene.ses.state().sends;
    let mut client = Client::hello(scene.gate.address);
    let bounce = client.send("", &["ana@example.test"], &message("bounce"));
    assert_dead(&scene, &bounce, "5.7.1");
    assert_eq!(scene.ses.state().sends, sends, "it was not even tried");
    scene.send("good");
    scene.ses.wait_for("good@test");
    assert_eq!(scene.ses.arrivals(), ["address@test", "good@test"]);
}

#[track_caller]
fn assert_dead(scene: &Scene, queue_id: &str, status: &str) {
    scene.gate.wait_event("dead", |e| e["queue_id"] == queue_id);
    let shown = scene.gate.show(queue_id);
    assert_eq!(shown["queue_name"], "dead", "{shown}");
    assert_eq!(shown["recipients"][0]["dsn"], status, "{shown}");
}

/// What SES took, sorted.
fn counted(scene: &Scene) -> Vec<String> {
    let mut arrivals = scene.ses.arrivals();
    arrivals.sort();
    arrivals
}
