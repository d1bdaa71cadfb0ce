//! The smarthost, a real Postfix, is killed under load and comes back; meanwhile the mail goes by
//! SES. Every message arrives once, by one of the two.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;

use crate::support::client::Client;
use crate::support::emulator::{Emulator, Fake, Keys, Moto, SesLocal};
use crate::support::gate::{Gate, Settings};
use crate::support::http::{get, value};
use crate::support::mail::message;
use crate::support::postfix::Postfix;
use crate::support::scene::BOTH;
use crate::support::sink::{Accepted, Sink};
use crate::support::{PATIENCE, eventually, free_port, local};

const CLIENTS: usize = 3;
/// Between two messages of a client.
const PACE: Duration = Duration::from_millis(8);
const TO: [&str; 3] = ["ana@example.test", "bob@example.test", "eve@example.org"];
const BREAKER: &str = "open_for = \"1s\"\nopen_max = \"1s\"\ndwell = \"20ms\"";

#[test]
fn mail_goes_by_ses_while_postfix_is_dead_and_returns_to_it() {
    postfix_dies_under_load(&Fake::start());
}

#[test]
fn mail_goes_by_moto_while_postfix_is_dead_and_returns_to_it() {
    postfix_dies_under_load(&Moto::start("example.test"));
}

#[test]
fn mail_goes_by_aws_ses_v2_local_while_postfix_is_dead_and_returns_to_it() {
    postfix_dies_under_load(&SesLocal::start());
}

fn postfix_dies_under_load(ses: &impl Emulator) {
    let sink = Sink::start();
    let mut postfix = Postfix::start(sink.address);
    let (keys, metrics) = (Keys::new("AKIDTEST"), local(free_port()));
    let probes = format!("[metrics]\nlisten = \"{metrics}\"");
    let more = keys.sections(ses.address(), "") + &probes;
    let plain = Settings::postfix_plain(&postfix);
    let gate = Gate::start(&Settings { route: BOTH, breaker: BREAKER, more: &more, ..plain });

    let load = Load::start(gate.address, "load", usize::MAX);
    sink.wait_count(60, PATIENCE);
    postfix.kill();
    eventually(PATIENCE, "mail by SES", || (ses.taken().len() >= 60).then_some(()));
    postfix.up();
    eventually(PATIENCE, "all goes to Postfix again", || {
        let core = gate.upstream("core");
        (core["breaker"] == "closed" && core["ramp"].is_null()).then_some(())
    });
    let mut sent = load.stop();
    gate.wait_empty(PATIENCE);
    let by_ses = ses.taken().len();
    let last = Load::start(gate.address, "last", 30).join();
    gate.wait_empty(PATIENCE);
    let last_ids: BTreeSet<_> = last.keys().cloned().collect();
    sent.extend(last);

    let arrived = eventually(PATIENCE, "everything", || {
        let arrived = Arrived::at(&sink, ses);
        sent.keys().all(|id| arrived.ways(id) > 0).then_some(arrived)
    });
    arrived.assert_once(&gate, &sent);
    assert_eq!(ses.taken().len(), by_ses, "nothing goes there while Postfix is well");
    assert!(last_ids.iter().all(|id| arrived.core.contains_key(id)));
    assert_order(&gate);
    assert_told(&gate, &sent, &arrived);
    let page = get(metrics, "/metrics");
    let switches = |from: &str, to: &str| {
        let labels = format!("{{route=\"default\",from=\"{from}\",to=\"{to}\"}}");
        value(&page, &format!("postgate_route_switches_total{labels}")).unwrap()
    };
    assert_eq!((switches("core", "ses"), switches("ses", "core")), (1.0, 1.0), "{page}");
    let closed = "postgate_upstream_breaker_state{upstream=\"core\",state=\"closed\"}";
    assert_eq!(value(&page, closed), Some(1.0), "{page}");
}

/// Clients that send, side by side, until they are stopped.
struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Mail>>,
}

/// Messages that were accepted: the recipients of each Message-ID.
type Mail = BTreeMap<String, Vec<String>>;

impl Load {
    /// Each sends at most so many.
    fn start(gate: SocketAddr, name: &'static str, most: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let clients = (0..CLIENTS).map(|client| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || send(gate, &format!("{name}-{client}"), &stop, most))
        });
        Self { clients: clients.collect(), stop }
    }

    fn stop(self) -> Mail {
        self.stop.store(true, Ordering::SeqCst);
        self.join()
    }

    /// All they have sent.
    fn join(self) -> Mail {
        self.clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    }
}

/// Sends up to so many messages, every fourth to three recipients.
fn send(gate: SocketAddr, name: &str, stop: &AtomicBool, most: usize) -> Mail {
    let mut client = Client::hello(gate);
    let mut sent = Mail::new();
    for n in 0..most {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let to = if n % 4 == 0 { &TO[..] } else { &TO[..1] };
        let id = format!("{name}-{n}");
        client.send("app@example.test", to, &message(&id));
        sent.insert(format!("{id}@test"), to.iter().map(ToString::to_string).collect());
        std::thread::sleep(PACE);
    }
    sent
}

/// What arrived by which way.
struct Arrived {
    /// By Message-ID and Postfix's own id: what it had not noted as sent when it was killed, it
    /// sends again, and that is no doing of ours.
    core: BTreeMap<String, BTreeMap<String, BTreeSet<String>>>,
    /// By Message-ID, each time with its recipients.
    ses: BTreeMap<String, Vec<Option<BTreeSet<String>>>>,
}

impl Arrived {
    fn at(sink: &Sink, ses: &impl Emulator) -> Self {
        let mut arrived = Self { core: BTreeMap::new(), ses: BTreeMap::new() };
        for accepted in sink.accepted() {
            let of = arrived.core.entry(accepted.message_id()).or_default();
            let to = of.entry(postfix_id(&accepted)).or_default();
            to.extend(accepted.recipients.iter().map(|path| address(path)));
        }
        for taken in ses.taken() {
            let to = taken.to.map(|to| to.into_iter().collect());
            arrived.ses.entry(taken.message_id).or_default().push(to);
        }
        arrived
    }

    /// How often a message came.
    fn ways(&self, id: &str) -> usize {
        self.core.get(id).map_or(0, BTreeMap::len) + self.ses.get(id).map_or(0, Vec::len)
    }

    /// Every message came once, to all its recipients. The one honest exception: Postfix was killed
    /// between taking a message and saying so. Then it came twice, both times by Postfix.
    fn assert_once(&self, gate: &Gate, sent: &Mail) {
        let all = self.core.keys().chain(self.ses.keys());
        assert_eq!(all.cloned().collect::<BTreeSet<_>>(), sent.keys().cloned().collect());
        let attempts = gate.events("delivery");
        let lost = attempts.iter().filter(|e| e["status"] == "unconfirmed");
        let lost: BTreeSet<_> = lost.map(message_id).collect();
        for (id, to) in sent {
            let (core, ses) = (self.core.get(id), self.ses.get(id));
            let most = if lost.contains(id) { 2 } else { 1 };
            assert!(self.ways(id) <= most, "{id}: {core:?} {ses:?}");
            assert!(ses.is_none() || core.is_none(), "{id}: {core:?} {ses:?}");
            let by_core = core.into_iter().flat_map(BTreeMap::values);
            let got = by_core.chain(ses.into_iter().flatten().flatten());
            let to: BTreeSet<_> = to.iter().cloned().collect();
            got.for_each(|got| assert_eq!(*got, to, "{id}"));
        }
        assert!(!self.core.is_empty() && !self.ses.is_empty());
    }
}

/// The order of the route: nothing went by SES before Postfix was found dead, and the log tells of
/// both turns.
fn assert_order(gate: &Gate) {
    let log = gate.log();
    let events: Vec<Value> = log.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    let place = |what: &str, is: &dyn Fn(&Value) -> bool| {
        events.iter().position(is).unwrap_or_else(|| panic!("no {what}"))
    };
    let core = |to: &'static str| {
        move |e: &Value| e["event"] == "breaker" && e["upstream"] == "core" && e["to"] == to
    };
    let route = |from: &'static str, to: &'static str| {
        move |e: &Value| e["event"] == "route" && e["from"] == from && e["to"] == to
    };
    let opened = place("opening", &core("open"));
    let closed = place("closing", &core("closed"));
    assert!(events[opened]["reason"].as_str().is_some_and(|r| !r.is_empty()), "{}", events[opened]);
    let first = place("attempt by SES", &|e| e["event"] == "delivery" && e["upstream"] == "ses");
    assert!(opened < first && first < closed, "{opened} {first} {closed}");
    assert!(place("failover", &route("core", "ses")) < place("failback", &route("ses", "core")));
}

/// One line for each recipient and attempt names route and upstream, the right one.
fn assert_told(gate: &Gate, sent: &Mail, arrived: &Arrived) {
    let mut told: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for event in gate.events("delivery") {
        assert_eq!(event["route"], "default", "{event}");
        let upstream = event["upstream"].as_str().unwrap().to_owned();
        if event["status"] == "sent" {
            let to = address(event["to"].as_str().unwrap());
            told.entry((message_id(&event), to)).or_default().push(upstream);
        }
    }
    for (id, to) in sent.iter().flat_map(|(id, to)| to.iter().map(move |to| (id, to))) {
        let by = if arrived.ses.contains_key(id) { "ses" } else { "core" };
        assert_eq!(told[&(id.clone(), to.clone())], [by], "{id} {to}");
    }
    assert_eq!(told.len(), sent.values().map(Vec::len).sum::<usize>());
}

fn message_id(event: &Value) -> String {
    event["message_id"].as_str().unwrap().trim_matches(['<', '>']).to_owned()
}

/// Postfix's id for a message, in the Received line it adds.
fn postfix_id(accepted: &Accepted) -> String {
    let text = String::from_utf8_lossy(&accepted.content);
    let (_, rest) = text.split_once("by core.test (Postfix) with ESMTP id ").unwrap();
    rest.split([';', '\r', ' ']).next().unwrap().to_owned()
}

/// `a@b` of `<a@b>` and what follows.
fn address(path: &str) -> String {
    path.trim_start_matches('<').split('>').next().unwrap().to_owned()
}
