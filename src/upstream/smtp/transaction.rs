//! One message over one connection: MAIL, RCPT, DATA, content, the final dot and its reply.

use std::fmt::Write as _;
use std::io;

use bytes::Bytes;

use super::capabilities::Capabilities;
use super::classify::{brief, is_farewell, lost, refusal, unsuited};
use super::connect::Connection;
use super::error::{Cause, Problem};
use super::settings::Timeouts;
use crate::mail::{
    Blame, Body, BodyKind, EnhancedStatus, Envelope, Handoff, Recipient, RecipientOutcome, Reply,
    Ret, Stage,
};
use crate::smtp::stuff::Stuffer;
use crate::upstream::Leaving;

/// Commands sent without waiting for replies. Their replies must fit the socket buffers of both
/// sides, or two peers that only write would wait for each other for ever.
const FLIGHT: usize = 100;

/// Octets of the message read at a time, and about as many written at a time.
const BLOCK: usize = 64 * 1024;

/// What came of a transaction.
#[derive(Debug)]
pub(crate) struct Finished {
    /// One for each recipient of the envelope, in its order.
    pub(crate) recipients: Vec<RecipientOutcome>,
    /// What became of the connection.
    pub(crate) condition: Condition,
}

/// What became of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Condition {
    /// It can take the next message.
    Good,
    /// It may be asked to QUIT; the upstream refused us on it.
    Unwanted,
    /// It broke before any octet of content was sent: if it had been idle, a fresh one may do.
    Stale,
    /// It broke.
    Broken,
}

/// Hands one message over, as far as the upstream lets us.
pub(crate) async fn transact(
    connection: &mut Connection,
    envelope: &Envelope,
    body: &Body,
    leaving: &dyn Leaving,
    timeouts: &Timeouts,
) -> Finished {
    if let Some(refused) = missing(&connection.capabilities, envelope, body.len()) {
        let recipients = vec![refused; envelope.recipients.len()];
        return Finished { recipients, condition: Condition::Good };
    }
    connection.transactions += 1;
    let verdicts = vec![None; envelope.recipients.len()];
    let mut transaction = Transaction {
        connection,
        envelope,
        body,
        leaving,
        timeouts,
        verdicts,
        mail_refused: false,
        open: false,
        content_sent: false,
    };
    let end = transaction.run().await;
    transaction.finish(end)
}

/// What the message needs and the upstream lacks. Nothing has been sent then.
fn missing(offered: &Capabilities, envelope: &Envelope, size: u64) -> Option<RecipientOutcome> {
    let refuse = |subject, detail, text: String| {
        Some(unsuited(Stage::Mail, EnhancedStatus::new(5, subject, detail), text))
    };
    if let Some(limit) = offered.size.filter(|limit| size > *limit) {
        return refuse(3, 4, format!("message of {size} octets; the upstream takes {limit}"));
    }
    if envelope.body == BodyKind::EightBitMime && !offered.eight_bit_mime {
        return refuse(6, 3, "8-bit message; the upstream does not offer 8BITMIME".into());
    }
    if needs_utf8(envelope) && !offered.smtputf8 {
        return refuse(6, 7, "SMTPUTF8 is needed; the upstream does not offer it".into());
    }
    None
}

fn needs_utf8(envelope: &Envelope) -> bool {
    envelope.smtputf8 || envelope.has_utf8_address()
}

#[derive(Clone, Copy, Debug)]
enum Command {
    Reset,
    Mail,
    Rcpt(usize),
    Data,
}

impl Command {
    const fn stage(self) -> Stage {
        match self {
            Self::Reset | Self::Mail => Stage::Mail,
            Self::Rcpt(_) => Stage::Rcpt,
            Self::Data => Stage::Data,
        }
    }
}

/// Why a transaction ended with its connection.
struct Break {
    problem: Problem,
    handoff: Handoff,
}

impl From<Problem> for Break {
    fn from(problem: Problem) -> Self {
        Self { problem, handoff: Handoff::NotSent }
    }
}

struct Transaction<'a> {
    connection: &'a mut Connection,
    envelope: &'a Envelope,
    body: &'a Body,
    leaving: &'a dyn Leaving,
    timeouts: &'a Timeouts,
    /// `None` as long as a recipient is not refused.
    verdicts: Vec<Option<RecipientOutcome>>,
    mail_refused: bool,
    /// Whether the upstream waits for content, or has begun to take it.
    open: bool,
    content_sent: bool,
}

impl Transaction<'_> {
    /// The dialogue; the reply to the final dot if it came to that.
    async fn run(&mut self) -> Result<Option<Reply>, Break> {
        if !self.commands().await? {
            return Ok(None);
        }
        if self.accepted() {
            self.open = true;
            return self.content().await.map(Some);
        }
        // The upstream opened the data although it refused every recipient (RFC 2920 section 3.1):
        // an empty message for nobody ends that.
        let failed = |cause: Cause| cause.at(Stage::Data);
        let dialogue = &mut self.connection.dialogue;
        dialogue.send(b".\r\n", self.timeouts.command).await.map_err(failed)?;
        dialogue.reply(self.timeouts.command).await.map_err(failed)?;
        Ok(None)
    }

    /// Sends everything up to DATA, in as few flights as the upstream allows; whether it now waits
    /// for content.
    async fn commands(&mut self) -> Result<bool, Break> {
        let mut commands = Vec::with_capacity(self.verdicts.len() + 3);
        if self.connection.needs_reset {
            commands.push(Command::Reset);
        }
        commands.push(Command::Mail);
        commands.extend((0..self.verdicts.len()).map(Command::Rcpt));
        commands.push(Command::Data);
        self.connection.needs_reset = true;
        let flight = if self.connection.capabilities.pipelining { FLIGHT } else { 1 };
        let mut open = false;
        for flight in commands.chunks(flight) {
            let only_data = matches!(flight, [Command::Data]);
            if self.mail_refused || only_data && !self.accepted() {
                return Ok(false);
            }
            let stage = flight.first().map_or(Stage::Mail, |c| c.stage());
            let lines: String = flight.iter().map(|c| self.line(*c)).collect();
            let limit = self.timeouts.command;
            let sent = self.connection.dialogue.send(lines.as_bytes(), limit).await;
            sent.map_err(|c| c.at(stage))?;
            for command in flight {
                let reply = self.connection.dialogue.reply(limit).await;
                let reply = reply.map_err(|c| c.at(command.stage()))?;
                open = self.answer(*command, reply).map_err(|c| c.at(command.stage()))?;
            }
        }
        Ok(open)
    }

    /// Takes the reply to a command; whether the upstream now waits for content.
    fn answer(&mut self, command: Command, reply: Reply) -> Result<bool, Cause> {
        let no = reply.is_transient() || reply.is_permanent();
        if reply.code() == 421 {
            return Err(Cause::Refused(reply));
        }
        match command {
            Command::Data if reply.code() == 354 && !self.mail_refused => return Ok(true),
            Command::Mail | Command::Reset | Command::Rcpt(_) if reply.is_positive() => {}
            Command::Mail if no => {
                self.mail_refused = true;
                self.verdicts.fill(Some(refusal(Stage::Mail, &reply)));
            }
            Command::Rcpt(_) | Command::Data if no && self.mail_refused => {}
            Command::Rcpt(i) if no => {
                if let Some(verdict) = self.verdicts.get_mut(i) {
                    *verdict = Some(refusal(Stage::Rcpt, &reply));
                }
            }
            Command::Data if no => self.decide(&refusal(Stage::Data, &reply)),
            _ => return Err(Cause::Unexpected(reply)),
        }
        Ok(false)
    }

    /// Whether a recipient was not refused.
    fn accepted(&self) -> bool {
        self.verdicts.iter().any(Option::is_none)
    }

    /// The same for every recipient that was not refused.
    fn decide(&mut self, outcome: &RecipientOutcome) {
        for verdict in self.verdicts.iter_mut().filter(|v| v.is_none()) {
            *verdict = Some(outcome.clone());
        }
    }

    /// The content and the final dot; the reply to it.
    async fn content(&mut self) -> Result<Reply, Break> {
        let refused = self.verdicts.iter().enumerate().filter(|(_, verdict)| verdict.is_some());
        let refused: Vec<usize> = refused.map(|(place, _)| place).collect();
        let leave = self.leaving.content_leaves(&refused).await;
        leave.map_err(|why| Cause::NoLeave(why).at(Stage::Storage))?;
        let (mut stuffer, mut out, mut offset) = (Stuffer::default(), Vec::new(), 0);
        let limit = self.timeouts.data;
        loop {
            let block = read(self.body, offset).await;
            let block = block.map_err(|e| Cause::Io(e).at(Stage::Storage))?;
            let bare = |_| Cause::BareNewline.at(Stage::Data);
            stuffer.push(&block, &mut out).map_err(bare)?;
            offset += block.len() as u64;
            if offset >= self.body.len() {
                stuffer.finish(&mut out).map_err(bare)?;
                break;
            }
            self.content_sent = true;
            let sent = self.connection.dialogue.send(&out, limit).await;
            if let Err(cause) = sent {
                // It may have told why before it hung up.
                let told = self.connection.dialogue.quiet().err().filter(|c| c.reply().is_some());
                return Err(told.unwrap_or(cause).at(Stage::Data).into());
            }
            out.clear();
        }
        // A reply that is there before the dot is not the reply to the dot.
        let dialogue = &mut self.connection.dialogue;
        dialogue.quiet().map_err(|c| c.at(Stage::Data))?;
        self.content_sent = true;
        if let Err(e) = dialogue.write(&out, limit).await {
            let handoff = if e.complete { Handoff::Unknown } else { Handoff::NotSent };
            return Err(Break { problem: e.cause.at(Stage::Data), handoff });
        }
        match dialogue.reply(self.timeouts.end_of_data).await {
            Ok(reply) if reply.code() / 100 != 3 => Ok(reply),
            Ok(reply) => Err(unknown(Cause::Unexpected(reply))),
            Err(cause) => Err(unknown(cause)),
        }
    }

    /// Settles every recipient.
    fn finish(mut self, end: Result<Option<Reply>, Break>) -> Finished {
        let mut condition = Condition::Good;
        match end {
            Ok(Some(reply)) if reply.is_positive() => {
                self.connection.needs_reset = false;
                self.decide(&RecipientOutcome::Sent { reply: brief(&reply) });
            }
            Ok(Some(reply)) => {
                self.decide(&refusal(Stage::EndOfData, &reply));
                if reply.code() == 421 {
                    condition = Condition::Broken;
                }
            }
            Ok(None) => {}
            Err(Break { problem, handoff }) => {
                self.decide(&match &problem.cause {
                    // Said of the content, before all of it was there.
                    Cause::Refused(reply) if self.open && !is_farewell(reply) => {
                        refusal(Stage::Data, reply)
                    }
                    _ => lost(&problem, handoff),
                });
                let stale = !self.content_sent && problem.stage != Stage::Storage;
                condition = if stale { Condition::Stale } else { Condition::Broken };
            }
        }
        let recipients: Vec<_> = self.verdicts.into_iter().flatten().collect();
        if condition == Condition::Good {
            condition = judge(&recipients, self.content_sent);
        }
        Finished { recipients, condition }
    }
}

/// What the verdicts say about the connection they came by.
fn judge(recipients: &[RecipientOutcome], content_sent: bool) -> Condition {
    let failures = || recipients.iter().filter_map(RecipientOutcome::failure);
    let farewell = failures().filter_map(|f| f.reply.as_ref()).any(is_farewell);
    if farewell && !content_sent {
        return Condition::Stale;
    }
    let refused = failures().any(|f| f.blame == Blame::Upstream);
    if refused { Condition::Unwanted } else { Condition::Good }
}

fn unknown(cause: Cause) -> Break {
    Break { problem: cause.at(Stage::EndOfData), handoff: Handoff::Unknown }
}

/// One block of the message; from the disk without holding up other tasks.
async fn read(body: &Body, offset: u64) -> io::Result<Bytes> {
    let block = if body.is_stored() {
        let body = body.clone();
        let reading = tokio::task::spawn_blocking(move || body.chunk(offset, BLOCK));
        reading.await.map_err(io::Error::other)??
    } else {
        body.chunk(offset, BLOCK)?
    };
    if block.is_empty() && offset < body.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(block)
}

impl Transaction<'_> {
    /// A command as it goes over the wire.
    fn line(&self, command: Command) -> String {
        let offered = &self.connection.capabilities;
        match command {
            Command::Reset => "RSET\r\n".into(),
            Command::Mail => mail_line(self.envelope, offered, self.body.len()),
            Command::Rcpt(i) => {
                let recipient = self.envelope.recipients.get(i);
                recipient.map(|r| rcpt_line(r, offered)).unwrap_or_default()
            }
            Command::Data => "DATA\r\n".into(),
        }
    }
}

/// MAIL with every parameter the upstream offers. The address cannot hold what ends it: that is
/// [`Mailbox`](crate::mail::Mailbox)'s promise.
fn mail_line(envelope: &Envelope, offered: &Capabilities, size: u64) -> String {
    let mut line = format!("MAIL FROM:<{}>", envelope.reverse_path);
    if offered.size_offered {
        let _ = write!(line, " SIZE={size}");
    }
    if envelope.body == BodyKind::EightBitMime {
        line.push_str(" BODY=8BITMIME");
    }
    if needs_utf8(envelope) {
        line.push_str(" SMTPUTF8");
    }
    if offered.dsn {
        match envelope.ret {
            Some(Ret::Full) => line.push_str(" RET=FULL"),
            Some(Ret::Hdrs) => line.push_str(" RET=HDRS"),
            None => {}
        }
        if let Some(id) = envelope.envid.as_deref().filter(|id| is_parameter(id)) {
            let _ = write!(line, " ENVID={id}");
        }
    }
    line.push_str("\r\n");
    line
}

fn rcpt_line(recipient: &Recipient, offered: &Capabilities) -> String {
    let mut line = format!("RCPT TO:<{}>", recipient.path);
    if offered.dsn {
        if let Some(notify) = recipient.notify {
            let _ = write!(line, " NOTIFY={}", notify.keyword());
        }
        if let Some(original) = recipient.orcpt.as_deref().filter(|o| is_parameter(o)) {
            let _ = write!(line, " ORCPT={original}");
        }
    }
    line.push_str("\r\n");
    line
}

/// Whether a stored parameter can go into a command as it is.
fn is_parameter(value: &str) -> bool {
    !value.is_empty() && value.bytes().all(|b| b.is_ascii_graphic())
}
