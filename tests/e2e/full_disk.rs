//! A disk that fills up: new mail waits at its sender, everything else goes on.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::client::{Client, Reply};
use crate::support::disk::Disk;
use crate::support::gate::{Gate, Settings};
use crate::support::mail::{below_received, message, with_body};
use crate::support::sink::Sink;
use crate::support::{PATIENCE, eventually};

/// Room for two segments and some bodies.
const MIB: u32 = 192;
const CLIENTS: usize = 4;
const ROUNDS: usize = 6;

fn mail(client: &mut Client) -> Reply {
    let reply = client.command("MAIL FROM:<a@b.test>");
    client.command("RSET").expect(250);
    reply
}

#[test]
fn below_min_free_new_mail_is_put_off_and_all_else_goes_on() {
    let disk = Disk::tmpfs(MIB);
    let mut sink = Sink::down();
    let settings = Settings {
        spool_path: Some(disk.path().join("spool")),
        spool: "allow_volatile = true\nmin_free = \"16MiB\"",
        ..Settings::plain(sink.address)
    };
    let gate = Gate::start(&settings);
    let mut client = Client::hello(gate.address);
    let ids: Vec<_> = (0..3)
        .map(|n| client.send("a@b.test", &["c@d.test"], &message(&format!("early-{n}"))))
        .collect();

    disk.fill(8 << 20);
    let refused =
        eventually(PATIENCE, "452", || Some(mail(&mut client)).filter(|reply| reply.code != 250));
    assert_eq!((refused.code, &refused.text()[..5]), (452, "4.3.1"), "{}", refused.text());
    // Before its DATA, in every session, and monitors are told.
    Client::hello(gate.address).command("MAIL FROM:<a@b.test>").expect(452);
    let said = gate.cli(&["healthcheck"]).expect_code(1).stderr;
    assert!(said.contains("min_free"), "{said}");
    gate.cli(&["healthcheck", "live"]).expect_code(0);

    // State changes succeed, and delivery goes on.
    eventually(PATIENCE, "a message that is not being tried", || {
        (gate.cli(&["queue", "hold", &ids[0]]).code == Some(0)).then_some(())
    });
    sink.up();
    sink.wait_count(2, PATIENCE);
    eventually(PATIENCE, "one held message", || (gate.queue().len() == 1).then_some(()));
    gate.cli(&["queue", "release", &ids[0]]).expect_code(0);
    sink.wait_count(3, PATIENCE);
    gate.wait_empty(PATIENCE);
    assert_eq!(mail(&mut client).code, 452, "the disk is as full as before");

    // Service resumes by itself.
    disk.free();
    eventually(PATIENCE, "250", || (mail(&mut client).code == 250).then_some(()));
    client.send("a@b.test", &["c@d.test"], &message("late"));
    sink.wait_for("late@test", PATIENCE);
    assert!(sink.counts().values().all(|n| *n == 1), "{:?}", sink.counts());
}

/// What the clients know.
#[derive(Default)]
struct Load {
    acknowledged: Mutex<HashMap<String, usize>>,
    /// Told 452 only after the content.
    refused: AtomicUsize,
    stop: AtomicBool,
}

#[test]
fn a_disk_that_fills_up_in_the_middle_of_commits_loses_nothing_acknowledged() {
    let disk = Disk::tmpfs(MIB);
    let sink = Sink::start();
    let settings = Settings {
        spool_path: Some(disk.path().join("spool")),
        // Never low: the disk itself has to say no.
        spool: "allow_volatile = true\nmin_free = \"1B\"",
        ..Settings::plain(sink.address)
    };
    let mut gate = Gate::start(&settings);
    let load = Load::default();
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (load, address) = (&load, gate.address);
            scope.spawn(move || load.run(client, address));
        }
        for round in 1..=ROUNDS {
            disk.fill(0);
            let refused = load.refused.load(Ordering::SeqCst);
            eventually(PATIENCE, "a refusal for want of room", || {
                (load.refused.load(Ordering::SeqCst) > refused).then_some(())
            });
            if round == ROUNDS / 2 {
                // With the disk full, and opened so again.
                gate.kill();
                gate.up();
            }
            disk.free();
            let known = load.count();
            eventually(PATIENCE, "new mail", || (load.count() > known + 3).then_some(()));
        }
        load.stop.store(true, Ordering::SeqCst);
    });
    gate.wait_empty(Duration::from_mins(1));

    let acknowledged = load.acknowledged.into_inner().unwrap();
    let refused = load.refused.into_inner();
    let counts = sink.counts();
    let doubled: usize = counts.values().map(|n| n - 1).sum();
    eprintln!("{} acknowledged, {refused} refused, {doubled} doubled", acknowledged.len());
    for accepted in sink.accepted() {
        let (_, content) = below_received(&accepted.content, 1);
        if let Some(size) = acknowledged.get(&accepted.message_id()) {
            assert_eq!(content.len(), *size, "{}", accepted.message_id());
        }
    }
    let lost: Vec<_> = acknowledged.keys().filter(|id| !counts.contains_key(*id)).collect();
    assert!(lost.is_empty(), "{} lost of {}: {lost:?}", lost.len(), acknowledged.len());
    gate.term();
    assert!(gate.ended(PATIENCE).success());
    gate.cli(&["spool", "verify"]).expect_code(0);
}

impl Load {
    fn count(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }

    /// Sends bodies of their own file and others until told to stop, and starts over when the
    /// connection breaks.
    fn run(&self, client: usize, address: SocketAddr) {
        let mut connection = None;
        for n in 0.. {
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            let Some(mut open) = connection.take().or_else(|| greeted(address)) else {
                std::thread::sleep(Duration::from_millis(5));
                continue;
            };
            let id = format!("full-{client}-{n}");
            let lines = if n % 3 == 0 { 20_000 } else { 60_000 };
            let content = with_body(&id, &b"0123456789\r\n".repeat(lines));
            match transaction(&mut open, &content) {
                Ok((true, reply)) if reply.code == 250 => {
                    self.acknowledged.lock().unwrap().insert(format!("{id}@test"), content.len());
                    connection = Some(open);
                }
                Ok((after_content, reply)) => {
                    assert!(matches!(reply.code, 421 | 451 | 452), "{id}: {}", reply.text());
                    self.refused.fetch_add(usize::from(after_content), Ordering::SeqCst);
                    // What the disk has no room for is not sent again at once.
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(_) => {}
            }
        }
    }
}

fn greeted(address: SocketAddr) -> Option<Client> {
    let mut client = Client::try_connect(address, None).ok()?;
    let reply = client.try_command("EHLO client.test").ok()?;
    (client.greeting.code == 220 && reply.code == 250).then_some(client)
}

/// The last reply, and whether it is the one to the content.
fn transaction(client: &mut Client, content: &[u8]) -> std::io::Result<(bool, Reply)> {
    for line in ["MAIL FROM:<a@example.test>", "RCPT TO:<b@example.test>"] {
        let reply = client.try_command(line)?;
        if reply.code != 250 {
            return Ok((false, reply));
        }
    }
    client.try_data(content).map(|reply| (true, reply))
}
