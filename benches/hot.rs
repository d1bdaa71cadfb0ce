//! The functions every message passes, alone: no socket, no disk, no clock.
#![allow(
    clippy::unwrap_used,
    missing_docs,
    clippy::disallowed_methods,
    reason = "a measurement stops at the first thing that is not as it should be, and reads clocks"
)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use postgate::clock::Timestamp;
use postgate::mail::facts::Scan;
use postgate::mail::header::{self, Trace};
use postgate::mail::{Mailbox, QueueId};
use postgate::policy::breaker::{self, Breaker};
use postgate::smtp::data::{Decoder, Limits};
use postgate::smtp::session::{BareNewline, Session, Settings, Step, Verdict};
use postgate::smtp::stuff::Stuffer;

/// Octets of the message.
const SIZE: usize = 10 << 10;
const HEADER: &[u8] = b"From: Ana <ana@example.com>\r\nTo: bob@example.net\r\nSubject: Report\r\n\
    Date: Sat, 21 Nov 2026 12:00:00 +0000\r\nMessage-ID: <1@example.com>\r\n\
    MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n";
const LINE: &[u8] = b"The quick brown fox jumps over the lazy dog, and the dog does not mind.\r\n";

criterion_main!(hot);
criterion_group! {
    name = hot;
    config = Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3));
    targets = session, content, header, breaker
}

/// A whole conversation with one message: all that the protocol costs.
fn session(criterion: &mut Criterion) {
    let now = Instant::now();
    let settings = Arc::new(settings());
    let message = message();
    let commands: [&[u8]; 4] = [
        b"EHLO app\r\n",
        b"MAIL FROM:<ana@example.com> SIZE=10240\r\n",
        b"RCPT TO:<bob@example.net>\r\n",
        b"DATA\r\n",
    ];
    criterion.bench_function("a session with a message of 10 KiB", |bencher| {
        bencher.iter(|| {
            let mut session = Session::new(Arc::clone(&settings), now);
            let mut queued = until_it_reads(&mut session, now);
            for piece in commands.into_iter().chain([message.as_slice(), b".\r\nQUIT\r\n"]) {
                session.receive(piece, now);
                queued += until_it_reads(&mut session, now);
            }
            assert_eq!(queued, 1);
        });
    });
}

/// Does what the session says; gives how many messages were complete.
fn until_it_reads(session: &mut Session, now: Instant) -> usize {
    let mut queued = 0;
    loop {
        match session.step(now) {
            Step::Begin(_) => session.decided(Verdict::Go),
            Step::Accept(_) => {
                queued += 1;
                session.decided(Verdict::Queued(QueueId::from_u64(queued as u64)));
            }
            Step::Read { .. } | Step::Close => return queued,
            step => drop(black_box(step)),
        }
    }
}

/// What reads every octet of a message.
fn content(criterion: &mut Criterion) {
    let message = message();
    let on_the_wire = [message.as_slice(), b".\r\n"].concat();
    let mut group = criterion.benchmark_group("content of 10 KiB");
    group.throughput(Throughput::Bytes(SIZE as u64));
    let limits = Limits { size: 1 << 30, line: 1 << 20, bare_newline: BareNewline::Normalize };
    let mut out = Vec::with_capacity(2 * SIZE);
    group.bench_function("decoded", |bencher| {
        bencher.iter(|| {
            out.clear();
            assert!(Decoder::data(limits).decode(black_box(&on_the_wire), &mut out).ended);
        });
    });
    group.bench_function("stuffed", |bencher| {
        bencher.iter(|| {
            out.clear();
            let mut stuffer = Stuffer::default();
            stuffer.push(black_box(&message), &mut out).unwrap();
            stuffer.finish(&mut out).unwrap();
        });
    });
    group.bench_function("scanned for facts", |bencher| {
        bencher.iter(|| {
            let mut scan = Scan::new(&[]);
            scan.push(black_box(&message));
            scan.finish()
        });
    });
    group.finish();
}

/// The header work at acceptance.
fn header(criterion: &mut Criterion) {
    let settings = header::Settings {
        hostname: "relay.example.com".into(),
        max_header: 1 << 20,
        max_hops: 50,
        show_address: true,
        show_helo: true,
    };
    let trace = Trace {
        peer: "10.0.0.5".parse().unwrap(),
        helo: "app",
        protocol: "ESMTP",
        id: QueueId::from_u64(1),
        recipient: None,
        at: Timestamp::from_millis(1_795_000_000_000),
    };
    criterion.bench_function("a header rewritten", |bencher| {
        bencher.iter(|| header::rewrite(&settings, &trace, black_box(HEADER)).unwrap());
    });
}

/// Asked before and told after each attempt.
fn breaker(criterion: &mut Criterion) {
    let now = Instant::now();
    let mut breaker = Breaker::new(breaker::Settings::default());
    criterion.bench_function("a breaker asked and told", |bencher| {
        bencher.iter(|| {
            assert!(breaker.admit(black_box(now)));
            breaker.succeeded(now);
        });
    });
}

fn message() -> Vec<u8> {
    let text = LINE.iter().copied().cycle().take(SIZE - HEADER.len() - 2);
    [HEADER, &text.collect::<Vec<u8>>(), b"\r\n"].concat()
}

fn settings() -> Settings {
    Settings {
        hostname: "relay.example.com".into(),
        postmaster: Mailbox::parse(b"postmaster@example.com").unwrap(),
        max_message_size: 25 << 20,
        max_recipients: 100,
        max_text_line: 1 << 20,
        max_errors: 20,
        max_messages: 1000,
        command_timeout: Duration::from_mins(5),
        data_timeout: Duration::from_mins(3),
        bare_newline: BareNewline::Normalize,
        starttls: false,
    }
}
