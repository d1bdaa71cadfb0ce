//! A 250 is a debt: what was acknowledged arrives, whatever happens to the process.

use std::collections::HashSet;
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
const KILLS: usize = 5;
/// Attempts at a time, the upper limit of what one crash may double.
const ACTIVE: usize = 20;

/// What the clients know.
#[derive(Default)]
struct Load {
    acknowledged: Mutex<HashSet<String>>,
    sent: AtomicUsize,
    stop: AtomicBool,
}

#[test]
fn every_message_acknowledged_under_load_arrives_after_kill_9() {
    let sink = Sink::start();
    let mut gate = Gate::start(&Settings::plain(sink.address));
    let load = Load::default();
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (load, address) = (&load, gate.address);
            scope.spawn(move || load.run(client, address));
        }
        for kill in 0..KILLS {
            load.wait_for((kill + 1) * 150);
            gate.kill();
            gate.up();
        }
        load.wait_for((KILLS + 1) * 150);
        load.stop.store(true, Ordering::SeqCst);
    });
    gate.wait_empty(Duration::from_mins(1));

    let counts = sink.counts();
    let acknowledged = load.acknowledged.into_inner().unwrap();
    let lost: Vec<_> = acknowledged.iter().filter(|id| !counts.contains_key(*id)).collect();
    let doubled: usize = counts.values().map(|n| n - 1).sum();
    eprintln!(
        "{} sent, {} acknowledged, {} arrived, {doubled} doubled by {KILLS} kills",
        load.sent.load(Ordering::SeqCst),
        acknowledged.len(),
        counts.len()
    );
    assert!(lost.is_empty(), "{} lost of {}: {lost:?}", lost.len(), acknowledged.len());
    assert!(doubled <= KILLS * ACTIVE, "{doubled} doubled");
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
