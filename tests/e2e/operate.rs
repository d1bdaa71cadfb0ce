//! Every command of the queue, against a running Postgate with mail in every state.

use std::path::Path;

use serde_json::Value;

use crate::support::client::Client;
use crate::support::gate::{Gate, Settings};
use crate::support::mail::{below_received, message};
use crate::support::sink::{Act, Fault, Sink, Stage};
use crate::support::{PATIENCE, eventually};

const LATER: &str = "451 4.2.0 mailbox busy";
const NEVER: &str = "550 5.1.1 no such user";
/// Nothing is tried again by itself.
const NO_RETRY: &str = "initial = \"1h\"\nmax_interval = \"1h\"\njitter = 0.0\nmax_age = \"2d\"";

fn faults() -> [Fault; 2] {
    let strike = |only, reply| Fault { only, ..Fault::always(Stage::Rcpt, Act::Reply(reply)) };
    [strike("later@", LATER), strike("never@", NEVER)]
}

/// A deferred message, one to be held, and a dead one.
struct Scene {
    sink: Sink,
    gate: Gate,
    deferred: String,
    held: String,
    dead: String,
}

impl Scene {
    fn set() -> Self {
        let sink = Sink::start();
        sink.fail(&faults());
        let settings = Settings { retry: NO_RETRY, ..Settings::plain(sink.address) };
        let gate = Gate::start(&settings);
        let mut client = Client::hello(gate.address);
        let mut send =
            |to: &str, name: &str| client.send("app@example.test", &[to], &message(name));
        let deferred = send("later@example.test", "deferred");
        let held = send("later@example.test", "held");
        let dead = send("never@example.test", "dead");
        let scene = Self { sink, gate, deferred, held, dead };
        for (id, state) in
            [(&scene.deferred, "deferred"), (&scene.held, "deferred"), (&scene.dead, "dead")]
        {
            scene.wait_state(id, state, 1);
        }
        scene.says(&["queue", "hold", &scene.held], "1 message held\n");
        scene
    }

    /// Runs a command that succeeds.
    fn run(&self, args: &[&str]) -> String {
        self.gate.cli(args).expect_code(0).stdout
    }

    fn says(&self, args: &[&str], stdout: &str) {
        assert_eq!(self.run(args), stdout, "{args:?}");
    }

    fn json(&self, args: &[&str]) -> Value {
        let said = self.run(&[args, &["--json"]].concat());
        serde_json::from_str(&said).unwrap_or_else(|e| panic!("{args:?}: {e}: {said}"))
    }

    /// The command fails and says this.
    fn fails(&self, args: &[&str], code: i32, why: &str) {
        let said = self.gate.cli(args).expect_code(code).stderr;
        assert!(said.contains(why), "{args:?}: {said}");
    }

    fn wait_state(&self, id: &str, state: &str, attempts: u64) {
        eventually(PATIENCE, &format!("{id} {state} after {attempts}"), || {
            let shown = self.gate.show(id);
            (shown["queue_name"] == state && shown["attempts"] == attempts).then_some(())
        });
    }
}

#[test]
fn the_queue_is_listed_and_shown_in_every_state() {
    let scene = Scene::set();
    let Scene { deferred, held, dead, .. } = &scene;
    let rows = [(deferred, "deferred", "deferred"), (held, "held", "hold"), (dead, "dead", "dead")];
    let list = scene.run(&["queue", "list"]);
    assert!(list.starts_with("ID ") && list.contains("\n3 messages, "), "{list}");
    assert_eq!(scene.run(&["mailq"]), list);
    let queue = scene.gate.queue();
    assert_eq!(queue.len(), 3);
    for ((id, state, name), entry) in rows.into_iter().zip(queue) {
        let line = list.lines().find(|line| line.starts_with(id.as_str())).unwrap();
        assert!(line.contains(state) && line.contains("app@example.test"), "{line}");
        assert_eq!(
            (entry["queue_id"].as_str(), &entry["queue_name"]),
            (Some(id.as_str()), &name.into())
        );
        let filtered = scene.run(&["queue", "list", "--state", state]);
        assert!(filtered.contains(id) && filtered.contains("1 message, "), "{filtered}");
    }
    assert_eq!(scene.run(&["queue", "list", "--state", "incoming"]), "No incoming messages.\n");

    let shown = scene.run(&["queue", "show", dead]);
    for part in [dead, "dead", "bounced", "never@example.test", NEVER, "<dead@test>"] {
        assert!(shown.contains(part), "no {part} in {shown}");
    }
    let shown = scene.json(&["queue", "show", dead]);
    assert_eq!(shown["recipients"][0]["status"], "bounced");
    let shown = scene.json(&["queue", "show", deferred]);
    assert_eq!((&shown["attempts"], &shown["client_address"]), (&1.into(), &"127.0.0.1".into()));
    assert!(shown["recipients"][0]["delay_reason"].as_str().unwrap().contains("mailbox busy"));
    assert!(shown["next_attempt_time"].as_u64() > shown["arrival_time"].as_u64(), "{shown}");
    assert_eq!(scene.gate.show(held)["next_attempt_time"], Value::Null);
    scene.fails(&["queue", "show", "0000000000007"], 1, "no message");
    scene.fails(&["queue", "show", "x"], 64, "not a queue id");

    let content = scene.run(&["queue", "cat", held]);
    assert_eq!(below_received(content.as_bytes(), 1).1, message("held"));
    let header = scene.run(&["queue", "cat", held, "--headers"]);
    assert!(header.ends_with("\r\n\r\n") && content.starts_with(&header), "{header}");
    scene.fails(&["queue", "cat", "0000000000007"], 1, "no message");
}

#[test]
fn every_action_does_what_it_says_and_what_does_not_fit_is_refused() {
    let scene = Scene::set();
    let Scene { sink, deferred, held, dead, .. } = &scene;
    // What does not fit changes nothing.
    scene.fails(&["queue", "requeue", deferred], 1, "is deferred");
    scene.fails(&["queue", "retry", dead], 1, "is dead");
    scene.fails(&["queue", "release", deferred], 1, "is deferred");
    scene.fails(&["queue", "hold", "0000000000007"], 1, "no message");
    assert_eq!(scene.gate.queue().len(), 3);

    // The first is tried again although the second can't be.
    let both = scene.gate.cli(&["queue", "retry", deferred, held]).expect_code(1);
    assert_eq!(both.stdout, "1 message due now\n");
    scene.wait_state(deferred, "deferred", 2);

    scene.says(&["queue", "release", held], "1 message released\n");
    scene.wait_state(held, "deferred", 2);

    sink.recover();
    scene.says(&["queue", "requeue", dead], "1 message queued again\n");
    sink.wait_for("dead@test", PATIENCE);
    let shown = eventually(PATIENCE, "a sent message", || {
        Some(scene.json(&["queue", "show", dead])).filter(|shown| shown["queue_name"] == "sent")
    });
    assert_eq!(shown["recipients"][0]["status"], "sent");
    assert!(shown["recipients"][0]["reply"].as_str().unwrap().contains("queued as SINK1"));

    scene.says(&["queue", "delete", held], "1 message deleted\n");
    scene.fails(&["queue", "show", held], 1, "no message");
    scene.says(&["queue", "retry", deferred], "1 message due now\n");
    scene.gate.wait_empty(PATIENCE);
    let mut counts: Vec<_> = sink.counts().into_iter().collect();
    counts.sort();
    assert_eq!(counts, [("dead@test".to_owned(), 1), ("deferred@test".to_owned(), 1)]);
}

#[test]
fn status_health_and_reload_are_those_of_the_running_one() {
    let scene = Scene::set();
    let status = scene.json(&["status"]);
    let queue = &status["queue"];
    let counts: Vec<_> = ["incoming", "active", "deferred", "held", "dead"]
        .iter()
        .map(|state| queue[state].as_u64().unwrap())
        .collect();
    assert_eq!(counts, [0, 0, 1, 1, 1], "{status}");
    assert_eq!(
        (&status["accepting"], &status["upstreams"][0]["name"]),
        (&true.into(), &"core".into())
    );
    let status = scene.run(&["status"]);
    for row in ["queue.held", "Upstreams", "  core  smtp  closed", "hostname"] {
        assert!(status.lines().any(|line| line.starts_with(row)), "no {row} in {status}");
    }
    scene.says(&["healthcheck"], "ready\n");
    scene.says(&["healthcheck", "live"], "live\n");

    assert!(!scene.run(&["reload"]).is_empty());
    let settings = Settings::plain(scene.sink.address);
    scene.gate.configure(&Settings { mynetworks: vec!["127.0.0.0/33"], ..settings });
    let gate = &scene.gate;
    let socket = gate.dir.path().join("admin.sock");
    let named = |args: &[&'static str]| -> Vec<String> {
        let socket = Path::new(&socket).to_str().unwrap();
        ["--socket", socket].iter().chain(args).map(ToString::to_string).collect()
    };
    let args = named(&["reload"]);
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    scene.fails(&args, 78, "127.0.0.0/33");
    let args = named(&["queue", "list", "--json"]);
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    assert_eq!(scene.run(&args).lines().count(), 3, "the queue is as it was");
}
