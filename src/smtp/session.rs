//! One client's session.
//!
//! The contract: *every `receive`, `decided`, `tls_started`, `drain` or `timed_out` is followed by
//! `step` until it returns [`Step::Read`] or [`Step::Close`].* While a verdict is owed, input is
//! not consumed: that is the backpressure. What is sent and what is accepted is the same however
//! the input is cut into pieces; only the borders of [`Step::Send`] and [`Step::Body`] differ.

mod commands;
mod content;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::command::{self, Command};
use super::lines::{Line, Lines};
use super::replies;
use super::transaction::{Chunk, Content, Transaction};
use crate::mail::{Envelope, Mailbox, QueueId, Recipient, Reply, ReversePath};

/// How long a refused client may take to say QUIT.
const REFUSED_WAIT: Duration = Duration::from_secs(5);

/// How many commands a refused client may send before it is cut off.
const REFUSED_COMMANDS: usize = 5;

/// Replies that may pile up before they are sent, in octets. A client that pipelines more than
/// that has to read.
const REPLIES_MAX: usize = 16 * 1024;

/// The first octet of a TLS handshake: somebody took this port for one with implicit TLS.
const TLS_HANDSHAKE: u8 = 0x16;

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
    /// Malformed and misplaced commands in a session, counted anew after every queued message; the
    /// one that reaches this number is answered 421 4.7.0.
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
pub struct Session {
    settings: Arc<Settings>,
    state: State,
    lines: Lines,
    /// Replies that were not handed out yet.
    replies: Vec<u8>,
    /// A step that has to wait until the replies before it are out.
    next: Option<Step>,
    dialect: Dialect,
    helo: String,
    tls: bool,
    draining: bool,
    errors: usize,
    messages: usize,
    /// Whether something was completed since the last [`Step::Read`]: then the wait begins anew.
    progress: bool,
    waiting_since: Instant,
}

/// What is expected next.
#[derive(Debug)]
enum State {
    /// The greeting is still to be sent.
    Greeting { greeting: Reply, refused: bool },
    /// Commands from a client that is not served.
    Refused { commands: usize },
    /// A command, no transaction being open.
    Idle,
    /// The verdict on MAIL.
    Beginning(Box<Transaction>),
    /// RCPT, DATA or BDAT.
    Open(Box<Transaction>),
    /// The octets of the message and its end, after DATA.
    Data(Box<Content>),
    /// BDAT again, or the end of the transaction.
    BetweenChunks(Box<Content>),
    /// The octets of a chunk.
    Chunk(Box<Content>, Chunk),
    /// The octets of a chunk nobody wants; then this reply.
    UnwantedChunk { left: u64, reply: &'static str },
    /// The message is complete and was not handed out yet.
    Complete(Box<Envelope>),
    /// The verdict on the message.
    Deciding,
    /// The TLS handshake.
    Handshake,
    /// Nothing more.
    Closing,
}

/// How the client introduced itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    Unknown,
    Smtp,
    Esmtp,
}

impl Session {
    /// A session with an admitted client; the first step greets it.
    pub fn new(settings: Arc<Settings>, now: Instant) -> Self {
        let greeting = Reply::bare(220, format!("{} ESMTP Postgate", settings.hostname));
        Self::greeting(settings, greeting, false, now)
    }

    /// A session with a client that is not let in: `greeting` (554 or 421), then only QUIT is
    /// served and everything else gets 503, for a short while (RFC 5321 section 3.1). After a 421
    /// the connection closes at once.
    pub fn refusing(settings: Arc<Settings>, greeting: Reply, now: Instant) -> Self {
        Self::greeting(settings, greeting, true, now)
    }

    fn greeting(settings: Arc<Settings>, greeting: Reply, refused: bool, now: Instant) -> Self {
        Self {
            settings,
            state: State::Greeting { greeting, refused },
            lines: Lines::default(),
            replies: Vec::new(),
            next: None,
            dialect: Dialect::Unknown,
            helo: String::new(),
            tls: false,
            draining: false,
            errors: 0,
            messages: 0,
            progress: true,
            waiting_since: now,
        }
    }

    /// Takes octets from the client.
    pub fn receive(&mut self, bytes: &[u8], now: Instant) {
        if matches!(self.state, State::Closing | State::Handshake) {
            return;
        }
        if self.expects_content() && !bytes.is_empty() {
            self.waiting_since = now;
        }
        self.lines.push(bytes);
    }

    /// What to do next.
    pub fn step(&mut self, now: Instant) -> Step {
        loop {
            if let Some(step) = self.next.take() {
                let replies_first = !matches!(step, Step::Body(_) | Step::Begin(_) | Step::Discard);
                if replies_first && !self.replies.is_empty() {
                    self.next = Some(step);
                    return self.send();
                }
                return step;
            }
            if self.replies.len() >= REPLIES_MAX {
                return self.send();
            }
            match self.advance() {
                Progress::Step(step) => self.next = Some(step),
                Progress::Made => {}
                Progress::Starved if self.replies.is_empty() => return self.read(now),
                Progress::Starved => return self.send(),
            }
        }
    }

    /// The verdict that was owed.
    pub fn decided(&mut self, verdict: Verdict) {
        self.progress = true;
        match (self.take_state(), verdict) {
            (State::Beginning(transaction), Verdict::Go) => {
                self.state = State::Open(transaction);
                self.say(replies::SENDER_OK);
            }
            (State::Deciding, Verdict::Queued(id)) => {
                self.state = State::Idle;
                self.errors = 0;
                self.say(&format!("{}: queued as {id}", replies::OK));
            }
            (State::Beginning(_) | State::Deciding, Verdict::Refused(reply)) => {
                self.state = if reply.code() == 421 { State::Closing } else { State::Idle };
                reply.write_to(&mut self.replies);
            }
            (State::Beginning(_) | State::Deciding, _) => {
                self.state = State::Idle;
                self.say(replies::LOCAL_ERROR);
            }
            (state, _) => self.state = state,
        }
    }

    /// The deadline of [`Step::Read`] passed.
    pub fn timed_out(&mut self) {
        if !matches!(self.state, State::Refused { .. } | State::Closing) {
            self.say(replies::TIMED_OUT);
        }
        self.close();
    }

    /// The TLS handshake is done (RFC 3207): the session starts anew, without a greeting.
    pub fn tls_started(&mut self) {
        self.lines.clear();
        self.tls = true;
        self.dialect = Dialect::Unknown;
        self.helo.clear();
        self.state = State::Idle;
        self.progress = true;
    }

    /// The server is going down: answers 421 4.3.2 as soon as no transaction is open.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Octets that were received and not used yet: at most a command line, or what one
    /// [`receive`](Self::receive) brought while a verdict is owed.
    pub fn buffered(&self) -> usize {
        self.lines.octets().len()
    }

    /// The name the client gave with HELO or EHLO; empty before that.
    pub fn helo(&self) -> &str {
        &self.helo
    }

    /// The recipients of the open transaction, in order; empty when there is none.
    pub fn recipients(&self) -> &[Recipient] {
        match &self.state {
            State::Open(transaction) => transaction.recipients(),
            State::Data(content) | State::BetweenChunks(content) | State::Chunk(content, _) => {
                content.recipients()
            }
            State::Complete(envelope) => &envelope.recipients,
            _ => &[],
        }
    }

    /// The protocol for a Received line: SMTP, ESMTP or ESMTPS (RFC 3848).
    pub fn protocol(&self) -> &'static str {
        match (self.dialect, self.tls) {
            (Dialect::Esmtp, true) => "ESMTPS",
            (Dialect::Esmtp, false) => "ESMTP",
            _ => "SMTP",
        }
    }
}

/// What [`Session::advance`] came to.
enum Progress {
    /// The driver has to do something.
    Step(Step),
    /// One more thing is done; there may be more.
    Made,
    /// More octets, or the verdict that is owed, are needed.
    Starved,
}

impl Session {
    /// Does one thing: a command, a piece of a message, or a change of state that waited.
    fn advance(&mut self) -> Progress {
        match self.take_state() {
            State::Greeting { greeting, refused } => self.greet(&greeting, refused),
            State::Refused { commands } => return self.refuse(commands),
            State::Idle if self.draining => self.say_and_close(replies::DRAINING),
            state @ (State::Idle | State::Open(_) | State::BetweenChunks(_)) => {
                return self.read_command(state);
            }
            State::Data(content) => return self.read_data(content),
            State::Chunk(content, chunk) => return self.read_chunk(content, chunk),
            State::UnwantedChunk { left, reply } => return self.skip_chunk(left, reply),
            State::Complete(envelope) => {
                self.state = State::Deciding;
                self.messages += 1;
                return Progress::Step(Step::Accept(*envelope));
            }
            State::Closing => {
                self.close();
                return Progress::Step(Step::Close);
            }
            owed @ (State::Beginning(_) | State::Deciding | State::Handshake) => {
                self.state = owed;
                return Progress::Starved;
            }
        }
        Progress::Made
    }

    fn greet(&mut self, greeting: &Reply, refused: bool) {
        if self.draining {
            self.say_and_close(replies::DRAINING);
        } else if !refused && self.lines.holds_several() {
            self.say_and_close(replies::TALKED_EARLY);
        } else {
            greeting.write_to(&mut self.replies);
            self.state = match (refused, greeting.code()) {
                (_, 421) => State::Closing,
                (true, _) => State::Refused { commands: 0 },
                (false, _) => State::Idle,
            };
        }
    }

    /// Only QUIT is served, and a few times 503 is all the patience there is.
    fn refuse(&mut self, commands: usize) -> Progress {
        self.state = State::Refused { commands: commands + 1 };
        match self.lines.next_line() {
            None => {
                self.state = State::Refused { commands };
                return Progress::Starved;
            }
            Some(Line::Complete(line) | Line::BareLf(line))
                if command::parse(&line) == Ok(Command::Quit) =>
            {
                self.say_and_close(replies::BYE);
            }
            Some(_) if commands + 1 >= REFUSED_COMMANDS => self.say_and_close(replies::REFUSED),
            Some(_) => self.say(replies::REFUSED),
        }
        Progress::Made
    }

    /// A command the client should not have sent. The last one it may send costs it the session.
    fn fail(&mut self, reply: &str) -> Progress {
        self.errors += 1;
        if self.errors >= self.settings.max_errors {
            self.say_and_close(replies::TOO_MANY_ERRORS);
        } else {
            self.say(reply);
        }
        Progress::Made
    }

    fn done(&mut self, reply: &str) -> Progress {
        self.say(reply);
        Progress::Made
    }

    fn say(&mut self, reply: &str) {
        self.replies.extend_from_slice(reply.as_bytes());
        self.replies.extend_from_slice(b"\r\n");
    }

    fn say_and_close(&mut self, reply: &str) {
        self.say(reply);
        self.close();
    }

    fn close(&mut self) {
        self.state = State::Closing;
        self.lines.clear();
    }

    fn send(&mut self) -> Step {
        Step::Send(std::mem::take(&mut self.replies).into())
    }

    /// The wait starts when something was completed, not with every octet: a client that drips a
    /// command has no more time than one that is silent.
    fn read(&mut self, now: Instant) -> Step {
        if std::mem::take(&mut self.progress) {
            self.waiting_since = now;
        }
        let wait = match self.state {
            State::Refused { .. } => REFUSED_WAIT,
            _ if self.expects_content() => self.settings.data_timeout,
            _ => self.settings.command_timeout,
        };
        Step::Read { deadline: self.waiting_since + wait }
    }

    const fn expects_content(&self) -> bool {
        matches!(self.state, State::Data(_) | State::Chunk(..) | State::UnwantedChunk { .. })
    }

    /// The state, to be consumed; every path puts one back.
    fn take_state(&mut self) -> State {
        std::mem::replace(&mut self.state, State::Closing)
    }
}
