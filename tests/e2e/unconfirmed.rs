//! The answer to a whole message does not come: nobody knows whether it was taken. It stays with
//! that upstream, also over a crash, until the upstream or the operator settles it.

use std::time::Duration;

use crate::ses::Fault as SesFault;
use crate::support::emulator::Emulator;
use crate::support::scene::{Plot, Scene};
use crate::support::sink::{Act, Fault, Stage};
use crate::support::{PATIENCE, eventually};

/// One fault opens a breaker.
const FRAGILE: &str = "failures = 1\nopen_for = \"1s\"\nopen_max = \"1s\"";
const HOLD: &str = "upstreams = [\"core\", \"ses\"]\nunconfirmed = \"hold\"";
/// Nothing is tried again by itself.
const LATER: &str = "initial = \"1h\"";
/// SES has time enough for Postgate to be killed.
const PATIENT: &str = "timeouts = { connect = \"1s\", request = \"1m\" }";

#[test]
fn what_the_smarthost_did_not_answer_waits_for_it_or_for_the_operator_and_never_goes_by_ses() {
    let mut scene = Scene::set(&Plot { retry: LATER, ..Plot::default() });
    scene.sink.fail(&[Fault::always(Stage::EndOfData, Act::Hang)]);
    let lost = ["arrived", "vanished", "retried"].map(|id| scene.send(id));
    for queue_id in &lost {
        scene.wait_attempt(queue_id, "core", "unconfirmed");
    }
    scene.sink.go_down();
    scene.sink.recover();
    scene.trip("core");
    scene.send("other");
    scene.ses.wait_for("other@test");
    scene.cli(&["queue", "retry", &lost[0], &lost[1], &lost[2]]);
    assert_eq!(sorted(scene.unconfirmed()), sorted(lost.to_vec()));
    for queue_id in &lost {
        assert_eq!(scene.verdict(queue_id, "core").0, "unconfirmed");
        assert!(scene.verdict(queue_id, "ses").1.contains("another upstream may have it"));
    }

    let [arrived, vanished, retried] = lost;
    scene.cli(&["queue", "confirm", &arrived, "--reason", "it is in the mailbox"]);
    scene.cli(&["queue", "resend", &vanished, "--reason", "it is not"]);
    scene.ses.wait_for("vanished@test");
    assert_eq!(scene.unconfirmed(), [retried]);
    scene.sink.up();
    scene.reset("core");
    scene.sink.wait_for("retried@test", PATIENCE);
    scene.gate.wait_empty(PATIENCE);
    assert_eq!(scene.sink.arrivals(), ["retried@test"]);
    assert_eq!(scene.ses.arrivals(), ["other@test", "vanished@test"]);
    let told = scene.gate.events("admin");
    let said = |action: &str, reason: &str| {
        told.iter().any(|e| e["action"] == action && e["reason"] == reason)
    };
    assert!(said("confirm", "it is in the mailbox") && said("resend", "it is not"), "{told:?}");
}

#[test]
fn killed_before_the_smarthost_answered_it_does_not_forget_who_may_have_the_message() {
    let mut scene = Scene::set(&Plot { breaker: FRAGILE, end_of_data: "1m", ..Plot::default() });
    scene.sink.fail(&[Fault::once(Stage::EndOfData, Act::Hang)]);
    let queue_id = scene.send("cut");
    scene.sink.wait_struck(1, PATIENCE);
    assert!(scene.unconfirmed().is_empty(), "the answer is still awaited");
    scene.gate.kill();
    scene.sink.go_down();
    scene.gate.up();
    scene.send("other");
    scene.ses.wait_for("other@test");
    // It was tried again, in vain, and that says nothing about the first time.
    scene.wait_attempt(&queue_id, "core", "deferred");
    assert_eq!(scene.unconfirmed(), [queue_id.as_str()]);
    assert_eq!(scene.verdict(&queue_id, "core").0, "unconfirmed");
    assert_eq!(scene.verdict(&queue_id, "ses").0, "ineligible");

    scene.sink.up();
    scene.reset("core");
    scene.sink.wait_for("cut@test", PATIENCE);
    scene.gate.wait_empty(PATIENCE);
    assert_eq!(scene.sink.arrivals(), ["cut@test"]);
    assert_eq!(scene.ses.arrivals(), ["other@test"]);
}

#[test]
fn killed_before_ses_answered_it_does_not_hand_the_message_to_the_smarthost() {
    let scene = Plot { ses: PATIENT, ..Plot::default() };
    let mut scene = Scene::set(&scene);
    scene.trip("core");
    scene.ses.state().faults.push_back(SesFault::Hang { taken: true });
    scene.send("cut");
    scene.ses.wait_for("cut@test");
    scene.gate.kill();
    scene.ses.state().always = Some(SesFault::Error(429, "TooManyRequestsException", "slower"));
    // All breakers are closed after a start.
    scene.gate.up();
    scene.send("other");
    scene.sink.wait_for("other@test", PATIENCE);
    scene.gate.wait_event("delivery", |e| e["upstream"] == "ses" && e["dsn"] == "4.4.5");
    assert_eq!(scene.unconfirmed().len(), 1);
    scene.ses.state().always = None;
    scene.gate.wait_empty(PATIENCE);
    assert_eq!(scene.ses.arrivals(), ["cut@test", "cut@test"], "it did arrive the first time");
    assert_eq!(scene.sink.arrivals(), ["other@test"]);
}

/// SES takes fifty at a time, each chunk settled for itself.
#[test]
fn stopped_between_two_chunks_it_sends_neither_again_by_the_smarthost() {
    type Stop = fn(&mut Scene);
    let (kill, term): (Stop, Stop) = (
        |scene| scene.gate.kill(),
        |scene| {
            scene.gate.term();
            scene.gate.ended(PATIENCE);
        },
    );
    for stop in [kill, term] {
        let mut scene = Scene::set(&Plot { ses: PATIENT, ..Plot::default() });
        scene.trip("core");
        let chunks = [SesFault::Slow(Duration::ZERO), SesFault::Hang { taken: true }];
        scene.ses.state().faults.extend(chunks);
        let to: Vec<String> = (0..100).map(|n| format!("r{n}@example.test")).collect();
        let to: Vec<&str> = to.iter().map(String::as_str).collect();
        let queue_id = scene.send_to("chunks", &to);
        eventually(PATIENCE, "both", || (scene.ses.arrivals().len() == 2).then_some(()));
        stop(&mut scene);
        scene.gate.up();
        scene.gate.wait_empty(PATIENCE);
        let sent = scene.gate.events("delivery");
        let sent = sent.iter().filter(|e| e["status"] == "sent" && e["upstream"] == "ses");
        assert_eq!(sent.filter(|e| e["queue_id"] == queue_id.as_str()).count(), 100);
        let chunks: Vec<_> = scene.ses.taken().into_iter().map(|taken| taken.to.unwrap()).collect();
        assert_eq!(chunks.len(), 3, "only the one whose answer was lost came again");
        assert_eq!((chunks[0].len(), &chunks[2]), (50, &chunks[1]));
        assert!(chunks[0].iter().all(|to| !chunks[1].contains(to)));
        assert!(scene.sink.arrivals().is_empty());
    }
}

#[test]
fn on_a_route_that_holds_only_the_operator_goes_on() {
    let mut scene = Scene::set(&Plot { route: HOLD, end_of_data: "1m", ..Plot::default() });
    scene.sink.fail(&[Fault::once(Stage::EndOfData, Act::LoseReply)]);
    let lost = scene.send("lost");
    scene.wait_attempt(&lost, "core", "unconfirmed");
    scene.sink.fail(&[Fault::once(Stage::EndOfData, Act::Hang)]);
    let cut = scene.send("cut");
    scene.sink.wait_struck(2, PATIENCE);
    scene.gate.kill();
    scene.gate.up();
    scene.send("other");
    scene.sink.wait_for("other@test", PATIENCE);
    for queue_id in [&lost, &cut] {
        eventually(PATIENCE, "a held message", || {
            (scene.gate.show(queue_id)["queue_name"] == "hold").then_some(())
        });
    }
    assert_eq!(sorted(scene.unconfirmed()), sorted(vec![lost.clone(), cut.clone()]));

    scene.cli(&["queue", "confirm", &lost]);
    scene.cli(&["queue", "resend", &cut]);
    scene.sink.wait_for("cut@test", PATIENCE);
    scene.gate.wait_empty(PATIENCE);
    assert_eq!(sorted(scene.sink.arrivals()), ["cut@test", "lost@test", "other@test"]);
    assert!(scene.ses.arrivals().is_empty());
}

fn sorted(mut texts: Vec<String>) -> Vec<String> {
    texts.sort();
    texts
}
