//! The smarthost fails in every way it can. Nothing is lost, nothing is doubled but where
//! `docs/spool.md` says so, and the operator can see it.

use std::time::Duration;

use crate::support::client::Client;
use crate::support::gate::{Gate, Settings};
use crate::support::mail::message;
use crate::support::postfix::Postfix;
use crate::support::sink::{Act, Fault, Sink, Stage};
use crate::support::{PATIENCE, eventually};

#[test]
fn mail_waits_while_the_smarthost_is_down() {
    let mut sink = Sink::down();
    let gate = Gate::start(&Settings::plain(sink.address));
    let ids: Vec<_> = (0..20).map(|n| send(&gate, &format!("down-{n}"))).collect();
    for id in &ids {
        let failure = wait_deferred(&gate, id);
        assert!(failure.contains("connect"), "{failure}");
    }
    assert_eq!(gate.queue().len(), ids.len());
    sink.up();
    sink.wait_count(ids.len(), PATIENCE);
    gate.wait_empty(PATIENCE);
    assert!(sink.counts().values().all(|n| *n == 1), "{:?}", sink.counts());
}

#[test]
fn mail_waits_while_postfix_restarts() {
    let sink = Sink::start();
    let mut postfix = Postfix::start(sink.address);
    let gate = Gate::start(&Settings::postfix_plain(&postfix));
    send(&gate, "before");
    sink.wait_for("before@test", PATIENCE);
    // Killed before it notes what it has sent, Postfix sends again.
    eventually(PATIENCE, "Postfix is done", || postfix.log().contains(": removed").then_some(()));
    postfix.go_down();
    let id = send(&gate, "during");
    wait_deferred(&gate, &id);
    postfix.up();
    sink.wait_for("during@test", PATIENCE);
    gate.wait_empty(PATIENCE);
    assert!(sink.counts().values().all(|n| *n == 1), "{:?}", sink.counts());
}

#[test]
fn a_smarthost_that_keeps_failing_rests_and_no_message_is_blamed_meanwhile() {
    let mut sink = Sink::down();
    let settings = Settings {
        breaker: "failures = 5\nopen_for = \"1s\"\nopen_max = \"2s\"",
        ..Settings::plain(sink.address)
    };
    let gate = Gate::start(&settings);
    for n in 0..5 {
        send(&gate, &format!("fails-{n}"));
    }
    let opened = gate.wait_event("breaker", |e| e["to"] == "open");
    assert!(opened["reason"].as_str().unwrap().contains("connect"), "{opened}");
    let waiting: Vec<_> = (0..20).map(|n| send(&gate, &format!("waits-{n}"))).collect();
    let probes = || gate.events("delivery").len();
    let before = probes();
    eventually(PATIENCE, "two probes", || (probes() >= before + 2).then_some(()));
    let tried = |id: &String| gate.events("delivery").iter().any(|e| e["queue_id"] == id.as_str());
    let untried = waiting.iter().filter(|id| !tried(id)).count();
    assert!(untried >= 15, "only {untried} of 20 were left alone while it rested");
    sink.up();
    sink.wait_count(25, PATIENCE);
    gate.wait_empty(PATIENCE);
    assert!(sink.counts().values().all(|n| *n == 1), "{:?}", sink.counts());
    gate.wait_event("breaker", |e| e["to"] == "closed");
}

#[test]
fn a_temporary_refusal_at_any_stage_is_tried_again() {
    let reply = |stage| match stage {
        Stage::Greeting => "421 4.3.2 busy",
        Stage::Ehlo => "451 4.3.0 not now",
        Stage::Mail => "451 4.3.0 mail not now",
        Stage::Rcpt => "450 4.2.1 recipient not now",
        Stage::Data => "451 4.3.0 data not now",
        Stage::Content | Stage::EndOfData => "452 4.3.1 content not now",
    };
    each_stage("tempfail", reply_stages(), |stage| Act::Reply(reply(stage)));
}

#[test]
fn a_dropped_connection_at_any_stage_is_tried_again() {
    each_stage("drop", Stage::ALL.to_vec(), |_| Act::Drop);
}

#[test]
fn a_smarthost_that_hangs_at_any_stage_is_tried_again() {
    each_stage("hang", Stage::ALL.to_vec(), |_| Act::Hang);
}

#[test]
fn a_smarthost_that_greets_with_a_refusal_costs_no_mail() {
    each_stage("greeting", vec![Stage::Greeting], |_| Act::Reply("554 5.7.1 not you"));
}

#[test]
fn one_recipient_refused_of_three_is_the_only_one_not_served() {
    let sink = Sink::start();
    let gate = Gate::start(&Settings::plain(sink.address));
    let refuse = Act::Reply("550 5.1.1 no such user");
    sink.fail(&[Fault { only: "<bad@", ..Fault::always(Stage::Rcpt, refuse) }]);
    let to = ["ana@example.test", "bad@example.test", "bob@example.test"];
    let id = Client::hello(gate.address).send("app@example.test", &to, &message("three"));

    let got = sink.wait_for("three@test", PATIENCE);
    assert_eq!(got.recipients.len(), 2, "{:?}", got.recipients);
    let bounced = gate.wait_event("delivery", |e| e["status"] == "bounced");
    assert_eq!(bounced["to"], "bad@example.test");
    assert_eq!(bounced["dsn"], "5.1.1");
    let shown = eventually(PATIENCE, "the dead letter", || {
        let shown = gate.show(&id);
        (shown["queue_name"] == "dead").then_some(shown)
    });
    let status: Vec<_> =
        shown["recipients"].as_array().unwrap().iter().map(|r| r["status"].clone()).collect();
    assert_eq!(status, ["sent", "bounced", "sent"], "{shown}");
    assert_eq!(sink.accepted().len(), 1);
}

#[test]
fn one_recipient_put_off_of_three_is_the_only_one_tried_again() {
    let sink = Sink::start();
    let gate = Gate::start(&Settings::plain(sink.address));
    let later = Act::Reply("450 4.2.1 mailbox busy");
    sink.fail(&[Fault { only: "<slow@", times: 2, ..Fault::once(Stage::Rcpt, later) }]);
    let to = ["ana@example.test", "slow@example.test", "bob@example.test"];
    Client::hello(gate.address).send("app@example.test", &to, &message("slow"));
    sink.wait_count(2, PATIENCE);
    gate.wait_empty(PATIENCE);
    let recipients: Vec<_> = sink.accepted().iter().map(|a| a.recipients.join(" ")).collect();
    assert_eq!(recipients.len(), 2, "{recipients:?}");
    assert!(
        !recipients[0].contains("slow@") && recipients[1].starts_with("<slow@"),
        "{recipients:?}"
    );
}

/// The one honest duplicate: the smarthost took the message, and its answer was lost.
#[test]
fn a_lost_answer_is_unconfirmed_and_then_sent_again() {
    let sink = Sink::start();
    let gate = Gate::start(&Settings::plain(sink.address));
    sink.fail(&[Fault::once(Stage::EndOfData, Act::LoseReply)]);
    let id = send(&gate, "lost");
    let event = gate.wait_event("delivery", |e| e["status"] == "unconfirmed");
    assert_eq!(event["queue_id"], id.as_str());
    sink.wait_count(2, PATIENCE);
    gate.wait_empty(PATIENCE);
    assert_eq!(sink.counts()["lost@test"], 2);
}

#[test]
fn a_message_refused_for_good_is_a_dead_letter_with_the_reason() {
    let sink = Sink::start();
    let gate = Gate::start(&Settings::plain(sink.address));
    sink.fail(&[Fault::once(Stage::EndOfData, Act::Reply("554 5.6.0 content refused"))]);
    let id = send(&gate, "refused");
    gate.wait_event("dead", |e| e["queue_id"] == id.as_str());
    let shown = gate.show(&id).to_string();
    assert!(shown.contains("5.6.0 content refused"), "{shown}");
    send(&gate, "next");
    sink.wait_for("next@test", PATIENCE);
    assert_eq!(sink.accepted().len(), 1);
}

#[test]
fn many_messages_share_a_few_connections() {
    let sink = Sink::start();
    let gate = Gate::start(&Settings::plain(sink.address));
    let mut client = Client::hello(gate.address);
    for n in 0..200 {
        client.send("a@example.test", &["b@example.test"], &message(&format!("pool-{n}")));
    }
    sink.wait_count(200, PATIENCE);
    assert!(sink.counts().values().all(|n| *n == 1));
    assert!(sink.connections() <= 20, "{} connections", sink.connections());
}

/// One message for each stage: the fault strikes, the queue shows it, the message arrives.
fn each_stage(name: &str, stages: Vec<Stage>, act: impl Fn(Stage) -> Act) {
    let mut sink = Sink::start();
    let gate = Gate::start(&Settings::plain(sink.address));
    for stage in stages {
        let id = format!("{name}-{stage:?}");
        // A connection that is kept from the stage before is past its greeting; it is found dead.
        sink.go_down();
        sink.up();
        let struck = sink.struck();
        // Until it is seen in the queue.
        sink.fail(&[Fault::always(stage, act(stage))]);
        let queue_id = send(&gate, &id);
        sink.wait_struck(struck + 1, PATIENCE);
        wait_deferred(&gate, &queue_id);
        sink.recover();
        sink.wait_for(&format!("{id}@test"), PATIENCE);
        gate.wait_empty(PATIENCE);
        assert_eq!(sink.counts()[&format!("{id}@test")], 1, "{stage:?}");
    }
}

/// Stages that are a reply.
fn reply_stages() -> Vec<Stage> {
    Stage::ALL.into_iter().filter(|s| *s != Stage::Content).collect()
}

#[track_caller]
fn send(gate: &Gate, id: &str) -> String {
    Client::hello(gate.address).send("app@example.test", &["ana@example.test"], &message(id))
}

/// Waits until `queue show` says the message waits for another attempt; the last failure.
#[track_caller]
fn wait_deferred(gate: &Gate, id: &str) -> String {
    eventually(Duration::from_secs(20), "a deferred message", || {
        let shown = gate.show(id);
        let recipient = &shown["recipients"][0];
        let waits = matches!(recipient["status"].as_str()?, "deferred" | "unconfirmed");
        waits.then(|| recipient["delay_reason"].as_str().unwrap().to_owned())
    })
}
