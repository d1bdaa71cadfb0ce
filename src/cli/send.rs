//! `send`: a test message, followed to the upstream's answer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::args::{Global, Send};
use super::client::Client;
use super::out::Out;
use super::{Failure, exit, format};
use crate::clock::{Clock, SystemClock};
use crate::config::{self, Config};
use crate::mail::{Mailbox, QueueId, QueueState};
use crate::server::ListenerTls;
use crate::spool::Entry;

/// How long the server may take for each reply. It answers the last one when the message is safe.
const REPLY: Duration = Duration::from_mins(1);

/// Octets of a reply's lines together, and of one dialogue's replies: more is no SMTP server.
const REPLY_MAX: u64 = 64 << 10;

/// How often the message is asked after.
const POLL: Duration = Duration::from_millis(200);

pub(super) async fn send(global: &Global, options: Send, out: &mut Out) -> Result<(), Failure> {
    let config = load(&global.config(), &options)?;
    let server = match (&options.server, &config) {
        (Some(server), _) => server.clone(),
        (None, Some(config)) => listener(config)?,
        (None, None) => return Err(Failure::new(exit::CONFIG, "name a server with --server")),
    };
    let configured = config.as_ref().map(|c| c.postmaster.clone());
    let Some(from) = options.from.clone().or(configured) else {
        return Err(Failure::new(exit::USAGE, "name a sender with --from"));
    };
    let mut dialogue = Dialogue::open(&server, global.verbose, out).await?;
    let reply = dialogue.message(&from, &options.to, out).await?;
    let id = queue_id(&reply);
    if global.json {
        out.json(&json!({ "server": server, "reply": reply, "queue_id": id }))?;
    } else {
        out.line(&format!("{server}  {reply}"))?;
    }
    out.flush()?;
    let Some(id) = id else {
        out.note("the reply names no queue id of Postgate's: the message cannot be followed");
        return Ok(());
    };
    let client = super::client(global)?;
    follow(&client, id, options.wait, global.json, out).await.map_err(|failure| Failure {
        message: failure
            .message
            .map(|why| format!("{id} was accepted and waits for delivery; {why}")),
        ..failure
    })
}

/// The configuration; not needed when server and sender are given.
fn load(path: &Path, options: &Send) -> Result<Option<Config>, Failure> {
    match config::load(path, &config::environment()) {
        Ok((config, _)) => Ok(Some(config)),
        Err(_) if options.server.is_some() => Ok(None),
        Err(report) => Err(Failure::new(exit::CONFIG, format!("{}\n{report}", report.summary()))),
    }
}

/// Where the configuration's first listener in clear can be reached from here.
fn listener(config: &Config) -> Result<String, Failure> {
    let clear = |tls: &ListenerTls| !matches!(tls, ListenerTls::Implicit(_));
    let listener = config.listeners.iter().find(|l| clear(&l.tls)).ok_or_else(|| {
        let message = "every listener speaks TLS from the first octet: name a server with --server";
        Failure::new(exit::CONFIG, message)
    })?;
    let address = match listener.address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    Ok(SocketAddr::new(address, listener.address.port()).to_string())
}

/// What stands behind `queued as`.
fn queue_id(reply: &str) -> Option<QueueId> {
    let (_, rest) = reply.rsplit_once("queued as ")?;
    rest.split_whitespace().next()?.parse().ok()
}

/// An SMTP client for one message.
struct Dialogue {
    stream: BufReader<TcpStream>,
    verbose: bool,
}

impl Dialogue {
    async fn open(server: &str, verbose: bool, out: &Out) -> Result<Self, Failure> {
        let connected = timeout(REPLY, TcpStream::connect(server)).await;
        let stream = match connected {
            Ok(Ok(stream)) => stream,
            Ok(Err(e)) => {
                return Err(Failure::new(
                    exit::CONNECT,
                    format!("cannot connect to {server}: {e}"),
                ));
            }
            Err(_) => {
                return Err(Failure::new(exit::CONNECT, format!("no connection to {server}")));
            }
        };
        let mut dialogue = Self { stream: BufReader::new(stream), verbose };
        dialogue.expect('2', exit::GREETING, out).await?;
        Ok(dialogue)
    }

    /// Sends the message and gives the reply to it.
    async fn message(
        &mut self,
        from: &Mailbox,
        to: &Mailbox,
        out: &Out,
    ) -> Result<String, Failure> {
        let utf8 = if from.is_ascii() && to.is_ascii() { "" } else { " SMTPUTF8" };
        self.command("EHLO postgate-send.localdomain", '2', exit::EHLO, out).await?;
        self.command(&format!("MAIL FROM:<{from}>{utf8}"), '2', exit::MAIL, out).await?;
        self.command(&format!("RCPT TO:<{to}>"), '2', exit::RCPT, out).await?;
        self.command("DATA", '3', exit::DATA, out).await?;
        let reply = self.command(&text(from, to), '2', exit::END_OF_DATA, out).await?;
        // The message is theirs now; how they take leave does not matter.
        let _ = self.write("QUIT").await;
        Ok(reply)
    }

    async fn command(
        &mut self,
        text: &str,
        class: char,
        code: u8,
        out: &Out,
    ) -> Result<String, Failure> {
        if self.verbose {
            text.lines().for_each(|line| out.note(&format!("→ {line}")));
        }
        self.write(text).await.map_err(|e| Failure::new(code, format!("connection lost: {e}")))?;
        self.expect(class, code, out).await
    }

    async fn write(&mut self, text: &str) -> std::io::Result<()> {
        self.stream.write_all(format!("{text}\r\n").as_bytes()).await?;
        self.stream.flush().await
    }

    /// Reads a reply; one of another class ends the command with `code`.
    async fn expect(&mut self, class: char, code: u8, out: &Out) -> Result<String, Failure> {
        let read = timeout(REPLY, reply(&mut self.stream)).await;
        let reply = match read {
            Ok(Ok(reply)) => reply,
            Ok(Err(e)) => return Err(Failure::new(code, format!("connection lost: {e}"))),
            Err(_) => {
                return Err(Failure::new(code, format!("no reply in {} s", REPLY.as_secs())));
            }
        };
        if self.verbose {
            reply.lines().for_each(|line| out.note(&format!("← {line}")));
        }
        if reply.starts_with(class) { Ok(reply) } else { Err(Failure::new(code, reply)) }
    }
}

/// All lines of one reply.
async fn reply(stream: &mut BufReader<TcpStream>) -> std::io::Result<String> {
    let mut limited = stream.take(REPLY_MAX);
    let mut lines = Vec::new();
    loop {
        let mut line = Vec::new();
        limited.read_until(b'\n', &mut line).await?;
        if line.last() != Some(&b'\n') {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let last = line.get(3) != Some(&b'-');
        lines.push(String::from_utf8_lossy(&line).trim_end().to_owned());
        if last {
            return Ok(lines.join("\n"));
        }
    }
}

/// The test message, and the dot that ends it.
fn text(from: &Mailbox, to: &Mailbox) -> String {
    let now = SystemClock.wall();
    let id = format!("{}.{}@postgate-send.localdomain", now.as_millis(), std::process::id());
    let lines = [
        format!("Date: {}", now.rfc5322()),
        format!("From: <{from}>"),
        format!("To: <{to}>"),
        "Subject: Test message from Postgate".into(),
        format!("Message-ID: <{id}>"),
        "Auto-Submitted: auto-generated".into(),
        String::new(),
        "This is a test. If you can read it, the mail went all the way.".into(),
        ".".into(),
    ];
    lines.join("\r\n")
}

/// Asks after the message until there is an answer from its upstream, or the time is over.
async fn follow(
    client: &Client,
    id: QueueId,
    wait: Duration,
    json: bool,
    out: &mut Out,
) -> Result<(), Failure> {
    let Ok(answered) = timeout(wait, answer(client, id)).await else {
        let message = format!("ask again with: postgate queue show {id}");
        return Err(Failure::new(exit::DEFERRED, message));
    };
    let (entry, code) = answered?;
    for (recipient, status) in entry.message.recipients() {
        if json {
            let mut value = format::json_recipient(recipient, status);
            if let Some(members) = value.as_object_mut() {
                members.insert("queue_id".into(), json!(id));
            }
            out.json(&value)?;
            continue;
        }
        let told = format::told(status);
        out.line(&format!("{id}  {} <{}>{told}", status.word(), recipient.path))?;
    }
    if code == exit::OK { Ok(()) } else { Err(Failure::silent(code)) }
}

async fn answer(client: &Client, id: QueueId) -> Result<(Entry, u8), Failure> {
    loop {
        let entry: Entry = client.get(&format!("/v1/queue/{id}")).await?;
        if let Some(code) = verdict(&entry) {
            return Ok((entry, code));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The exit code, once there is an answer.
fn verdict(entry: &Entry) -> Option<u8> {
    let m = &entry.message;
    match entry.state {
        QueueState::Sent if m.has_failed() => Some(exit::FAILED),
        QueueState::Sent => Some(exit::OK),
        QueueState::Dead => Some(exit::FAILED),
        QueueState::Held => Some(exit::DEFERRED),
        QueueState::Deferred if m.attempts > 0 => Some(exit::DEFERRED),
        QueueState::Incoming | QueueState::Active | QueueState::Deferred => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_id_is_what_stands_behind_queued_as() {
        let id: QueueId = "0K3X8QZ1M7RWT".parse().unwrap();
        assert_eq!(queue_id("250 2.0.0 Ok: queued as 0K3X8QZ1M7RWT"), Some(id));
        assert_eq!(queue_id("250 2.0.0 Ok: queued as 4XYZabc"), None);
        assert_eq!(queue_id("250 2.0.0 Ok"), None);
    }

    #[test]
    fn the_message_ends_with_the_only_dot_that_stands_alone() {
        let mailbox = Mailbox::parse(b"a@example.com").unwrap();
        let text = text(&mailbox, &mailbox);
        assert!(text.ends_with("\r\n."));
        assert_eq!(text.lines().filter(|line| line.starts_with('.')).count(), 1);
        assert_eq!(text.replace("\r\n", "").matches(['\r', '\n']).count(), 0);
    }
}
