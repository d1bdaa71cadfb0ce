//! What each command does. All of them put a state back, and only RCPT changes a transaction.

use super::{BareNewline, Begin, Dialect, Progress, Session, State, Step, TLS_HANDSHAKE};
use crate::mail::Reply;
use crate::smtp::command::{self, Command, CommandError};
use crate::smtp::lines::Line;
use crate::smtp::transaction::{Chunk, Transaction};
use crate::smtp::{extensions, replies};

impl Session {
    pub(super) fn read_command(&mut self, state: State) -> Progress {
        self.state = state;
        if self.lines.at_line_start() && self.lines.octets().first() == Some(&TLS_HANDSHAKE) {
            self.say_and_close(replies::NOT_SMTP);
            return Progress::Made;
        }
        let Some(line) = self.lines.next_line() else { return Progress::Starved };
        self.progress = true;
        let line = match line {
            Line::Complete(line) => line,
            Line::BareLf(line) if self.settings.bare_newline == BareNewline::Normalize => line,
            Line::BareLf(_) => return self.fail(replies::BARE_LF_COMMAND),
            Line::TooLong => return self.fail(replies::LINE_TOO_LONG),
        };
        match command::parse(&line) {
            Ok(command) => self.run(command),
            Err(error) if error.is_fatal() => {
                self.say_and_close(error.reply());
                Progress::Made
            }
            Err(error) => self.fail(error.reply()),
        }
    }

    fn run(&mut self, command: Command) -> Progress {
        match command {
            Command::Helo(name) => self.hello(name, Dialect::Smtp),
            Command::Ehlo(name) => self.hello(name, Dialect::Esmtp),
            Command::Mail(mail) => self.mail(mail),
            Command::Rcpt(rcpt) => self.rcpt(rcpt),
            Command::Data => self.data(),
            Command::Bdat { size, last } => self.bdat(Chunk { left: size, size, last }),
            Command::Rset => {
                self.say(replies::OK);
                self.abort()
            }
            Command::Noop => self.done(replies::OK),
            Command::Vrfy => self.done(replies::VRFY),
            Command::Help => self.done(replies::HELP),
            Command::Quit => {
                self.say_and_close(replies::BYE);
                Progress::Made
            }
            Command::StartTls => self.start_tls(),
        }
    }

    fn hello(&mut self, name: String, dialect: Dialect) -> Progress {
        self.helo = name;
        self.dialect = dialect;
        let reply = match dialect {
            Dialect::Esmtp => extensions::ehlo(&self.settings, self.tls),
            _ => Reply::bare(250, self.settings.hostname.clone()),
        };
        reply.write_to(&mut self.replies);
        self.abort()
    }

    fn mail(&mut self, mail: command::Mail) -> Progress {
        if self.dialect == Dialect::Unknown {
            return self.fail(replies::HELO_FIRST);
        }
        if !matches!(self.state, State::Idle) {
            return self.fail(replies::NESTED_MAIL);
        }
        if self.messages >= self.settings.max_messages {
            self.say_and_close(replies::TOO_MANY_MESSAGES);
            return Progress::Made;
        }
        if mail.size.is_some_and(|size| size > self.settings.max_message_size) {
            return self.done(replies::TOO_BIG);
        }
        let begin = Begin { reverse_path: mail.reverse_path.clone(), size: mail.size };
        self.state = State::Beginning(Box::new(Transaction::new(mail)));
        Progress::Step(Step::Begin(begin))
    }

    fn rcpt(&mut self, rcpt: command::Rcpt) -> Progress {
        let transaction = match &mut self.state {
            State::Open(transaction) => transaction,
            State::BetweenChunks(_) => return self.fail(replies::CHUNKS_OPEN),
            _ => return self.fail(replies::MAIL_FIRST),
        };
        if transaction.recipients().len() >= self.settings.max_recipients {
            return self.done(replies::TOO_MANY_RECIPIENTS);
        }
        if transaction.add(rcpt, &self.settings.postmaster) {
            self.done(replies::RECIPIENT_OK)
        } else {
            self.fail(CommandError::Utf8.reply())
        }
    }

    fn data(&mut self) -> Progress {
        match self.take_state() {
            State::Open(transaction) if !transaction.recipients().is_empty() => {
                self.state = State::Data(Box::new(transaction.data(&self.settings)));
                self.done(replies::START_MAIL)
            }
            state => {
                let reply = match state {
                    State::Open(_) => replies::NO_RECIPIENTS,
                    State::BetweenChunks(_) => replies::CHUNKS_OPEN,
                    _ => replies::MAIL_FIRST,
                };
                self.state = state;
                self.fail(reply)
            }
        }
    }

    /// The octets of a chunk follow whatever we think of it, so they are read in any case; an
    /// unwanted one ends the transaction, lest a later chunk be taken for the whole message.
    fn bdat(&mut self, chunk: Chunk) -> Progress {
        let content = match self.take_state() {
            State::Open(transaction) if !transaction.recipients().is_empty() => {
                Box::new(transaction.chunks(&self.settings))
            }
            State::BetweenChunks(content) => content,
            state => {
                let open = matches!(state, State::Open(_));
                let reply = if open { replies::NO_RECIPIENTS } else { replies::MAIL_FIRST };
                self.state = State::UnwantedChunk { left: chunk.left, reply };
                return if open { Progress::Step(Step::Discard) } else { Progress::Made };
            }
        };
        self.state = State::Chunk(content, chunk);
        Progress::Made
    }

    fn start_tls(&mut self) -> Progress {
        if self.tls {
            return self.fail(replies::TLS_ACTIVE);
        }
        if !self.settings.starttls {
            return self.fail(replies::TLS_NOT_OFFERED);
        }
        if !matches!(self.state, State::Idle) {
            return self.fail(replies::NESTED_MAIL);
        }
        // What came behind the command was sent in clear, by whomever: it must not be taken for
        // something that came through TLS.
        self.lines.clear();
        self.say(replies::START_TLS);
        self.state = State::Handshake;
        Progress::Step(Step::StartTls)
    }

    /// Ends the transaction, if one is open, without a message.
    fn abort(&mut self) -> Progress {
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Open(_) | State::BetweenChunks(_) => Progress::Step(Step::Discard),
            _ => Progress::Made,
        }
    }
}
