//! A driver of [`Session`] without sockets: it does at once what every step asks for.
#![allow(dead_code, unreachable_pub, clippy::disallowed_methods)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use postgate::mail::{Envelope, Mailbox, QueueId, Reply};
use postgate::smtp::{BareNewline, Session, Settings, Step, Verdict};

/// What all conversations assume unless they say otherwise.
pub fn settings() -> Settings {
    Settings {
        hostname: "gate.example.test".into(),
        postmaster: Mailbox::parse(b"postmaster@example.test").unwrap(),
        max_message_size: 10_000,
        max_recipients: 100,
        max_text_line: 2000,
        max_errors: 20,
        max_messages: 100,
        command_timeout: Duration::from_mins(5),
        data_timeout: Duration::from_mins(3),
        bare_newline: BareNewline::Normalize,
        starttls: false,
    }
}

pub struct Driver {
    pub session: Session,
    pub now: Instant,
    /// All that was sent to the client.
    pub sent: Vec<u8>,
    pub closed: bool,
    pub deadline: Option<Instant>,
    pub messages: Vec<(Envelope, Vec<u8>)>,
    /// Refusals to give when a verdict is owed, first come, first given.
    pub refusals: VecDeque<Reply>,
    /// How often something was sent, and the most at once.
    pub sends: usize,
    pub largest_send: usize,
    pub handshake: bool,
    /// Refuse every so many verdicts, if not zero.
    pub refuse_every: usize,
    verdicts: usize,
    draft: Option<Vec<u8>>,
    began: bool,
}

impl Driver {
    pub fn new(settings: Settings) -> Self {
        let now = Instant::now();
        Self::with(Session::new(Arc::new(settings), now), now)
    }

    pub fn with(session: Session, now: Instant) -> Self {
        Self {
            session,
            now,
            sent: Vec::new(),
            closed: false,
            deadline: None,
            messages: Vec::new(),
            refusals: VecDeque::new(),
            sends: 0,
            largest_send: 0,
            handshake: false,
            refuse_every: 0,
            verdicts: 0,
            draft: None,
            began: false,
        }
    }

    /// Takes octets and does all that follows from them.
    pub fn feed(&mut self, octets: &[u8]) {
        if !self.closed {
            self.session.receive(octets, self.now);
            self.settle();
        }
    }

    /// Steps until there is nothing to do but wait.
    pub fn settle(&mut self) {
        loop {
            match self.session.step(self.now) {
                Step::Send(octets) => {
                    assert!(!octets.is_empty(), "an empty send");
                    self.sends += 1;
                    self.largest_send = self.largest_send.max(octets.len());
                    self.sent.extend_from_slice(&octets);
                }
                Step::Begin(_) => {
                    assert!(self.draft.is_none(), "a transaction within a transaction");
                    let verdict = self.verdict(Verdict::Go);
                    self.draft = (verdict == Verdict::Go).then(Vec::new);
                    self.session.decided(verdict);
                }
                Step::Body(text) => {
                    assert!(!text.is_empty(), "an empty piece of a message");
                    self.draft
                        .as_mut()
                        .expect("text without a transaction")
                        .extend_from_slice(&text);
                }
                Step::Discard => assert!(self.draft.take().is_some(), "nothing to discard"),
                Step::Accept(envelope) => {
                    assert!(!envelope.recipients.is_empty());
                    let text = self.draft.take().expect("a message without a transaction");
                    let id = QueueId::from_u64(self.messages.len() as u64 + 1);
                    let verdict = self.verdict(Verdict::Queued(id));
                    if matches!(verdict, Verdict::Queued(_)) {
                        self.messages.push((envelope, text));
                    }
                    self.session.decided(verdict);
                }
                Step::StartTls => {
                    self.handshake = true;
                    return;
                }
                Step::Read { deadline } => {
                    self.deadline = Some(deadline);
                    return;
                }
                Step::Close => {
                    self.closed = true;
                    return;
                }
            }
        }
    }

    fn verdict(&mut self, good: Verdict) -> Verdict {
        self.verdicts += 1;
        if self.refuse_every > 0 && self.verdicts.is_multiple_of(self.refuse_every) {
            return Verdict::Refused(Reply::bare(451, "4.3.0 Not now"));
        }
        self.refusals.pop_front().map_or(good, Verdict::Refused)
    }
}

/// The envelope as the conversations write it.
pub fn envelope_text(envelope: &Envelope) -> String {
    use std::fmt::Write;

    use postgate::mail::{BodyKind, Ret};
    let mut text = format!("<{}>", envelope.reverse_path);
    if envelope.body == BodyKind::EightBitMime {
        text += " BODY=8BITMIME";
    }
    if envelope.smtputf8 {
        text += " SMTPUTF8";
    }
    if let Some(ret) = envelope.ret {
        text += if ret == Ret::Full { " RET=FULL" } else { " RET=HDRS" };
    }
    if let Some(envid) = &envelope.envid {
        write!(text, " ENVID={envid}").unwrap();
    }
    for recipient in &envelope.recipients {
        write!(text, " | <{}>", recipient.path).unwrap();
        if let Some(notify) = recipient.notify {
            write!(text, " NOTIFY={}", notify.keyword()).unwrap();
        }
        if let Some(orcpt) = &recipient.orcpt {
            write!(text, " ORCPT={orcpt}").unwrap();
        }
    }
    text
}
