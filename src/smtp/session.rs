//! One client's session.
//!
//! The contract: *every `receive`, `decided`, `tls_started` or `timed_out` is followed by `step`
//! until it returns [`Step::Read`] or [`Step::Close`].* While a verdict is owed, input is not
//! consumed: that is the backpressure. The steps are the same however the input is cut into pieces.
#![allow(clippy::all, clippy::pedantic, unused)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::mail::{Envelope, Mailbox, QueueId, Reply, ReversePath};

/// What a session is allowed and how it presents itself.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Our own name: greeting, EHLO response.
    pub hostname: String,
    /// The mailbox that `RCPT TO:<Postmaster>` means (RFC 5321 section 4.5.1).
    pub postmaster: Mailbox,
    /// Octets of a message; announced as SIZE, 552 above.
    pub max_message_size: u64,
    /// Recipients of a message; 452 4.5.3 above.
    pub max_recipients: usize,
    /// Octets of a line of message text without its CRLF; 550 5.6.0 above, never folded.
    pub max_text_line: usize,
    /// Errors in a session; 421 4.7.0 above.
    pub max_errors: usize,
    /// Messages in a session; 421 4.7.0 above, between transactions.
    pub max_messages: usize,
    /// Wait for a command (RFC 5321 section 4.5.3.2.7); then 421 4.4.2.
    pub command_timeout: Duration,
    /// Wait for the next octets of a message.
    pub data_timeout: Duration,
    /// What to do with a bare CR or LF in message text.
    pub bare_newline: BareNewline,
    /// Whether STARTTLS is offered.
    pub starttls: bool,
}

/// What becomes of a CR without LF, or LF without CR, in message text. Neither ever ends a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum BareNewline {
    /// It becomes CRLF in the stored message.
    #[default]
    Normalize,
    /// 550 5.6.11.
    Reject,
}

/// What the driver has to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Write this to the client.
    Send(Bytes),
    /// A transaction starts. A verdict is owed: [`Verdict::Go`] or [`Verdict::Refused`].
    Begin(Begin),
    /// More of the message, dot-unstuffed, lines ended by CRLF.
    Body(Bytes),
    /// What came by [`Step::Body`] since [`Step::Begin`] is void: forget it.
    Discard,
    /// The message is complete. A verdict is owed: [`Verdict::Queued`] or [`Verdict::Refused`].
    Accept(Envelope),
    /// 220 was sent: do the TLS handshake, then call [`Session::tls_started`]. Octets that were
    /// received before it are already thrown away.
    StartTls,
    /// Read from the client; call [`Session::timed_out`] when nothing came by then.
    Read {
        /// When to stop waiting.
        deadline: Instant,
    },
    /// Close the connection. Anything to say was sent before.
    Close,
}

/// The start of a transaction: what MAIL FROM said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begin {
    /// Who sends.
    pub reverse_path: ReversePath,
    /// The SIZE parameter, in octets (RFC 1870).
    pub size: Option<u64>,
}

/// The driver's answer to a [`Step`] that owes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The transaction may go on.
    Go,
    /// The message is on stable storage under this id.
    Queued(QueueId),
    /// No; this is the reply.
    Refused(Reply),
}

/// The protocol state of one connection.
#[derive(Debug)]
pub struct Session {}

impl Session {
    /// A session with an admitted client; the first step greets it.
    pub fn new(settings: Arc<Settings>, now: Instant) -> Self {
        todo!()
    }

    /// A session with a client that is not let in: `greeting` (554 or 421), then only QUIT is
    /// served and everything else gets 503, for a short while (RFC 5321 section 3.1).
    pub fn refusing(settings: Arc<Settings>, greeting: Reply, now: Instant) -> Self {
        todo!()
    }

    /// Takes octets from the client.
    pub fn receive(&mut self, bytes: &[u8], now: Instant) {
        todo!()
    }

    /// What to do next.
    pub fn step(&mut self, now: Instant) -> Step {
        todo!()
    }

    /// The verdict that was owed.
    pub fn decided(&mut self, verdict: Verdict) {
        todo!()
    }

    /// The deadline of [`Step::Read`] passed.
    pub fn timed_out(&mut self) {
        todo!()
    }

    /// The TLS handshake is done (RFC 3207): the session starts anew, without a greeting.
    pub fn tls_started(&mut self) {
        todo!()
    }

    /// The server is going down: answers 421 4.3.2 as soon as no transaction is open.
    pub fn drain(&mut self) {
        todo!()
    }

    /// The name the client gave with HELO or EHLO; empty before that.
    pub fn helo(&self) -> &str {
        todo!()
    }

    /// The protocol for a Received line: SMTP, ESMTP or ESMTPS (RFC 3848).
    pub fn protocol(&self) -> &'static str {
        todo!()
    }
}
