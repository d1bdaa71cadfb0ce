//! Two upstreams with Postgate between: a sink as the smarthost, and our own emulator of SES.

use serde_json::Value;

use super::client::Client;
use super::emulator::{Emulator, Fake, Keys};
use super::gate::{Gate, Settings};
use super::mail::message;
use super::sink::Sink;
use super::{PATIENCE, eventually};

/// The two upstreams, in their order.
pub const BOTH: &str = "upstreams = [\"core\", \"ses\"]";

/// A lost answer of SES takes a second, and no failure opens a breaker.
pub const SES: &str = "timeouts = { connect = \"1s\", request = \"1s\" }";

/// The parts, all running.
pub struct Scene {
    pub gate: Gate,
    pub sink: Sink,
    pub ses: Fake,
    pub keys: Keys,
}

/// What is configured, beside where the parts are.
#[derive(Clone, Copy)]
pub struct Plot<'a> {
    /// Lines of `[[route]]`.
    pub route: &'a str,
    /// Lines of `[upstreams.ses]`.
    pub ses: &'a str,
    /// Lines of `[delivery]`.
    pub delivery: &'a str,
    /// Lines of `[retry]`.
    pub retry: &'a str,
    /// Lines of `[breaker]`.
    pub breaker: &'a str,
    /// The time to the answer to the final dot.
    pub end_of_data: &'a str,
}

impl Default for Plot<'_> {
    fn default() -> Self {
        Self {
            route: BOTH,
            ses: SES,
            delivery: "drain_timeout = \"1s\"",
            retry: "initial = \"1s\"\nmax_interval = \"1s\"\njitter = 0.0",
            breaker: "failures = 10000",
            end_of_data: "1s",
        }
    }
}

impl Scene {
    pub fn set(plot: &Plot<'_>) -> Self {
        let mut scene = Self::stopped(plot, Fake::start());
        scene.gate.up();
        // SES is well once its account was asked.
        scene.gate.wait_event("breaker", |e| e["upstream"] == "ses" && e["to"] == "closed");
        scene
    }

    /// Postgate is configured and does not run yet.
    pub fn stopped(plot: &Plot<'_>, ses: Fake) -> Self {
        let (sink, keys) = (Sink::start(), Keys::new("AKIDTEST"));
        let more = keys.sections(ses.address(), plot.ses);
        let plain = Settings::plain(sink.address);
        let limit = format!("end_of_data = {:?}", plot.end_of_data);
        let settings = Settings {
            upstream: plain.upstream.replace("end_of_data = \"1s\"", &limit),
            route: plot.route,
            delivery: plot.delivery,
            retry: plot.retry,
            breaker: plot.breaker,
            more: &more,
            ..plain
        };
        let gate = Gate::stopped(&settings);
        Self { gate, sink, ses, keys }
    }

    /// Sends a message to Ana; its queue id.
    #[track_caller]
    pub fn send(&self, id: &str) -> String {
        self.send_to(id, &["ana@example.test"])
    }

    #[track_caller]
    pub fn send_to(&self, id: &str, to: &[&str]) -> String {
        Client::hello(self.gate.address).send("app@example.test", to, &message(id))
    }

    /// Nothing goes to an upstream until it is [`reset`](Self::reset).
    pub fn trip(&self, upstream: &str) {
        self.cli(&["upstream", "trip", upstream, "--for", "1h", "--reason", "test"]);
    }

    pub fn reset(&self, upstream: &str) {
        self.cli(&["upstream", "reset", upstream]);
    }

    /// What a command says.
    #[track_caller]
    pub fn cli(&self, args: &[&str]) -> String {
        self.gate.cli(args).expect_code(0).stdout
    }

    /// Waits for an attempt with this result.
    #[track_caller]
    pub fn wait_attempt(&self, queue_id: &str, upstream: &str, status: &str) -> Value {
        let same = |e: &Value| {
            e["queue_id"] == queue_id && e["upstream"] == upstream && e["status"] == status
        };
        self.gate.wait_event("delivery", same)
    }

    /// Why `explain` says that an upstream may not have a message now, and its word for it.
    #[track_caller]
    pub fn verdict(&self, queue_id: &str, upstream: &str) -> (String, String) {
        let said = self.cli(&["explain", "--json", queue_id]);
        let said: Value = serde_json::from_str(&said).unwrap();
        let verdicts = said["verdicts"].as_array().unwrap();
        let verdict = verdicts.iter().find(|v| v["upstream"] == upstream);
        let verdict = verdict.unwrap_or_else(|| panic!("{upstream} is not in {said}"));
        let text = |key: &str| verdict[key].as_str().unwrap_or_default().to_owned();
        (text("verdict"), text("reason"))
    }

    /// Waits until the verdict on an upstream is this; its reason.
    #[track_caller]
    pub fn wait_verdict(&self, queue_id: &str, upstream: &str, wanted: &str) -> String {
        eventually(PATIENCE, wanted, || {
            let (verdict, reason) = self.verdict(queue_id, upstream);
            (verdict == wanted).then_some(reason)
        })
    }

    /// The queue ids of what `queue list --state unconfirmed` lists.
    pub fn unconfirmed(&self) -> Vec<String> {
        let listed = self.cli(&["queue", "list", "--state", "unconfirmed", "--json"]);
        let id = |line: &str| {
            let entry: Value = serde_json::from_str(line).unwrap();
            entry["queue_id"].as_str().unwrap_or_else(|| panic!("{entry}")).to_owned()
        };
        listed.lines().map(id).collect()
    }
}
