//! The golden conversations over TCP: with Postgate to the letter, and where they say so with a real
//! Postfix by the codes.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use socket2::{Domain, Socket, Type};

use crate::conversation::{Compare, Conversation, Event, play};
use crate::support::gate::{Gate, Settings};
use crate::support::postfix::Postfix;
use crate::support::sink::Sink;
use crate::support::{PATIENCE, eventually};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/conversations");
/// What the conversations assume unless they say otherwise, in the words of the configuration. The
/// size is the smallest that can be configured, not theirs.
const ASSUMED: [(&str, &str); 4] = [
    ("max_message_size", "\"64KiB\""),
    ("max_text_line", "\"2000B\""),
    ("max_messages_per_connection", "100"),
    ("max_recipients", "100"),
];
const SIZE_THERE: &str = "SIZE 10000";
const SIZE_HERE: &str = "SIZE 65536";
/// One octet more, as a client announces it.
const TOO_LARGE_THERE: &[u8] = b"SIZE=10001\r\n";
const TOO_LARGE_HERE: &[u8] = b"SIZE=65537\r\n";
/// The first id in memory; on disk they follow the clock.
const ID_THERE: &str = "queued as 0000000000001";
const ID_HERE: &str = "queued as *";
/// The client that is refused, there and here.
const STRANGER_THERE: &str = "192.0.2.1";
const STRANGER_HERE: &str = "127.0.0.66";

#[test]
fn postgate_speaks_every_conversation_over_tcp() {
    let sink = Sink::start();
    let mut groups: BTreeMap<String, Vec<Conversation>> = BTreeMap::new();
    let all = Conversation::load_all(Path::new(FOLDER));
    for conversation in all.into_iter().filter(|c| !c.needs_driver()) {
        if let Some(limits) = limits(&conversation.settings) {
            groups.entry(limits).or_default().push(here(conversation));
        }
    }
    let mut taken = 0;
    let mut failed = Vec::new();
    let played: usize = groups.values().map(Vec::len).sum();
    for (limits, conversations) in groups {
        let gate = Gate::start(&Settings { limits: &limits, ..Settings::plain(sink.address) });
        for conversation in conversations {
            let source = if conversation.refused { STRANGER_HERE } else { "127.0.0.1" };
            let mut stream = connect(source, gate.address);
            failed.extend(play(&mut stream, &conversation, Compare::Lines).err());
            taken += conversation.messages.len();
        }
        eventually(PATIENCE, "the messages that were taken", || {
            (sink.accepted().len() >= taken || !failed.is_empty()).then_some(())
        });
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(played > 25, "only {played} conversations were played");
    assert_eq!(sink.accepted().len(), taken);
}

#[test]
fn postfix_gives_the_same_codes_where_a_conversation_says_so() {
    let sink = Sink::start();
    let postfix = Postfix::start(sink.address);
    let all = Conversation::load_all(Path::new(FOLDER));
    let also = all.iter().filter(|c| c.also.iter().any(|name| name == "postfix"));
    let mut failed = Vec::new();
    let mut played = 0;
    for conversation in also {
        let mut stream = connect("127.0.0.1", postfix.plain);
        failed.extend(play(&mut stream, conversation, Compare::Codes).err());
        played += 1;
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(played > 5, "only {played} conversations were played");
}

/// The lines of `[limits]`; `None` where no configuration allows them, as for very small messages.
fn limits(settings: &[(String, String)]) -> Option<String> {
    let mut limits: BTreeMap<_, _> =
        ASSUMED.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    for (key, value) in settings {
        let value = match key.as_str() {
            "max_recipients" | "max_errors" => value.clone(),
            "bare_newline" => format!("\"{value}\""),
            "max_messages" => {
                limits.insert("max_messages_per_connection".into(), value.clone());
                continue;
            }
            _ => return None,
        };
        limits.insert(key.clone(), value);
    }
    Some(limits.iter().fold(String::new(), |mut text, (key, value)| {
        let _ = writeln!(text, "{key} = {value}");
        text
    }))
}

/// The conversation with our address, size and queue ids.
fn here(mut conversation: Conversation) -> Conversation {
    for event in &mut conversation.events {
        match event {
            Event::Server(pattern) => {
                let text = pattern.text.replace(SIZE_THERE, SIZE_HERE);
                let text = text.replace(STRANGER_THERE, STRANGER_HERE);
                pattern.wild |= text.contains(ID_THERE);
                pattern.text = text.replace(ID_THERE, ID_HERE);
            }
            Event::Client(octets) if octets.ends_with(TOO_LARGE_THERE) => {
                octets.truncate(octets.len() - TOO_LARGE_THERE.len());
                octets.extend_from_slice(TOO_LARGE_HERE);
            }
            _ => {}
        }
    }
    conversation
}

fn connect(source: &str, address: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(source.parse().unwrap(), 0).into()).unwrap();
    socket.connect(&address.into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}
