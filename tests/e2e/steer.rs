//! The operator steers the upstreams, and the developer tries the fallback.

use crate::support::PATIENCE;
use crate::support::emulator::{Emulator, Fake};
use crate::support::scene::{Plot, Scene};

const ALLOWED: &str = "drain_timeout = \"1s\"\nallow_force_fail = true";
const FORCED: [(&str, &str); 1] = [("POSTGATE_FORCE_FAIL", "core")];

#[test]
fn an_upstream_that_is_forced_to_fail_shows_the_fallback_and_says_so() {
    let breaker = "failures = 1\nopen_for = \"1s\"\nopen_max = \"1s\"";
    let plot = Plot { delivery: ALLOWED, breaker, ..Plot::default() };
    let mut scene = Scene::stopped(&plot, Fake::start());
    scene.gate.up_with(&FORCED);
    let queue_id = scene.send("forced");
    scene.ses.wait_for("forced@test");
    let failed = scene.wait_attempt(&queue_id, "core", "deferred");
    assert!(failed["reply"].as_str().unwrap().contains("POSTGATE_FORCE_FAIL"), "{failed}");
    assert!(scene.cli(&["status"]).contains("FORCED TO FAIL"));
    assert_eq!(scene.gate.upstream("core")["forced"], true);
    assert_eq!(scene.sink.connections(), 0);
    assert_eq!(scene.gate.upstream("ses")["forced"], false);
}

#[test]
fn forcing_is_refused_unless_the_configuration_allows_it() {
    let scene = Scene::stopped(&Plot::default(), Fake::start());
    for command in ["run", "check-config"] {
        let refused = scene.gate.cli_with(&FORCED, &[command]).expect_code(78);
        let said = refused.stdout + &refused.stderr;
        assert!(
            said.contains("POSTGATE_FORCE_FAIL") && said.contains("allow_force_fail"),
            "{said}"
        );
    }
    let scene = Scene::stopped(&Plot { delivery: ALLOWED, ..Plot::default() }, Fake::start());
    let wrong = [("POSTGATE_FORCE_FAIL", "cor")];
    scene.gate.cli_with(&wrong, &["check-config"]).expect_code(78);
    scene.gate.cli_with(&FORCED, &["check-config"]).expect_code(0);
}

#[test]
fn a_pause_leads_mail_elsewhere_is_seen_and_survives_a_restart() {
    let mut scene = Scene::set(&Plot::default());
    scene.cli(&["upstream", "pause", "core", "--reason", "kernel update"]);
    scene.send("elsewhere");
    scene.ses.wait_for("elsewhere@test");
    assert_paused(&scene);
    scene.gate.term();
    assert!(scene.gate.ended(PATIENCE).success());
    scene.gate.up();
    assert_paused(&scene);
    scene.gate.kill();
    scene.gate.up();
    assert_paused(&scene);
    scene.send("still");
    scene.ses.wait_for("still@test");

    scene.cli(&["upstream", "resume", "core", "--reason", "done"]);
    assert_eq!(scene.gate.upstream("core")["breaker"], "closed");
    scene.send("back");
    scene.sink.wait_for("back@test", PATIENCE);
    assert_eq!(scene.ses.arrivals(), ["elsewhere@test", "still@test"]);
    assert_eq!(scene.sink.arrivals(), ["back@test"]);
    let did = |action: &str, reason: &str| {
        let same = |e: &_| action_of(e) == (action, "core", reason);
        assert!(scene.gate.events("admin").iter().any(same), "{action}");
    };
    did("pause", "kernel update");
    did("resume", "done");
}

#[test]
fn a_pause_for_a_time_ends_by_itself() {
    let scene = Scene::set(&Plot::default());
    let refused = scene.gate.cli(&["upstream", "pause", "cor"]).expect_code(1);
    assert!(refused.stderr.contains("no upstream is named cor"), "{}", refused.stderr);
    scene.cli(&["upstream", "pause", "core", "--for", "1s", "--reason", "short"]);
    scene.cli(&["upstream", "pause", "ses", "--reason", "long"]);
    scene.send("waits");
    scene.sink.wait_for("waits@test", PATIENCE);
    assert_eq!(scene.gate.upstream("core")["breaker"], "closed");
    scene.cli(&["upstream", "pause", "core", "--for", "2h", "--reason", "long"]);
    let left = scene.gate.upstream("core")["paused"]["until_seconds"].as_u64().unwrap();
    assert!((7100..=7200).contains(&left), "{left}");
}

#[test]
fn a_breaker_that_was_tripped_stays_open_over_a_reload_until_it_is_reset() {
    let scene = Scene::set(&Plot::default());
    scene.cli(&["upstream", "trip", "core", "--for", "1h", "--reason", "drill"]);
    let opened = scene.gate.wait_event("breaker", |e| e["upstream"] == "core");
    assert_eq!(opened["to"], "open");
    assert!(opened["reason"].as_str().unwrap().contains("drill"), "{opened}");
    let since = scene.gate.upstream("core")["since"].clone();
    scene.cli(&["reload"]);
    let core = scene.gate.upstream("core");
    assert_eq!((&core["breaker"], &core["since"]), (&"open".into(), &since));
    assert!(core["reason"].as_str().unwrap().contains("drill"), "{core}");
    assert!(core["until_seconds"].as_u64().unwrap() > 3500, "{core}");
    let status = scene.cli(&["status"]);
    assert!(
        status.lines().any(|l| l.contains("core  smtp  OPEN") && l.contains("drill")),
        "{status}"
    );
    scene.send("elsewhere");
    scene.ses.wait_for("elsewhere@test");

    scene.cli(&["upstream", "reset", "core", "--reason", "drill is over"]);
    assert_eq!(scene.gate.upstream("core")["breaker"], "closed");
    scene.send("back");
    scene.sink.wait_for("back@test", PATIENCE);
    assert_eq!(scene.ses.arrivals(), ["elsewhere@test"]);
    assert_eq!(scene.sink.arrivals(), ["back@test"]);
    // After a reload SES is asked for its account anew, and is not well until it has answered.
    let turns = scene.gate.events("route");
    let ways =
        |e: &serde_json::Value| [&e["from"], &e["to"]].map(|way| way.as_str().unwrap().to_owned());
    let turns: Vec<_> =
        turns.iter().map(ways).filter(|ways| !ways.contains(&"none".into())).collect();
    assert_eq!(turns, [["core", "ses"], ["ses", "core"]]);
}

#[track_caller]
fn assert_paused(scene: &Scene) {
    let core = scene.gate.upstream("core");
    assert_eq!(
        (&core["breaker"], &core["paused"]["reason"]),
        (&"paused".into(), &"kernel update".into())
    );
    let status = scene.cli(&["status"]);
    assert!(status.contains("paused") && status.contains("kernel update"), "{status}");
}

fn action_of(event: &serde_json::Value) -> (&str, &str, &str) {
    let text = |key: &str| event[key].as_str().unwrap_or_default();
    (text("action"), text("upstream"), text("reason"))
}
