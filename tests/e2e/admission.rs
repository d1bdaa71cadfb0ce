//! Only `mynetworks` may relay; everybody else is told so in the greeting.

use std::net::IpAddr;

use crate::support::client::Client;
use crate::support::gate::{Gate, Settings};
use crate::support::mail::message;
use crate::support::sink::Sink;
use crate::support::{PATIENCE, local, tools};

const STRANGER: &str = "127.0.0.66";

#[test]
fn a_stranger_is_refused_in_the_greeting_and_may_only_quit() {
    let sink = Sink::start();
    let gate = Gate::start(&Settings::plain(sink.address));
    let mut client = Client::connect_from(ip(STRANGER), gate.address);
    let greeting = client.greeting.clone().expect(554).text();
    assert_eq!(greeting, "5.7.1 client [127.0.0.66] not permitted here (mynetworks)");
    client.command("EHLO stranger.test").expect(503);
    client.command("MAIL FROM:<a@example.test>").expect(503);
    client.command("QUIT").expect(221);
    assert!(client.is_closed());

    let event = gate.wait_event("rejected", |e| e["client"] == STRANGER);
    assert!(event["reply"].as_str().unwrap().contains("mynetworks"), "{event}");
    let mut friend = Client::hello(gate.address);
    friend.send("a@example.test", &["b@example.test"], &message("friend"));
    sink.wait_for("friend@test", PATIENCE);
    assert_eq!(sink.accepted().len(), 1);
}

#[test]
fn an_ipv6_peer_is_measured_by_its_own_network() {
    let sink = Sink::start();
    let mut settings = Settings { listen: "[::1]", ..Settings::plain(sink.address) };
    let gate = Gate::start(&settings);
    let greeting = Client::connect(gate.address).greeting.expect(554).text();
    assert!(greeting.contains("client [::1] not permitted"), "{greeting}");

    settings.mynetworks = vec!["[::1]/128"];
    let gate = Gate::start(&settings);
    let mut client = Client::hello(gate.address);
    client.send("a@example.test", &["b@example.test"], &message("six"));
    sink.wait_for("six@test", PATIENCE);
}

/// Our own sockets serve one family each; systemd's `[::]` serves both, and IPv4 comes in mapped.
#[test]
fn an_ipv4_peer_of_an_ipv6_socket_is_measured_as_ipv4() {
    let sink = Sink::start();
    let mut gate = Gate::stopped(&Settings { listen: "[::]", ..Settings::plain(sink.address) });
    let v4 = local(gate.address.port());
    gate.activate(&format!("[::]:{}", v4.port()));
    let stranger = Client::connect_from(ip(STRANGER), v4).greeting.expect(554).text();
    assert!(stranger.contains("client [127.0.0.66] not permitted"), "{stranger}");
    Client::connect(gate.address).greeting.expect(554);
    Client::hello(v4).send("a@example.test", &["b@example.test"], &message("mapped"));
    let got = sink.wait_for("mapped@test", PATIENCE);
    let content = String::from_utf8(got.content).unwrap();
    assert!(content.contains("[127.0.0.1]") && !content.contains("::ffff"), "{content}");
}

#[test]
fn nmap_finds_no_open_relay() {
    let sink = Sink::start();
    let strangers = Settings { mynetworks: vec!["127.0.0.2/32"], ..Settings::plain(sink.address) };
    let gate = Gate::start(&strangers);
    let said = tools::nmap_open_relay(gate.address).expect_code(0).stdout;
    assert!(said.contains("1 host up") && !said.contains("is an open relay"), "{said}");
    assert_eq!(sink.connections(), 0);
    // 21: the greeting was not 220.
    tools::swaks(gate.address, &message("stranger"), &[]).expect_code(21);
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}
