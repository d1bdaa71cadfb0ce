//! A 250 is a debt: what was acknowledged arrives, whatever happens to the process.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::PATIENCE;
use crate::support::client::Client;
use crate::support::gate::{Gate, Settings};
use crate::support::mail::with_body;
use crate::support::sink::Sink;

const CLIENTS: usize = 6;
/// In a test of all; `just crash-long` has more.
const KILLS: usize = 10;
/// Messages that are acknowledged between two kills.
const BETWEEN: usize = 120;
/// Connections to the smarthost, and so what one kill may double: whatever else was handed over had
/// its end written down before its connection was used again.
const CONNECTIONS: usize = 8;

/// What the clients know.
#[derive(Default)]
struct Load {
    /// What was sent to the end, whatever came of it.
    offered: Mutex<HashSet<String>>,
    acknowledged: Mutex<HashSet<String>>,
    sent: AtomicUsize,
    stop: AtomicBool,
}

#[test]
fn every_message_acknowledged_under_load_arrives_after_kill_9() {
    let kills = kills();
    let sink = Sink::start();
    let settings = Settings::plain(sink.address);
    let upstream = format!("{}\npool = {{ max_connections = {CONNECTIONS} }}", settings.upstream);
    let mut gate = Gate::start(&Settings { upstream, ..settings });
    let load = Load::default();
    let mut moments = Vec::new();
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (load, address) = (&load, gate.address);
            scope.spawn(move || load.run(client, address));
        }
        for kill in 1..=kills {
            load.wait_for(kill * BETWEEN);
            gate.kill();
            // What was on the wire arrives before the next process says anything.
            sink.wait_idle(PATIENCE);
            moments.push(sink.arrivals().len());
            gate.up();
        }
        load.wait_for((kills + 1) * BETWEEN);
        load.stop.store(true, Ordering::SeqCst);
    });
    gate.wait_empty(Duration::from_mins(1));

    let counts = sink.counts();
    let acknowledged = load.acknowledged.into_inner().unwrap();
    let lost: Vec<_> = acknowledged.iter().filter(|id| !counts.contains_key(*id)).collect();
    let doubled = explained(&sink, &moments);
    eprintln!(
        "{} sent, {} acknowledged, {} arrived, {doubled} doubled by {kills} kills",
        load.sent.load(Ordering::SeqCst),
        acknowledged.len(),
        counts.len()
    );
    assert!(lost.is_empty(), "{} lost of {}: {lost:?}", lost.len(), acknowledged.len());
    let unknown: Vec<_> =
        counts.keys().filter(|id| !load.offered.lock().unwrap().contains(*id)).collect();
    assert!(unknown.is_empty(), "nobody sent {unknown:?}");
}

fn kills() -> usize {
    let kills = std::env::var("POSTGATE_KILLS").ok();
    kills.map_or(KILLS, |n| n.parse().expect("POSTGATE_KILLS is a number"))
}

/// How many arrivals were not the first of their message. Each is explained by a kill between it and
/// the one before, and no kill explains more than were in flight then.
fn explained(sink: &Sink, moments: &[usize]) -> usize {
    let mut last = HashMap::new();
    let mut by_kill = vec![0; moments.len()];
    for (at, id) in sink.arrivals().into_iter().enumerate() {
        let Some(before) = last.insert(id.clone(), at) else { continue };
        let kill = moments.iter().rposition(|m| before < *m && *m <= at);
        let kill = kill.unwrap_or_else(|| panic!("{id} came at {before} and {at}: {moments:?}"));
        by_kill[kill] += 1;
    }
    assert!(by_kill.iter().all(|doubled| *doubled <= CONNECTIONS), "{by_kill:?}");
    by_kill.into_iter().sum()
}

#[test]
fn a_queue_survives_being_killed_while_the_smarthost_is_down() {
    let mut sink = Sink::down();
    let mut gate = Gate::start(&Settings::plain(sink.address));
    let large = with_body("large", &b"0123456789\r\n".repeat(200_000));
    let mut client = Client::hello(gate.address);
    let mut ids: Vec<_> = (0..50)
        .map(|n| with_body(&format!("small-{n}"), b"x\r\n"))
        .map(|content| client.send("a@example.test", &["b@example.test"], &content))
        .collect();
    ids.push(client.send("a@example.test", &["b@example.test"], &large));
    gate.kill();
    gate.up();
    let mut queued: Vec<_> =
        gate.queue().iter().map(|e| e["queue_id"].as_str().unwrap().to_owned()).collect();
    queued.sort();
    assert_eq!(queued, ids, "ids are kept, and are in the order of arrival");
    sink.up();
    sink.wait_count(ids.len(), PATIENCE);
    gate.wait_empty(PATIENCE);
    assert!(sink.counts().values().all(|n| *n == 1), "{:?}", sink.counts());
}

impl Load {
    /// Sends until told to stop, and starts over when the connection breaks.
    fn run(&self, client: usize, address: SocketAddr) {
        let mut connection = None;
        for n in 0.. {
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            if connection.is_none() {
                connection = greeted(address);
            }
            let Some(open) = &mut connection else {
                std::thread::sleep(Duration::from_millis(5));
                continue;
            };
            let id = format!("load-{client}-{n}");
            // Some are large enough for a file of their own.
            let body = b"0123456789\r\n".repeat(if n % 40 == 0 { 100_000 } else { 100 });
            self.sent.fetch_add(1, Ordering::SeqCst);
            self.offered.lock().unwrap().insert(format!("{id}@test"));
            match transaction(open, &with_body(&id, &body)) {
                Ok(250) => {
                    self.acknowledged.lock().unwrap().insert(format!("{id}@test"));
                }
                Ok(code) => assert!(code / 100 == 4, "{id}: {code}"),
                Err(_) => connection = None,
            }
        }
    }

    fn wait_for(&self, count: usize) {
        let start = Instant::now();
        while self.acknowledged.lock().unwrap().len() < count {
            assert!(start.elapsed() < Duration::from_mins(1), "too slow to reach {count}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn greeted(address: SocketAddr) -> Option<Client> {
    let mut client = Client::try_connect(address, None).ok()?;
    let reply = client.try_command("EHLO client.test").ok()?;
    (client.greeting.code == 220 && reply.code == 250).then_some(client)
}

fn transaction(client: &mut Client, content: &[u8]) -> std::io::Result<u16> {
    for line in ["MAIL FROM:<a@example.test>", "RCPT TO:<b@example.test>"] {
        let reply = client.try_command(line)?;
        if reply.code != 250 {
            return Ok(reply.code);
        }
    }
    client.try_data(content).map(|reply| reply.code)
}
