//! Who is served, and for how long.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::super::connection::Connection;
use super::super::{ListenerTls, Policy, bind};
use super::harness::{Client, Server, listener, policy, until};
use crate::policy::admission::Limits;
use crate::policy::networks::Networks;
use crate::smtp::Settings;

fn strangers() -> Policy {
    Policy { networks: Networks::parse(&["10.0.0.0/8"]).unwrap(), ..policy() }
}

/// A socket on `[::]` that IPv4 clients reach too, as systemd makes it.
fn dual_stack() -> TcpListener {
    let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None).unwrap();
    socket.set_only_v6(false).unwrap();
    let any: std::net::SocketAddr = "[::]:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    socket.listen(16).unwrap();
    socket.into()
}

fn start_dual_stack(policy: Policy) -> Server {
    let socket = dual_stack();
    let address = socket.local_addr().unwrap().to_string();
    let bound = bind(&[listener(&address, ListenerTls::None)], vec![socket]).unwrap();
    Server::start_on(bound, policy, Duration::from_secs(5))
}

#[tokio::test]
async fn a_stranger_is_refused_in_the_greeting_over_ipv4_ipv6_and_mapped() {
    let server = start_dual_stack(strangers());
    let port = server.address.port();
    for (target, shown) in [("127.0.0.1", "127.0.0.1"), ("::1", "::1")] {
        let stream = tokio::net::TcpStream::connect((target, port)).await.unwrap();
        let mut c = Client::new(stream);
        let greeting = c.reply().await;
        let refusal = format!("554 5.7.1 client [{shown}] not permitted here (mynetworks)");
        assert_eq!(greeting, refusal);
        c.say("EHLO c.example", "503 5").await;
        c.say("MAIL FROM:<a@example.com>", "503 5").await;
        c.say("QUIT", "221").await;
        c.expect_closed().await;
    }
}

#[tokio::test]
async fn a_mapped_peer_is_the_peer_within() {
    let server = start_dual_stack(policy());
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", server.address.port())).await;
    let mut c = Client::new(stream.unwrap()).greeted().await;
    c.start_mail(&["b@example.org"]).await;
    c.say("\r\n.", "250 2.0.0").await;
    let (message, body) = server.spool.last();
    assert_eq!(message.client.address.to_string(), "127.0.0.1");
    assert!(body.starts_with(b"Received: from c.example ([127.0.0.1])\r\n"));
}

#[tokio::test]
async fn one_peer_gets_its_share_and_everybody_together_the_total() {
    let limits = Limits { total: 3, per_peer: 2 };
    let server = Server::start(Policy { limits, ..policy() });
    let mut one = server.client_from("127.0.0.1").await.greeted().await;
    let _two = server.client_from("127.0.0.1").await.greeted().await;
    let mut third = server.client_from("127.0.0.1").await;
    third.expect("421 4.7.0").await;
    third.expect_closed().await;
    let _other = server.client_from("127.0.0.2").await.greeted().await;
    server.client_from("127.0.0.3").await.expect("421 4.3.2").await;
    one.say("QUIT", "221").await;
    one.expect_closed().await;
    drop(one);
    loop {
        let mut again = server.client_from("127.0.0.3").await;
        if again.reply().await.starts_with("220") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn strangers_cannot_use_up_the_places() {
    let limits = Limits { total: 1, per_peer: 1 };
    let refused = Limits { total: 2, per_peer: 2 };
    let networks = Networks::parse(&["127.0.0.2"]).unwrap();
    let server = Server::start(Policy { networks, limits, refused, ..policy() });
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut c = server.client().await;
        c.expect("554 5.7.1").await;
        c.say("NOOP", "503").await;
        held.push(c);
    }
    for _ in 0..20 {
        let mut c = server.client().await;
        c.expect("554 5.7.1").await;
        c.expect_closed().await;
    }
    let mut friend = server.client_from("127.0.0.2").await.greeted().await;
    friend.say("NOOP", "250").await;
}

#[tokio::test]
async fn a_peer_that_a_reload_takes_out_is_refused_at_its_next_message() {
    let server = Server::start(policy());
    let mut c = server.client().await.greeted().await;
    c.start_mail(&["b@example.org"]).await;
    server.policy.store(Arc::new(strangers()));
    c.say("\r\n.", "250 2.0.0").await;
    c.say("MAIL FROM:<a@example.com>", "554 5.7.1").await;
    server.client().await.expect("554 5.7.1").await;
    server.policy.store(Arc::new(policy()));
    c.say("MAIL FROM:<a@example.com>", "250").await;
}

#[tokio::test]
async fn who_talks_before_the_greeting_is_sent_away() {
    let bound = bind(&[listener("127.0.0.1:0", ListenerTls::None)], Vec::new()).unwrap();
    let mut early = std::net::TcpStream::connect(bound[0].local_addr().unwrap()).unwrap();
    std::io::Write::write_all(&mut early, b"EHLO c\r\nMAIL FROM:<a@b>\r\n").unwrap();
    early.set_nonblocking(true).unwrap();
    let _server = Server::start_on(bound, policy(), Duration::from_secs(5));
    let mut c = Client::new(tokio::net::TcpStream::from_std(early).unwrap());
    c.expect("421 ").await;
    c.expect_closed().await;
}

#[tokio::test]
async fn a_silent_client_is_told_and_closed_at_the_deadline() {
    let smtp = Settings { command_timeout: Duration::from_millis(50), ..(*policy().smtp).clone() };
    let server = Server::start(Policy { smtp: Arc::new(smtp), ..policy() });
    let mut c = server.client().await.greeted().await;
    c.expect("421 4.4.2").await;
    c.expect_closed().await;
}

#[tokio::test]
async fn a_drain_lets_the_open_transaction_finish_and_nothing_more() {
    let server = Server::start(policy());
    let mut idle = server.client().await.greeted().await;
    let mut busy = server.client().await.greeted().await;
    busy.start_mail(&["b@example.org"]).await;
    busy.send("Subject: x\r\n\r\npart one\r\n").await;
    server.shutdown.cancel();
    idle.expect("421 4.3.2").await;
    idle.expect_closed().await;
    busy.say("part two\r\n.", "250 2.0.0").await;
    busy.expect("421 4.3.2").await;
    busy.expect_closed().await;
    let (spool, address) = (server.spool.clone(), server.address);
    server.stopped().await;
    assert_eq!(spool.count(), 1);
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_drain_does_not_wait_for_ever() {
    let bound = bind(&[listener("127.0.0.1:0", ListenerTls::None)], Vec::new()).unwrap();
    let server = Server::start_on(bound, policy(), Duration::from_millis(50));
    let mut c = server.client().await.greeted().await;
    c.start_mail(&["b@example.org"]).await;
    c.send("Subject: x\r\n\r\nnever finished\r\n").await;
    until(|| server.spool.drafts.load(Ordering::SeqCst) == 1).await;
    server.shutdown.cancel();
    let spool = server.spool.clone();
    server.stopped().await;
    assert_eq!((spool.drafts.load(Ordering::SeqCst), spool.count()), (0, 0));
    c.expect_closed().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_given_up() {
    let smtp = Settings { command_timeout: Duration::from_millis(100), ..(*policy().smtp).clone() };
    let limits = Limits { total: 1, per_peer: 1 };
    let server = Server::start(Policy { smtp: Arc::new(smtp), limits, ..policy() });
    let mut c = server.client().await;
    let flood = "NOOP\r\n".repeat(10_000);
    c.expect("220").await;
    let mut stream = c.into_stream();
    while tokio::io::AsyncWriteExt::write_all(&mut stream, flood.as_bytes()).await.is_ok() {}
    loop {
        let mut next = server.client().await;
        if next.reply().await.starts_with("220") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn an_idle_connection_is_small() {
    fn size_of_future<F>(_: impl Fn(Connection, tokio::net::TcpStream) -> F) -> usize {
        size_of::<F>()
    }
    let task = size_of_future(|c, stream| c.serve(stream, None));
    assert!(task + 1024 < 16 * 1024, "{task}");
}
