//! Bad input gets the reply of RFC 5321, and costs others nothing.

use std::net::IpAddr;
use std::time::Duration;

use crate::support::PATIENCE;
use crate::support::client::Client;
use crate::support::gate::{Gate, Settings};
use crate::support::mail::{head, message, with_body};
use crate::support::sink::Sink;

#[test]
fn a_session_survives_what_is_only_wrong() {
    let sink = Sink::start();
    let gate = Gate::start(&Settings::plain(sink.address));
    let mut client = Client::hello(gate.address);
    let cases: [(&[u8], u16); 6] = [
        (b"FROBNICATE", 500),
        (b"DATA", 503),
        (b"RCPT TO:<a@example.test>", 503),
        (b"MAIL FROM:<no brackets", 501),
        (b"MAIL FROM:<a@example.test> WHAT=EVER", 555),
        (b"MAIL FROM:<a\x00b@example.test>", 501),
    ];
    for (line, code) in cases {
        client.write(&[line, b"\r\n"].concat()).unwrap();
        let reply = client.reply().unwrap();
        assert_eq!(reply.code, code, "{}: {}", line.escape_ascii(), reply.text());
        let status = reply.lines[0].split(' ').next().unwrap();
        assert!(status.starts_with("5.") && status.len() >= 5, "no enhanced code: {reply:?}");
    }
    client.send("a@example.test", &["b@example.test"], &message("survived"));
    sink.wait_for("survived@test", PATIENCE);
}

#[test]
fn a_web_browser_is_sent_away() {
    let sink = Sink::start();
    let gate = Gate::start(&Settings::plain(sink.address));
    let mut client = Client::connect(gate.address);
    client.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\nMAIL FROM:<a@b.test>\r\n").unwrap();
    client.reply().unwrap().expect(421);
    assert!(client.is_closed());
}

#[test]
fn garbage_without_end_is_cut_off_and_costs_no_memory() {
    let sink = Sink::start();
    let limits = "command_timeout = \"1s\"";
    let gate = Gate::start(&Settings { limits, ..Settings::plain(sink.address) });
    Client::hello(gate.address);
    let before = gate.memory();
    for byte in [b'A', 0xff, 0, b'\r'] {
        let mut client = Client::connect(gate.address);
        let chunk = vec![byte; 1 << 20];
        // Until it closes, at most 64 MiB.
        let _ = (0..64).try_for_each(|_| client.write(&chunk));
        // The line is refused, and the time for the next command does not begin anew with every
        // octet. When it closes while we still write, the replies may be lost.
        let said: Vec<_> = std::iter::from_fn(|| client.reply().ok()).map(|r| r.code).collect();
        assert!(["[500, 421]", "[500]", "[]"].contains(&&*format!("{said:?}")), "{byte}: {said:?}");
        assert!(client.is_closed(), "octet {byte}");
    }
    crate::support::eventually(PATIENCE, "four timeouts", || {
        let ends = gate.events("disconnected");
        (ends.iter().filter(|e| e["reason"] == "timeout").count() == 4).then_some(())
    });
    let grown = gate.memory() - before;
    assert!(grown < 8 * 1024, "{grown} KiB more");
    Client::hello(gate.address).send("a@b.test", &["c@d.test"], &message("after"));
    sink.wait_for("after@test", PATIENCE);
}

#[test]
fn only_crlf_dot_crlf_ends_a_message() {
    let sink = Sink::start();
    let gate = Gate::start(&Settings::plain(sink.address));
    let attack =
        |end: &str| format!("text{end}MAIL FROM:<evil@example.test>\r\nRCPT TO:<x@y.test>\r\n");
    for (n, end) in
        ["\n.\n", "\n.\r\n", "\r.\r", "\r\n.\n", "\r\n.\r", "\r.\r\n"].iter().enumerate()
    {
        let mut client = Client::hello(gate.address);
        client.envelope("a@example.test", &["b@example.test"]);
        client.command("DATA").expect(354);
        client.write(&with_body(&format!("smuggle-{n}"), attack(end).as_bytes())).unwrap();
        client.write(b".\r\n").unwrap();
        let reply = client.reply().unwrap();
        assert!(matches!(reply.code, 250 | 550), "{end:?}: {}", reply.text());
        client.command("QUIT").expect(221);
        if reply.code == 250 {
            let got = sink.wait_for(&format!("smuggle-{n}@test"), PATIENCE).content;
            let bare = got.windows(2).any(|w| (w[0] == b'\r') != (w[1] == b'\n'));
            assert!(!bare, "{end:?}: a bare CR or LF goes out: {}", got.escape_ascii());
        }
    }
    let senders: Vec<_> = sink.accepted().into_iter().map(|a| a.mail).collect();
    assert!(senders.iter().all(|m| !m.contains("evil")), "{senders:?}");
}

#[test]
fn one_peer_cannot_take_every_connection() {
    let sink = Sink::start();
    let settings = Settings {
        mynetworks: vec!["127.0.0.0/8"],
        limits: "max_connections = 6\nmax_connections_per_ip = 4",
        ..Settings::plain(sink.address)
    };
    let gate = Gate::start(&settings);
    let from = |ip: &str| Client::connect_from(ip.parse::<IpAddr>().unwrap(), gate.address);
    // Who has just gone may not be forgotten yet, as the one that looked whether the door is open.
    let enter = |ip: &str| {
        crate::support::eventually(PATIENCE, "a free place", || {
            let client = from(ip);
            (client.greeting.code == 220).then_some(client)
        })
    };
    let mut open: Vec<_> = (0..4).map(|_| enter("127.0.0.1")).collect();
    let refused = from("127.0.0.1").greeting.expect(421).text();
    assert!(refused.starts_with("4.7.0"), "{refused}");
    open.extend((0..2).map(|_| enter("127.0.0.2")));
    let refused = from("127.0.0.3").greeting.expect(421).text();
    assert!(refused.starts_with("4.3.2"), "{refused}");
    open.clear();
    enter("127.0.0.3");
}

#[test]
fn many_slow_large_uploads_cost_bounded_memory_and_none_that_was_taken_is_lost() {
    const CLIENTS: usize = 200;
    /// What may be in memory of messages, and of connections.
    const BOUND_KIB: u64 = 16 * 1024 + 200 * 128;
    let sink = Sink::start();
    let limits = "memory = \"16MiB\"\nmax_connections_per_ip = 300";
    let gate = Gate::start(&Settings { limits, ..Settings::plain(sink.address) });
    Client::hello(gate.address);
    let before = gate.memory();
    let upload = |n: usize| {
        let mut client = Client::hello(gate.address);
        client.envelope("a@example.test", &["b@example.test"]);
        client.command("DATA").expect(354);
        client.write(head(&format!("slow-{n}")).as_bytes()).unwrap();
        for piece in 0..20 {
            client.write(&b"0123456789abcdef\r\n".repeat(2048)).unwrap();
            std::thread::sleep(Duration::from_millis(if piece == 10 { 1500 } else { 25 }));
        }
        client.write(b".\r\n").unwrap();
        client.reply().unwrap().code
    };
    let codes: Vec<u16> = std::thread::scope(|scope| {
        let uploads: Vec<_> = (0..CLIENTS).map(|n| scope.spawn(move || upload(n))).collect();
        uploads.into_iter().map(|u| u.join().unwrap()).collect()
    });
    let grown = gate.memory() - before;
    let taken = codes.iter().filter(|code| **code == 250).count();
    eprintln!("{taken} of {CLIENTS} uploads of 720 KiB taken, {grown} KiB more");
    assert!(codes.iter().all(|code| matches!(code, 250 | 451 | 452)), "{codes:?}");
    assert!(taken > 0);
    assert!(grown < BOUND_KIB, "{grown} KiB more");
    sink.wait_count(taken, PATIENCE);
    gate.wait_empty(PATIENCE);
    assert_eq!(sink.accepted().len(), taken);
}
