//! What Prometheus and probes see.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use crate::support::client::Client;
use crate::support::gate::{Gate, Settings};
use crate::support::http::{get, value};
use crate::support::mail::message;
use crate::support::sink::Sink;
use crate::support::{PATIENCE, eventually, free_port, local};

#[test]
fn counters_stand_at_zero_from_the_start_and_follow_the_mail() {
    let sink = Sink::start();
    let address = local(free_port());
    let more = &format!("[metrics]\nlisten = \"{address}\"");
    let gate = Gate::start(&Settings { more, ..Settings::plain(sink.address) });
    let received = "postgate_messages_received_total{listener=\"test\"}";
    let sent = "postgate_delivery_attempts_total\
                {route=\"default\",upstream=\"core\",result=\"sent\"}";
    let page = get(address, "/metrics");
    assert_eq!((value(&page, received), value(&page, sent)), (Some(0.0), Some(0.0)), "{page}");

    for n in 0..3 {
        let id = format!("counted-{n}");
        Client::hello(gate.address).send("a@b.test", &["c@d.test"], &message(&id));
        sink.wait_for(&format!("{id}@test"), PATIENCE);
    }
    let page = eventually(PATIENCE, "three messages are counted", || {
        let page = get(address, "/metrics");
        (value(&page, sent) == Some(3.0)).then_some(page)
    });
    assert_eq!(value(&page, received), Some(3.0));
    assert_eq!(
        value(&page, "postgate_message_latency_seconds_count{route=\"default\"}"),
        Some(3.0)
    );
    let closed = "postgate_upstream_breaker_state{upstream=\"core\",state=\"closed\"}";
    assert_eq!(value(&page, closed), Some(1.0), "{page}");
    assert!(get(address, "/readyz").starts_with("HTTP/1.1 200"));
}

#[test]
fn damage_in_the_spool_is_counted() {
    let sink = Sink::down();
    let address = local(free_port());
    let more = &format!("[metrics]\nlisten = \"{address}\"");
    let mut gate = Gate::start(&Settings { more, ..Settings::plain(sink.address) });
    for n in 0..3 {
        let text = message(&format!("kept-{n}"));
        Client::hello(gate.address).send("a@b.test", &["c@d.test"], &text);
    }
    gate.kill();
    // Into the first record, right behind the segment's header.
    let segment = gate.spool().join("seg/0000000001.seg");
    let file = OpenOptions::new().write(true).open(segment).unwrap();
    file.write_all_at(b"damage", 64 + 8).unwrap();
    gate.up();
    let page = get(address, "/metrics");
    assert_eq!(value(&page, "postgate_spool_damaged_ranges_total"), Some(1.0), "{page}");
    let queued = |state| value(&page, &format!("postgate_queue_messages{{state=\"{state}\"}}"));
    let left = ["incoming", "active", "deferred"].map(|state| queued(state).unwrap());
    assert_eq!(left.iter().sum::<f64>().to_string(), "2", "{page}");
}
