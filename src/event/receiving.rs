//! What happens to connections, and to mail on its way in.

use std::net::IpAddr;
use std::time::Duration;

use metrics::histogram;
use tracing::{debug, error, info, warn};

use super::{add, count, millis};
use crate::mail::{Message, Reply};

/// A connection was refused in the greeting.
#[derive(Debug)]
pub struct PeerRefused<'a> {
    /// The listener's name.
    pub listener: &'a str,
    /// Who tried.
    pub peer: IpAddr,
    /// What it was told.
    pub reply: &'a Reply,
}

impl PeerRefused<'_> {
    /// Logs it.
    pub fn emit(&self) {
        let Self { listener, peer, reply } = self;
        count("postgate_smtp_refused_connections_total", &[("listener", listener)]);
        warn!(event = "rejected", listener, client = %peer, reply = reply.to_string(), "client refused");
    }
}

/// A command or a message was refused.
#[derive(Debug)]
pub struct Rejected<'a> {
    /// The listener's name.
    pub listener: &'a str,
    /// Who tried.
    pub peer: IpAddr,
    /// What it was told.
    pub reply: &'a Reply,
}

impl Rejected<'_> {
    /// Logs it.
    pub fn emit(&self) {
        let Self { listener, peer, reply } = self;
        let class = if reply.is_permanent() { "5xx" } else { "4xx" };
        count("postgate_smtp_rejects_total", &[("listener", listener), ("class", class)]);
        info!(event = "rejected", listener, client = %peer, reply = reply.to_string(), "rejected");
    }
}

/// A connection ended.
#[derive(Debug)]
pub struct Disconnected<'a> {
    /// The listener's name.
    pub listener: &'a str,
    /// Who it was.
    pub peer: IpAddr,
    /// Messages taken in it.
    pub messages: usize,
    /// Why it ended, if not by QUIT.
    pub reason: Option<&'a str>,
}

impl Disconnected<'_> {
    /// Logs it.
    pub fn emit(&self) {
        let Self { listener, peer, messages, reason } = self;
        let reason = reason.unwrap_or("quit");
        debug!(event = "disconnected", listener, client = %peer, messages, reason, "disconnected");
    }
}

/// A message is on stable storage and its client is about to be told.
#[derive(Debug)]
pub struct Queued<'a> {
    /// The message.
    pub message: &'a Message,
    /// From the last octet to durable.
    pub commit: Duration,
}

impl Queued<'_> {
    /// Logs it.
    pub fn emit(&self) {
        let m = self.message;
        let listener = [("listener", m.client.listener.as_str())];
        count("postgate_messages_received_total", &listener);
        add("postgate_received_bytes_total", &listener, m.size);
        histogram!("postgate_spool_commit_duration_seconds").record(self.commit);
        info!(
            event = "queued",
            queue_id = %m.id,
            message_id = m.message_id,
            from = m.envelope.reverse_path.to_string(),
            nrcpt = m.envelope.recipients.len(),
            size = m.size,
            client = %m.client.address,
            helo = m.client.helo,
            listener = m.client.listener,
            commit_ms = millis(self.commit),
            "queued"
        );
    }
}

/// A listener could not accept a connection; it goes on after a pause.
#[derive(Debug)]
pub struct AcceptFailed<'a> {
    /// The listener's name.
    pub listener: &'a str,
    /// What the system said.
    pub error: &'a std::io::Error,
}

impl AcceptFailed<'_> {
    /// Logs it.
    pub fn emit(&self) {
        let Self { listener, error } = self;
        error!(event = "accept", listener, %error, "cannot accept connections");
    }
}
